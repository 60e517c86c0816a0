"""Thresholds on a score for a target false-positive rate, with what each rule promises.

A prompt is flagged when its score is strictly above the threshold, so that scores tied with it pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from refusalscope.errors import InputError
from refusalscope.stats.interval import Interval, numbers
from refusalscope.stats.proportions import clopper_pearson

Rule: TypeAlias = Literal["conformal", "learn_then_test"]


@dataclass(frozen=True)
class Threshold:
    """`tau` for a false-positive rate (FPR) of at most `alpha`, from `n` benign scores.

    `flagged` of these n lie above tau and `fpr` is their share with its Clopper-Pearson interval at
    `confidence`. The interval stays valid although tau came from the same scores: the true FPR of the k-th
    smallest of n is at most Beta(n - k + 1, k), which is where the upper Clopper-Pearson bound is read.
    """

    tau: float
    alpha: float
    rule: Rule
    confidence: float
    n: int
    flagged: int
    fpr: Interval

    @property
    def promise(self) -> str:
        """What the rule guarantees when new benign prompts are exchangeable with those it saw."""
        if self.rule == "conformal":
            return f"FPR <= {self.alpha:g} on average over calibration draws"
        return f"FPR <= {self.alpha:g} at confidence {self.confidence:g}"

    def flags(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `scores` [n] are flagged; raises InputError for scores that are not finite."""
        return numbers(scores, "scores") > self.tau


def fpr_threshold(
    benign: npt.ArrayLike,
    alpha: float,
    *,
    rule: Rule = "learn_then_test",
    confidence: float = 0.95,
) -> Threshold:
    """The smallest of the `benign` scores [n] above which the rule allows flagging at rate `alpha`.

    conformal: the k-th smallest, k = ceil((n + 1)(1 - alpha)) (split conformal; the guard's specification,
    section 11). Its FPR has a mean over calibration draws of at most alpha; about half of them exceed it.
    learn_then_test: the k-th smallest with the smallest k such that P(Bin(n, alpha) <= n - k) <=
    1 - confidence (Angelopoulos et al., arXiv 2110.01052, with the exact binomial p-value; the same as a
    distribution-free tolerance limit). Its FPR is at most alpha in a share `confidence` of calibration draws.

    k does not look at the scores, so both promises hold with ties, where they only become stricter. Raises
    InputError for too few scores, scores that are not finite, an unknown rule, or a rate outside 0..1.
    """
    scores = np.sort(numbers(benign, "benign scores"))
    needed = negatives_needed(alpha, rule, confidence)
    if scores.size < needed:
        raise InputError(
            f"a false-positive rate of {100 * alpha:g} % by the rule {rule} needs at least {needed} benign "
            f"scores, got {scores.size}: add benign prompts or ask for a higher rate"
        )
    tau = scores[scores.size - 1 - _most_flagged(scores.size, alpha, rule, confidence)]
    flagged = int((scores > tau).sum())
    fpr = clopper_pearson(flagged, scores.size, confidence)
    return Threshold(float(tau), alpha, rule, confidence, scores.size, flagged, fpr)


def negatives_needed(alpha: float, rule: Rule, confidence: float = 0.95) -> int:
    """The fewest benign scores from which `rule` can promise a false-positive rate of `alpha`.

    conformal: n >= 1 / alpha - 1. learn_then_test: (1 - alpha)^n <= 1 - confidence. Raises InputError for an
    unknown rule, or unless alpha and confidence lie strictly between 0 and 1.
    """
    for name, value in (("alpha", alpha), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name} must lie strictly between 0 and 1, got {value}")
    if rule == "conformal":
        return math.ceil(1 / _written(alpha)) - 1
    if rule != "learn_then_test":
        raise InputError(
            f"unknown threshold rule {rule!r}: expected one of {', '.join(get_args(Rule))}"
        )
    n = max(1, math.floor(math.log(1 - confidence) / math.log1p(-alpha)))
    # The logarithms round; the rule itself decides.
    while _most_flagged(n, alpha, rule, confidence) < 0:
        n += 1
    return n


def _most_flagged(n: int, alpha: float, rule: Rule, confidence: float) -> int:
    """n - k: how many of n benign scores may lie above the threshold; -1 when no threshold will do."""
    if rule == "conformal":
        return math.floor((n + 1) * _written(alpha)) - 1
    delta = 1 - confidence
    count = int(binom.ppf(delta, n, alpha))
    return count if binom.cdf(count, n, alpha) <= delta else count - 1


def _written(alpha: float) -> Fraction:
    """alpha as it is written in decimals: in floats, 100 times 0.29 falls short of 29."""
    return Fraction(str(float(alpha)))
