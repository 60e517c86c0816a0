"""What single swaps cannot see: heads that stand in for each other.

Source: alignment_routes section 6.1. A backup takes a gate's necessity to nothing; windows of layers show
that something is hidden, leaving one head out of such a window shows who, and holding a found head swapped
while all others are screened again finds whoever steps in for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.model import ChatModel, Metric
from refusalscope.stats import max_t_signflip, mean_interval
from refusalscope.studies.heads import Head, Unit, clusters_of, head_name
from refusalscope.studies.routing.interchange import Pair, Screen, screen
from refusalscope.studies.routing.maps import MapName

Array = npt.NDArray[np.float64]
# A window is searched when it carries this much more of the gap than any of its parts does.
MORE_THAN_PARTS = 0.1
# A head stands in for others when, with them held, it carries this share of the gap and twice its own alone.
STAND_IN, TIMES_ALONE = 0.05, 2.0


def window_units(units: Sequence[Unit], width: int) -> dict[tuple[int, int], Unit]:
    """All units of `width` neighbouring layers together: (start, stop exclusive) -> heads."""
    by_layer: dict[int, list[Head]] = {}
    for unit in units:
        for head in unit:
            by_layer.setdefault(head[0], []).append(head)
    last = max(by_layer) + 1
    return {
        (start, start + width): tuple(
            head for layer in range(start, start + width) for head in by_layer.get(layer, ())
        )
        for start in range(last - width + 1)
    }


def windows(
    chat: ChatModel,
    pairs: Sequence[Pair],
    metric: Metric,
    singles: Screen,
    name: str,
    *,
    widest: int,
    positions: MapName = "last",
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Necessity of all heads of neighbouring layers together, for every width up to `widest`.

    singles: the plain screen of the same pairs, scored by `name`. Columns: start, stop (exclusive), n_heads,
    necessity, low, high, largest (of a single head inside), summed (over single heads), searched: shares of the
    gap. A window is searched for heads that stand in for each other, or share one job, when it carries
    MORE_THAN_PARTS more than any single head and any narrower window inside it.
    """
    gap = singles.gap(name)
    alone = singles.necessity[name].mean(axis=(0, 1)) / gap
    spans: dict[tuple[int, int], Unit] = {}
    for width in range(1, widest + 1):
        spans |= window_units(singles.units, width)
    found = screen(chat, pairs, {name: metric}, units=list(spans.values()), positions=positions)
    by_pair = found.necessity[name].mean(axis=1) / gap
    clusters = clusters_of(categories)
    share = {span: float(by_pair[:, i].mean()) for i, span in enumerate(spans)}
    rows = []
    for i, (start, stop) in enumerate(spans):
        inside = [n for n, unit in enumerate(singles.units) if start <= unit[0][0] < stop]
        parts = [*alone[inside]]
        parts += [
            v for (a, b), v in share.items() if start <= a and b <= stop and b - a < stop - start
        ]
        interval = mean_interval(by_pair[:, i], clusters, seed=seed)
        rows.append(
            {
                "start": start,
                "stop": stop,
                "n_heads": len(spans[start, stop]),
                "necessity": interval.value,
                "low": interval.low,
                "high": interval.high,
                "largest": float(alone[inside][np.abs(alone[inside]).argmax()]),
                "summed": float(alone[inside].sum()),
                "searched": abs(interval.value) > np.abs(parts).max() + MORE_THAN_PARTS,
            }
        )
    return pd.DataFrame(rows)


def leave_one_out(
    chat: ChatModel,
    pairs: Sequence[Pair],
    metric: Metric,
    sets: Sequence[Unit],
    *,
    positions: MapName = "last",
) -> Array:
    """How much of each set's necessity is lost when one head of it stays as it is.

    [pairs, heads of all sets, one set after the other], in the metric's unit. A head that carries the refusal
    by itself once its set is swapped has a large loss, though swapping it alone may do nothing.
    """
    units: list[Unit] = []
    for heads in sets:
        units += [heads, *(tuple(other for other in heads if other != head) for head in heads)]
    found = screen(chat, pairs, {"m": metric}, units=units, positions=positions)
    table = found.necessity["m"].mean(axis=1)
    lost, at = [], 0
    for heads in sets:
        lost.append(table[:, at : at + 1] - table[:, at + 1 : at + 1 + len(heads)])
        at += 1 + len(heads)
    return np.concatenate(lost, axis=1)


def conditional(
    chat: ChatModel,
    pairs: Sequence[Pair],
    metric: Metric,
    held: Sequence[Unit],
    sets: Sequence[Unit],
    gap: float,
    *,
    units: Sequence[Unit],
    positions: MapName = "last",
    categories: Sequence[str] | None = None,
    floor: float = 0.01,
    alpha: float = 0.05,
    n_flips: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """What heads do while others are held swapped, tested over all of it at once.

    held: for each, every single head of `units` is screened again on top of it (the conditional screen); sets:
    for each, every head of it is tested with the rest of the set held (leave one out). Columns: layer, head,
    context (the held heads in words), window (index of the set, -1 for a held head), necessity, low, high
    (shares of the gap), p (max-T sign flips), passes.
    """
    rows: list[dict[str, object]] = []
    parts = []
    for unit in held:
        found = screen(chat, pairs, {"m": metric}, units=units, held=unit, positions=positions)
        others = [i for i, single in enumerate(units) if not set(single) & set(unit)]
        parts.append(found.necessity["m"].mean(axis=1)[:, others])
        for i in others:
            layer, head = units[i][0]
            rows.append({"layer": layer, "head": head, "context": _names(unit), "window": -1})
    if sets:
        parts.append(leave_one_out(chat, pairs, metric, sets, positions=positions))
        for number, heads in enumerate(sets):
            for layer, head in heads:
                context = f"the rest of layers {heads[0][0]} to {heads[-1][0]}"
                rows.append({"layer": layer, "head": head, "context": context, "window": number})
    frame = pd.DataFrame(rows, columns=["layer", "head", "context", "window"])
    if not parts:
        return frame.assign(necessity=0.0, low=0.0, high=0.0, p=1.0, passes=False)
    share = np.concatenate(parts, axis=1) / gap
    clusters = clusters_of(categories)
    test = max_t_signflip(share, n_flips, seed=seed)
    intervals = [mean_interval(column, clusters, seed=seed) for column in share.T]
    return frame.assign(
        necessity=share.mean(axis=0),
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
        p=test.p_familywise,
        passes=(np.abs(share.mean(axis=0)) > floor) & (test.p_familywise < alpha),
    )


def _names(unit: Unit) -> str:
    return " ".join(head_name(head) for head in unit)
