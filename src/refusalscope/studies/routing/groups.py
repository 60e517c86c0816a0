"""Heads in sets: what a group does together, and whether two groups pull against each other.

Source: arXiv 2604.04385, bands and coalitions; alignment_routes section 8. The published correlation of two
coalitions is taken between contributions that were all divided by the same rms(x_L), which correlates even
heads that write a constant; here it stands beside the one with that denominator removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import permutation_test

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Metric, RefusalMargin
from refusalscope.stats import mean_interval
from refusalscope.studies.heads import MIN_PAIRS, Head, Unit, clusters_of
from refusalscope.studies.routing.attribution import attribute
from refusalscope.studies.routing.interchange import Pair, screen
from refusalscope.studies.routing.maps import MapName

Array = npt.NDArray[np.float64]
# Spread of a set's writes, as a share of their size, up to which they are constant but for rounding.
_CONSTANT = 1e-4


def groups(
    chat: ChatModel,
    pairs: Sequence[Pair],
    metric: Metric,
    named: Mapping[str, Unit],
    *,
    positions: MapName = "suffix",
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Necessity of each named set of heads swapped together, beside that of its heads alone; one screen.

    Columns: name, n_heads, necessity with low and high (95 %, BCa bootstrap over pairs, whole categories
    resampled where there are MIN_CLUSTERS or more), largest (of its single heads, the one of largest
    |necessity|, signed), summed (over its single heads): shares of the gap, means over pairs and donors. A set
    above `summed` holds heads that stand in for each other, or that a saturated final norm covers for; a set
    below it, heads of one path.
    Raises InputError for no set, a set that is empty or names a head twice, or no gap.
    """
    if not named:
        raise InputError("there is no group to swap; name at least one set of heads")
    for name, unit in named.items():
        if not unit or len(set(unit)) < len(unit):
            raise InputError(
                f"the group {name!r} is empty or names a head twice; give each of its heads once"
            )
    if categories is not None and len(categories) != len(pairs):
        raise InputError(
            f"there are {len(categories)} categories for {len(pairs)} pairs; give one for each pair"
        )
    sets = list(named.values())
    singles = list(dict.fromkeys(head for unit in sets for head in unit))
    units = [*sets, *((head,) for head in singles)]
    found = screen(chat, pairs, {"m": metric}, units=units, positions=positions)
    gap = found.gap("m")
    if not abs(gap) > 0:
        raise InputError(
            "the harmful prompts and their controls score alike, so there is no gap to explain; "
            "check that the model refuses one side of the pairs"
        )
    shares = found.necessity["m"].mean(axis=1) / gap
    alone = dict(zip(singles, shares[:, len(sets) :].mean(axis=0), strict=True))
    clusters = clusters_of(categories)
    rows = []
    for (name, unit), column in zip(named.items(), shares.T, strict=False):
        interval = mean_interval(column, clusters, seed=seed)
        members = [float(alone[head]) for head in unit]
        rows.append(
            {
                "name": name,
                "n_heads": len(unit),
                "necessity": interval.value,
                "low": interval.low,
                "high": interval.high,
                "largest": max(members, key=abs),
                "summed": sum(members),
            }
        )
    return pd.DataFrame(rows)


def coalitions(
    chat: ChatModel,
    pairs: Sequence[Pair],
    margin: RefusalMargin,
    pro: Sequence[Head],
    counter: Sequence[Head],
    *,
    seed: int,
    n_permutations: int = 10_000,
) -> pd.DataFrame:
    """Correlation, over the harmful prompts, of what two sets of heads write along the refusal direction.

    One row: n_pro, n_counter (heads), n (prompts), r_raw (Pearson, of the summed direct contributions D),
    r_held (the same with the shared denominator removed: D times rms(x_L)), p (two-sided, prompts of one set
    permuted against the other, for r_held; prompts count as exchangeable). The direction is one for all
    prompts, so nothing else is shared. A set that writes the same in every prompt correlates with nothing:
    r_held and p are NaN, however large r_raw. Raises InputError for an empty set, a head that is named twice or
    stands in both or that the model lacks, and fewer than MIN_PAIRS pairs.
    """
    _check(chat, pairs, pro, counter)
    found = attribute(chat, [pair.harmful for pair in pairs], margin)
    held = found.heads / found.scale[:, None, None]
    one, other = _summed(held, pro), _summed(held, counter)
    r_held = _correlation(one, other)
    p = float("nan")
    if one is not None and other is not None:
        centred = other - other.mean()
        # SciPy's own two-sided rule doubles a Monte Carlo tail; an absolute value is two-sided by itself.
        p = float(
            permutation_test(
                (one - one.mean(),),
                lambda x, axis: np.abs(np.moveaxis(x, axis, -1) @ centred),
                permutation_type="pairings",
                alternative="greater",
                vectorized=True,
                n_resamples=n_permutations,
                batch=max(1, 2**22 // len(one)),
                rng=np.random.default_rng(seed),
            ).pvalue
        )
    return pd.DataFrame(
        [
            {
                "n_pro": len(pro),
                "n_counter": len(counter),
                "n": len(pairs),
                "r_raw": _correlation(_summed(found.heads, pro), _summed(found.heads, counter)),
                "r_held": r_held,
                "p": p,
            }
        ]
    )


def _check(
    chat: ChatModel, pairs: Sequence[Pair], pro: Sequence[Head], counter: Sequence[Head]
) -> None:
    anatomy = chat.anatomy
    if not pro or not counter:
        raise InputError("a coalition needs heads on both sides; name at least one for each")
    if len({*pro, *counter}) < len(pro) + len(counter):
        raise InputError("a head is named twice or stands on both sides; name each head once")
    for layer, head in (*pro, *counter):
        if layer not in anatomy.softmax_layers or not 0 <= head < anatomy.n_heads:
            raise InputError(
                f"the model has no head L{layer}.H{head}; it has {anatomy.n_layers} layers of "
                f"{anatomy.n_heads} heads"
            )
    if len(pairs) < MIN_PAIRS:
        raise InputError(
            f"{len(pairs)} pairs are too few for a correlation: give {MIN_PAIRS} or more"
        )


def _summed(contributions: Array, heads: Sequence[Head]) -> Array | None:
    """Sum over a set [prompts] of contributions [prompts, layers, heads]; None where it never varies."""
    layers, numbers = zip(*heads, strict=True)
    chosen = contributions[:, list(layers), list(numbers)]
    total = chosen.sum(axis=1)
    return total if np.ptp(total) > _CONSTANT * np.abs(chosen).max() else None


def _correlation(first: Array | None, second: Array | None) -> float:
    if first is None or second is None:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
