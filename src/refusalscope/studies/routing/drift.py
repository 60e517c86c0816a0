"""Circuit drift: which heads moved between two checkpoints, and whether their ranking moved with them.

Source: alignment_routes section 12 (our reconstruction); rank-biased overlap is that of Webber, Moffat and
Zobel (2010), "A similarity measure for indefinite rankings". Every two rankings overlap imperfectly, so the
overlap is read against what drawing other pairs does to the ranking of one and the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.stats import max_t_signflip, mean_interval
from refusalscope.studies.heads import MIN_PAIRS, clusters_of
from refusalscope.studies.routing.interchange import Screen

Array = npt.NDArray[np.float64]
# A mean of equal overlaps can miss them by a rounding.
_TIE = 1e-12


def rank_biased_overlap(
    first: Sequence[Hashable], second: Sequence[Hashable], p: float = 0.9
) -> float:
    """Extrapolated rank-biased overlap of two rankings, best first (Webber et al. 2010, eq. 32): 0 to 1.

    The agreement at depth d counts p^(d - 1), and the last one holds for all that lies deeper; the rankings may
    differ in length. Ties count in the order given. Raises InputError for an empty ranking, an item that is
    ranked twice, or p outside 0..1.
    """
    if not 0 < p < 1:
        raise InputError(f"p of a rank-biased overlap lies between 0 and 1, got {p}")
    places = [{item: i for i, item in enumerate(ranking)} for ranking in (first, second)]
    if any(
        len(place) < len(ranking) for place, ranking in zip(places, (first, second), strict=True)
    ):
        raise InputError("a ranking names an item twice; name each item once")
    shorter, longer = sorted((len(first), len(second)))
    if not shorter:
        raise InputError("an empty ranking overlaps with nothing; rank at least one item")
    # An item is shared from the depth on at which both rankings have named it.
    shared = [max(i, places[1][item]) for item, i in places[0].items() if item in places[1]]
    overlap = np.bincount(np.asarray(shared, dtype=np.intp), minlength=longer).cumsum()
    depth = np.arange(1, longer + 1)
    beyond = np.maximum(depth - shorter, 0)
    agreement = (overlap + overlap[shorter - 1] * beyond / shorter) / depth
    return float((1 - p) / p * (agreement @ p**depth) + agreement[-1] * p**longer)


def drift(
    first: Screen,
    second: Screen,
    metric: str,
    *,
    categories: Sequence[str] | None = None,
    floor: float = 0.01,
    alpha: float = 0.05,
    n_null: int = 500,
    n_flips: int = 10_000,
    top_weight: float = 0.9,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the screens of two checkpoints on the same pairs, in the same order: heads, then the ranking.

    First frame, one row a unit: layer and head (of its first head), first and second (mean necessity, each as
    a share of its own checkpoint's gap), change (second minus first) with low and high (95 %, BCa bootstrap
    over pairs), p_familywise (max-T sign flips of the paired differences), moved (p below alpha and |change|
    above the floor). Where there are MIN_CLUSTERS categories or more, whole ones are resampled and flipped.

    Second frame, one row: rbo, the rank-biased overlap (p = top_weight) of the units ranked by |mean necessity|
    over all pairs; rbo_halves; null_mean and null_low (5 % quantile); p; n (pairs).
    The null redraws pairs: n_null times they are cut in two random halves, and one checkpoint's half A is
    ranked against its own half B, the checkpoints taking turns. Categories are shared out evenly between
    halves, not kept whole, or the null would hold a change of topics that the checkpoints, screened on the same
    pairs, never see. Rankings of half the pairs are noisier than those of all, so the observed overlap is taken
    on the same halves: rbo_halves is the mean overlap of the first checkpoint's half A with the second's half
    B, and p = (1 + #null <= rbo_halves) / (1 + n_null). A mean varies less than the draws it is compared with,
    so p is conservative: near .5, not uniform and not 1, where nothing moved. All units are ranked, and those
    below the floor in an order that any change of weights reshuffles: a small p says that the rankings differ
    by more than other pairs explain, and `moved` whether heads that matter did.

    A screen does not hold its prompts: other pairs of equal number go unnoticed. Raises InputError for other
    units, another number of pairs, fewer than MIN_PAIRS, or a checkpoint without a gap.
    """
    _check(first, second, metric, categories, n_null)
    shares = [found.necessity[metric].mean(axis=1) / found.gap(metric) for found in (first, second)]
    change = shares[1] - shares[0]
    clusters = clusters_of(categories)
    intervals = [mean_interval(column, clusters, seed=seed) for column in change.T]
    moved = pd.DataFrame(
        {
            "layer": [unit[0][0] for unit in first.units],
            "head": [unit[0][1] for unit in first.units],
            "first": shares[0].mean(axis=0),
            "second": shares[1].mean(axis=0),
            "change": [interval.value for interval in intervals],
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
            "p_familywise": max_t_signflip(change, n_flips, seed=seed).p_familywise,
        }
    )
    moved["moved"] = (moved["change"].abs() > floor) & (moved["p_familywise"] < alpha)
    rng = np.random.default_rng(seed)
    observed, null = _on_halves(shares, categories, n_null, top_weight, rng)
    ranking = pd.DataFrame(
        [
            {
                "rbo": _overlap(shares[0], shares[1], top_weight),
                "rbo_halves": observed,
                "null_mean": float(null.mean()),
                "null_low": float(np.quantile(null, 0.05)),
                "p": float((1 + (null <= observed + _TIE).sum()) / (1 + n_null)),
                "n": len(change),
            }
        ]
    )
    return moved, ranking


