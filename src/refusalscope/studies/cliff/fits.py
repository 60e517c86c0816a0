"""Linear fits of a probe: logistic regression, and the short run of Adam of the authors' code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression

from refusalscope.stats import auroc

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# On standardised features and the mean loss.
L2 = (1.0, 1e-1, 1e-2, 1e-3)
# Of the authors' code: learning rate, epochs, batch.
RATE, EPOCHS, BATCH = 1e-3, 5, 64


def logistic(
    features: Array, label: Mask, weights: Array, l2: float, spread: Array | float = 1.0
) -> tuple[Array, float]:
    """Weight [d_model] and bias of a logistic regression on features over `spread`: mean loss + l2 |w|^2.

    features: [rows, d_model]; weights: [rows], of any sum.
    """
    centre = features.mean(0)
    model = LogisticRegression(C=0.5 / l2, max_iter=1000, tol=1e-6)
    model.fit((features - centre) / spread, label, sample_weight=weights / weights.sum())
    weight = model.coef_[0] / spread
    return weight, float(model.intercept_[0] - weight @ centre)


def choose_l2(
    fit: Array,
    label: Mask,
    weights: Array,
    spread: Array,
    select: Sequence[tuple[Array, Mask]],
) -> float:
    """The L2 with the largest mean AUROC over the sets of rows in `select`; of equals the strongest.

    select: states and labels; a set of one label only has no say.

    Scale is left to calibration, so the loss would only ask for larger weights where classes separate.
    """
    told = [(states, said) for states, said in select if len(set(said.tolist())) > 1]
    if not told:
        return L2[0]
    areas = []
    for l2 in L2:
        weight, _ = logistic(fit, label, weights, l2, spread)
        found = [auroc(said, states @ weight, n_resamples=1, seed=0).value for states, said in told]
        areas.append(np.mean(found))
    return L2[int(np.argmax(np.round(areas, 3)))]


def spread_of(features: Array) -> Array:
    """Standard deviation of each feature, of the quiet ones that of all together: [rows, d_model] -> [d_model].

    At a closing token most features stand still. Scaled by how little they vary there, they would be most of
    the probe, and noise in the thinking, where they move.
    """
    spread = features.std(0)
    usual = np.sqrt((spread**2).mean())
    return np.maximum(spread, usual if usual > 0 else 1.0)


def cell_weights(harmful: Mask, refused: Mask) -> Array:
    """Refused and complied weigh alike, and within each so do harmful and harmless: [traces], sum 1."""
    weights = np.zeros(len(refused))
    for side in (refused, ~refused):
        cells = [cell for cell in (side & harmful, side & ~harmful) if cell.any()]
        for cell in cells:
            weights[cell] = 0.5 / len(cells) / cell.sum()
    return weights


def adam(features: Array, label: Mask, n_fit: int, seed: int) -> tuple[Array, float]:
    """Weight and bias as in the authors' code: cross-entropy, the epoch with the best validation accuracy.

    features: [rows, d_model], of which the first `n_fit` are fitted on.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(label, dtype=torch.float32)
    bound = features.shape[1] ** -0.5
    start = (torch.rand(features.shape[1] + 1, generator=generator) * 2 - 1) * bound
    parameters = start.requires_grad_(True)
    optimiser = torch.optim.Adam([parameters], lr=RATE)
    best, kept = -1.0, start.detach().clone()
    for _ in range(EPOCHS):
        for rows in torch.randperm(n_fit, generator=generator).split(BATCH):
            logits = x[rows] @ parameters[:-1] + parameters[-1]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            said = x[n_fit:] @ parameters[:-1] + parameters[-1] > 0
            accuracy = float((said == y[n_fit:].bool()).float().mean())
        if accuracy > best:
            best, kept = accuracy, parameters.detach().clone()
    return kept[:-1].double().numpy(), float(kept[-1])
