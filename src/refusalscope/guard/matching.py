"""Final marks made alike in both classes, so that a guard cannot learn the mark (method page, section 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from refusalscope.prompts import Prompt, final_character_class, punctuation_variants

# Fewer matched prompts of a class than this are too few to fit on: the marks are rewritten instead.
ENOUGH = 32
MARKS = ("stripped", "period", "question")


def match_marks(
    harmful: Sequence[Prompt], harmless: Sequence[Prompt], seed: int
) -> tuple[list[Prompt], list[Prompt], str]:
    """Prompts of both classes in which every final mark is equally frequent, and how that was done.

    "drawn": as many of each class of marks are drawn as the rarer side has, in both. "rewritten": where too
    few would be left, every prompt stands there without a mark, with a full stop and with a question mark.
    """
    sides = [_by_mark(side) for side in (harmful, harmless)]
    shares = {
        mark: min(len(side[mark]) for side in sides) for mark in sides[0].keys() & sides[1].keys()
    }
    if sum(shares.values()) >= min(ENOUGH, len(harmful), len(harmless)):
        rng = np.random.default_rng(seed)
        drawn = [
            sorted(i for mark, n in sorted(shares.items()) for i in rng.permutation(side[mark])[:n])
            for side in sides
        ]
        return [harmful[i] for i in drawn[0]], [harmless[i] for i in drawn[1]], "drawn"
    return with_every_mark(harmful), with_every_mark(harmless), "rewritten"


def with_marks_like(
    prompts: Sequence[Prompt], shares: Mapping[str, float], seed: int
) -> list[Prompt]:
    """The prompts with final marks in these shares (classes of `mark_shares`), dealt out by the seed.

    A mark is none, a full stop or a question mark; shares of others count as none.
    """
    weights = np.array([0.0, shares.get("period", 0.0), shares.get("question", 0.0)])
    weights[0] = max(0.0, 1 - weights.sum())
    ends = np.round(np.cumsum(weights) * len(prompts)).astype(int)
    dealt = np.searchsorted(ends, np.arange(len(prompts)), side="right").clip(max=len(MARKS) - 1)
    order = np.random.default_rng(seed).permutation(len(prompts))
    found = list(prompts)
    for i, mark in zip(order, dealt, strict=True):
        variant = punctuation_variants(prompts[i].text)[MARKS[mark]]
        found[i] = replace(prompts[i], text=variant)
    return found


def mark_shares(prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of each class of final characters."""
    counts = Counter(final_character_class(prompt.text) for prompt in prompts)
    return {mark: counts[mark] / len(prompts) for mark in sorted(counts)}


def _by_mark(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(final_character_class(prompt.text), []).append(i)
    return found


def with_every_mark(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt without a mark, with a full stop and with a question mark."""
    return [
        replace(prompt, id=f"{prompt.id}/{mark}", text=punctuation_variants(prompt.text)[mark])
        for prompt in prompts
        for mark in MARKS
    ]
