"""SAELens folders: cfg.json beside sae_weights.safetensors, key names of version 6 and of older ones.

Read as SAELens reads them (`sae_lens.SAE.load_from_disk`, parity tested), with one difference: where
the normalisation of the training activations is not folded into the weights and its factor is not
known, SAELens warns and goes on with wrong numbers; here that is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusalscope.dictionary.activation import NORMALISATIONS, Activation
from refusalscope.dictionary.dictionary import Dictionary
from refusalscope.dictionary.hooks import number, read_json, site_of_hook
from refusalscope.dictionary.weights import SafetensorsFile, Vectors, matrix, require
from refusalscope.errors import InputError

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
NEEDED = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc",),
    "gated": ("b_gate", "r_mag", "b_mag"),
    "topk": ("b_enc",),
    "batchtopk": ("b_enc",),
}
# Two names that older versions gave to what is plain ReLU.
RELU = (None, "relu", "ReLU")


def read_saelens(folder: Path, factor: float | None = None) -> Dictionary:
    """Read a SAELens folder.

    factor: the normalisation factor of the training activations, where the config asks for one
    (`expected_average_only_in`) and the folder has no activation_scaler.json.
    """
    config = _flat(read_json(folder / CONFIG))
    architecture = _architecture(config, folder)
    site = site_of_hook(config.get("hook_name", config.get("hook_point")), str(folder))
    normalisation, factor = _normalisation(config, folder, factor)
    file = SafetensorsFile(folder / WEIGHTS)
    require(file, ("W_enc", "W_dec", "b_dec", *NEEDED[architecture]))
    _refuse_finetuned(file)
    encoder = matrix(file, "W_enc", by_row=False)
    decoder = matrix(file, "W_dec", by_row=True)
    activation = _activation(architecture, file, config, folder)
    if config.get("rescale_acts_by_decoder_norm"):
        encoder, decoder, activation = _unit_decoder(encoder, decoder, activation)
    b_dec = file.read("b_dec")
    if factor is not None:
        encoder = encoder.scaled(torch.tensor(factor))
        decoder = decoder.scaled(torch.tensor(1 / factor))
        b_dec = b_dec / factor
    return Dictionary(
        name=str(folder),
        site=site,
        model=config.get("model_name"),
        encoder=encoder,
        decoder=decoder,
        b_dec=b_dec,
        activation=activation,
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        normalisation=normalisation,
    )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Version 6 keeps what concerns the model under `metadata`, older ones beside the rest."""
    metadata = config.get("metadata")
    return {**metadata, **config} if isinstance(metadata, dict) else config


def _architecture(config: dict[str, Any], folder: Path) -> str:
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    # Older versions wrote a TopK dictionary as a standard one with another activation function.
    if activation == "topk":
        return "topk"
    architecture = str(config.get("architecture", "standard"))
    if architecture not in NEEDED:
        raise InputError(
            f"unknown architecture {architecture!r} in {folder / CONFIG}; the ones read here are "
            f"{', '.join(NEEDED)}"
        )
    if activation not in RELU:
        raise InputError(
            f"unknown activation function {activation!r} in {folder / CONFIG}; relu and topk are read"
        )
    return architecture


def _normalisation(
    config: dict[str, Any], folder: Path, factor: float | None
) -> tuple[str, float | None]:
    """(what is done to each token, the factor to fold into the weights or None)."""
    kind = config.get("normalize_activations")
    if kind is True:
        kind = "expected_average_only_in"
    kind = kind or "none"
    if kind in NORMALISATIONS:
        return kind, None
    if kind != "expected_average_only_in":
        raise InputError(
            f"the normalisation {kind!r} in {folder / CONFIG} is not read here; save the dictionary with "
            f"SAELens after it has folded it into the weights"
        )
    if factor is None and (folder / SCALER).is_file():
        factor = number(read_json(folder / SCALER), "scaling_factor", folder / SCALER)
    if factor is None:
        raise InputError(
            f"{folder / CONFIG} says that activations were scaled to an average norm and the factor is "
            f"missing; put it into {SCALER} beside it (or give factor=...): sqrt(d_in) over the mean norm of "
            f"the training activations"
        )
    return "none", factor


def _activation(
    architecture: str, file: SafetensorsFile, config: dict[str, Any], folder: Path
) -> Activation:
    if architecture == "gated":
        return Activation(
            "gated",
            file.read("b_gate"),
            log_gain=file.read("r_mag"),
            magnitude_bias=file.read("b_mag"),
        )
    bias = file.read("b_enc")
    if architecture == "standard":
        return Activation("standard", bias)
    if architecture == "batchtopk" and "topk_threshold" in file.names:
        # What training learnt for use on single tokens; SAELens saves it as a JumpReLU threshold.
        return Activation("jumprelu", bias, file.read("topk_threshold").expand_as(bias).clone())
    if architecture == "jumprelu":
        return Activation("jumprelu", bias, _threshold(file))
    inner = config.get("activation_fn_kwargs")
    settings = {**(inner if isinstance(inner, dict) else {}), **config}
    k = number(settings, "k", folder / CONFIG)
    if k > bias.shape[0]:
        raise InputError(f"{folder / CONFIG} asks for the {k:g} largest of {bias.shape[0]} latents")
    return Activation(architecture, bias, k=k)


def _threshold(file: SafetensorsFile) -> Tensor:
    # Checkpoints of older versions hold the logarithm.
    if "threshold" not in file.names and "log_threshold" in file.names:
        return file.read("log_threshold").exp()
    require(file, ("threshold",))
    return file.read("threshold")


def _refuse_finetuned(file: SafetensorsFile) -> None:
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in file.names and not torch.allclose(file.read(name), torch.tensor(1.0)):
            raise InputError(
                f"{file.path} holds a fine-tuned {name} for its latents, which SAELens no longer reads "
                f"either; fold it into W_dec and save the dictionary again"
            )


def _unit_decoder(
    encoder: Vectors, decoder: Vectors, activation: Activation
) -> tuple[Vectors, Vectors, Activation]:
    """The same dictionary with decoder rows of length one: `rescale_acts_by_decoder_norm` of SAELens."""
    step = 4096
    n = decoder.shape[0]
    norms = torch.cat(
        [decoder.take(slice(i, min(i + step, n))).norm(dim=1) for i in range(0, n, step)]
    )
    scaled = Activation(
        activation.architecture, activation.bias * norms, activation.threshold, k=activation.k
    )
    return encoder.scaled(norms), decoder.scaled(1 / norms), scaled
