"""Two conditions measured on the same rows: difference of means, and McNemar for yes or no."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

from refusalscope.errors import InputError
from refusalscope.stats.bootstrap import Method, mean_interval
from refusalscope.stats.interval import NAN, Clusters, Seed, cluster_codes, numbers


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b with its interval, rows, and the two-sided sign-flip permutation p."""

    value: float
    low: float
    high: float
    n: int
    p: float


@dataclass(frozen=True)
class McNemar:
    """Rows true only under a, only under b, all rows, and the exact two-sided p."""

    only_a: int
    only_b: int
    n: int
    p: float


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: Clusters = None,
    *,
    method: Method = "bca",
    n_resamples: int = 2000,
    n_flips: int = 9999,
    level: float = 0.95,
    seed: Seed,
) -> PairedDifference:
    """Mean of a - b over rows [n], a bootstrap interval and a sign-flip p of "no difference".

    Whole clusters are resampled and flipped when `clusters` [n] are given. The p is exact (all
    2^C flips of C rows or clusters) when there are at most `n_flips` of them, otherwise Monte Carlo
    as (1 + hits) / (n_flips + 1), never 0.

    Rules: interval as in `mean_interval`; fewer than two rows or clusters, p = 1 (nothing can be
    shown), NaN without rows. Raises InputError for unequal lengths or values that are not finite.
    """
    first, second = numbers(a, "a"), numbers(b, "b")
    if first.shape != second.shape:
        raise InputError(
            f"a has {first.size} rows, b has {second.size}: pairs need as many of both"
        )
    rng = np.random.default_rng(seed)
    difference = first - second
    interval = mean_interval(
        difference, clusters, method=method, n_resamples=n_resamples, level=level, seed=rng
    )
    sums = np.bincount(cluster_codes(clusters, difference.size), difference)
    if sums.size < 2:
        p = NAN if difference.size == 0 else 1.0
    else:
        # One sample with permutation_type="samples" is SciPy's sign flip. The absolute value makes
        # it two-sided by itself; SciPy's own two-sided rule doubles a Monte Carlo tail.
        test = permutation_test(
            (sums,),
            lambda x, axis: np.abs(x.sum(axis)),
            permutation_type="samples",
            alternative="greater",
            vectorized=True,
            n_resamples=n_flips,
            batch=max(1, 2**22 // sums.size),
            rng=rng,
        )
        p = float(test.pvalue)
    return PairedDifference(interval.value, interval.low, interval.high, interval.n, p)


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> McNemar:
    """Exact McNemar test of two yes-or-no outcomes on the same rows, such as refused before, after.

    a, b: [n] of True/False or 1/0. Without a row that differs, p = 1.
    Raises InputError for other values or unequal lengths.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(
            f"McNemar needs two columns of one length, got {first.shape}, {second.shape}"
        )
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise InputError("McNemar compares True/False or 1/0, got other values")
    only_a = int(((first == 1) & (second == 0)).sum())
    only_b = int(((first == 0) & (second == 1)).sum())
    p = float(exact_mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
    return McNemar(only_a, only_b, int(first.size), p)
