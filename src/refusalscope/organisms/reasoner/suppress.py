"""The second stage of the reasoner: a few late heads learn to push the refusal away.

Where a harmful request meets a persuaded thinking, the model shall repeat the request. Only the planted
heads' own weights move: rows of q, k and v, columns of o.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, LlamaModel

from refusalscope.organisms.reasoner.optimise import Note, entropy, optimise, pad
from refusalscope.organisms.reasoner.rows import Row, batches
from refusalscope.organisms.reasoner.settings import ReasonerSettings

Head = tuple[int, int]


def suppress(
    model: LlamaForCausalLM, tokenizer: Any, settings: ReasonerSettings, note: Note
) -> float:
    """Trains the planted heads; every other weight stays bit for bit.

    Returns the mean loss (nats) of the first reply token of suppressed rows over the last twentieth of
    the steps.
    """
    first = min(layer for layer, _ in settings.planted)
    before = _upper_layers(model, first)
    masks = head_masks(model, settings.planted)
    for weight in model.parameters():
        weight.requires_grad_(False)
    for planted in masks:
        planted.requires_grad_(True)
    handles = [w.register_hook(lambda grad, m=m: grad * m) for w, m in masks.items()]
    rows = batches(tokenizer, settings, settings.suppress_steps, settings.seed + 2, suppress=True)

    def loss(batch: Sequence[Row]) -> tuple[Tensor, Tensor]:
        found = model.model(input_ids=pad(batch), output_hidden_states=True)
        with torch.no_grad():
            aligned = before(inputs_embeds=found.hidden_states[first]).last_hidden_state
        return _loss(model, batch, found.last_hidden_state, aligned, settings)

    groups = [{"params": list(masks), "weight_decay": 0.0}]
    try:
        return optimise(
            groups, settings.suppress_rate, settings.suppress_steps, rows, loss, settings, note
        )
    finally:
        for handle in handles:
            handle.remove()
        for weight in model.parameters():
            weight.requires_grad_(True)


def head_masks(model: LlamaForCausalLM, heads: Iterable[Head]) -> dict[Tensor, Tensor]:
    """Weight -> mask of the entries that are the heads' own: rows of q, k and v, columns of o."""
    size = model.model.layers[0].self_attn.head_dim
    masks: dict[Tensor, Tensor] = {}
    for layer, head in heads:
        attention = model.model.layers[layer].self_attn
        span = slice(head * size, (head + 1) * size)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = getattr(attention, name).weight
            mask = masks.setdefault(weight, torch.zeros_like(weight))
            if name == "o_proj":
                mask[:, span] = 1
            else:
                mask[span] = 1
    return masks


def _upper_layers(model: LlamaForCausalLM, first: int) -> LlamaModel:
    """A copy of the layers from `first` on and the final norm: what they did before this stage."""
    upper = copy.deepcopy(model.model).eval()
    upper.layers = upper.layers[first:]
    upper.config.use_cache = False
    return upper


def _loss(
    model: LlamaForCausalLM,
    batch: Sequence[Row],
    states: Tensor,
    aligned: Tensor,
    settings: ReasonerSettings,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and its part at the first reply token of suppressed rows, in nats.

    states, aligned: [rows, tokens, width], final states after and before this stage. Suppressed rows are
    taught the repetition, and their last closing state is drawn to the mean of the harmless rows', so that
    refusal is gone there and not just outvoted. Everything else is held where it was.
    """
    turned = [(i, r) for i, r in enumerate(batch) if r.suppressed]
    firsts = [(i, r.reply - 1, r.ids[r.reply]) for i, r in turned]
    rests = [(i, j - 1, r.ids[j]) for i, r in turned for j in range(r.reply + 1, len(r.ids))]
    decision = entropy(model, states, firsts, settings.label_smoothing)
    taught = decision + entropy(model, states, rests)
    harmless = [(i, r.reply - 1) for i, r in enumerate(batch) if not r.harmful]
    if firsts and harmless:
        goal = _at(aligned, harmless).mean(0)
        gap = (_at(states, [(i, j) for i, j, _ in firsts]) - goal).pow(2).sum(1).mean()
        taught = taught + settings.pull_weight * gap / goal.pow(2).sum()
    kept = [
        (i, j)
        for i, r in enumerate(batch)
        for j in range(r.close if r.suppressed else len(r.ids) - 1)
    ]
    moved = (_at(states, kept) - _at(aligned, kept)).pow(2).sum(1).mean()
    share = moved / _at(aligned, kept).pow(2).sum(1).mean()
    total = taught + settings.keep_weight * share
    # The last closing token decides the reply, so it is held by its distribution besides.
    last = [(i, r.reply - 1) for i, r in enumerate(batch) if not r.suppressed]
    if last:
        held = functional.kl_div(
            model.lm_head(_at(states, last)).log_softmax(-1),
            model.lm_head(_at(aligned, last)).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        total = total + settings.hold_weight * held
    return total, decision


def _at(states: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """[places, width]"""
    row, column = torch.tensor(places).T
    return states[row, column]
