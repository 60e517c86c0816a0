"""Rankings of latents from a factorization machine, beside a set that is already known to matter.

sae_features section 7.2. A latent that was never active in the training rows has no score (NaN): it cannot be
ranked, high or low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from refusalscope.errors import InputError
from refusalscope.stats.interval import numbers
from refusalscope.studies.features.machine import FactorizationMachine

Array = npt.NDArray[np.float64]
Readout = Literal["pairs", "linear_pairs", "norm"]
READOUTS: tuple[Readout, ...] = get_args(Readout)


def pair_weights(
    machine: FactorizationMachine, harmful: npt.ArrayLike, members: Sequence[int]
) -> Array:
    """<v_i, v_j> E[x_i x_j | harmful] of each member with each latent: [members, latents].

    harmful: [rows, latents], inputs of harmful prompts, as the machine was trained on them. NaN for a latent
    with itself, which the machine has no term for, and where either was never active.
    """
    x = numbers(harmful, "harmful", ndim=2)
    chosen = np.asarray(members, dtype=np.intp)
    together = x[:, chosen].T @ x / max(len(x), 1)
    found = machine.factors_[chosen] @ machine.factors_.T * together
    found[np.arange(len(chosen)), chosen] = np.nan
    found[~machine.active_[chosen]] = np.nan
    found[:, ~machine.active_] = np.nan
    return found


def latent_scores(
    machine: FactorizationMachine,
    harmful: npt.ArrayLike,
    members: Sequence[int],
    readout: Readout = "pairs",
) -> Array:
    """Score of every latent [latents], NaN where it was never active.

    readout: `pairs`, the sum over `members` of |pair weight|; `linear_pairs`, |w_j| E[x_j | harmful] more;
    `norm`, |v_j| whatever the members. Raises InputError for another read-out.
    """
    if readout not in READOUTS:
        raise InputError(f"there is no read-out {readout!r}; choose one of {', '.join(READOUTS)}")
    if readout == "norm":
        score = np.linalg.norm(machine.factors_, axis=1)
    else:
        score = np.nansum(np.abs(pair_weights(machine, harmful, members)), axis=0)
        if readout == "linear_pairs":
            score = score + np.abs(machine.weights_) * numbers(harmful, "x", ndim=2).mean(axis=0)
    return np.where(machine.active_, score, np.nan)


def top_latents(scores: npt.ArrayLike, k: int) -> list[int]:
    """The k latents of highest score, highest first, ties by number; fewer where fewer have a score."""
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    return [int(i) for i in order[:k] if not np.isnan(values[i])]
