"""The plain loop: one forward per prompt and head, a forward pre-hook on the output projection."""

from __future__ import annotations

from functools import partial

import torch
from rivals.problem import Problem, Way
from torch import Tensor, nn
from transformers import LlamaForCausalLM


def load(model: LlamaForCausalLM, problem: Problem) -> Way:
    return Way(lambda: (hook_screen(model, problem), None), model.model, model.model.layers)


@torch.inference_mode()
def hook_screen(model: LlamaForCausalLM, problem: Problem) -> Tensor:
    """Scores [prompts, heads]. Donor activations are captured once a prompt, not once a head."""
    donor_z = _last_z(model, problem.ids)[problem.donors]
    width = model.config.head_dim
    plus, minus = problem.tokens.tolist()
    scores = torch.empty(len(problem.ids), len(problem.heads))
    for i, ids in enumerate(problem.ids):
        for n, (layer, head) in enumerate(problem.heads.tolist()):
            part = slice(head * width, (head + 1) * width)
            swap = partial(_swap, part, donor_z[i, layer, part])
            handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(swap)
            try:
                last = model(ids[None], use_cache=False, logits_to_keep=1).logits[0, -1]
            finally:
                handle.remove()
            scores[i, n] = last[plus] - last[minus]
    return scores


def _swap(part: slice, value: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    z = args[0].clone()
    z[:, -1, part] = value
    return z


def _last_z(model: LlamaForCausalLM, prompts: Tensor) -> Tensor:
    """z of every layer at the last position: [prompts, layers, width]."""
    kept: list[Tensor] = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: kept.append(args[0][0, -1].clone())
        )
        for layer in model.model.layers
    ]
    try:
        for ids in prompts:
            model(ids[None], use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept).unflatten(0, (len(prompts), -1))
