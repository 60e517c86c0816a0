"""Prompt pairs of planted models: filler words, one marked word, the tail of the chat template."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from refusalscope.organisms.planted import tokens
from refusalscope.prompts.sets import Pair, PairSet
from refusalscope.prompts.wrappers import Wrapper

TokenPair = tuple[list[int], list[int]]
Layout = Literal["free", "centred", "sixth"]

# Of the layout "sixth"; <bos> is at index 0.
CONTENT_LENGTH, HARMFUL_AT = 9, 6

_CODE = {
    word: other
    for harmful, code in zip(tokens.HARMFUL_WORDS, tokens.CODE_WORDS, strict=True)
    for word, other in itertools.permutations((tokens.WORDS[harmful], tokens.WORDS[code]))
}
_CODED = re.compile(rf"(?<!\S)(?:{'|'.join(_CODE)})(?!\S)")


class PromptRecipe(BaseModel):
    """How pairs are drawn; with the seed it says which.

    `contrast`: the two prompts of a pair differ in one "word" or only in the "tail" token.
    `control_longer`: filler tokens that the control has more (or, negative, fewer) than the harmful
    prompt. `harmful_prefix`: filler tokens before the harmful prompt only. `layout`: the word stands
    at a random place in 4 to 8 filler tokens ("free"), or in the middle of four, and the harmful
    words take turns ("centred"), or after five and before three, and the control has filler in its
    place ("sixth").
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    count: int = Field(ge=1)
    contrast: Literal["word", "tail"] = "word"
    control_longer: int = Field(default=0, ge=-3, le=64)
    harmful_prefix: int = Field(default=0, ge=0, le=512)
    layout: Layout = "free"


def draw_pairs(recipe: PromptRecipe) -> list[TokenPair]:
    """(harmful, control) token ids, from `<bos>` to the tail. All pairs differ.

    Section 1 of the page: 4 to 8 filler tokens, one marked word at a random place, the tail; the
    control is the same with a benign word.
    """
    generator = np.random.default_rng((recipe.seed, 1))
    pairs: dict[tuple[int, ...], TokenPair] = {}
    while len(pairs) < recipe.count:
        harmful, control = _draw(recipe, generator, len(pairs))
        pairs.setdefault((*harmful, *control), (harmful, control))
    return list(pairs.values())


def content_text(token_ids: list[int]) -> str:
    """The user's text whose chat rendering is exactly `token_ids`.

    The template writes `<bos>` and the usual tail; another tail belongs to the text.
    """
    end = -1 if token_ids[-1] == tokens.TAIL else None
    return tokens.text_of(token_ids[1:end])


def as_pair_set(pairs: Sequence[TokenPair], source: str) -> PairSet:
    """The pairs as user texts. The category is the harmful word, where a word is the contrast."""
    items = []
    for number, (harmful, control) in enumerate(pairs):
        marked = [tokens.WORDS[token] for token in harmful if token in tokens.HARMFUL_WORDS]
        items.append(
            Pair(
                id=f"pair-{number:03d}",
                harmful=content_text(harmful),
                harmless=content_text(control),
                category=marked[0] if marked else None,
                source=source,
            )
        )
    return PairSet(tuple(items))


def code_wrapper() -> Wrapper:
    """The planted cipher as a wrapper: every word harmI becomes codeI, and codeI harmI.

    It is its own inverse, so that `unwrap` gives back any text exactly. Other words stay.
    """
    return Wrapper(
        name="planted_code",
        summary="every harmful word is written as its code word",
        kind="encoding",
        encode=_swap_code,
        decode=_swap_code,
    )


def _swap_code(text: str) -> str:
    return _CODED.sub(lambda found: _CODE[found[0]], text)


def _draw(recipe: PromptRecipe, generator: np.random.Generator, number: int) -> TokenPair:
    if recipe.layout == "sixth":
        return _draw_sixth(generator)
    centred = recipe.layout == "centred"
    filler = draw_filler(generator, 4 if centred else int(generator.integers(4, 9)))
    if recipe.contrast == "tail":
        content = [tokens.BOS, *filler]
        return [*content, tokens.TAIL2], [*content, tokens.TAIL]
    if centred:
        place, harmful = 2, tokens.HARMFUL_WORDS[number % len(tokens.HARMFUL_WORDS)]
    else:
        place = int(generator.integers(len(filler) + 1))
        harmful = int(generator.choice(tokens.HARMFUL_WORDS))
    benign = int(generator.choice(tokens.BENIGN_WORDS))
    longer = draw_filler(generator, max(recipe.control_longer, 0))
    prefix = draw_filler(generator, recipe.harmful_prefix)
    kept = [*longer, *filler[max(-recipe.control_longer, 0) :]]
    at = min(place, len(kept))
    return (
        [tokens.BOS, *prefix, *filler[:place], harmful, *filler[place:], tokens.TAIL],
        [tokens.BOS, *kept[:at], benign, *kept[at:], tokens.TAIL],
    )


def _draw_sixth(generator: np.random.Generator) -> TokenPair:
    filler = draw_filler(generator, CONTENT_LENGTH)
    harmful = int(generator.choice(tokens.HARMFUL_WORDS))
    control = [tokens.BOS, *filler, tokens.TAIL]
    return [*control[:HARMFUL_AT], harmful, *control[HARMFUL_AT + 1 :]], control


def draw_filler(generator: np.random.Generator, count: int) -> list[int]:
    """`count` filler tokens, drawn with replacement."""
    return [int(token) for token in generator.choice(tokens.FILLER_WORDS, size=count)]
