"""How alike directions are, with the spread that comes of the prompts they are means of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from refusalscope.studies.directions.extract import mean_difference

HALVINGS = 50
# Resamples whose means are computed together.
AT_ONCE = 20
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Likeness:
    """Of K directions: cosines [K, K], and the mean of each one's cosines to the others, to_others [K].

    to_mean [K]: cosine to the mean of the other directions. shared: part of the energy of the unit directions
    that their first singular component holds, 1/K where they are orthogonal.
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


def likeness(directions: Tensor) -> Likeness:
    """Likeness of directions [K, rows, d_model], each figure the mean over rows; K at least 2."""
    k = len(directions)
    by_row = directions.double().transpose(0, 1)
    unit = normalize(by_row, dim=-1)
    cosines = unit @ unit.mT
    others = normalize(by_row.sum(1, keepdim=True) - by_row, dim=-1)
    mean = cosines.mean(0)
    return Likeness(
        mean.numpy(),
        ((mean.sum(1) - mean.diagonal()) / (k - 1)).numpy(),
        (unit * others).sum(-1).mean(0).numpy(),
        float(torch.linalg.eigvalsh(cosines)[:, -1].mean() / k),
    )


def bootstrap_likeness(
    groups: Sequence[Tensor], harmless: Tensor, n_resamples: int, seed: int
) -> tuple[Array, Array, Array]:
    """`flat` figures of the directions of groups [n_k, rows, d_model] from harmless [n, rows, d_model].

    Estimate, low and high: 1.96 standard errors of a bootstrap over prompts, every group resampled apart.
    Noise of few prompts pulls cosines towards 0, more so in a resample, so quantiles would miss the estimate.
    """
    rng = np.random.default_rng(seed)
    estimate = likeness(torch.stack([mean_difference(group, harmless) for group in groups])).flat()
    draws = []
    for start in range(0, n_resamples, AT_ONCE):
        size = min(AT_ONCE, n_resamples - start)
        means = [_resampled(states, size, rng) for states in (*groups, harmless)]
        found = torch.stack(means[:-1], dim=1) - means[-1].unsqueeze(1)
        draws += [likeness(directions).flat() for directions in found]
    spread = 1.96 * np.std(draws, axis=0, ddof=1)
    return estimate, (estimate - spread).clip(-1, 1), (estimate + spread).clip(-1, 1)


def half_cosine(group: Tensor, harmless: Tensor, seed: int) -> float:
    """Mean cosine of the directions of two random halves of the prompts: how steady a direction is.

    Cosines between directions of this few prompts say little below it. Two prompts of a kind at least.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(HALVINGS):
        orders = [torch.from_numpy(rng.permutation(len(states))) for states in (group, harmless)]
        first, second = (
            mean_difference(group[orders[0][k::2]], harmless[orders[1][k::2]]) for k in (0, 1)
        )
        found.append(float(cosine_similarity(first, second, dim=-1).mean()))
    return float(np.mean(found))


def _resampled(states: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Means of `size` resamples of states [n, rows, d_model]: [size, rows, d_model]."""
    n = len(states)
    weights = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), size) / n).float()
    return torch.einsum("bn,nrd->brd", weights, states)