def _check(
    first: Screen, second: Screen, metric: str, categories: Sequence[str] | None, n_null: int
) -> None:
    shared = [name for name in first.harmful if name in second.harmful]
    if metric not in shared:
        raise InputError(
            f"the two screens do not share the metric {metric!r}; they share: {', '.join(shared) or 'none'}"
        )
    if first.units != second.units:
        raise InputError(
            "the two screens swapped different units, so their heads cannot be matched; screen both "
            "checkpoints with the same units"
        )
    n, other = len(first.harmful[metric]), len(second.harmful[metric])
    if n != other:
        raise InputError(
            f"the first screen has {n} pairs and the second {other}; screen both checkpoints on the same pairs"
        )
    if n < MIN_PAIRS:
        raise InputError(f"{n} pairs are too few to cut in halves: give {MIN_PAIRS} or more")
    if categories is not None and len(categories) != n:
        raise InputError(
            f"there are {len(categories)} categories for {n} pairs; give one for each pair"
        )
    if n_null < 1:
        raise InputError(f"the null needs at least one draw of halves, got n_null = {n_null}")
    for name, found in (("first", first), ("second", second)):
        if not abs(found.gap(metric)) > 0:
            raise InputError(
                f"the harmful prompts and their controls score alike under the {name} checkpoint, so it has "
                f"no gap to take shares of; check that it refuses one side of the pairs"
            )


def _on_halves(
    shares: Sequence[Array],
    categories: Sequence[str] | None,
    n_draws: int,
    top_weight: float,
    rng: np.random.Generator,
) -> tuple[float, Array]:
    """Mean overlap between the checkpoints' halves, and one overlap within a checkpoint a draw."""
    n = len(shares[0])
    labels = np.zeros(n, dtype=np.intp)
    if categories is not None:
        labels = np.unique(np.asarray(categories).astype(str), return_inverse=True)[1]
    between, within = np.zeros(n_draws), np.zeros(n_draws)
    for draw in range(n_draws):
        # Dealt out in turn, category by category, each shuffled.
        order = np.lexsort((rng.random(n), rng.permutation(labels.max() + 1)[labels]))
        a, b = order[::2], order[1::2]
        own = shares[draw % 2]
        between[draw] = _overlap(shares[0][a], shares[1][b], top_weight)
        within[draw] = _overlap(own[a], own[b], top_weight)
    return float(between.mean()), within


def _overlap(first: Array, second: Array, top_weight: float) -> float:
    """Rank-biased overlap of the units of two tables [pairs, units], ranked by |mean|."""
    rankings = [
        np.argsort(-np.abs(table.mean(axis=0)), kind="stable").tolist() for table in (first, second)
    ]
    return rank_biased_overlap(rankings[0], rankings[1], top_weight)
