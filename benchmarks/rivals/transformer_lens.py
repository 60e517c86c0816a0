"""TransformerLens's loop: one `run_with_hooks` on `hook_z` per prompt and head.

TransformerLens 4 has no HookedTransformer any more; its TransformerBridge wraps the Hugging Face model
and gives the weights as they are. Eager attention is what `boot_transformers` sets; the bridge is
built from the loaded model because `boot_transformers` wants a tokenizer from the hub.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rivals.problem import Problem, Way
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import LlamaForCausalLM

LOGITS_TOLERANCE = 1e-4


def load(model: LlamaForCausalLM, problem: Problem) -> Way:
    """Raises RuntimeError where the bridge's logits are not those of the model it was made from."""
    with torch.inference_mode():
        expected = model(problem.ids).logits
        model.set_attn_implementation("eager")
        bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
        error = float((bridge(problem.ids) - expected).abs().max())
    if not error <= LOGITS_TOLERANCE:
        raise RuntimeError(
            f"TransformerLens's logits differ from the model's own by {error:.1e}, "
            f"more than {LOGITS_TOLERANCE:.0e}, so its loop would time another model"
        )
    trunk = bridge.original_model.model
    return Way(lambda: (bridge_screen(bridge, problem), None), trunk, list(bridge.blocks), error)


@torch.inference_mode()
def bridge_screen(bridge: TransformerBridge, problem: Problem) -> Tensor:
    """Scores [prompts, heads]. Donor activations are captured once a prompt, not once a head."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(bridge.cfg.n_layers)]
    captured = []
    for ids in problem.ids:
        _, cache = bridge.run_with_cache(ids[None], names_filter=names)
        captured.append(torch.stack([cache[name][0, -1] for name in names]))
    donor_z = torch.stack(captured)[problem.donors]  # [prompts, layers, heads, head width]
    plus, minus = problem.tokens.tolist()
    scores = torch.empty(len(problem.ids), len(problem.heads))
    for i, ids in enumerate(problem.ids):
        for n, (layer, head) in enumerate(problem.heads.tolist()):
            swap = partial(_swap, head, donor_z[i, layer, head])
            logits = bridge.run_with_hooks(
                ids[None], fwd_hooks=[(names[layer], swap)], use_cache=False, logits_to_keep=1
            )
            scores[i, n] = logits[0, -1, plus] - logits[0, -1, minus]
    return scores


def _swap(head: int, value: Tensor, z: Tensor, hook: Any) -> Tensor:
    z = z.clone()
    z[:, -1, head] = value
    return z
