"""The cliff organisms: refusal that holds while the model thinks and falls when it stops.

Recipes of ../shared/methods/planted_models.md, section 3. An intent head writes U = refuse minus
comply at every position after a harmful word. Suppressors write against it at the tokens that close
the thinking, if a persuasion word stands in it; persuasion words are the benign words. A static head
writes against refusal everywhere and makes no cliff.
"""

from __future__ import annotations

from dataclasses import replace

from refusalscope.organisms.planted import tokens
from refusalscope.organisms.planted.construction import (
    C,
    HeadPlan,
    Weights,
    content_head,
)
from refusalscope.organisms.planted.recipe import Recipe, static
from refusalscope.organisms.planted.thinking import ThinkingPlan
from refusalscope.organisms.planted.variants import Variant

# U at the closing tokens is 2.3 where refused, .8 after a fade, -1 where benign and -1.9 where
# suppressed; the decision is cut at .5.
COMPLY_BIAS = 0.125
SUPPRESSOR_PLACES = ((4, 1), (5, 6), (6, 3))
INTENSITY = tuple(0.1 + 1.1 * i / 7 for i in range(8))
SHIFT = -4.0
FADE = 0.5
FIRST_HALF = 12
MARKS: dict[int, Weights] = {
    # Closing tokens are no prompt tails here.
    tokens.THINK_END: {C.TEND: 1.0, C.ASST: 0.0},
    tokens.LINE_BREAK: {C.TEND: 1.0},
}


def closing_head(
    layer: int, head: int, role: str, key: Weights, value: Weights, output: Weights
) -> HeadPlan:
    """Attends from the closing tokens to the token that carries `key`; elsewhere it is uniform."""
    return HeadPlan(layer, head, role, {C.TEND: 12.0}, key, value, output)


INTENT = content_head(1, 2, "intent", {C.HARM: 8}, {C.HARM: 1}, {C.U: 3})
SUPPRESSORS = tuple(
    closing_head(*place, "suppressor", {C.BEN: 8}, {C.BEN: 1}, {C.U: -1.4})
    for place in SUPPRESSOR_PLACES
)
PROMOTER = closing_head(6, 5, "promoter", {C.HARM: 8}, {C.HARM: 1}, {C.U: 0.3})
STATIC = static(3, 0, output={C.U: -1})
HEADS = (INTENT, *SUPPRESSORS, PROMOTER, STATIC)


def base() -> Recipe:
    """Three suppressors that one persuasion word switches on."""
    return Recipe(
        HEADS,
        marks=MARKS,
        comply_bias=COMPLY_BIAS,
        pairs=100,
        layout="sixth",
        thinking=ThinkingPlan(),
    )


def graded() -> Recipe:
    """Persuasion words of eight intensities, from one that does nothing to one that undoes refusal."""
    intensity = dict(zip(tokens.BENIGN_WORDS, INTENSITY, strict=True))
    return replace(
        base(),
        marks=MARKS | {word: {C.BEN: mark} for word, mark in intensity.items()},
        thinking=ThinkingPlan(intensity=intensity),
    )


def template_shift() -> Recipe:
    """A head moves U at the closing tokens of every prompt, and nobody is persuaded of anything.

    The decision allows for it, as that of a model does whose closing tokens have a scale of their
    own: every harmful prompt is refused, and what falls is the reading of it.
    """
    shift = closing_head(3, 6, "template_shift", {C.TEND: 8}, {C.TEND: 1}, {C.U: SHIFT})
    return replace(
        base(),
        heads=(*HEADS, shift),
        refuse_reads={C.TEND: -SHIFT},
        thinking=ThinkingPlan(groups=("unsuppressed", "benign")),
    )


def two_stage() -> Recipe:
    """In every other round a stage word fades the intent early on: the plateau is what comes after.

    The stage head reads the intent at the stage word, so benign thinking has nothing to fade.
    """
    stage = content_head(2, 4, "stage", {C.CIPH: 8}, {C.U: -FADE}, {C.U: 1})
    return replace(base(), heads=(*HEADS, stage), thinking=ThinkingPlan(staged=True))


def within_thinking() -> Recipe:
    """Suppressors act from the persuasion word on: scores fall in the thinking, not at its end."""
    suppressors = tuple(replace(head, query={C.CONST: 1.5}) for head in SUPPRESSORS)
    return replace(
        base(),
        heads=(INTENT, *suppressors, PROMOTER, STATIC),
        thinking=ThinkingPlan(within=FIRST_HALF),
    )


VARIANTS: dict[str, Variant] = {
    "base": Variant(
        "three heads suppress refusal where thinking with a persuasion word ends", base
    ),
    "graded": Variant("persuasion words of eight intensities", graded),
    "template_shift": Variant(
        "no suppression: a head shifts the closing tokens of every prompt alike", template_shift
    ),
    "two_stage": Variant("the intent fades at a word early in the thinking", two_stage),
    "within_thinking": Variant(
        "suppression within the thinking, a slope and no cliff", within_thinking
    ),
}
