"""nnsight's loop: one trace per prompt and head.

Written for speed within that: the bare `NNsight` wrapper (no tokenizer in the way of token ids), no
cache, logits of the last position only, an in-place write to the slice, one saved value a trace, and
the `with` blocks on lines of their own so that nnsight compiles each of them once.
"""

from __future__ import annotations

import nnsight
import torch
from rivals.problem import Problem, Way
from torch import Tensor
from transformers import LlamaForCausalLM


def load(model: LlamaForCausalLM, problem: Problem) -> Way:
    traced = nnsight.NNsight(model)
    return Way(lambda: (nnsight_screen(traced, problem), None), model.model, model.model.layers)


@torch.inference_mode()
def nnsight_screen(model: nnsight.NNsight, problem: Problem) -> Tensor:
    """Scores [prompts, heads]. Donor activations are captured once a prompt, not once a head."""
    width = model.config.head_dim
    plus, minus = problem.tokens.tolist()
    sites = [layer.self_attn.o_proj for layer in model.model.layers]
    captured = []
    for ids in problem.ids:
        with model.trace(ids[None], use_cache=False, logits_to_keep=1):
            z = nnsight.save([site.input[0, -1].clone() for site in sites])
        captured.append(torch.stack(z))
    donor_z = torch.stack(captured)[problem.donors]
    scores = torch.empty(len(problem.ids), len(problem.heads))
    for i, ids in enumerate(problem.ids):
        for n, (layer, head) in enumerate(problem.heads.tolist()):
            site = sites[layer]
            part = slice(head * width, (head + 1) * width)
            with model.trace(ids[None], use_cache=False, logits_to_keep=1):
                site.input[:, -1, part] = donor_z[i, layer, part]
                last = nnsight.save(model.output.logits[0, -1])
            scores[i, n] = last[plus] - last[minus]
    return scores
