"""Bootstrap intervals, over rows or over whole clusters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import DegenerateDataWarning, bootstrap

from refusalscope.stats.interval import NAN, Clusters, Interval, Seed, cluster_codes, numbers

Method: TypeAlias = Literal["bca", "percentile"]

# Values held at once while resampling: 32 MB of float64.
_MEMORY_CELLS = 2**22


def mean_interval(
    values: npt.ArrayLike,
    clusters: Clusters = None,
    *,
    method: Method = "bca",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: Seed,
) -> Interval:
    """Mean of `values` [n] with a bootstrap interval, in the unit of the values.

    With `clusters` [n] whole clusters are drawn (prompts of one category are not independent), and
    BCa leaves out a cluster at a time.

    Rules where the bootstrap has nothing to say: no rows, all NaN; one row or one cluster, the mean
    without bounds (NaN); every resample has the same mean (constant values), bounds equal to the
    mean; BCa undefined on resamples that do differ, the percentile bounds.
    Raises InputError for values that are not finite.
    """
    array = numbers(values, "values")
    if array.size == 0:
        return Interval(NAN, NAN, NAN, 0)
    constant = np.ptp(array) == 0
    # The mean of equal numbers can miss them by a rounding.
    mean = float(array[0] if constant else array.mean())
    codes = cluster_codes(clusters, array.size)
    sums, counts = np.bincount(codes, array), np.bincount(codes).astype(np.float64)
    if sums.size < 2:
        return Interval(mean, NAN, NAN, array.size)
    if constant:
        return Interval(mean, mean, mean, array.size)

    def pooled_mean(s: npt.NDArray, c: npt.NDArray, axis: int) -> npt.NDArray:
        return s.sum(axis) / c.sum(axis)

    low, high = bootstrap_bounds(
        (sums, counts),
        pooled_mean,
        paired=True,
        method=method,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    return Interval(mean, low, high, array.size)


def bootstrap_bounds(
    samples: Sequence[npt.NDArray],
    statistic: Callable[..., npt.NDArray],
    *,
    paired: bool,
    method: Method,
    n_resamples: int,
    level: float,
    seed: Seed,
) -> tuple[float, float]:
    """Bounds of a vectorised `statistic(*samples, axis)`; percentile where BCa is undefined."""
    cells = sum(sample.size for sample in samples)
    with warnings.catch_warnings():
        # Both undefined cases are handled below by a stated rule, so the warnings would be noise.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = bootstrap(
            tuple(samples),
            statistic,
            paired=paired,
            vectorized=True,
            method="BCa" if method == "bca" else "percentile",
            n_resamples=n_resamples,
            confidence_level=level,
            batch=max(1, _MEMORY_CELLS // cells),
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    if not (np.isfinite(low) and np.isfinite(high)):
        tail = (1 - level) / 2
        low, high = np.quantile(result.bootstrap_distribution, [tail, 1 - tail])
    return float(low), float(high)
