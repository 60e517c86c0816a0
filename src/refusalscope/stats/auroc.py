"""Area under the ROC curve with an interval."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from refusalscope.errors import InputError
from refusalscope.stats.bootstrap import Method, bootstrap_bounds
from refusalscope.stats.interval import NAN, Interval, Seed, numbers
from refusalscope.stats.proportions import wilson


def auroc(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    method: Method = "bca",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: Seed,
) -> Interval:
    """Chance that a positive row scores above a negative one (ties half), bootstrapped by class.

    labels: [n] of True/False or 1/0; scores: [n], higher means more positive. `n` of the result is
    the number of rows of both classes.

    Rules: one class only, all NaN. Complete separation (0 or 1), where every resample repeats the
    estimate: the Wilson interval for n = the rows of the smaller class, which inverts van Dantzig's
    bound Var <= A (1 - A) / min(n_pos, n_neg) and so is wide rather than falsely certain; the same
    for a class of one row. Raises InputError for other labels or scores that are not finite.
    """
    score = numbers(scores, "scores")
    label = np.asarray(labels)
    if label.shape != score.shape:
        raise InputError(f"labels has shape {label.shape}, scores {score.shape}: expected the same")
    if not np.isin(label, (0, 1)).all():
        raise InputError("labels of an AUROC must be True/False or 1/0")
    positive, negative = score[label == 1], score[label == 0]
    smaller = min(positive.size, negative.size)
    if smaller == 0:
        return Interval(NAN, NAN, NAN, score.size)
    value = float(roc_auc_score(label, score))
    if smaller == 1 or value in (0.0, 1.0):
        # Wilson takes counts; one row can tie or lie in the middle, so take the wider of the two.
        below = wilson(int(np.floor(value * smaller)), smaller, level).low
        above = wilson(int(np.ceil(value * smaller)), smaller, level).high
        return Interval(value, below, above, score.size)
    low, high = bootstrap_bounds(
        (positive, negative),
        _area,
        paired=False,
        method=method,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    return Interval(value, low, high, score.size)


def _area(positive: npt.NDArray, negative: npt.NDArray, axis: int) -> npt.NDArray:
    pairs = positive.shape[axis] * negative.shape[axis]
    return mannwhitneyu(positive, negative, axis=axis, method="asymptotic").statistic / pairs
