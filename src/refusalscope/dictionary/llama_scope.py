"""Llama Scope: hyperparams.json beside checkpoints/final.safetensors (arXiv 2410.20526).

The encoder expects activations scaled by s = sqrt(d) / dataset_average_activation_norm.in. That is
folded: W_enc * s, W_dec / s, b_dec / s. The one threshold of the file is in units of the activations as
they are, so it is multiplied by s as well (as SAELens does since pull request 483: left unscaled, L0 is
many times the 50 that the suite was made for). The thresholds that third-party repositories quote for
layers 8, 15 and 24 are 2.05, 1.97 and 1.66 when multiplied by s: near 2, and not one constant.
"""

from __future__ import annotations

from pathlib import Path

import torch

from refusalscope.dictionary.activation import Activation
from refusalscope.dictionary.dictionary import Dictionary
from refusalscope.dictionary.hooks import number, read_json, site_of_hook
from refusalscope.dictionary.weights import SafetensorsFile, matrix, require
from refusalscope.errors import InputError

SETTINGS, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def read_llama_scope(folder: Path) -> Dictionary:
    """Read a Llama Scope folder. A missing normalisation factor is an error."""
    settings = read_json(folder / SETTINGS)
    hook = settings.get("hook_point_in")
    site = site_of_hook(hook, str(folder))
    if settings.get("hook_point_out", hook) != hook:
        raise InputError(
            f"the dictionary {folder} reads {hook} and writes {settings['hook_point_out']}: it is a "
            f"transcoder, and only autoencoders of the residual stream are read"
        )
    if settings.get("act_fn", "jumprelu") != "jumprelu":
        raise InputError(
            f"unknown act_fn {settings['act_fn']!r} in {folder / SETTINGS}; the published suite has "
            f"jumprelu"
        )
    norms = settings.get("dataset_average_activation_norm")
    norms = norms if isinstance(norms, dict) else {}
    if "in" not in norms:
        raise InputError(
            f"{folder / SETTINGS} lacks dataset_average_activation_norm.in, the normalisation factor; "
            f"without it every activation would be wrong, so fetch the file again"
        )
    file = SafetensorsFile(folder / WEIGHTS)
    require(file, TENSORS)
    encoder = matrix(file, "encoder.weight", by_row=True)
    decoder = matrix(file, "decoder.weight", by_row=False)
    d_sae, d_in = encoder.shape
    scale = d_in**0.5 / number(norms, "in", folder / SETTINGS)
    threshold = number(settings, "jump_relu_threshold", folder / SETTINGS) * scale
    return Dictionary(
        name=str(folder),
        site=site,
        model="meta-llama/Llama-3.1-8B",
        encoder=encoder.scaled(torch.tensor(scale)),
        decoder=decoder.scaled(torch.tensor(1 / scale)),
        b_dec=file.read("decoder.bias") / scale,
        activation=Activation(
            "jumprelu", file.read("encoder.bias"), torch.full((d_sae,), threshold)
        ),
        subtract_b_dec=bool(settings.get("apply_decoder_bias_to_pre_encoder", False)),
    )
