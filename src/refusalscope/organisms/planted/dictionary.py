"""The dictionary that is the truth of a planted model: sparse latents of its residual stream.

It is a JumpReLU autoencoder whose rows are known, not trained: a planned latent reads one residual
channel and decodes to exactly what the model writes beside it. Distractors read nothing but the
noise of token embeddings. One dictionary serves the output of every block. Source:
../shared/methods/planted_models.md, section 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from refusalscope.dictionary import Dictionary, load_dictionary
from refusalscope.organisms.planted.construction import (
    D_MODEL,
    FIRST_NOISE_CHANNEL,
    LAYERS,
    Channel,
    Weights,
)
from refusalscope.organisms.planted.truth import LatentTruth, WakesWhen

DISTRACTORS = 64
THRESHOLD, DISTRACTOR_THRESHOLD = 0.1, 0.15
DICTIONARY_FOLDER = "dictionary"


@dataclass(frozen=True)
class LatentPlan:
    """One planned latent: the channel it reads, and the write that goes with one unit of it.

    `first_layer` is the block that writes it first; after that the stream carries it to the end.
    """

    name: str
    role: str
    reads: Channel
    write: Weights
    first_layer: int
    wakes_when: WakesWhen


def dictionary_tensors(plans: Sequence[LatentPlan], seed: int) -> dict[str, Tensor]:
    """`W_enc` [d_model, d_sae], `b_enc`, `W_dec` [d_sae, d_model], `b_dec`, `threshold`: the plans, in
    order, then the distractors.

    Decoder rows have norm 1, and the encoder is scaled so that activation times row is the write.
    """
    decoder = np.zeros((len(plans), D_MODEL))
    encoder = np.zeros_like(decoder)
    for row, plan in enumerate(plans):
        decoder[row, list(plan.write)] = list(plan.write.values())
        encoder[row, plan.reads] = np.linalg.norm(decoder[row])
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    noise = _distractors(seed)
    thresholds = [THRESHOLD] * len(plans) + [DISTRACTOR_THRESHOLD] * len(noise)
    return {
        "W_enc": _float32(np.concatenate([encoder, noise]).T),
        "b_enc": torch.zeros(len(thresholds)),
        "W_dec": _float32(np.concatenate([decoder, noise])),
        "b_dec": torch.zeros(D_MODEL),
        "threshold": torch.tensor(thresholds),
    }


def latent_truths(plans: Sequence[LatentPlan]) -> tuple[LatentTruth, ...]:
    """What the truth record says of every row of `dictionary_tensors`."""
    planned = [
        LatentTruth(
            name=plan.name,
            index=row,
            layers=() if plan.wakes_when == "never" else tuple(range(plan.first_layer, LAYERS)),
            role="unused" if plan.wakes_when == "never" else plan.role,
            wakes_when=plan.wakes_when,
        )
        for row, plan in enumerate(plans)
    ]
    noise = [
        LatentTruth(
            name=f"distractor{i}",
            index=len(plans) + i,
            layers=tuple(range(LAYERS)),
            role="distractor",
            wakes_when="token_noise",
        )
        for i in range(DISTRACTORS)
    ]
    return (*planned, *noise)


def write_dictionary(dictionary: Mapping[str, Tensor], model_name: str, folder: Path) -> None:
    """Writes one folder per layer in the form of SAELens: `cfg.json`, `sae_weights.safetensors`."""
    d_in, d_sae = dictionary["W_enc"].shape
    for layer in range(LAYERS):
        hook = f"blocks.{layer}.hook_resid_post"
        config = {
            "architecture": "jumprelu",
            "d_in": d_in,
            "d_sae": d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"model_name": model_name, "hook_name": hook, "prepend_bos": True},
        }
        place = folder / DICTIONARY_FOLDER / hook
        place.mkdir(parents=True)
        (place / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file(dict(dictionary), place / "sae_weights.safetensors")


def held_dictionaries(dictionary: Mapping[str, Tensor], name: str) -> dict[int, Dictionary]:
    """The dictionary of a planted model at every layer, in memory, under the name NAME/LAYER."""
    found = {}
    with TemporaryDirectory() as folder:
        write_dictionary(dictionary, name, Path(folder))
        for place in (Path(folder) / DICTIONARY_FOLDER).iterdir():
            with load_dictionary(place) as stored:
                layer = stored.site.layer
                found[layer] = replace(stored.hold(), name=f"{name}/{layer}")
    return dict(sorted(found.items()))


def _distractors(seed: int) -> np.ndarray:
    """Random unit rows in the channels of token noise: [distractors, d_model], float64."""
    # A stream of their own: neither the model's bits nor the pairs depend on them.
    generator = np.random.default_rng((seed, 2))
    rows = np.zeros((DISTRACTORS, D_MODEL))
    rows[:, FIRST_NOISE_CHANNEL:] = generator.normal(
        size=(DISTRACTORS, D_MODEL - FIRST_NOISE_CHANNEL)
    )
    # An edit of a distractor must not move the mark that ends a reply.
    rows[:, Channel.SAID] = 0.0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _float32(rows: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(rows), dtype=torch.float32)
