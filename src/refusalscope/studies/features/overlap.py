"""How far the sets of several seeds, prompts or widths are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from refusalscope.errors import InputError
from refusalscope.stats import Interval, wilson


@dataclass(frozen=True)
class Stability:
    """jaccard: mean over pairs of sets; lowest: of the least alike pair (both NaN for one set).

    frequency: by member, the share of sets that hold it with its Wilson interval, most frequent first. core:
    members of all sets; it may be empty, and need not flip anything.
    """

    n_sets: int
    jaccard: float
    lowest: float
    frequency: Mapping[Hashable, Interval]
    core: frozenset[Hashable]


def stability(sets: Sequence[Collection[Hashable]]) -> Stability:
    """Overlap of `sets`, by pairs and by member. Two empty sets are alike. Raises InputError for no set."""
    if not sets:
        raise InputError("there is no set to compare; give at least one")
    members = [frozenset(found) for found in sets]
    pairs = [_jaccard(a, b) for a, b in combinations(members, 2)]
    counts = Counter(member for found in members for member in found)
    return Stability(
        len(sets),
        sum(pairs) / len(pairs) if pairs else float("nan"),
        min(pairs, default=float("nan")),
        {member: wilson(k, len(sets)) for member, k in counts.most_common()},
        frozenset.intersection(*members),
    )


def _jaccard(a: frozenset[Hashable], b: frozenset[Hashable]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
