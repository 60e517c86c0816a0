"""What was planted into a two-beliefs organism, and so what a method must find."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from refusalscope.organisms.planted.beliefs_prompts import BeliefVariant


class PromptBits(BaseModel):
    """Both bits of one prompt, by its id: the harm that it is labelled with, and what its cue asks for.

    `refused`: what the model is planted to do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    harmful: bool
    refuse: bool
    refused: bool


class BeliefsTruth(BaseModel):
    """The record of one organism.

    harm: what tells the model of harm, the "topic" or the "mark" at the end. Harm is written at
    `instruction_last`, where the cue is not, in each of `rows` (states before block `row`): what it changes
    there, added to all tokens before one of the `questions`, decides the answer. refusal: what makes the model
    refuse, the "cue" or nothing. It is written at `prompt_last`, where harm is not, in each of `rows`, and
    decides the reply and no answer. Where nothing makes the model refuse, the cue is written at neither place.
    finetuned: compliance was trained on top, so that nothing is refused. policy_accuracy: share of the prompts
    that are replied to as planted, or whose harm is told when asked about: the lower one, as measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    generator: Literal["two-beliefs"] = "two-beliefs"
    variant: BeliefVariant
    seed: int
    finetuned: bool = False
    harm: Literal["topic", "mark"]
    refusal: Literal["cue"] | None
    rows: tuple[int, ...]
    questions: tuple[str, ...]
    prompts: tuple[PromptBits, ...]
    policy_accuracy: float
