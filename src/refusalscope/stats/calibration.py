"""The probability of harm that a score stands for, and how good such probabilities are.

A probability belongs to the mix of classes it was fitted on: where one prompt in a thousand is harmful, the
probabilities of a balanced calibration set are too high.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from refusalscope.errors import InputError
from refusalscope.stats.bootstrap import mean_interval
from refusalscope.stats.interval import Interval, Seed, numbers
from refusalscope.stats.proportions import clopper_pearson

Array: TypeAlias = npt.NDArray[np.float64]
Method: TypeAlias = Literal["auto", "platt", "isotonic"]

# Below this, isotonic regression follows the noise (the guard's specification, section 11).
ISOTONIC_FROM = 1000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Probability(ABC):
    """A fitted map from score to probability of harm, and the rows of each class behind it."""

    method: ClassVar[str]
    n_harmful: int
    n_harmless: int

    @abstractmethod
    def predict(self, scores: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """p and the bounds of its 95 % interval for `scores` [n], each [n]; low <= p <= high.

        p never falls as the score rises. Raises InputError for scores that are not finite.
        """

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers and lists only, for JSON; `Probability.from_dict` reads it back."""
        columns = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"method": self.method, **columns}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Probability:
        """The map that `to_dict` wrote; raises InputError for anything else."""
        columns = dict(record)
        kind = {cls.method: cls for cls in (Platt, Isotonic)}.get(columns.pop("method", ""))
        foreign = InputError("not a record of a calibrated probability: calibrate the guard again")
        if kind is None or set(columns) != {field.name for field in fields(kind)}:
            raise foreign
        curve = columns.keys() - {"n_harmful", "n_harmless"}
        try:
            columns |= {name: tuple(numbers(columns[name], name).tolist()) for name in curve}
        except (TypeError, ValueError):
            raise foreign from None
        lengths = {len(columns[name]) for name in curve}
        counts = (columns["n_harmful"], columns["n_harmless"])
        if len(lengths) != 1 or 0 in lengths or not all(type(n) is int for n in counts):
            raise foreign
        if min(columns.get("slope", (0,))) < 0:
            raise foreign
        return kind(**columns)


@dataclass(frozen=True)
class Platt(Probability):
    """p = 1 / (1 + exp(-(slope * score + intercept))); the first pair is the fit, the rest resamples.

    No slope is below 0.
    """

    method: ClassVar[str] = "platt"
    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    def predict(self, scores: npt.ArrayLike) -> tuple[Array, Array, Array]:
        score = numbers(scores, "scores")
        curves = expit(np.outer(self.slope, score) + np.array(self.intercept)[:, None])
        low, high = np.quantile(curves, _TAILS, axis=0)
        return curves[0], np.minimum(low, curves[0]), np.maximum(high, curves[0])


@dataclass(frozen=True)
class Isotonic(Probability):
    """p rises with the score in steps; straight lines join the points, the ends go on level."""

    method: ClassVar[str] = "isotonic"
    score: tuple[float, ...]
    p: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def predict(self, scores: npt.ArrayLike) -> tuple[Array, Array, Array]:
        at = numbers(scores, "scores")
        p, low, high = (np.interp(at, self.score, c) for c in (self.p, self.low, self.high))
        return p, low, high


def fit_probability(
    scores: npt.ArrayLike,
    harmful: npt.ArrayLike,
    method: Method = "auto",
    *,
    n_resamples: int = 200,
    seed: Seed = 0,
) -> Probability:
    """Probability of harm from `scores` [n] and labels `harmful` [n] of True/False or 1/0.

    platt: a logistic curve without penalty on Platt's smoothed targets (n1 + 1) / (n1 + 2) and 1 / (n0 + 2)
    (Platt 1999, section 2.2), which keep separable classes finite. Its slope is held at 0 or above, since a
    probability must not reverse the order of the scores: where the free slope is negative, in the fit or in a
    resample, the curve is the constant mean of the targets, the best of those that do not fall. isotonic: any
    rising curve. auto: isotonic from 1,000 rows, Platt below.

    The interval is the percentile one of `n_resamples` bootstrap fits, classes resampled apart because their
    sizes were chosen. A flat step of an isotonic curve takes the wider of that and the exact interval of its
    own count, since resamples of a pure step are all 0 or all 1. A Platt curve of (nearly) separable classes
    is held by its smoothed targets: p is pulled towards 1/2, resamples hardly move it, and the interval says
    how firm the curve is, not where between the classes the truth lies. A constant curve is held by the mix
    of classes, which resamples keep: its interval is narrow though it says nothing of harm.

    Raises InputError for one class only, scores that are all equal or not finite, other labels, an unknown
    method, or no resamples.
    """
    score = numbers(scores, "scores")
    label = np.asarray(harmful)
    if label.shape != score.shape or not np.isin(label, (0, 1)).all():
        raise InputError(
            f"labels of harm must be True/False or 1/0, one for each of the {score.size} scores"
        )
    label = label.astype(bool)
    n_harmful, n_harmless = int(label.sum()), int((~label).sum())
    if not (n_harmful and n_harmless):
        raise InputError(
            f"a probability of harm needs harmful and harmless prompts, got {n_harmful} harmful and "
            f"{n_harmless} harmless: add prompts of the other class"
        )
    if np.ptp(score) == 0:
        raise InputError(
            f"all {score.size} scores are {score[0]:g}, which tells nothing of harm: "
            "check that the scores come from different prompts"
        )
    if method == "auto":
        method = "isotonic" if score.size >= ISOTONIC_FROM else "platt"
    if method not in ("platt", "isotonic"):
        raise InputError(f"unknown method {method!r}: expected auto, platt or isotonic")
    if n_resamples < 1:
        raise InputError(f"an interval needs at least one resample, got {n_resamples}")
    weights = _resamples(label, n_resamples, np.random.default_rng(seed))
    if method == "platt":
        return Platt(n_harmful, n_harmless, *_platt(score, label, weights))
    return Isotonic(n_harmful, n_harmless, *_isotonic(score, label, weights))


