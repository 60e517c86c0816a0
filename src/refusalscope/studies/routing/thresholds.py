"""Where a dose turns refusal round: thresholds of margins and of replies, and whether the way is straight.

Source: alignment_routes section 8 (`recommended`: thresholds by category with intervals, a monotonicity test
and an ordinal logit of the label on the dose). A threshold outside the doses is never extrapolated: its value
is NaN, and its bounds say on which side it lies (-inf: below dose 0, inf: above the largest).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit
from scipy.stats import page_trend_test
from statsmodels.miscmodels.ordinal_model import OrderedModel

from refusalscope.judge.protocol import REFUSALS
from refusalscope.stats import Interval
from refusalscope.stats.interval import NAN, Clusters, Seed, cluster_codes
from refusalscope.studies.heads import clusters_of

Array = npt.NDArray[np.float64]
Arm = Literal["attenuate", "amplify"]
ARMS: tuple[Arm, ...] = get_args(Arm)
LEVELS = ("compliance", "partial_refusal", "full_refusal")
# A sandwich covariance of fewer prompts than this is too small by itself.
MIN_PROMPTS = 8
_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Responses:
    """What the doses of one arm did. alphas [doses], rising from 0; margins [prompts, doses], in nats.

    judged_alphas [judged doses]; labels [prompts, judged doses], None where the judge could not tell.
    clusters: one name a prompt, such as its category; resampled as wholes where there are three or more.
    """

    arm: Arm
    alphas: Array
    margins: Array
    judged_alphas: Array
    labels: npt.NDArray[np.object_]
    clusters: tuple[str, ...]

    def of(self, chosen: npt.NDArray[np.bool_]) -> Responses:
        """Those of some prompts: chosen [prompts]."""
        names = tuple(name for name, yes in zip(self.clusters, chosen, strict=True) if yes)
        return replace(
            self, margins=self.margins[chosen], labels=self.labels[chosen], clusters=names
        )

    @property
    def refused(self) -> Array:
        """[prompts, judged doses]: 1 refused fully or in part, 0 not, NaN undecided."""
        known = pd.notna(self.labels)
        return np.where(known, np.isin(self.labels, REFUSALS).astype(float), NAN)


def thresholds(found: Responses, *, seed: Seed) -> dict[str, float]:
    """The columns of `routing.thresholds` that are measured; see `dose`."""
    clusters = clusters_of(found.clusters)
    crossing = crossings(found.alphas, found.margins, found.arm)
    middle = median_crossing(crossing, found.alphas[-1], clusters, seed=seed)
    replies = behaviour_alpha50(found.judged_alphas, found.refused, found.arm, clusters, seed=seed)
    share, p_monotone = monotone(found.margins, found.arm)
    slope, p_slope = ordinal_slope(found.judged_alphas, found.labels)
    return {
        "n": len(crossing),
        "alpha50": middle.value,
        "alpha50_low": middle.low,
        "alpha50_high": middle.high,
        "crossed": float(np.isfinite(crossing).mean()),
        "behaviour_alpha50": replies.value,
        "behaviour_alpha50_low": replies.low,
        "behaviour_alpha50_high": replies.high,
        "monotone": share,
        "p_monotone": p_monotone,
        "ordinal_slope": slope,
        "p_slope": p_slope,
    }


def crossings(alphas: npt.ArrayLike, margins: npt.ArrayLike, arm: Arm) -> Array:
    """Dose at which each prompt's margin first reaches the other side of 0, between doses by a straight line.

    margins [prompts, doses] -> [prompts], in the unit of alphas. -inf: it was there at the first dose already
    (attenuate: margin 0 or below; amplify: 0 or above). inf: it never gets there.
    """
    doses = np.asarray(alphas, dtype=np.float64)
    toward = _falling(np.asarray(margins, dtype=np.float64), arm)
    there = toward <= 0
    first = there.argmax(axis=1)
    found = np.full(len(toward), np.inf)
    found[there[:, 0]] = -np.inf
    rows = np.flatnonzero(first > 0)
    at = first[rows]
    before, after = toward[rows, at - 1], toward[rows, at]
    found[rows] = doses[at - 1] + (doses[at] - doses[at - 1]) * before / (before - after)
    return found


def median_crossing(
    crossing: npt.ArrayLike, largest: float, clusters: Clusters = None, *, seed: Seed
) -> Interval:
    """Median of `crossings` [prompts] with a percentile bootstrap interval, over whole clusters if given.

    Censored prompts keep their place in the order. Where a middle prompt is censored, the value is NaN and
    the bounds still say where the median can lie: low at most `largest` and high inf on the right, low -inf and
    high at least 0 on the left. A bound is also infinite where enough resamples are censored. One prompt or
    cluster: no bounds but those of its censoring.
    """
    values = np.sort(np.asarray(crossing, dtype=np.float64))
    if not values.size:
        return Interval(NAN, NAN, NAN, 0)
    weights = _resamples(values.size, clusters, seed)
    if weights is not None:
        weights = weights[:, np.argsort(np.asarray(crossing), kind="stable")]
    lower, upper = (float(side[0]) for side in _middle(values, np.ones((1, values.size))))
    drawn = None if weights is None else _middle(values, weights)
    value = (lower + upper) / 2 if np.isfinite([lower, upper]).all() else NAN
    return _stated(value, lower, upper, drawn, largest, values.size)


def behaviour_alpha50(
    alphas: npt.ArrayLike,
    refused: npt.ArrayLike,
    arm: Arm,
    clusters: Clusters = None,
    *,
    seed: Seed,
) -> Interval:
    """Dose at which half of the replies refuse, by a bias-reduced binary logit of refused on the dose.

    refused: [prompts, doses] of 1, 0 or NaN (not judged). Firth's penalty (Biometrika 80, 1993) keeps the fit
    finite under perfect separation, which is the rule where a model switches at one dose. Interval: percentile
    bootstrap over prompts, or whole clusters, and never narrower than the judged doses on either side of the
    value, as nothing was seen between them. Censoring as in `median_crossing`: a logit that starts on the other
    side or does not cross within the doses gives NaN with its bound. All NaN for fewer than two judged doses.
    """
    table = np.asarray(refused, dtype=np.float64)
    judged = ~np.isnan(table)
    kept = judged.any(axis=0)
    doses = np.asarray(alphas, dtype=np.float64)[kept]
    n = int(judged.any(axis=1).sum())
    if doses.size < 2:
        return Interval(NAN, NAN, NAN, n)
    hits, tries = np.nan_to_num(table[:, kept]), judged[:, kept].astype(np.float64)
    ones = np.ones((1, len(table)))
    value = float(_half(doses, ones @ hits, ones @ tries, arm)[0])
    weights = _resamples(len(table), clusters, seed)
    drawn = None
    if weights is not None:
        fitted = _half(doses, weights @ hits, weights @ tries, arm)
        drawn = (fitted[~np.isnan(fitted)],) * 2
    low = high = value
    if np.isfinite(value):
        low, high = doses[doses <= value].max(), doses[doses >= value].min()
    return _stated(value if np.isfinite(value) else NAN, low, high, drawn, doses[-1], n)


def monotone(margins: npt.ArrayLike, arm: Arm) -> tuple[float, float]:
    """Share of the steps from a dose to the next that go the arm's way, and p of Page's trend test.

    margins: [prompts, doses]; prompts are the blocks, and the predicted order is falling for attenuate, rising
    for amplify. p is NaN for fewer than two prompts or three doses.
    """
    toward = _falling(np.asarray(margins, dtype=np.float64), arm)
    share = float((np.diff(toward, axis=1) < 0).mean())
    if toward.shape[0] < 2 or toward.shape[1] < 3:
        return share, NAN
    return share, float(page_trend_test(-toward).pvalue)


def ordinal_slope(alphas: npt.ArrayLike, labels: npt.NDArray[np.object_]) -> tuple[float, float]:
    """Slope of an ordinal logit of compliance < partial < full refusal on the dose, and its two-sided p.

    labels: [prompts, doses]; degenerate and undecided replies are left out. In logits a unit of alpha, above 0
    where refusal grows. p is cluster-robust over prompts, NaN for fewer than MIN_PROMPTS of them. Both are NaN
    where there is one level or dose, where the levels are separated by the dose (the slope is then infinite),
    or where the fit does not converge.
    """
    rows, columns = np.nonzero(np.isin(labels, LEVELS))
    level = np.array([LEVELS.index(label) for label in labels[rows, columns]], dtype=np.int64)
    dose = np.asarray(alphas, dtype=np.float64)[columns]
    if not _overlap(dose, level):
        return NAN, NAN
    unit = np.ptp(dose)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = OrderedModel(level, dose[:, None] / unit, distr="logit").fit(
                method="bfgs",
                maxiter=500,
                disp=False,
                cov_type="cluster",
                cov_kwds={"groups": np.unique(rows, return_inverse=True)[1]},
            )
        except (ValueError, np.linalg.LinAlgError):
            return NAN, NAN
        slope, p = float(fit.params[0]), float(fit.pvalues[0])
    if not (fit.mle_retvals["converged"] and np.isfinite(slope)):
        return NAN, NAN
    return slope / unit, p if len(np.unique(rows)) >= MIN_PROMPTS else NAN


def _falling(margins: Array, arm: Arm) -> Array:
    """Margins turned so that the arm should bring them down through 0."""
    return margins if arm == "attenuate" else -margins


def _resamples(n: int, clusters: Clusters, seed: Seed) -> Array | None:
    """How often each row is drawn [resamples, n]; None where there is one row or cluster."""
    codes = cluster_codes(clusters, n)
    size = int(codes.max()) + 1 if n else 0
    if size < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), _RESAMPLES)
    return drawn[:, codes].astype(np.float64)


def _middle(values: Array, weights: Array) -> tuple[Array, Array]:
    """The two middle values of each weighted sample: values [n] sorted, weights [samples, n]."""
    share = weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True)
    return values[(share >= 0.5).argmax(axis=1)], values[(share > 0.5).argmax(axis=1)]


def _stated(
    value: float,
    low: float,
    high: float,
    drawn: tuple[Array, Array] | None,
    largest: float,
    n: int,
) -> Interval:
    """The value with percentile bounds of what was drawn, at least as wide as low to high."""
    if drawn is None or not len(drawn[0]):
        if np.isfinite(value):
            return Interval(value, NAN, NAN, n)
    else:
        # By rank: a quantile between two infinite values is not a number.
        cut = int((1 - _LEVEL) / 2 * (len(drawn[0]) - 1))
        low = min(low, float(np.sort(drawn[0])[cut]))
        high = max(high, float(np.sort(drawn[1])[-1 - cut]))
    return Interval(value, min(low, float(largest)), max(high, 0.0), n)


def _half(doses: Array, refused: Array, judged: Array, arm: Arm) -> Array:
    """Where Firth's logit of counts [samples, doses] crosses 0 the arm's way: [samples], +-inf outside."""
    intercept, slope = _firth(doses / doses[-1], refused, judged)
    start, change = (_falling(part, arm) for part in (intercept, slope))
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(change < 0, -start / change, np.inf)
    at = np.where(at > 1, np.inf, at)
    at = np.where(start <= 0, -np.inf, at) * doses[-1]
    return np.where(np.isfinite(intercept + slope), at, NAN)


def _firth(x: Array, hits: Array, tries: Array) -> tuple[Array, Array]:
    """Intercept and slope of logit P(hit) = a + b x under Firth's penalty; NaN where x does not vary.

    x: [doses]; hits, tries: [samples, doses] counts. Newton steps on the penalised score
    sum (hits - tries p + h (1/2 - p)) (1, x), h the summed leverage of a dose's rows.
    """
    a = b = np.zeros(len(hits))
    varies = (tries > 0).sum(axis=1) > 1
    for _ in range(200):
        p = expit(a[:, None] + b[:, None] * x)
        w = tries * p * (1 - p)
        s0, s1, s2 = w.sum(axis=1), w @ x, w @ x**2
        det = np.where(varies, s0 * s2 - s1**2, 1.0)
        h = w * (s2[:, None] - 2 * s1[:, None] * x + s0[:, None] * x**2) / det[:, None]
        score = hits - tries * p + h * (0.5 - p)
        u0, u1 = score.sum(axis=1), score @ x
        # Long steps overshoot, since the penalised likelihood is not quadratic far from its top.
        da = np.clip((s2 * u0 - s1 * u1) / det, -2, 2)
        db = np.clip((s0 * u1 - s1 * u0) / det, -2, 2)
        a, b = a + da, b + db
        if max(np.abs(da[varies]).max(initial=0), np.abs(db[varies]).max(initial=0)) < 1e-9:
            break
    return np.where(varies, a, NAN), np.where(varies, b, NAN)


def _overlap(dose: Array, level: npt.NDArray[np.int64]) -> bool:
    """Whether some split of the levels has its two sides overlap in dose, so that a slope is finite."""
    for cut in np.unique(level)[1:]:
        low, high = dose[level < cut], dose[level >= cut]
        if low.min() < high.max() and high.min() < low.max():
            return True
    return False
