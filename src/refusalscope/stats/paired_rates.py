"""The change of a rate on the same rows, with an interval that keeps a width where no row differs."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

from refusalscope.stats.interval import NAN, Interval
from refusalscope.stats.proportions import wilson


def paired_rates(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Interval:
    """Rate of `a` minus rate of `b` on the same rows [n], with Newcombe's interval, 95 %.

    Method 10 of Newcombe (1998, Statistics in Medicine 17, 2635): it keeps a width where every row changes
    alike, which a bootstrap does not. NaN throughout without rows.
    """
    n = len(a)
    if not n:
        return Interval(NAN, NAN, NAN, 0)
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    first, second = wilson(both + only_a, n), wilson(both + only_b, n)
    sides = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # Correlation with the continuity correction of the source, for a positive one only.
    phi = (max(cross - n / 2, 0) if cross > 0 else cross) / sqrt(sides) if sides else 0.0
    below, above = first.value - first.low, first.high - first.value
    under, over = second.value - second.low, second.high - second.value
    difference = first.value - second.value
    low = difference - sqrt(below**2 - 2 * phi * below * over + over**2)
    high = difference + sqrt(above**2 - 2 * phi * above * under + under**2)
    return Interval(difference, max(low, -1.0), min(high, 1.0), n)
