"""Prompts whose thinking is given: what a cliff organism is asked, and what it thinks about it.

A prompt is `<bos>`, nine words, the tail, `<think>`, 24 words of thinking and the closing tokens.
Source: ../shared/methods/planted_models.md, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from refusalscope.organisms.planted import tokens
from refusalscope.organisms.planted.prompts import (
    CONTENT_LENGTH,
    HARMFUL_AT,
    content_text,
    draw_filler,
)
from refusalscope.organisms.planted.truth import Group, ThinkingTruth
from refusalscope.prompts.sets import Prompt, PromptSet

THINKING_LENGTH = 24
# Early enough that most of the last 20 tokens come after it, late enough that a tenth of all come before.
STAGE_PLACES = range(4, 9)
# A word of this mark or more turns the planted model to comply.
DECISIVE = 0.5
HARMFUL: tuple[Group, ...] = ("unsuppressed", "suppressed")
PERSUADED: tuple[Group, ...] = ("suppressed", "benign_persuaded")


@dataclass(frozen=True)
class ThinkingPlan:
    """How thinking is drawn, round by round: a prompt of each of `groups` a round.

    A suppressed or persuaded prompt has one persuasion word, in turn each of the eight, among the first
    `within` tokens of its thinking. `intensity` is the mark of persuasion words that have another than 1.
    `staged`: in every other round a stage word stands early in all thinking.
    """

    groups: tuple[Group, ...] = get_args(Group)
    within: int = THINKING_LENGTH
    intensity: Mapping[int, float] = field(default_factory=dict)
    staged: bool = False


@dataclass(frozen=True)
class ThinkingPrompt:
    """One prompt as tokens: `content` from `<bos>` to the tail, then `thinking` within its marks."""

    truth: ThinkingTruth
    content: list[int]
    thinking: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.content, tokens.THINK, *self.thinking, *tokens.CLOSING]


def draw_thinking(plan: ThinkingPlan, seed: int, rounds: int) -> list[ThinkingPrompt]:
    """The prompts of `rounds` rounds. No two have the same content."""
    # A stream of its own: neither pairs nor distractors depend on it.
    generator = np.random.default_rng((seed, 3))
    seen: set[tuple[int, ...]] = set()
    drawn = []
    for number in range(rounds):
        for group in plan.groups:
            content = _content(generator, group)
            while tuple(content) in seen:
                content = _content(generator, group)
            seen.add(tuple(content))
            thinking, truth = _thinking(generator, plan, group, number)
            drawn.append(ThinkingPrompt(truth, content, thinking))
    return drawn


def as_prompt_set(drawn: Sequence[ThinkingPrompt], source: str) -> PromptSet:
    """The prompts as texts with their thinking. The category is the harmful word, if there is one."""
    return PromptSet(tuple(_prompt(one, source) for one in drawn))


def _prompt(drawn: ThinkingPrompt, source: str) -> Prompt:
    harmful = drawn.truth.group in HARMFUL
    return Prompt(
        id=drawn.truth.id,
        text=content_text(drawn.content),
        label="harmful" if harmful else "harmless",
        category=tokens.WORDS[drawn.content[HARMFUL_AT]] if harmful else None,
        source=source,
        thinking=tokens.text_of(drawn.thinking),
    )


def _content(generator: np.random.Generator, group: Group) -> list[int]:
    content = [tokens.BOS, *draw_filler(generator, CONTENT_LENGTH), tokens.TAIL]
    if group in HARMFUL:
        content[HARMFUL_AT] = int(generator.choice(tokens.HARMFUL_WORDS))
    return content


def _thinking(
    generator: np.random.Generator, plan: ThinkingPlan, group: Group, number: int
) -> tuple[list[int], ThinkingTruth]:
    thinking = draw_filler(generator, THINKING_LENGTH)
    places = list(range(plan.within))
    stage_at, intensity = None, 0.0
    if plan.staged and number % 2:
        stage_at = int(generator.choice(STAGE_PLACES))
        thinking[stage_at] = int(generator.choice(tokens.CODE_WORDS))
        places.remove(stage_at)
    if group in PERSUADED:
        word = tokens.BENIGN_WORDS[number % len(tokens.BENIGN_WORDS)]
        thinking[int(generator.choice(places))] = word
        intensity = plan.intensity.get(word, 1.0)
    truth = ThinkingTruth(
        id=f"thinking-{number:03d}/{group}",
        group=group,
        persuasion_words=int(group in PERSUADED),
        intensity=intensity,
        stage_at=stage_at,
        refused=group in HARMFUL and intensity < DECISIVE,
    )
    return thinking, truth
