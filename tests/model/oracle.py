"""The slow, obvious way: one prompt, one variant, one forward, plain hooks. The plan must equal it."""

from __future__ import annotations

import torch


def _site_hook(net, site, change):
    """Register `change(hidden) -> hidden` at a site of a transformers model."""
    decoder = getattr(net.model, "language_model", net.model)
    layers = decoder.layers
    kind, layer = site.kind, site.layer
    if kind == "resid_post":

        def post(module, args, output):
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        return layers[layer].register_forward_hook(post)
    if kind == "resid_pre":
        return layers[layer].register_forward_pre_hook(lambda m, a: (change(a[0]), *a[1:]))
    if kind == "final":
        return decoder.norm.register_forward_pre_hook(lambda m, a: (change(a[0]), *a[1:]))
    if kind == "z":
        return layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda m, a: (change(a[0]), *a[1:])
        )
    names = {
        "attn_out": {
            "Gemma2": "post_attention_layernorm",
            "Gemma3": "post_attention_layernorm",
            "Glm4": "post_self_attn_layernorm",
            "Olmo2": "post_attention_layernorm",
        },
        "mlp_out": {
            "Gemma2": "post_feedforward_layernorm",
            "Gemma3": "post_feedforward_layernorm",
            "Glm4": "post_mlp_layernorm",
            "Olmo2": "post_feedforward_layernorm",
        },
    }[kind]
    family = type(net).__name__.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    mixer = "self_attn" if hasattr(layers[layer], "self_attn") else "linear_attn"
    module = getattr(layers[layer], names.get(family, mixer if kind == "attn_out" else "mlp"))

    def after(m, args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return module.register_forward_hook(after)


def _change(edit, places, n_heads):
    def run(hidden):
        out = hidden.clone()
        for i, t in enumerate(places):
            row = out[0, t].clone()
            part = slice(None)
            if edit.head is not None:
                width = row.shape[0] // n_heads
                part = slice(edit.head * width, (edit.head + 1) * width)
            x = row[part]
            kind = type(edit).__name__
            if kind == "ProjectOut":
                u = edit.direction.tensor / edit.direction.tensor.norm()
                u = u.to(x.dtype)
                x = x - (x @ u) * u
            elif kind == "Add":
                x = x + edit.scale * edit.vector.tensor.to(x.dtype)
            elif kind == "Replace":
                values = edit.values.tensor.to(x.dtype)
                x = values if values.dim() == 1 else values[i]
            elif kind == "Scale":
                x = x * edit.factor
            row[part] = x
            out[0, t] = row
        return out

    return run


@torch.no_grad()
def logits(net, prompt, variant, policy="every_step"):
    """Logits [tokens, vocab] of one prompt under one variant."""
    handles = [
        _site_hook(
            net,
            edit.site,
            _change(
                edit,
                prompt.resolve(edit.positions, policy),
                net.config.get_text_config().num_attention_heads,
            ),
        )
        for edit in variant
    ]
    try:
        return net(input_ids=torch.tensor([prompt.ids])).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def read(net, prompt, site):
    """Activation [tokens, width] at a site of the clean run."""
    kept = []
    handle = _site_hook(net, site, lambda h: (kept.append(h[0].clone()), h)[1])
    try:
        net(input_ids=torch.tensor([prompt.ids]))
    finally:
        handle.remove()
    return kept[0]


@torch.no_grad()
def greedy(net, prompt, variant, n, ends, policy="every_step"):
    """Greedy reply without a cache: the whole text again at every step."""
    reply = []
    for _ in range(n):
        token = int(logits(net, prompt.with_reply(reply), variant, policy)[-1].argmax())
        if token in ends:
            break
        reply.append(token)
    return reply
