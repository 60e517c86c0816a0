"""From what was measured to the figures: ratios within a repeat, differences, bars."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rivals.problem import Shape

TOLERANCE = 1e-5
# Issue 2, "Speed": (way compared with the plan, figure, at least, in words).
BARS = (
    ("hook", "token_layers_ratio", 40.0, "fewer token-layer evaluations than the hook loop"),
    ("hook", "ratio", 25.0, "less time than the hook loop"),
    ("nnsight", "ratio", 25.0, "less time than the nnsight loop"),
)


@dataclass
class Row:
    """What was measured of one way. state: "ran", "skipped" or "failed", with the reason."""

    state: str = "ran"
    reason: str = ""
    ready: dict[str, Any] = field(default_factory=dict)
    forwards: int = 0
    token_layers: int = 0
    own_count: dict[str, int] | None = None
    seconds: list[float] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list, repr=False)


def summarise(
    rows: dict[str, Row], shape: Shape, n_heads: int | None, repeats: int, threads: int
) -> dict[str, Any]:
    """All figures, ready for JSON. Ratios are to the plan, or to the hook loop where no plan ran.

    n_heads: how many heads were screened, None for all; bars are judged for all heads only.
    """
    ran = {name: row for name, row in rows.items() if row.state == "ran"}
    reference = next((name for name in ("plan", "hook") if name in ran), None)
    truth = ran["hook"].scores[0] if "hook" in ran else None
    ways: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        ways[name] = {"state": row.state, "reason": row.reason, **row.ready}
        if row.state == "ran":
            ways[name] |= _figures(row, None if reference is None else ran[reference], truth)
    spread = None if truth is None else float(truth.std(axis=1).mean())
    judged = n_heads is None and reference == "plan"
    return {
        "shape": asdict(shape),
        "heads": n_heads or shape.layers * shape.heads,
        "repeats": repeats,
        "threads": threads,
        "cores": os.cpu_count(),
        "reference": reference,
        "spread_over_heads": spread,
        "ways": ways,
        "bars": _bars(ways) if judged else [],
        "broken": _broken(ways, threads),
    }


def _figures(row: Row, base: Row | None, truth: np.ndarray | None) -> dict[str, Any]:
    way: dict[str, Any] = {
        "seconds": row.seconds,
        "median_seconds": statistics.median(row.seconds),
        "forwards": row.forwards,
        "token_layers": row.token_layers,
        "own_count": row.own_count,
    }
    if truth is not None:
        way["largest_difference"] = float(np.abs(np.stack(row.scores) - truth).max())
    if base is not None:
        ratios = [a / b for a, b in zip(row.seconds, base.seconds, strict=True)]
        way["ratio"], way["ratio_range"] = statistics.median(ratios), [min(ratios), max(ratios)]
        way["token_layers_ratio"] = row.token_layers / base.token_layers
    return way


def _bars(ways: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"what": what, "value": ways[name][key], "bar": bar, "met": ways[name][key] >= bar}
        for name, key, bar, what in BARS
        if ways.get(name, {}).get("state") == "ran"
    ]


def _broken(ways: dict[str, dict[str, Any]], threads: int) -> list[str]:
    """What makes a run worthless however fast it was; a missed bar is not among it."""
    found = []
    for name, way in ways.items():
        if way["state"] == "failed":
            found.append(f"{name} failed: {way['reason']}")
        # Written so that a score that is not a number counts as a difference.
        if not way.get("largest_difference", 0.0) <= TOLERANCE:
            found.append(f"{name} differs from the hook loop by {way['largest_difference']:.1e}")
        if way.get("threads", threads) != threads:
            found.append(f"{name} ran with {way['threads']} torch threads, not {threads}")
        own = way.get("own_count")
        seen = {key: way[key] for key in own} if own else own
        if own != seen:
            found.append(f"{name} says that it spent {own}; the hooks on the model counted {seen}")
    return found
