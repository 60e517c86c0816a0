"""Which units of a screen matter: max-T sign flips, an effect floor, intervals, and how stable the answer is.

Source: alignment_routes section 5 (our reconstruction of the paper's tests, whose code is not released).
Significance alone is useless here, as a deterministic model makes tiny effects consistent; the floor, a
share of the gap between the members of a pair, is what keeps them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.stats import max_t_signflip, mean_interval, tost
from refusalscope.studies.heads import MIN_PAIRS, clusters_of
from refusalscope.studies.routing.interchange import Screen

Array = npt.NDArray[np.float64]


def significance(
    found: Screen,
    metric: str,
    *,
    categories: Sequence[str] | None = None,
    floor: float = 0.01,
    alpha: float = 0.05,
    n_flips: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a unit: its effects as shares of the gap, with intervals and familywise p.

    Columns: unit (its place in `found.units`), layer and head (of its first head), size, and for necessity and
    sufficiency the mean over pairs and donors with _low and _high (95 %, BCa bootstrap, whole categories
    resampled where there are MIN_CLUSTERS or more); p_familywise (of necessity, signs of single pairs flipped),
    p_categories (signs of whole categories flipped: would it hold on others?), p_sufficiency, p_both (the
    larger of the two), p_equivalent (two one-sided tests that necessity lies within the floor), donor_sd;
    passes: |necessity| above the floor and p_familywise below alpha. Raises InputError for fewer than
    MIN_PAIRS pairs, or no gap.
    """
    gap = found.gap(metric)
    n = len(found.harmful[metric])
    if n < MIN_PAIRS:
        raise InputError(
            f"{n} pairs are too few for a sign-flip test of {len(found.units)} heads: give {MIN_PAIRS} or more"
        )
    if not abs(gap) > 0:
        raise InputError(
            "the harmful prompts and their controls score alike, so there is no gap to explain; "
            "check that the model refuses one side of the pairs"
        )
    clusters = clusters_of(categories)
    tables = {
        "necessity": found.necessity[metric] / gap,
        "sufficiency": found.sufficiency[metric] / gap,
    }
    columns: dict[str, object] = {
        "unit": np.arange(len(found.units)),
        "layer": [unit[0][0] for unit in found.units],
        "head": [unit[0][1] for unit in found.units],
        "size": [len(unit) for unit in found.units],
    }
    tests = {}
    for name, table in tables.items():
        by_pair = table.mean(axis=1)
        intervals = [mean_interval(column, clusters, seed=seed) for column in by_pair.T]
        columns[name] = by_pair.mean(axis=0)
        columns[f"{name}_low"] = [interval.low for interval in intervals]
        columns[f"{name}_high"] = [interval.high for interval in intervals]
        tests[name] = max_t_signflip(by_pair, n_flips, seed=seed)
    columns["p_familywise"] = tests["necessity"].p_familywise
    columns["p_categories"] = np.nan
    if clusters is not None:
        by_pair = tables["necessity"].mean(axis=1)
        columns["p_categories"] = max_t_signflip(by_pair, n_flips, clusters, seed=seed).p_familywise
    columns["p_sufficiency"] = tests["sufficiency"].p_familywise
    columns["p_both"] = np.maximum(
        tests["necessity"].p_familywise, tests["sufficiency"].p_familywise
    )
    per_cluster = _means(tables["necessity"].mean(axis=1), clusters)
    columns["p_equivalent"] = [tost(column, floor).p for column in per_cluster.T]
    columns["donor_sd"] = tables["necessity"].mean(axis=0).std(axis=0)
    frame = pd.DataFrame(columns)
    frame["passes"] = (frame["necessity"].abs() > floor) & (frame["p_familywise"] < alpha)
    return frame


def stability(
    found: Screen,
    metric: str,
    *,
    top: int = 10,
    categories: Sequence[str] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, float]:
    """How far the set of the `top` units by |necessity| stays the same (Jaccard), on average.

    resamples: of pairs, or of whole categories; halves: between the two halves of a random split; donors:
    between donors (1 with a single one).
    """
    table = found.necessity[metric]
    rng = np.random.default_rng(seed)
    by_pair = table.mean(axis=1)
    clusters = clusters_of(categories)
    codes = (
        np.arange(len(by_pair)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    )
    whole = _top(by_pair.mean(axis=0), top)
    drawn = []
    halves = []
    for _ in range(resamples):
        picked = rng.integers(0, codes.max() + 1, codes.max() + 1)
        weight = np.bincount(picked, minlength=codes.max() + 1)[codes]
        drawn.append(_jaccard(whole, _top(np.average(by_pair, axis=0, weights=weight), top)))
        order = rng.permutation(len(by_pair))
        half = len(order) // 2
        first, second = by_pair[order[:half]], by_pair[order[half:]]
        halves.append(_jaccard(_top(first.mean(axis=0), top), _top(second.mean(axis=0), top)))
    per_donor = [_top(table[:, d].mean(axis=0), top) for d in range(table.shape[1])]
    between = [_jaccard(a, b) for i, a in enumerate(per_donor) for b in per_donor[:i]]
    return {
        "resamples": float(np.mean(drawn)),
        "halves": float(np.mean(halves)),
        "donors": float(np.mean(between)) if between else 1.0,
    }


def _means(table: Array, clusters: npt.NDArray | None) -> Array:
    """Rows of `table` [pairs, units], or their means by cluster, which are independent."""
    if clusters is None:
        return table
    return np.stack([table[clusters == name].mean(axis=0) for name in np.unique(clusters)])


def _top(effects: Array, top: int) -> frozenset[int]:
    return frozenset(np.argsort(-np.abs(effects), kind="stable")[:top].tolist())


def _jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    return len(first & second) / len(first | second)
