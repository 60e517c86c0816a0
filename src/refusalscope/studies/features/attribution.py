"""Conditional attribution: what each latent contributes to the refusal once others are ablated.

    effect(i, l) = sum_t f_i(t) <g_l(t), d_i>,   g_l = d margin / d resid_post[l] of the ablated run

with f_i read from that run too: one forward and one backward for every latent of every layer, and no dictionary
in the graph but the ablated latents. Positive effects speak for refusal. A write that the stream carries on is
seen at each layer that it passes, so effects of one latent at two layers are not to be added. sae_features
section 7.1 (our reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary, DictionarySlice, latent_variant, require_fit
from refusalscope.dictionary.activation import normalised, wide
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.model.gradients import Gradients
from refusalscope.model.sites import Positions


@dataclass(frozen=True)
class Effects:
    """Of one run. margin: the metric's value; effect, active: layer -> [d_sae], on the CPU.

    effect: nats of the metric to first order, float32; active: whether f > 0 at any of the positions.
    """

    margin: float
    effect: dict[int, Tensor]
    active: dict[int, Tensor]


def latent_effects(
    chat: ChatModel,
    prompt: Rendered,
    metric: Metric,
    dictionaries: Mapping[int, Dictionary],
    *,
    ablated: Mapping[int, Sequence[int]] = {},
    slices: Mapping[int, DictionarySlice] | None = None,
    positions: Positions = "no_bos",
) -> dict[int, Tensor]:
    """Effect of every latent in the run without `ablated` {layer: latents}: layer -> [d_sae], float32, CPU.

    slices: by layer, holding the ablated latents; read from the dictionaries without them. positions: where
    latents are ablated and effects summed. A dictionary on disk is read once a call; `Dictionary.hold` keeps it
    in memory. Raises InputError where a dictionary does not fit the model or no slice holds an ablated latent.
    """
    held = slices if slices is not None else slices_of(dictionaries, ablated)
    variant = latent_variant(held, ablated, positions=positions)
    return run_effects(chat, prompt, metric, dictionaries, variant, positions).effect


def run_effects(
    chat: ChatModel,
    prompt: Rendered,
    metric: Metric,
    dictionaries: Mapping[int, Dictionary],
    variant: Variant,
    positions: Positions,
) -> Effects:
    """Effects in the run under a variant, with its margin and which latents are active in it."""
    found = gradients(chat, prompt, metric, dictionaries, variant)
    places = list(prompt.resolve(positions))
    effect, active = {}, {}
    for layer, dictionary in dictionaries.items():
        states = found.activations[dictionary.site][places]
        acts = dictionary.encode(states)
        slopes = found.gradients[dictionary.site][places]
        effect[layer] = summed_effects(dictionary, states, acts, slopes).cpu()
        active[layer] = (acts > 0).any(0).cpu()
    return Effects(found.value, effect, active)


def gradients(
    chat: ChatModel,
    prompt: Rendered,
    metric: Metric,
    dictionaries: Mapping[int, Dictionary],
    variant: Variant = (),
) -> Gradients:
    """States and gradients where the dictionaries read. Raises InputError where one does not fit the model."""
    for dictionary in dictionaries.values():
        require_fit(dictionary, chat.anatomy)
    sites = [dictionary.site for dictionary in dictionaries.values()]
    return chat.first_order(prompt, metric, sites, variant=variant)


def summed_effects(dictionary: Dictionary, states: Tensor, acts: Tensor, slopes: Tensor) -> Tensor:
    """sum_t f_i(t) <g(t), d_i> over tokens: [d_sae], float32 or the wider type of the states.

    states, slopes: [tokens, d_in]; acts: [tokens, d_sae]. Decoder rows are read in chunks, and only those of
    latents that are active at one of the tokens.
    """
    _, scale, _ = normalised(wide(states), dictionary.normalisation)
    slopes = wide(slopes) if scale is None else wide(slopes) * scale
    total = torch.zeros(dictionary.d_sae, dtype=acts.dtype, device=acts.device)
    active = (acts > 0).any(0).nonzero().flatten()
    for places, rows in dictionary.decoder_rows(active.tolist()):
        chosen = active[places.start : places.stop]
        total[chosen] = (acts[:, chosen] * (slopes @ rows.to(slopes).T).to(acts)).sum(0)
    return total


def slices_of(
    dictionaries: Mapping[int, Dictionary], latents: Mapping[int, Sequence[int]]
) -> dict[int, DictionarySlice]:
    """A slice a layer that holds these latents. Raises InputError for a layer without a dictionary."""
    without = [layer for layer in latents if layer not in dictionaries]
    if without:
        raise InputError(
            f"latents are named at layer {without[0]} and no dictionary of that layer is given; add it to "
            f"dictionaries=..."
        )
    return {layer: dictionaries[layer].slice(chosen) for layer, chosen in latents.items() if chosen}


def unit_direction(direction: Tensor, d_model: int) -> Tensor:
    """The direction at length 1, float32 on the CPU. Raises InputError for another width or length 0."""
    vector = direction.detach().float().cpu()
    if tuple(vector.shape) != (d_model,) or not float(vector.norm()) > 0:
        raise InputError(
            f"the refusal direction has the shape {tuple(vector.shape)} and length "
            f"{float(vector.norm()):.3g}; give one vector of {d_model} numbers that is not zero"
        )
    return vector / vector.norm()
