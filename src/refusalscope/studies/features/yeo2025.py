"""Integrated gradients of latents between the clean run and the run without the refusal direction.

Published (arXiv 2505.23556 and its code; sae_features section 8): all layers move at once. Activations become
(1-a) enc(x) + a f_patch with x the live stream, and the error moves alike, so what follows the dictionary is
(1-a) x + a x_patch. As in the code, the gradient passes through it as if x were untouched, and a = 1 is left
out. Such attributions add up to nothing known. Corrected (arXiv 2403.19647): one layer moves at a time, what
the dictionary misses is a node of its own, and both together are the exact change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Edit, Frozen, Rendered, Replace, Variant
from refusalscope.model.sites import Positions
from refusalscope.studies.features.integrated import Attributions, Ends, Task

Candidates = Mapping[int, Sequence[int]]
STEPS = 10


@dataclass(frozen=True)
class Complete:
    """Attributions with one layer moved at a time, and how they add up.

    layers: prompt_id, layer, latents, error, exact, in logits: what all latents of the layer and what its
    dictionary misses are given, and the change of the metric when the layer takes the states of the ablated
    run. latents + error is exact but for the quadrature.
    """

    attributions: Attributions
    layers: pd.DataFrame


def yeo2025(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    direction: Tensor,
    dictionaries: Mapping[int, Dictionary],
    *,
    refusal: int,
    candidates: Candidates | None = None,
    skip: int = 1,
    steps: int = STEPS,
) -> Attributions:
    """Published attributions of candidates {layer: latents}, or of all latents: mean over tokens.

    direction: [d_model], ablated at every read of the stream. refusal: the token that refusals open with. The
    metric is logit[opening of the ablated run] - logit[refusal]. skip: first tokens left out of the mean over
    tokens, though moved like all (BOS; the 26 of the system header of Llama-3.1). Costs three forwards, and
    `steps` forwards with their backwards, a prompt. Raises InputError for what does not fit the model, a
    candidate that no dictionary holds, or a prompt of no more than `skip` tokens.
    """
    task = Task.of(chat, direction, dictionaries, refusal)
    _check(prompts, dictionaries, candidates, steps)
    shortest = min(map(len, prompts))
    if not 0 <= skip < shortest:
        raise InputError(
            f"skip={skip} leaves no token of the shortest prompt, which has {shortest}; take 0 to "
            f"{shortest - 1}"
        )
    ends, found = [], []
    for prompt in prompts:
        each = task.ends(prompt)
        path = [_all_layers(task, each, step / steps) for step in range(steps)]
        slopes = task.slopes(each, path, np.full(steps, 1 / steps), tuple(dictionaries))
        places = range(skip, len(prompt))
        summed = task.effects(each, slopes, places)
        ends.append(each)
        found.append({layer: effect / len(places) for layer, effect in summed.items()})
    return task.attributions(ends, found, candidates)


def one_layer_at_a_time(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    direction: Tensor,
    dictionaries: Mapping[int, Dictionary],
    *,
    refusal: int,
    candidates: Candidates | None = None,
    positions: Positions = "no_bos",
    steps: int = STEPS,
) -> Complete:
    """Corrected attributions, summed over tokens: each layer moves alone and the sums are complete.

    positions: where the stream moves and attributions are summed. The gradient is averaged over the path by
    Gauss-Legendre quadrature at `steps` points. Otherwise as `yeo2025`, at the cost of layers x steps forwards
    with their backwards, and one more forward a layer, a prompt.
    """
    task = Task.of(chat, direction, dictionaries, refusal)
    _check(prompts, dictionaries, candidates, steps)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    ends, found, rows = [], [], []
    for prompt in prompts:
        places = prompt.resolve(positions)
        if not places:
            raise InputError(
                f"the prompt {prompt.id!r} has no token at the positions {positions!r}; choose positions "
                f"that every prompt has, such as no_bos"
            )
        each = task.ends(prompt)
        slopes: dict[int, Tensor] = {}
        for layer in dictionaries:
            path = [_one_layer(task, each, layer, (1 + node) / 2, places) for node in nodes]
            slopes |= task.slopes(each, path, weights / 2, (layer,))
        effects = task.effects(each, slopes, places)
        moved = [_one_layer(task, each, layer, 1.0, places) for layer in dictionaries]
        clean, *scores = chat.measure([prompt], [(), *moved], {"m": each.metric}).scores["m"][0]
        for layer, score in zip(dictionaries, scores, strict=True):
            change = (each.patch[layer] - each.clean[layer]) * slopes[layer]
            whole = float(change[list(places)].sum())
            latents = float(effects[layer].sum())
            rows.append((prompt.id, layer, latents, whole - latents, float(score - clean)))
        ends.append(each)
        found.append(effects)
    columns = ["prompt_id", "layer", "latents", "error", "exact"]
    return Complete(task.attributions(ends, found, candidates), pd.DataFrame(rows, columns=columns))


@dataclass(frozen=True, eq=False)
class _Move(Edit):
    """(1 - share) x + share x_patch; the gradient passes as if x were untouched."""

    patch: Frozen = None  # type: ignore[assignment]
    share: float = 0.0

    PER_POSITION: ClassVar[bool] = True

    def parameters(self, n_positions: int) -> Tensor:
        """The share, then the patch: [n_positions, 1 + width]."""
        share = torch.full((n_positions, 1), self.share)
        return torch.cat([share, self.patch.tensor], dim=1)

    @staticmethod
    def compute(selected: Tensor, parameters: Any) -> Tensor:
        live = selected.detach()
        moved = torch.lerp(live.float(), parameters[:, 1:], parameters[:, :1])
        return selected + (moved.to(live.dtype) - live)


def _all_layers(task: Task, ends: Ends, share: float) -> Variant:
    return tuple(
        _Move(site, patch=Frozen(ends.patch[layer]), share=share)
        for layer, site in task.sites.items()
    )


def _one_layer(
    task: Task, ends: Ends, layer: int, share: float, places: tuple[int, ...]
) -> Variant:
    rows = torch.lerp(ends.clean[layer], ends.patch[layer], share)[list(places)]
    return (Replace(task.sites[layer], places, values=Frozen(rows)),)


def _check(
    prompts: Sequence[Rendered],
    dictionaries: Mapping[int, Dictionary],
    candidates: Candidates | None,
    steps: int,
) -> None:
    if not prompts or steps < 1:
        raise InputError(
            f"attributions need prompts and 1 or more steps; got {len(prompts)} and {steps}"
        )
    for layer, latents in (candidates or {}).items():
        size = dictionaries[layer].d_sae if layer in dictionaries else 0
        outside = [latent for latent in latents if not 0 <= latent < size]
        if outside:
            raise InputError(
                f"latent {outside[0]} of layer {layer} is a candidate and no dictionary of that layer "
                f"holds it; mend candidates=... or dictionaries=..."
            )
