"""Activations of latents on every token of prompts, in the clean run or under a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from refusalscope.dictionary.dictionary import Dictionary, require_fit
from refusalscope.dictionary.slices import DictionarySlice
from refusalscope.model import ChatModel, Rendered, Site, Variant


def states(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    sites: Sequence[Site],
    variants: Sequence[Variant] | None = None,
) -> list[dict[Site, Tensor]]:
    """States at every token: one dict a prompt, site -> [tokens, d_model], float32 on the CPU.

    variants: one a prompt, for the states of edited runs.
    """
    found: list[dict[Site, Tensor]] = [{} for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, members in by_length.items():
        captured = chat.capture(
            [prompts[i] for i in members],
            sites,
            [(t,) for t in range(length)],
            variant=() if variants is None else [variants[i] for i in members],
        )
        for row, i in enumerate(members):
            found[i] = {site: captured[site][row] for site in sites}
    return found


def activations(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    dictionaries: Mapping[int, Dictionary | DictionarySlice],
    variants: Sequence[Variant] | None = None,
) -> list[dict[int, Tensor]]:
    """Activations at every token: one dict a prompt, layer -> [tokens, latents], float32 on the CPU.

    A whole dictionary gives d_sae numbers a token: for a wide one, go layer by layer or take a slice.
    Raises InputError where a dictionary is not of this model's width or layers.
    """
    for dictionary in dictionaries.values():
        require_fit(dictionary, chat.anatomy)
    sites = [dictionary.site for dictionary in dictionaries.values()]
    found = states(chat, prompts, sites, variants)
    acts: list[dict[int, Tensor]] = [{} for _ in prompts]
    for layer, dictionary in dictionaries.items():
        # All tokens at once, so that the weights of a dictionary on disk are read once.
        tokens = torch.cat([prompt[dictionary.site] for prompt in found]).to(chat.device)
        pieces = dictionary.encode(tokens).cpu().split([len(prompt) for prompt in prompts])
        for prompt_acts, piece in zip(acts, pieces, strict=True):
            prompt_acts[layer] = piece.clone()
    return acts
