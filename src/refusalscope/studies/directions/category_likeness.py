"""How alike directions are, with the spread that comes of the prompts they are means of.

Two directions that start from one harmless mean share its noise, which lifts their cosine. Here either of
two directions starts from a half of the harmless prompts of its own, unless both halves are the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

# Splits of the harmless prompts that an estimate is the mean of, and halvings of a category.
SPLITS, HALVINGS = 10, 50
# Resamples whose means are computed together.
AT_ONCE = 20
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Likeness:
    """Of K directions: cosines [K, K], and the mean of each one's cosines to the others, to_others [K].

    to_mean [K]: cosine to the mean of the other directions. shared: the largest eigenvalue of the cosines over
    K; of one set of directions it is the energy that their first singular component holds.
    """

    cosines: Array
    to_others: Array
    to_mean: Array
    shared: float

    def flat(self) -> Array:
        """Every figure in one row: pairs, to_others, its mean, to_mean, shared."""
        pairs = self.cosines[np.triu_indices(len(self.cosines), 1)]
        rest = [self.to_others.mean()], self.to_mean, [self.shared]
        return np.concatenate([pairs, self.to_others, *rest])


def likeness(groups: Tensor, halves: Tensor) -> Likeness:
    """Likeness of the directions from harmless means to K groups' means, averaged over rows and splits.

    groups: [K, rows, d_model], K at least 2. halves: [splits, 2, rows, d_model]; of two directions one starts
    from the first half of a split and the other from its second, both ways round.
    """
    k = len(groups)
    ends = torch.cat([groups.double(), halves.double().flatten(0, 1)]).transpose(0, 1)
    # Inner products of all means by row; directions are sums of means, so cosines follow from these alone.
    products = ends @ ends.mT
    unit = torch.eye(products.shape[-1], dtype=torch.float64)
    directions = (unit[:k] - unit[k:].unsqueeze(1)).unflatten(0, (-1, 2)).unsqueeze(2)
    others = directions.sum(-2, keepdim=True) - directions
    one_way = _cosines(directions[:, 0], directions[:, 1], products).mean(0)
    cosines = (one_way + one_way.mT) / 2
    cosines.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    mean = cosines.mean(0)
    to_mean = _cosines(directions, others.flip(1), products).diagonal(dim1=-2, dim2=-1)
    return Likeness(
        mean.numpy(),
        ((mean.sum(1) - 1) / (k - 1)).numpy(),
        to_mean.mean((0, 1, 2)).numpy(),
        float(torch.linalg.eigvalsh(cosines)[:, -1].mean() / k),
    )


def _cosines(a: Tensor, b: Tensor, products: Tensor) -> Tensor:
    """Cosines of sums of vectors [..., K, M] by the vectors' inner products [rows, M, M]: [..., rows, K, K]."""
    first, second = (((each @ products) * each).sum(-1).clamp_min(1e-30).sqrt() for each in (a, b))
    return a @ products @ b.mT / (first.unsqueeze(-1) * second.unsqueeze(-2))


def harmless_means(harmless: Tensor, shared: bool, seed: int) -> Tensor:
    """Means of both halves of some splits of states [n, rows, d_model]: [splits, 2, rows, d_model].

    shared: one split, whose halves are both all the prompts, as published.
    """
    if shared:
        whole = harmless.double().mean(0)
        return torch.stack([whole, whole]).unsqueeze(0)
    return _halved(harmless, SPLITS, np.random.default_rng([seed, 1]))


def _halved(states: Tensor, times: int, rng: np.random.Generator) -> Tensor:
    """Means of both random halves of states [n, rows, d_model], some times over: [times, 2, rows, d_model]."""
    weights = np.zeros((times, 2, len(states)))
    for both in weights:
        order = rng.permutation(len(states))
        for side in (0, 1):
            half = order[side::2]
            both[side, half] = 1 / len(half)
    return torch.einsum("tsn,nrd->tsrd", torch.from_numpy(weights).float(), states)


def bootstrap_likeness(
    groups: Sequence[Tensor], harmless: Tensor, shared: bool, n_resamples: int, seed: int
) -> tuple[Array, Array, Array]:
    """`flat` figures of the directions of groups [n_k, rows, d_model] from harmless [n, rows, d_model].

    Estimate, low and high: 1.96 standard errors of a bootstrap over prompts, every group resampled apart, and
    the halves of a split too; shared as for `harmless_means`. Noise of few prompts pulls cosines
    towards 0, more so in a resample, so quantiles would miss the estimate.
    """
    rng = np.random.default_rng(seed)
    means = torch.stack([group.double().mean(0) for group in groups])
    estimate = likeness(means, harmless_means(harmless, shared, seed)).flat()
    draws = []
    for start in range(0, n_resamples, AT_ONCE):
        size = min(AT_ONCE, n_resamples - start)
        found = torch.stack([_resampled(states, size, rng) for states in groups], dim=1)
        if shared:
            sides = [_resampled(harmless, size, rng)] * 2
        else:
            order = torch.from_numpy(rng.permutation(len(harmless)))
            sides = [_resampled(harmless[order[side::2]], size, rng) for side in (0, 1)]
        halves = torch.stack(sides, dim=1).unsqueeze(1)
        draws += [likeness(*each).flat() for each in zip(found, halves, strict=True)]
    spread = 1.96 * np.std(draws, axis=0, ddof=1)
    return estimate, (estimate - spread).clip(-1, 1), (estimate + spread).clip(-1, 1)


def shuffled_likeness(
    groups: Sequence[Tensor], harmless: Tensor, shared: bool, n_shuffles: int, seed: int
) -> Array:
    """`flat` figures where categories mean nothing, as their prompts are dealt out anew: [shuffles, figures].

    Groups keep their sizes and the harmless prompts their splits.
    """
    rng = np.random.default_rng([seed, 2])
    halves = harmless_means(harmless, shared, seed)
    pool, sizes = torch.cat(list(groups)), np.array([len(group) for group in groups])
    group = np.repeat(np.arange(len(sizes)), sizes)
    found = []
    for start in range(0, n_shuffles, AT_ONCE):
        dealt = [rng.permutation(group) for _ in range(min(AT_ONCE, n_shuffles - start))]
        weights = np.array([np.eye(len(sizes))[:, each] / sizes[:, None] for each in dealt])
        means = torch.einsum("bkn,nrd->bkrd", torch.from_numpy(weights).float(), pool)
        found += [likeness(each, halves).flat() for each in means]
    return np.array(found)


def half_cosine(group: Tensor, harmless: Tensor, seed: int) -> float:
    """Mean cosine of the directions of two random halves of the prompts: how steady a direction is.

    Cosines between directions of this few prompts say little below it. Two prompts of a kind at least.
    """
    rng = np.random.default_rng(seed)
    directions = _halved(group, HALVINGS, rng) - _halved(harmless, HALVINGS, rng)
    return float(cosine_similarity(directions[:, 0], directions[:, 1], dim=-1).mean())


def _resampled(states: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Means of `size` resamples of states [n, rows, d_model]: [size, rows, d_model]."""
    n = len(states)
    weights = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), size) / n).float()
    return torch.einsum("bn,nrd->brd", weights, states)
