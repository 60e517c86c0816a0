"""Small dictionaries written in every layout, and the slow, obvious reading of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from refusalscope.dictionary import Dictionary, load_dictionary

D_IN, D_SAE = 12, 40
# The tiny models, and the latents of a dictionary on one of their layers.
LAYERS, WIDTH, ON_MODEL = 4, 32, 24


def tensors(seed: int = 0, d_in: int = D_IN, d_sae: int = D_SAE, spread: float = 1.0) -> dict:
    """Random weights, named as in SAELens, of which about a third of the latents is active."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * scale

    return {
        "W_enc": normal(d_in, d_sae, scale=spread / d_in**0.5),
        "W_dec": normal(d_sae, d_in, scale=0.4),
        "b_enc": normal(d_sae, scale=0.1),
        "b_dec": normal(d_in, scale=0.3),
        "threshold": normal(d_sae).abs() * 0.5 + 0.05,
        "b_gate": normal(d_sae, scale=0.2),
        "r_mag": normal(d_sae, scale=0.2),
        "b_mag": normal(d_sae, scale=0.2),
    }


NAMES = {
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_gate", "r_mag", "b_mag", "b_dec"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "batchtopk": ("W_enc", "W_dec", "b_enc", "b_dec"),
}


def saelens(
    folder: Path,
    kind: str = "jumprelu",
    *,
    weights: dict | None = None,
    hook: str | None = "blocks.1.hook_resid_post",
    old: bool = False,
    **settings,
) -> Path:
    """A SAELens folder in the form of version 6, or of versions before."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights or tensors()
    kept = {name: weights[name] for name in NAMES[kind]}
    save_file({k: v.contiguous() for k, v in kept.items()}, folder / "sae_weights.safetensors")
    d_in, d_sae = weights["W_enc"].shape
    common = {"d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu"}
    if old:
        config = {
            **common,
            "architecture": kind,
            "hook_point": hook,
            "hook_point_layer": 1,
            "activation_fn_str": "relu",
            "apply_b_dec_to_input": False,
            "model_name": "tiny",
        }
    else:
        config = {
            **common,
            "architecture": kind,
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"hook_name": hook, "model_name": "tiny", "sae_lens_version": "6.54.12"},
        }
    if kind in ("topk", "batchtopk") and not old:
        config["k"] = 5
    config.update(settings)
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def gemma_scope(
    root: Path, weights: dict | None = None, *, layer: int = 12, compress=False
) -> Path:
    """A Gemma Scope folder under its published path."""
    folder = root / "gemma-scope-2b-pt-res" / f"layer_{layer}" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    weights = weights or tensors()
    arrays = {name: weights[name].numpy() for name in NAMES["jumprelu"]}
    (np.savez_compressed if compress else np.savez)(folder / "params.npz", **arrays)
    return folder


def llama_scope(
    folder: Path, weights: dict | None = None, *, norm: float = 2.0, **settings
) -> Path:
    """A Llama Scope folder; its one threshold is .2."""
    (folder / "checkpoints").mkdir(parents=True)
    weights = weights or tensors()
    save_file(
        {
            "encoder.weight": weights["W_enc"].T.contiguous(),
            "encoder.bias": weights["b_enc"],
            "decoder.weight": weights["W_dec"].T.contiguous(),
            "decoder.bias": weights["b_dec"],
        },
        folder / "checkpoints" / "final.safetensors",
    )
    d_in, d_sae = weights["W_enc"].shape
    config = {
        "d_model": d_in,
        "d_sae": d_sae,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.2,
        "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "apply_decoder_bias_to_pre_encoder": False,
        **settings,
    }
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return folder


def jumprelu(weights: dict, x: torch.Tensor) -> torch.Tensor:
    """Activations by their definition, one token and one latent at a time."""
    acts = torch.zeros(*x.shape[:-1], weights["W_enc"].shape[1], dtype=x.dtype)
    for t in range(len(x)):
        for i in range(acts.shape[-1]):
            pre = float(x[t] @ weights["W_enc"][:, i].to(x) + weights["b_enc"][i])
            if pre > float(weights["threshold"][i]) and pre > 0:
                acts[t, i] = pre
    return acts


def on_model(
    root: Path, layers: int, d_model: int, *, d_sae: int = 24, first: int = 0
) -> dict[int, tuple[Dictionary, dict]]:
    """A JumpReLU dictionary at each layer of a tiny model, with the weights it was made of."""
    made = {}
    for layer in range(first, first + layers):
        weights = tensors(100 + layer, d_model, d_sae, spread=3.0)
        folder = saelens(
            root / f"layer{layer}", weights=weights, hook=f"blocks.{layer}.hook_resid_post"
        )
        made[layer] = (load_dictionary(folder), weights)
    return made
