"""Difference of two areas under the ROC curve on the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refusalscope.errors import InputError
from refusalscope.stats.auroc import _area, auroc
from refusalscope.stats.bootstrap import Method, bootstrap_bounds
from refusalscope.stats.interval import Interval, Seed, numbers


def auroc_difference(
    labels: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    method: Method = "bca",
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: Seed,
) -> Interval:
    """AUROC of a minus that of b, rows resampled by class and in pairs.

    labels: [n] of True/False or 1/0; a, b: [n], scores of the same rows.

    Rules: as in `auroc` for labels and for one class; where every resample repeats the difference, or a class
    has one row, the bounds are those of the two areas apart, which is wide rather than falsely certain.
    """
    first, second = numbers(a, "a"), numbers(b, "b")
    if first.shape != second.shape:
        raise InputError(
            f"a has {first.size} rows, b has {second.size}: pairs need as many of both"
        )
    apart = [
        auroc(labels, scores, method="percentile", n_resamples=200, level=level, seed=seed)
        for scores in (first, second)
    ]
    value = apart[0].value - apart[1].value
    wide = Interval(value, apart[0].low - apart[1].high, apart[0].high - apart[1].low, first.size)
    label = np.asarray(labels) == 1
    if min(label.sum(), (~label).sum()) < 2:
        return wide

    def difference(positive: npt.NDArray, negative: npt.NDArray, axis: int) -> npt.NDArray:
        # The same rows are drawn for both: what is resampled are row numbers.
        drawn = positive.astype(int), negative.astype(int)
        return _area(first[drawn[0]], first[drawn[1]], axis) - _area(
            second[drawn[0]], second[drawn[1]], axis
        )

    low, high = bootstrap_bounds(
        (np.flatnonzero(label), np.flatnonzero(~label)),
        difference,
        paired=False,
        method=method,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    return wide if low == high else Interval(value, low, high, first.size)
