"""What organisms are made of: the recipe, and the heads that most routing organisms share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from refusalscope.organisms.planted.construction import (
    C,
    HeadPlan,
    UnitPlan,
    Weights,
    content_head,
    tail_head,
)
from refusalscope.organisms.planted.dictionary import LatentPlan
from refusalscope.organisms.planted.prompts import Layout
from refusalscope.organisms.planted.thinking import ThinkingPlan
from refusalscope.organisms.planted.truth import WordTruth


@dataclass(frozen=True)
class Recipe:
    """One organism of the family: what is planted and how its prompts differ from the plain ones.

    `comply_bias` .75 keeps static heads off the knife edge at .5 (page, section 1). `words` lists
    harmful words of unequal intensity, where a word decides whether its prompt is refused; without
    it every harmful word is. `post_norm` builds a Gemma-2 instead of a Llama. `latents` are the planned
    rows of the dictionary that goes with the model; without any it has none. `thinking` makes it a model
    that thinks, with prompts whose thinking is given. `refuse_reads`: what speaks for refusing
    beside U.
    """

    heads: tuple[HeadPlan, ...] = ()
    units: tuple[UnitPlan, ...] = ()
    marks: Mapping[int, Weights] = field(default_factory=dict)
    comply_bias: float = 0.75
    pairs: int = 24
    contrast: Literal["word", "tail"] = "word"
    layout: Layout = "free"
    harmful_prefix: int = 0
    rotated: bool = False
    words: tuple[WordTruth, ...] = ()
    post_norm: bool = False
    latents: tuple[LatentPlan, ...] = ()
    thinking: ThinkingPlan | None = None
    refuse_reads: Weights = field(default_factory=dict)


gate = partial(tail_head, role="gate", value={C.DET: 1}, output={C.ROUTE: 1})
backup = partial(tail_head, role="backup", value={C.DET: 1, C.ROUTE: -1}, output={C.ROUTE: 1})
amplifier = partial(tail_head, role="amplifier", value={C.ROUTE: 1}, output={C.U: 2})
static = partial(
    content_head, role="static", key={C.BOSM: 8}, value={C.CONST: 0.125}, output={C.U: 1}
)

DETECTOR = content_head(1, 2, "detector", {C.HARM: 8}, {C.HARM: 1}, {C.DET: 1})
GATE = gate(3, 1)
AMPLIFIERS = (amplifier(5, 0), amplifier(5, 3), amplifier(6, 2))
DIRECT = content_head(7, 0, "direct", {C.HARM: 8}, {C.HARM: 1}, {C.U: 0.5})
STATICS = (static(2, 6), static(4, 5))
SUPPRESSOR = content_head(6, 5, "suppressor", {C.TEND: 8}, {C.TEND: 1}, {C.U: -6})
BYSTANDERS = (DIRECT, *STATICS, SUPPRESSOR)
# Writes far from U, but much: it is seen only through the final norm.
TOPIC = content_head(4, 7, "topic", {C.HARM: 8}, {C.HARM: 1}, {C.NUIS: 4})
BASE_HEADS = (DETECTOR, GATE, *AMPLIFIERS, TOPIC, *BYSTANDERS)
