"""Intervals of a rate: k of n."""

from __future__ import annotations

from typing import Literal

from scipy.stats import binomtest

from refusalscope.errors import InputError
from refusalscope.stats.interval import NAN, Interval


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a rate, the default of every rate in a report.

    Rule for n = 0: no estimate and no interval, all NaN. Raises InputError unless 0 <= k <= n.
    """
    return _rate(k, n, level, "wilson")


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """Exact (Clopper-Pearson) interval of a rate: never covers less than `level`; for guarantees.

    Rule for n = 0 and errors as in `wilson`.
    """
    return _rate(k, n, level, "exact")


def _rate(k: int, n: int, level: float, method: Literal["wilson", "exact"]) -> Interval:
    if not 0 <= k <= n:
        raise InputError(f"{k} of {n} is not a rate: expected 0 <= k <= n")
    if n == 0:
        return Interval(NAN, NAN, NAN, 0)
    # Plain ints, because a frame's sum gives NumPy integers and SciPy checks the type.
    bounds = binomtest(int(k), int(n)).proportion_ci(level, method)
    return Interval(int(k) / int(n), float(bounds.low), float(bounds.high), int(n))
