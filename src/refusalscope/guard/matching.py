"""Final marks made alike in both classes, so that a guard cannot learn the mark (method page, section 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    return _rewritten(harmful), _rewritten(harmless), "rewritten"


def mark_shares(prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of each class of final characters."""
    counts = Counter(final_character_class(prompt.text) for prompt in prompts)
    return {mark: counts[mark] / len(prompts) for mark in sorted(counts)}


def _by_mark(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(final_character_class(prompt.text), []).append(i)
    return found


def _rewritten(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [
        replace(prompt, id=f"{prompt.id}/{mark}", text=punctuation_variants(prompt.text)[mark])
        for prompt in prompts
        for mark in MARKS
    ]
