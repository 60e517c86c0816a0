"""Disjoint splits: stratified by category, near-duplicates kept on one side.

A direction fitted, selected and reported on the same prompts flatters itself; so does one that
is reported on rewordings of the prompts it was fitted on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from refusalscope.errors import InputError
from refusalscope.prompts.sets import Pair, PairSet, Prompt, PromptSet
from refusalscope.prompts.similarity import THRESHOLD, near_duplicate_groups

FRACTIONS: Mapping[str, float] = {"fit": 0.5, "select": 0.25, "report": 0.25}

Items = TypeVar("Items", PromptSet, PairSet)


def split(
    items: Items,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    threshold: float = THRESHOLD,
) -> dict[str, Items]:
    """The set in disjoint sides of about these fractions of its items.

    Items whose texts are linked by similarity of at least `threshold` (similarity.py) go to one
    side together, pairs by either member. Every category (and label) is shared out in proportion
    as far as such groups allow. The same items, fractions and seed give the same sides, whatever
    the order of the items; each side keeps the order of the set.
    Raises InputError for fractions that do not sum to 1 and where a side would stay empty.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise InputError(
            f"the fractions of a split must be positive and sum to 1, got {dict(fractions)}"
        )
    if not len(items):
        raise InputError("an empty set cannot be split; read some prompts first")
    # By id, so that the order of the file does not decide where a prompt goes.
    order = sorted(range(len(items)), key=lambda i: items[i].id)
    groups = _groups([items[i] for i in order], threshold)
    members: dict[int, list[int]] = {}
    for position, group in zip(order, groups, strict=True):
        members.setdefault(group, []).append(position)
    strata: dict[str, list[list[int]]] = {}
    for positions in members.values():
        kinds = Counter(_stratum(items[i]) for i in positions)
        strata.setdefault(min(kinds, key=lambda k: (-kinds[k], k)), []).append(positions)

    sides = _share_out(strata, fractions, np.random.default_rng(seed))
    empty = [name for name, positions in sides.items() if not positions]
    if empty:
        raise InputError(
            f"the side {empty[0]!r} of the split would be empty: {len(items)} items in "
            f"{len(members)} groups of near-duplicates are too few for {len(fractions)} sides; "
            "add prompts that differ more, or ask for fewer sides"
        )
    return {
        name: replace(items, items=tuple(items.items[i] for i in sorted(positions)))
        for name, positions in sides.items()
    }


def _groups(items: list[Prompt | Pair], threshold: float) -> list[int]:
    """A group number per item; the two members of a pair always share one."""
    owners, texts = [], []
    for index, item in enumerate(items):
        for text in (item.harmful, item.harmless) if isinstance(item, Pair) else (item.text,):
            owners.append(index)
            texts.append(text)
    parent = list(range(len(items)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[int, int] = {}
    for owner, group in zip(owners, near_duplicate_groups(texts, threshold), strict=True):
        parent[root(owner)] = root(first.setdefault(int(group), owner))
    return [root(i) for i in range(len(items))]


def _stratum(item: Prompt | Pair) -> str:
    label = item.label if isinstance(item, Prompt) else None
    return f"{item.category or ''}/{label or ''}"


def _share_out(
    strata: Mapping[str, list[list[int]]], fractions: Mapping[str, float], rng: np.random.Generator
) -> dict[str, list[int]]:
    """Walks stratum by stratum and gives every group to the side that is furthest behind.

    The shortfalls run on over all strata, so each stratum is shared out in proportion to within
    about one group, and many small strata still add up to the fractions.
    """
    sides: dict[str, list[int]] = {name: [] for name in fractions}
    seen = 0
    names = sorted(strata)
    for name in (names[i] for i in rng.permutation(len(names))):
        groups = [strata[name][i] for i in rng.permutation(len(strata[name]))]
        # Large groups first: small ones can still level out what a large one upset.
        for group in sorted(groups, key=len, reverse=True):
            seen += len(group)
            # Rounded, so that the side does not hang on the last bit of a sum.
            behind = {s: round(share * seen - len(sides[s]), 9) for s, share in fractions.items()}
            sides[max(behind, key=behind.__getitem__)].extend(group)
    return sides
