"""Evidence for the absence of an effect."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from statsmodels.stats.weightstats import DescrStatsW

from refusalscope.errors import InputError
from refusalscope.stats.interval import NAN, numbers


@dataclass(frozen=True)
class Equivalence:
    """Mean, the 1 - 2 alpha interval that decides, rows, the bound, and p of |mean| >= bound."""

    value: float
    low: float
    high: float
    n: int
    bound: float
    p: float


def tost(values: npt.ArrayLike, bound: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests that the mean of `values` [n] lies within -bound..bound.

    A small p shows "no effect larger than the bound"; p < alpha exactly when the 1 - 2 alpha
    interval lies inside the bounds. Rows must be independent: give means of clusters, not their
    rows. Rules: fewer than two rows, p = 1 and no bounds; constant values, p = 0 inside, 1 outside.
    Raises InputError unless bound > 0.
    """
    array = numbers(values, "values")
    if not bound > 0:
        raise InputError(f"an equivalence bound must be above 0, got {bound}")
    if array.size < 2:
        return Equivalence(
            float(array.mean()) if array.size else NAN, NAN, NAN, array.size, bound, 1.0
        )
    if np.ptp(array) == 0:
        value = float(array[0])
        p = 0.0 if abs(value) < bound else 1.0
        return Equivalence(value, value, value, array.size, bound, p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        described = DescrStatsW(array)
        p = float(described.ttost_mean(-bound, bound)[0])
        low, high = described.tconfint_mean(alpha=2 * alpha)
    return Equivalence(float(array.mean()), float(low), float(high), array.size, bound, p)
