"""Direct logit attribution: what each part writes along the refusal direction of the unembedding, exactly.

    D[part](x) = (write[part] * g / rms(x_L)) . u,   u = mean W_U[refuse] - mean W_U[reply]

with post-norms folded into the writes and the final norm's gain g and scale taken from the true final state
x_L, so that the parts sum to the logit difference. Source: arXiv 2604.04385; alignment_routes section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from refusalscope.model import ChatModel, RefusalMargin, Rendered, Site, Variant
from refusalscope.model.anatomy import Anatomy
from refusalscope.studies.heads import final_scale

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Attribution:
    """Contributions to the difference of mean logits, before any softcap, at the prompt's last token.

    embedding [prompts], heads [prompts, layers, heads] (0 in layers that have none), bias [prompts, layers]
    (of the attention output projection), mixer [prompts, layers] (the whole mixer's write in layers without
    heads, else 0), mlp [prompts, layers], head_bias (of the unembedding); total [prompts] is read from the
    final state and equals their sum where the scale is its own. scale [prompts]: 1 / rms(x_L) as it was used.
    """

    scale: Array

    embedding: Array
    heads: Array
    bias: Array
    mixer: Array
    mlp: Array
    head_bias: float
    total: Array

    @property
    def summed(self) -> Array:
        parts = self.heads.sum((1, 2)) + self.bias.sum(1) + self.mixer.sum(1) + self.mlp.sum(1)
        return self.embedding + parts + self.head_bias


@torch.inference_mode()
def attribute(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    margin: RefusalMargin,
    *,
    variants: list[Variant] | None = None,
    scale: Array | None = None,
) -> Attribution:
    """Attribute the difference of mean logits of a margin's two token sets; one forward a batch.

    variants: one a prompt, under which it is attributed. scale [prompts]: a final norm's scale to hold, such as
    the clean run's; then only what the parts write differs, and not how it is normalised.
    """
    anatomy = chat.anatomy
    layers = range(anatomy.n_layers)
    sites = [Site("resid_pre", 0), Site("final")]
    mixing = [Site("z" if k in anatomy.softmax_layers else "attn_out", k) for k in layers]
    sites += mixing + [Site("mlp_out", layer) for layer in layers]
    states = {
        site: found[:, 0]
        for site, found in chat.capture(prompts, sites, ["last"], variant=variants or ()).items()
    }
    reader = refusal_reader(anatomy, margin)
    device = reader.device
    final = states[Site("final")].to(device)
    if scale is None:
        scale = final_scale(anatomy, final).double().cpu().numpy()
    held = torch.from_numpy(scale).to(final)

    def read(writes: torch.Tensor) -> Array:
        """[prompts, ..., d_model] -> [prompts, ...]"""
        factor = held.reshape(-1, *[1] * (writes.dim() - 2))
        return ((writes.to(device).float() @ reader) * factor).double().cpu().numpy()

    n, n_layers = len(prompts), anatomy.n_layers
    heads = np.zeros((n, n_layers, anatomy.n_heads))
    bias, mixer = np.zeros((n, n_layers)), np.zeros((n, n_layers))
    for site in mixing:
        if site.kind == "attn_out":
            mixer[:, site.layer] = read(states[site])
            continue
        z = states[site].to(anatomy.attention_output(site.layer).weight)
        writes, rest = anatomy.head_writes(site.layer, z)
        heads[:, site.layer], bias[:, site.layer] = read(writes), read(rest)
    offset = 0.0
    if anatomy.lm_head.bias is not None:
        terms = anatomy.lm_head.bias.float()
        offset = float(terms[list(margin.refuse)].mean() - terms[list(margin.reply)].mean())
    return Attribution(
        scale=scale,
        embedding=read(states[Site("resid_pre", 0)]),
        heads=heads,
        bias=bias,
        mixer=mixer,
        mlp=np.stack([read(states[Site("mlp_out", layer)]) for layer in layers], axis=1),
        head_bias=offset,
        total=read(final) + offset,
    )


def refusal_reader(anatomy: Anatomy, margin: RefusalMargin) -> torch.Tensor:
    """What reads refusal from a write into the residual stream, but for the final scale: [d_model], float32."""
    weight = anatomy.lm_head.weight.float()
    direction = weight[list(margin.refuse)].mean(0) - weight[list(margin.reply)].mean(0)
    return direction * anatomy.norm_gain(anatomy.final_norm).to(direction.device)