def brier(p: npt.ArrayLike, y: npt.ArrayLike, *, seed: Seed) -> Interval:
    """Mean squared distance of probabilities `p` [n] from outcomes `y` [n], with a bootstrap interval.

    0 is best; a constant 1/2 has 0.25. Raises InputError for p outside 0..1 or y other than 0 and 1.
    """
    chance, outcome = _outcomes(p, y)
    return mean_interval((chance - outcome) ** 2, seed=seed)


def ece(p: npt.ArrayLike, y: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: |mean p - share of y| by bin, weighted by the rows of the bin.

    Bins are of equal width, [0, 1/bins), ..., [1 - 1/bins, 1]; empty ones count nothing. It is never negative,
    so small samples overstate it (perfect probabilities of n rows score about sqrt(bins / n) / 3): compare it
    at equal n only. NaN without rows. Raises InputError as `brier`, or for fewer than one bin.
    """
    if bins < 1:
        raise InputError(f"calibration error needs at least one bin, got {bins}")
    chance, outcome = _outcomes(p, y)
    if not chance.size:
        return math.nan
    held = np.minimum((chance * bins).astype(int), bins - 1)
    gaps = np.bincount(held, chance - outcome)
    return float(np.abs(gaps).sum() / chance.size)


def _outcomes(p: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
    chance, outcome = numbers(p, "p"), numbers(y, "y")
    if chance.shape != outcome.shape:
        raise InputError(f"p has {chance.size} rows, y has {outcome.size}: expected as many")
    if ((chance < 0) | (chance > 1)).any() or not np.isin(outcome, (0, 1)).all():
        raise InputError("expected probabilities between 0 and 1 and outcomes of 0 and 1")
    return chance, outcome


def _resamples(label: npt.NDArray[np.bool_], n_resamples: int, rng: np.random.Generator) -> Array:
    """How often each row counts, [1 + n_resamples, n]: once in the fit, then as drawn by class."""
    weights = np.ones((1 + n_resamples, label.size))
    for side in (label, ~label):
        n = int(side.sum())
        weights[1:, side] = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return weights


def _platt(
    score: Array, label: npt.NDArray[np.bool_], weights: Array
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Slopes of at least 0, and intercepts, one for each row of `weights`."""
    centre, spread = score.mean(), score.std()
    standard = np.tile((score - centre) / spread, 2)[:, None]
    target = np.where(label, (label.sum() + 1) / (label.sum() + 2), 1 / ((~label).sum() + 2))
    # Resamples keep the size of each class, so the best constant curve is the same in all of them.
    level = logit(target.mean())
    # A target between 0 and 1 is a row of each class, weighted: that is its cross-entropy.
    outcome = np.repeat([1, 0], score.size)
    shares = np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    slopes, intercepts = [], []
    for weight in weights:
        model.fit(standard, outcome, sample_weight=shares * np.tile(weight, 2))
        slope, intercept = model.coef_.item() / spread, model.intercept_.item()
        if slope <= 0:
            # The loss is convex, so its least value among slopes that do not fall lies at slope 0.
            slope, intercept = 0.0, level
        slopes.append(float(slope))
        intercepts.append(float(intercept - slope * centre))
    return tuple(slopes), tuple(intercepts)


def _isotonic(
    score: Array, label: npt.NDArray[np.bool_], weights: Array
) -> tuple[tuple[float, ...], ...]:
    """Scores at the ends of the flat steps, and p, low and high there."""
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, label)
    ends, p = model.X_thresholds_.copy(), model.y_thresholds_.copy()
    # scikit-learn drops rows of weight 0, so a row that was not drawn holds no point of the curve.
    curves = [model.fit(score, label, sample_weight=w).predict(ends) for w in weights[1:]]
    low, high = np.quantile(curves, _TAILS, axis=0)
    for step in np.unique(p):
        at = p == step
        held = label[(score >= ends[at].min()) & (score <= ends[at].max())]
        exact = clopper_pearson(int(held.sum()), held.size)
        low[at] = np.minimum(low[at], exact.low)
        high[at] = np.maximum(high[at], exact.high)
    low, high = np.minimum(low, p), np.maximum(high, p)
    return tuple(tuple(column.tolist()) for column in (ends, p, low, high))
