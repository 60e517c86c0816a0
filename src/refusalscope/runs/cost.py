"""What a run cost, kept beside the results that the work went into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

COUNTS = ("forwards", "token_layers", "tokens")


def total(costs: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several costs, with every count present."""
    listed = list(costs)
    return {count: sum(int(cost.get(count, 0)) for cost in listed) for count in COUNTS}
