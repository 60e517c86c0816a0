"""Which latents act together: pairwise moments over random masks, and the exact 2 x 2 of chosen pairs.

sae_features section 7.3 (our reconstruction). A moment ranks all pairs at once but is blind to a reserve behind
them that no mask touches, so masks are drawn over all that conditional attribution has woken; the 2 x 2 then
confirms. All changes are of a score that falls as the refusal goes, such as the refusal margin in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.stats import Interval, mean_interval
from refusalscope.stats.interval import Clusters, Seed, cluster_codes, numbers

Array = npt.NDArray[np.float64]
Pair = tuple[int, int]
Kind = Literal["OR", "redundant", "AND", "synergistic", "additive", "undecided"]

# Bootstrap values held at once: 64 MB of float32.
_MEMORY_CELLS = 2**24


@dataclass(frozen=True)
class Moments:
    """Effects in the unit of the score, over n masks.

    main, main_low, main_high: [latents], half the mean change of ablating one. pair, pair_low, pair_high:
    [latents, latents], a quarter of the mean 2 x 2 interaction, symmetric, NaN on the diagonal; below 0 where
    the two stand in for each other.
    """

    n: int
    main: Array
    main_low: Array
    main_high: Array
    pair: Array
    pair_low: Array
    pair_high: Array


def random_masks(n: int, count: int, *, seed: Seed) -> npt.NDArray[np.bool_]:
    """Masks [n, count] of which latents to ablate, each latent in half of them."""
    return np.random.default_rng(seed).random((n, count)) < 0.5


def pair_moments(
    masks: npt.ArrayLike,
    change: npt.ArrayLike,
    clusters: Clusters = None,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: Seed,
) -> Moments:
    """Main effects, and what pairs add to them, from runs under random masks of density 1/2.

    masks: [n, latents], true where ablated; change: [n], score under the mask less the clean score of the same
    prompt. With sigma = 2 mask - 1 and the change centred: main_i = E[change sigma_i], and pair_ij =
    E[residual sigma_i sigma_j] of what the mains leave. Percentile bootstrap over masks, or over whole
    `clusters` [n] (prompts, or their categories), with both steps repeated in every resample. Raises InputError
    for shapes that do not fit, or fewer than two masks or clusters.
    """
    ablated = np.asarray(masks, dtype=bool)
    y = numbers(change, "change")
    if ablated.ndim != 2 or len(ablated) != y.size:
        raise InputError(
            f"masks has shape {ablated.shape} and change {y.shape}: expected [n, latents] and [n]"
        )
    codes = cluster_codes(clusters, y.size)
    groups = int(codes.max(initial=-1)) + 1
    if groups < 2:
        raise InputError("moments need masks of at least two clusters; measure more")
    sigma = np.where(ablated, 1.0, -1.0)
    drawn = np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), size=n_resamples
    )
    main, residual = _mains(sigma, y, np.ones(y.size))
    pair = (sigma * residual[:, None]).T @ sigma
    resampled = [_mains(sigma, y, row[codes].astype(np.float64)) for row in drawn]
    tail = [(1 - level) / 2, (1 + level) / 2]
    main_low, main_high = np.quantile(np.stack([found for found, _ in resampled]), tail, axis=0)
    bounds = np.empty((2, *pair.shape))
    rows = max(1, _MEMORY_CELLS // (n_resamples * len(pair)))
    for at in range(0, len(pair), rows):
        part = sigma[:, at : at + rows]
        spread = np.stack(
            [((part * left[:, None]).T @ sigma).astype(np.float32) for _, left in resampled]
        )
        bounds[:, at : at + rows] = np.quantile(spread, tail, axis=0)
    for table in (pair, *bounds):
        np.fill_diagonal(table, np.nan)
    return Moments(y.size, main, main_low, main_high, pair, bounds[0], bounds[1])


def _mains(sigma: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Main effects [latents] and the weighted residual [n] whose moments are those of the pairs."""
    share = weight / weight.sum()
    centred = y - share @ y
    main = (share * centred) @ sigma
    return main, share * (centred - sigma @ main)


def corner_sets(pair: Pair, held: frozenset[int] = frozenset()) -> tuple[frozenset[int], ...]:
    """What to ablate for the four corners of a pair, in the order of `two_by_two`, on top of `held`."""
    first, second = pair
    return (held, held | {first}, held | {second}, held | {first, second})


def two_by_two(
    scores: npt.ArrayLike,
    pairs: Sequence[Pair],
    *,
    floor: float,
    clusters: Clusters = None,
    level: float = 0.95,
    seed: Seed,
) -> pd.DataFrame:
    """The exact interaction of each pair, with its interval over prompts, and what kind of pair it is.

    scores: [prompts, pairs, 4], score with nothing, the first, the second and both ablated. One row a pair:
    first, second, effect = m00 - m10 - m01 + m11 with low and high, alone_first and alone_second (change by
    ablating one), both (change by ablating both), n, kind. floor: the smallest effect that matters, in the unit
    of the score; see `kind_of`. Raises InputError for shapes that do not fit or a floor not above 0.
    """
    table = numbers(scores, "scores", ndim=3)
    if table.shape[1:] != (len(pairs), 4):
        raise InputError(
            f"scores has shape {table.shape}, expected [prompts, {len(pairs)} pairs, 4 corners]"
        )
    if not floor > 0:
        raise InputError(f"the floor of an interaction must be above 0, got {floor}")

    def interval(values: Array) -> Interval:
        return mean_interval(values, clusters, level=level, seed=seed)

    rows = []
    for k, (first, second) in enumerate(pairs):
        nothing, one, other, both = table[:, k].T
        effect = interval(nothing - one - other + both)
        alone = (interval(one - nothing), interval(other - nothing))
        rest = (interval(both - one), interval(both - other))
        rows.append(
            {
                "first": first,
                "second": second,
                "effect": effect.value,
                "low": effect.low,
                "high": effect.high,
                "alone_first": alone[0].value,
                "alone_second": alone[1].value,
                "both": float((both - nothing).mean()),
                "n": effect.n,
                "kind": kind_of(effect, alone, rest, floor),
            }
        )
    return pd.DataFrame(rows)


def kind_of(
    effect: Interval,
    alone: tuple[Interval, Interval],
    rest: tuple[Interval, Interval],
    floor: float,
) -> Kind:
    """The kind of a pair by its interaction, what each does alone, and what each does after the other.

    redundant: the effect is at or below -floor and its interval below 0 (together they do more than the sum of
    each); OR: redundant, and the intervals of both alone lie within the floor (either one is enough to refuse).
    synergistic: at or above the floor and the interval above 0; AND: synergistic, and the intervals of both
    after the other lie within the floor (both are needed to refuse). additive: the interval lies within the
    floor. undecided: none of these, such as a wide interval or a single prompt.
    """

    def within(interval: Interval) -> bool:
        return -floor < interval.low and interval.high < floor

    if effect.value <= -floor and effect.high < 0:
        return "OR" if within(alone[0]) and within(alone[1]) else "redundant"
    if effect.value >= floor and effect.low > 0:
        return "AND" if within(rest[0]) and within(rest[1]) else "synergistic"
    return "additive" if within(effect) else "undecided"
