"""Scores of every candidate direction: what ablating it bypasses, what adding it induces, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from refusalscope.model import (
    KL,
    Add,
    ChatModel,
    Metric,
    Rendered,
    Site,
    Variant,
    everywhere,
)

Scores = dict[str, npt.NDArray[np.float64]]


def ablation(chat: ChatModel, direction: Tensor) -> Variant:
    """Project the direction [d_model] out of every block input, attention and MLP output, all tokens."""
    return everywhere(chat.anatomy.n_layers, direction)


def addition(layer: int, direction: Tensor) -> Variant:
    """Add the direction [d_model], not normalised, at a block's input, all tokens."""
    return (Add(Site("resid_pre", layer), "all", vector=direction),)  # type: ignore[arg-type]


def score_candidates(
    chat: ChatModel,
    directions: Tensor,
    harmful: Sequence[Rendered],
    harmless: Sequence[Rendered],
    score: Metric,
    compat_eps: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Bypass, induce and KL of one candidate a layer, prompt by prompt.

    directions: [layers, d_model] -> bypass [layers, harmful], induce and kl [layers, harmless]. Bypass is
    the refusal score of harmful prompts under ablation, induce that of harmless prompts under addition at
    the candidate's own layer, KL that of harmless prompts under ablation, at the prompt's end
    (arXiv 2406.11717, appendix C).
    """
    n_layers = directions.shape[0]
    usable = [layer for layer in range(n_layers) if float(directions[layer].norm()) > 0]
    ablate = [ablation(chat, directions[layer]) for layer in usable]
    add = [addition(layer, directions[layer]) for layer in usable]
    total = len(harmful) + 2 * len(harmless)

    def step(offset: int) -> Callable[[int, int], None] | None:
        if progress is None:
            return None
        return lambda done, _: progress(offset + done, total)

    bypassed = chat.measure(harmful, ablate, {"score": score}, progress=step(0))
    cost = chat.measure(
        harmless, ablate, {"kl": KL("last", compat_eps)}, progress=step(len(harmful))
    )
    induced = chat.measure(
        harmless, add, {"score": score}, progress=step(len(harmful) + len(harmless))
    )
    found: Scores = {}
    for name, table in (
        ("bypass", bypassed.scores["score"]),
        ("induce", induced.scores["score"]),
        ("kl", cost.scores["kl"]),
    ):
        # A direction of length zero (row 0 at a template token) cannot be scored.
        full = np.full((n_layers, table.shape[0]), np.nan)
        full[usable] = table.T
        found[name] = full
    return found
