"""The four ways of ablating latents over layers (sae_features section 1.1), as variants of one prompt.

`live` zeroes a latent wherever it is active on the already edited stream. `clean_mask` zeroes it only at
places where it was active in the clean run, so that for a latent that slept there the edit does nothing.
`no_wake` is live, and also zeroes every latent that slept at that place in the clean run. `frozen_value`
takes the clean writes out whatever the stream holds now: over several layers that would remove one
persistent write once a layer, so it is refused beyond one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from refusalscope.dictionary.edits import EditLatents, Kind, SubtractWrite
from refusalscope.dictionary.slices import DictionarySlice
from refusalscope.errors import InputError
from refusalscope.model import Edit, Frozen, Rendered, Variant
from refusalscope.model.sites import Positions

Mode = Literal["live", "clean_mask", "no_wake", "frozen_value"]
MODES = ("live", "clean_mask", "no_wake", "frozen_value")


def latent_variant(
    slices: Mapping[int, DictionarySlice],
    latents: Mapping[int, Sequence[int]],
    *,
    mode: Mode = "live",
    positions: Positions = "no_bos",
    kind: Kind = "zero",
    value: float | Mapping[int, Sequence[float]] | None = None,
    prompt: Rendered | None = None,
    clean: Mapping[int, Tensor] | None = None,
    policy: str = "every_step",
) -> Variant:
    """The edits of latents over layers: {layer: latents} in one of the four modes.

    slices: by layer, holding at least the latents named; for `no_wake` all latents of the dictionary, at
    every layer that has one. kind, value: as in `EditLatents`, `live` only, "mean" taking one number a
    latent by layer. prompt, clean: for the other modes, the prompt and its clean activations by layer
    [tokens, latents of the slice], from `activations`. policy: the decode policy that will be used.
    Raises InputError where a part is missing, or `frozen_value` spans layers.
    """
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r} of an edit of latents; choose {', '.join(MODES)}")
    named = {layer: tuple(chosen) for layer, chosen in sorted(latents.items()) if len(chosen)}
    without = [layer for layer in named if layer not in slices]
    if without:
        raise InputError(
            f"latents are named at layer {without[0]} and no slice of that layer is given"
        )
    if mode == "live":
        return tuple(
            EditLatents(
                slices[layer].site,
                positions,
                dictionary=slices[layer],
                kind=kind,
                value=tuple(value[layer]) if isinstance(value, Mapping) else value,
                latents=chosen,
            )
            for layer, chosen in named.items()
        )
    if kind != "zero":
        raise InputError(
            f"the mode {mode!r} takes latents out; the kind {kind!r} is for mode='live'"
        )
    if prompt is None or clean is None:
        raise InputError(f"the mode {mode!r} needs prompt=... and clean=..., its clean activations")
    rows = list(prompt.resolve(positions, policy))
    if mode == "frozen_value" and len(named) > 1:
        raise InputError(
            f"frozen_value would take one persistent write out again at each of the layers "
            f"{', '.join(map(str, named))}; name latents of one layer, or use live or clean_mask"
        )
    layers = sorted(slices) if mode == "no_wake" else sorted(named)
    return tuple(
        _edit(mode, slices[k], named.get(k, ()), positions, _clean_rows(clean, k, slices[k], rows))
        for k in layers
    )


def _edit(
    mode: Mode,
    piece: DictionarySlice,
    chosen: Sequence[int],
    positions: Positions,
    clean: Tensor,
) -> Edit:
    """One layer's edit; clean: [positions, latents of the slice]."""
    columns = piece.members(chosen)
    if mode == "frozen_value":
        # Taken out at the clean run's own scale, so a dictionary that normalises each token is refused.
        if piece.normalisation != "none":
            raise InputError(
                f"frozen_value needs a dictionary that does not normalise each token, and this one does "
                f"({piece.normalisation}); use live or clean_mask"
            )
        writes = clean[:, columns] @ piece.W_dec[columns].to(clean)
        return SubtractWrite(piece.site, positions, values=Frozen(writes))
    where = clean == 0
    if mode == "clean_mask":
        where = torch.zeros_like(where)
        where[:, columns] = clean[:, columns] > 0
    elif len(piece.latents) < piece.d_sae:
        raise InputError(
            f"no_wake silences every latent that slept, so its slices hold all {piece.d_sae} latents "
            f"(Dictionary.slice() without a list); the one of {piece.site} holds {len(piece.latents)}"
        )
    else:
        where[:, columns] = True
    return EditLatents(piece.site, positions, dictionary=piece, where=Frozen(where))


def _clean_rows(
    clean: Mapping[int, Tensor], layer: int, piece: DictionarySlice, rows: Sequence[int]
) -> Tensor:
    if layer not in clean:
        raise InputError(
            f"clean activations of layer {layer} are missing; take activations() of all"
        )
    acts = clean[layer]
    if (
        acts.dim() != 2
        or acts.shape[1] != len(piece.latents)
        or acts.shape[0] <= max(rows, default=0)
    ):
        raise InputError(
            f"clean activations of layer {layer} have the shape {tuple(acts.shape)}; expected one row for "
            f"each token of the prompt and one column for each of the {len(piece.latents)} latents of its "
            f"slice"
        )
    return acts[list(rows)]
