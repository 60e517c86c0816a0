"""A guard's flags at a false-positive rate that is given, where its scores may be tied."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refusalscope.stats import clopper_pearson
from refusalscope.stats.interval import Interval

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def matched_flags(scores: Array, harmless: Mask, allowed: int) -> tuple[Array, int]:
    """Chance of each prompt [n] to be flagged where `allowed` of the `harmless` ones [n] are, on average.

    The threshold is the lowest with at most `allowed` harmless scores [n] above it. What lies above is flagged;
    scores tied with it are flagged at random, all with the one chance that makes up the number, which is the
    straight line between two points of the ROC curve. Also returned: harmless prompts above the threshold.
    """
    tau = np.append(np.sort(scores[harmless])[::-1], -np.inf)[allowed]
    above, tied = scores > tau, scores == tau
    alone, ties = int((above & harmless).sum()), int((tied & harmless).sum())
    return above + tied * ((allowed - alone) / max(ties, 1)), alone


def share_flagged(chances: Array) -> Interval:
    """Mean chance, with the exact bounds of the whole counts around its sum.

    A flag by chance varies less from prompt to prompt than a yes or no of the same mean, so these bounds are
    wide enough.
    """
    total, n = round(float(chances.sum()), 9), chances.size
    low = clopper_pearson(math.floor(total), n).low
    return Interval(total / n, low, clopper_pearson(math.ceil(total), n).high, n)
