"""Edits of latents the slow way: one prompt, one token, one latent at a time, plain hooks on the model."""

from __future__ import annotations

import torch

from model.oracle import _site_hook
from refusalscope.dictionary import EditLatents
from refusalscope.model import Site

NEW = {
    "zero": lambda value: lambda i, f: 0.0,
    "scale": lambda value: lambda i, f: value * f,
    "set": lambda value: lambda i, f: value,
    "mean": lambda value: lambda i, f: value[i],
}


def act(weights: dict, x: torch.Tensor, latent: int) -> float:
    pre = float(x @ weights["W_enc"][:, latent].to(x) + weights["b_enc"][latent])
    return pre if pre > float(weights["threshold"][latent]) and pre > 0 else 0.0


def acts(weights: dict, states: torch.Tensor) -> torch.Tensor:
    """[tokens, latents]"""
    n = weights["W_enc"].shape[1]
    return torch.tensor([[act(weights, x, i) for i in range(n)] for x in states])


def hooked(net, layer, places, write):
    """Hook the output of a block; write(x, place number) is what a token's state becomes."""

    def change(hidden):
        out = hidden.clone()
        for number, t in enumerate(places):
            out[0, t] = write(hidden[0, t], number)
        return out

    return _site_hook(net, Site("resid_post", layer), change)


def changed(weights, x, latents, new):
    """x + sum (f' - f) d over some latents; new(latent, f) is f'."""
    out = x.clone()
    for i in latents:
        f = act(weights, x, i)
        out = out + (new(i, f) - f) * weights["W_dec"][i].to(x)
    return out


@torch.no_grad()
def logits(net, prompt, steps):
    """Logits [tokens, vocab] of a prompt under steps `(layer, places, write)`, in order."""
    handles = [hooked(net, *step) for step in steps]
    try:
        return net(input_ids=torch.tensor([prompt.ids])).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()


def edit(pool, layer, latents, positions="all", kind="zero", value=None):
    return EditLatents(
        Site("resid_post", layer),
        positions,
        dictionary=pool[layer],
        kind=kind,
        value=value,
        latents=latents,
    )


def steps(made, prompt, variant, policy="every_step"):
    """The oracle's reading of a variant of unmasked edits."""
    found = []
    for e in variant:
        weights = made[e.site.layer][1]
        value = dict(zip(e.latents, e.value, strict=True)) if e.kind == "mean" else e.value
        new = NEW[e.kind](value)
        found.append(
            (
                e.site.layer,
                prompt.resolve(e.positions, policy),
                lambda x, n, w=weights, s=e.latents, f=new: changed(w, x, s, f),
            )
        )
    return found
