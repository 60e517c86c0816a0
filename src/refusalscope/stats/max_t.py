"""Which of many heads has an effect: sign flips with the largest |T| as the null, familywise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refusalscope.stats.interval import Clusters, Seed, cluster_codes, numbers

# Values held at once per block of flips: 32 MB of float64.
_MEMORY_CELLS = 2**22

# Flips that repeat the observed table up to rounding must count as "at least as large". The
# comparison is made on T^2 / (1 + T^2), which lies in 0..1, so an absolute tolerance serves.
_TIE = 1e-11


@dataclass(frozen=True)
class MaxT:
    """Per head [heads]: mean effect, T, familywise p; the flips used and whether they are all."""

    mean: npt.NDArray[np.float64]
    t: npt.NDArray[np.float64]
    p_familywise: npt.NDArray[np.float64]
    n_flips: int
    exact: bool


def max_t_signflip(
    x: npt.ArrayLike, n_flips: int = 10_000, clusters: Clusters = None, *, seed: Seed
) -> MaxT:
    """Single-step max-T sign-flip test that each head's mean effect is zero.

    x: [pairs, heads], effect of a head on a pair. Signs are flipped for whole rows, so that the
    dependence between heads is kept: T_k = mean / (sd / sqrt n) and
    p_k = (1 + #{max_j |T_j^b| >= |T_k|}) / (B + 1), our reconstruction of the permutation null of
    arXiv 2604.04385 (its code is not released). When B flips would reach all sign patterns they are
    enumerated instead, and p is exact.

    With `clusters` [pairs] whole clusters are flipped and T uses the cluster-robust standard error
    sqrt(C / (C - 1) * sum_c (S_c - n_c mean)^2) / n, S_c the sum and n_c the size of cluster c;
    with clusters of one it is the T above.

    Rules: a head with no effect on any pair has T = 0, one with the same effect everywhere T = inf;
    fewer than two rows or clusters give T = NaN and p = 1. Raises InputError for values that are
    not finite. Two tables tested with the same seed see the same flips.
    """
    array = numbers(x, "x", ndim=2)
    n, heads = array.shape
    codes = cluster_codes(clusters, n)
    sizes = np.bincount(codes).astype(np.float64)
    sums = np.zeros((sizes.size, heads))
    np.add.at(sums, codes, array)
    if sizes.size < 2:
        mean = array.mean(0) if n else np.full(heads, np.nan)
        return MaxT(mean, np.full(heads, np.nan), np.ones(heads), 0, True)

    observed = _bounded(np.ones((1, sizes.size)), sums, sizes)[0]
    signs, exact = _signs(sizes.size, n_flips, np.random.default_rng(seed))
    rows = max(1, _MEMORY_CELLS // max(1, heads))
    largest = np.concatenate(
        [
            _bounded(signs[i : i + rows].astype(np.float64), sums, sizes).max(1, initial=0.0)
            for i in range(0, len(signs), rows)
        ]
    )
    largest.sort()
    hits = len(signs) - np.searchsorted(largest, observed - _TIE)
    p = hits / len(signs) if exact else (1 + hits) / (len(signs) + 1)

    mean = sums.sum(0) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.sqrt(observed / (1 - observed))
    return MaxT(mean, np.copysign(size, mean), p, len(signs), exact)


def _bounded(signs: npt.NDArray, sums: npt.NDArray, sizes: npt.NDArray) -> npt.NDArray:
    """T^2 / (1 + T^2) [flips, heads] of the flipped table, without building the flipped table."""
    n, count = sizes.sum(), sizes.size
    total = signs @ sums
    cross = total if (sizes == 1).all() else signs @ (sums * sizes[:, None])
    # sum_c (s_c S_c - n_c mean)^2 expanded; only `total` and `cross` change with the signs.
    spread = (sums**2).sum(0) - 2 * total / n * cross + (total / n) ** 2 * (sizes**2).sum()
    variance = count / (count - 1) * np.maximum(spread, 0.0)
    scale = total**2 + variance
    # Rounding leaves a trace of spread in a head with one constant effect; it is no spread.
    variance = np.where(variance <= 1e-14 * scale, 0.0, variance)
    return np.divide(total**2, total**2 + variance, out=np.zeros_like(total), where=scale > 0)


def _signs(count: int, n_flips: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int8], bool]:
    """Signs [flips, count]: all patterns with the first sign fixed when few, otherwise drawn.

    |T| is the same for a pattern and its opposite, so half of all patterns are enough.
    """
    if count - 1 < 40 and 2 ** (count - 1) <= n_flips:
        patterns = np.arange(2 ** (count - 1))[:, None] >> np.arange(count)[None] & 1
        return (1 - 2 * patterns).astype(np.int8), True
    return (2 * rng.integers(0, 2, (n_flips, count), dtype=np.int8) - 1).astype(np.int8), False
