"""The compensation ledger: what an ablation takes off the refusal axis, and what writes it back.

The axis is the projection of the stream on a unit refusal direction at a layer and a token. From one block to
the next it moves by the block's attention, its MLP and the edit, so their changes against the clean run add
up to the axis of the ablated run exactly. Source: sae_features sections 1.1 and 13.1 (our reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import (
    Dictionary,
    DictionarySlice,
    SubtractWrite,
    activations,
    latent_variant,
)
from refusalscope.dictionary.activations import states
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Frozen, Rendered, Site, Variant
from refusalscope.model.sites import Positions, SiteKind
from refusalscope.stats import mean_interval
from refusalscope.stats.interval import Clusters
from refusalscope.studies.features.attribution import unit_direction
from refusalscope.studies.features.nulls import MIN_DRAWS

Array = npt.NDArray[np.float64]
Key = tuple[int, int]
Members = Mapping[int, Sequence[int]]
Pieces = Mapping[int, DictionarySlice]
PARTS = ("removed", "heads", "mlp", "latents", "rest")
WRITES: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out")


def ledger(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    dictionaries: Mapping[int, Dictionary | DictionarySlice],
    direction: Tensor,
    *,
    set_id: str = "S",
    at: Sequence[Positions] = ("last",),
    arm: str = "no_bos",
    draws: int = MIN_DRAWS,
    clusters: Clusters = None,
    seed: int,
) -> pd.DataFrame:
    """The table features.ledger: set_id, layer, part, amount, low, high, null, position.

    amount: mean over prompts of live less clean along `direction` [d_model], in units of the stream, with an
    interval. removed: by the edit; heads, mlp: written by this layer beyond its clean write. heads + mlp is
    what the layer writes back, and latents + rest is the same amount parted anew: latents, what the woken
    latents decode to along the direction beyond what they did at the dictionary below (0 where the layer has
    no dictionary), and what no woken latent shows. removed + heads + mlp over the layers up to l is the axis
    at l, live less clean. null: the same under random directions of the edit's norm, mean of `draws`. at: one
    token each. Raises InputError for a direction of another width or zero, members that no dictionary holds,
    or fewer than MIN_DRAWS draws.
    """
    if draws < MIN_DRAWS:
        raise InputError(f"{draws} draws are too few for a null; make {MIN_DRAWS} or more")
    pieces = whole(dictionaries, members)
    unit = unit_direction(direction, chat.anatomy.d_model)
    read = _Reader(chat, prompts, members, pieces, unit, at)
    clean = read.run([()] * len(prompts))
    live = read.parts(
        read.run([latent_variant(pieces, members, positions=arm)] * len(prompts)), clean
    )
    norms = change_norms(chat, prompts, members, pieces, positions=arm)
    draw = torch.Generator().manual_seed(seed)
    null = np.zeros(live.shape)
    for _ in range(draws):
        noise = [
            matched_noise(each, pieces, prompt.resolve(arm), draw)
            for each, prompt in zip(norms, prompts, strict=True)
        ]
        null += read.parts(read.run(noise), clean) / draws
    rows = []
    for k, part in enumerate(PARTS):
        for t, position in enumerate(at):
            for layer in range(live.shape[-1]):
                found = mean_interval(live[k, :, t, layer], clusters, seed=seed)
                chance = null[k, :, t, layer].mean()
                rows.append(
                    (set_id, layer, part, found.value, found.low, found.high, chance, position)
                )
    columns = ["set_id", "layer", "part", "amount", "low", "high", "null", "position"]
    return pd.DataFrame(rows, columns=columns)


def compensation(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    dictionaries: Mapping[int, Dictionary | DictionarySlice],
    direction: Tensor,
    *,
    set_id: str = "S",
    at: Sequence[Positions] = ("last",),
    arm: str = "no_bos",
    clusters: Clusters = None,
    seed: int,
) -> pd.DataFrame:
    """axis(live) - axis(no_wake) by layer and token: what the latents that wake put back on the axis.

    Columns: set_id, layer, position, clean, live, no_wake (means of the axis, in units of the stream), amount
    with low and high, paired over prompts. Needs whole dictionaries. Raises InputError as `ledger` does.
    """
    pieces = whole(dictionaries, members)
    unit = unit_direction(direction, chat.anatomy.d_model)
    clean = activations(chat, prompts, pieces)
    live = latent_variant(pieces, members, positions=arm)
    held = [
        latent_variant(pieces, members, mode="no_wake", positions=arm, prompt=prompt, clean=acts)
        for prompt, acts in zip(prompts, clean, strict=True)
    ]
    runs: tuple[list[Variant], ...] = ([()] * len(prompts), [live] * len(prompts), held)
    sites = [Site("resid_post", layer) for layer in range(chat.anatomy.n_layers)]
    axes = [_project(chat.capture(prompts, sites, at, variant=run), sites, unit) for run in runs]
    rows = []
    for t, position in enumerate(at):
        for layer in range(len(sites)):
            own = [axis[:, t, layer] for axis in axes]
            found = mean_interval(own[1] - own[2], clusters, seed=seed)
            means = [each.mean() for each in own]
            rows.append((set_id, layer, position, *means, found.value, found.low, found.high))
    columns = ["set_id", "layer", "position", "clean", "live", "no_wake", "amount", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def whole(
    dictionaries: Mapping[int, Dictionary | DictionarySlice], members: Members
) -> dict[int, DictionarySlice]:
    """Slices by layer, in the order of layers. Raises InputError for members that none of them holds."""
    pieces = {
        layer: found.slice() if isinstance(found, Dictionary) else found
        for layer, found in sorted(dictionaries.items())
    }
    if not any(len(latents) for latents in members.values()):
        raise InputError("the set is empty; name at least one latent, {layer: latents}")
    for layer, latents in members.items():
        if layer not in pieces:
            raise InputError(
                f"the set has latents of layer {layer} and no dictionary of that layer is given"
            )
        pieces[layer].members(latents)
    return pieces


def change_norms(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    pieces: Pieces,
    *,
    positions: Positions,
) -> list[dict[int, Tensor]]:
    """Norm of what the live edit changes at each of its layers: one dict a prompt, layer -> [positions]."""
    own = {layer: pieces[layer] for layer, latents in members.items() if len(latents)}
    variant = latent_variant(own, members, positions=positions)
    sites = [Site(kind, layer) for layer in own for kind in WRITES]
    norms: list[dict[int, Tensor]] = []
    for prompt, found in zip(
        prompts, states(chat, prompts, sites, [variant] * len(prompts)), strict=True
    ):
        places = list(prompt.resolve(positions))
        norms.append({})
        for layer, piece in own.items():
            # The block's output as the edit found it; a capture of it would show what the edit left.
            writes = [found[Site(kind, layer)][places] for kind in WRITES]
            before = torch.stack(writes).sum(0)
            gain = torch.zeros(len(piece.latents))
            gain[piece.members(members[layer])] = -1.0
            after = piece.edited(before, gain, torch.zeros(()))
            norms[-1][layer] = (after - before).norm(dim=-1)
    return norms


def matched_noise(
    norms: Mapping[int, Tensor], pieces: Pieces, places: tuple[int, ...], draw: torch.Generator
) -> Variant:
    """A random direction of each norm, layer -> [places], at the sites and places of the edit."""
    edits = []
    for layer, size in norms.items():
        rows = torch.randn(len(size), pieces[layer].d_in, generator=draw)
        rows = rows * (size / rows.norm(dim=-1)).unsqueeze(-1)
        edits.append(SubtractWrite(pieces[layer].site, places, values=Frozen(rows)))
    return tuple(edits)


@dataclass(frozen=True)
class _Run:
    """Along the direction, all on [prompts, tokens]: layer by layer in the last dimension, what heads and MLP
    write, the stream above and below the layer. fires, decoded: layer -> [prompts, tokens, latents]."""

    heads: Array
    mlp: Array
    above: Array
    below: Array
    fires: dict[int, npt.NDArray[np.bool_]]
    decoded: dict[int, Array]


@dataclass(frozen=True)
class _Reader:
    chat: ChatModel
    prompts: Sequence[Rendered]
    members: Members
    pieces: Pieces
    unit: Tensor
    at: Sequence[Positions]

    def run(self, variants: list[Variant]) -> _Run:
        layers = range(self.chat.anatomy.n_layers)
        kinds: tuple[SiteKind, ...] = ("attn_out", "mlp_out", "resid_post", "resid_pre")
        sites = [[Site(kind, layer) for layer in layers] for kind in kinds]
        every = [site for each in sites for site in each]
        found = self.chat.capture(self.prompts, every, self.at, variant=variants)
        heads, mlp, above, below = (_project(found, each, self.unit) for each in sites)
        fires, decoded = {}, {}
        for layer, piece in self.pieces.items():
            acts, scale = piece.encode_scaled(found[piece.site])
            writes = acts * (piece.W_dec.to(acts) @ self.unit)
            fires[layer] = (acts > 0).numpy()
            decoded[layer] = (writes if scale is None else writes * scale).double().numpy()
        return _Run(heads, mlp, above, below, fires, decoded)

    def parts(self, run: _Run, clean: _Run) -> Array:
        """[parts, prompts, tokens, layers], in the order of PARTS."""
        heads, mlp = run.heads - clean.heads, run.mlp - clean.mlp
        moved = (run.above - run.below) - (clean.above - clean.below)
        latents, last = np.zeros(heads.shape), np.zeros(heads.shape[:2])
        for layer, piece in self.pieces.items():
            woken = run.fires[layer] & ~clean.fires[layer]
            woken[..., piece.members(self.members.get(layer, ()))] = False
            claimed = (run.decoded[layer] * woken).sum(-1)
            latents[..., layer], last = claimed - last, claimed
        return np.stack([moved - heads - mlp, heads, mlp, latents, heads + mlp - latents])


def _project(found: Mapping[Site, Tensor], sites: Sequence[Site], unit: Tensor) -> Array:
    """[prompts, tokens, layers] of states [prompts, tokens, d_model] a site."""
    return torch.stack([found[site] @ unit for site in sites], dim=-1).double().numpy()
