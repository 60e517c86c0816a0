"""Whether a promise that holds on average over calibrations can have given a rate that was seen."""

from __future__ import annotations

import math
from fractions import Fraction

from scipy.stats import betabinom

from refusalscope.errors import InputError


def conformal_tail(alpha: float, n_calibration: int, flagged: int, n: int) -> float:
    """Chance that at least `flagged` of `n` new benign prompts lie above a split-conformal threshold.

    With k = floor((n_calibration + 1) alpha), the true rate above the threshold is Beta(k, n_calibration + 1
    - k) over draws of calibration scores without ties (uniform order statistics; Vovk 2012, arXiv 1209.2673),
    so the count is beta-binomial. Ties only make it smaller. Raises InputError for counts that cannot be, or
    so few calibration scores that no threshold promises alpha.
    """
    if not (0 < alpha < 1 and 0 <= flagged <= n):
        raise InputError(
            f"{flagged} of {n} at a rate of {alpha:g}: expected 0 <= flagged <= n, 0 < alpha < 1"
        )
    k = math.floor((n_calibration + 1) * Fraction(str(float(alpha))))
    if k < 1:
        raise InputError(
            f"{n_calibration} calibration scores cannot promise a rate of {alpha:g}: give more"
        )
    return float(betabinom.sf(flagged - 1, n, k, n_calibration + 1 - k))
