"""A factorization machine over latents: a linear model plus all pairs, in factors.

Rendle (2010): z = w0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j. Settings of the published third stage as
far as they are known, the rest our reconstruction (sae_features section 7.2). Its pair weights are
observational: they rank, and what they rank is then ablated.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.nn import functional

from refusalscope.errors import InputError
from refusalscope.stats.interval import numbers

Array = npt.NDArray[np.float64]
Loss = Literal["logistic", "squared"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


def machine_score(x: Tensor, bias: Tensor, weights: Tensor, factors: Tensor) -> Tensor:
    """z [rows] of x [rows, latents], weights [latents] and factors [latents, k], in O(k latents) a row.

    A latent that is 0 in every row has an exactly zero gradient in `weights` and `factors`.
    """
    squares = (x @ factors).square() - x.square() @ factors.square()
    return bias + x @ weights + 0.5 * squares.sum(dim=-1)


class FactorizationMachine(BaseEstimator):
    """A second-order factorization machine, trained by Adam on batches.

    loss: `logistic` for labels of 0 and 1, `squared` for a score such as the margin under random masks.
    Fitted: bias_, weights_ [latents], factors_ [latents, k], active_ [latents]. Columns that are 0 in every
    training row have nothing to learn from: they are left out of the training, keep weights and factors of
    exactly 0, and active_ is False there, so that no read-out ranks them by their initial noise (which weight
    decay inside Adam would not keep either, but shrink).
    """

    def __init__(
        self,
        loss: Loss = "logistic",
        k: int = 20,
        learning_rate: float = 1e-3,
        epochs: int = 20,
        batch: int = 32,
        init: float = 0.01,
        weight_decay: float = 1e-4,
        random_state: int = 0,
    ) -> None:
        self.loss = loss
        self.k = k
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch = batch
        self.init = init
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, x: npt.ArrayLike, y: npt.ArrayLike) -> FactorizationMachine:
        """Train on x [rows, latents] and y [rows]. Raises InputError for shapes or labels that do not fit."""
        inputs, targets = numbers(x, "x", ndim=2), numbers(y, "y")
        if len(inputs) != len(targets) or not len(inputs):
            raise InputError(f"x has {len(inputs)} rows and y {len(targets)}: expected as many")
        if self.loss not in LOSSES:
            raise InputError(f"there is no loss {self.loss!r}; choose one of {', '.join(LOSSES)}")
        if self.loss == "logistic" and set(np.unique(targets)) != {0.0, 1.0}:
            raise InputError("the logistic loss needs labels of 0 and of 1; give rows of both")
        self.active_ = (inputs != 0).any(axis=0)
        if not self.active_.any():
            raise InputError("no latent is active in any row, so there is nothing to learn from")
        bias, weights, factors = self._train(inputs[:, self.active_], targets)
        self.bias_ = float(bias)
        self.weights_ = np.zeros(inputs.shape[1])
        self.factors_ = np.zeros((inputs.shape[1], self.k))
        self.weights_[self.active_] = weights.numpy()
        self.factors_[self.active_] = factors.numpy()
        return self

    def _train(self, x: Array, y: Array) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(self.random_state)
        rows = torch.tensor(x, dtype=torch.float32)
        targets = torch.tensor(y, dtype=torch.float32)
        shapes: tuple[tuple[int, ...], ...] = ((), (x.shape[1],), (x.shape[1], self.k))
        started = [torch.randn(shape, generator=random) * self.init for shape in shapes]
        bias, weights, factors = (torch.nn.Parameter(value) for value in started)
        optimiser = torch.optim.Adam(
            [bias, weights, factors], lr=self.learning_rate, weight_decay=self.weight_decay
        )
        measure: Any = (
            functional.binary_cross_entropy_with_logits
            if self.loss == "logistic"
            else functional.mse_loss
        )
        for _ in range(self.epochs):
            for part in torch.randperm(len(rows), generator=random).split(self.batch):
                optimiser.zero_grad()
                z = machine_score(rows[part], bias, weights, factors)
                measure(z, targets[part]).backward()
                optimiser.step()
        return bias.detach(), weights.detach(), factors.detach()

    def decision_function(self, x: npt.ArrayLike) -> Array:
        """z [rows]: log-odds for the logistic loss, the score itself for the squared one."""
        parts = (numbers(x, "x", ndim=2), self.bias_, self.weights_, self.factors_)
        return machine_score(*(torch.as_tensor(p, dtype=torch.float64) for p in parts)).numpy()
