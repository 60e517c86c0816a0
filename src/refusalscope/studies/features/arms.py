"""What a set is compared with: each arm as edits of several strengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from refusalscope.dictionary import latent_variant
from refusalscope.model import Add, Site, Variant, everywhere
from refusalscope.model.edits import frozen
from refusalscope.studies.features.ablation import Latent, by_layer
from refusalscope.studies.features.as_published import top_by_gradients
from refusalscope.studies.features.nulls import matched_sets
from refusalscope.studies.features.pca import pca_dictionary
from refusalscope.studies.features.pool import parts, pool
from refusalscope.studies.features.searching import search_pooled
from refusalscope.studies.features.work import Work
from refusalscope.studies.features.writes import Write, writes

Group = Literal["set", "direction", "baseline", "stage3", "random", "pca"]
RANDOM = "random matched"
# Latents a layer, by cosine, among which the published attribution ranks.
NEAR = 10


@dataclass(frozen=True)
class Arm:
    """An intervention. variants: by strength, 1 the arm as it is named; draw: of a random arm, else 0."""

    name: str
    group: Group
    n_latents: int
    variants: Mapping[float, Variant]
    draw: int = 0


def latent_arm(
    work: Work,
    name: str,
    group: Group,
    latents: Sequence[Latent],
    strengths: Iterable[float] | None = None,
    draw: int = 0,
) -> Arm:
    """Latents of which a share, the strength, is taken out: f' = (1 - strength) f."""
    slices, named = work.slices(latents), by_layer(latents)
    variants = {
        strength: latent_variant(
            slices, named, kind="scale", value=1 - strength, positions=work.settings.positions
        )
        for strength in strengths or work.settings.strengths
    }
    return Arm(name, group, len(latents), variants, draw)


def directions(work: Work) -> list[Arm]:
    """The refusal direction projected out everywhere, and subtracted at its layer by shares of its length."""
    vector, layer = work.direction.vector, work.direction.layer
    ablated = everywhere(work.chat.anatomy.n_layers, vector, work.settings.positions)
    subtracted = {
        strength: (
            Add(
                Site("resid_pre", layer),
                work.settings.positions,
                vector=frozen(vector),
                scale=-strength,
            ),
        )
        for strength in work.settings.strengths
    }
    return [
        Arm("refusal direction", "direction", 0, {1.0: ablated}),
        Arm("refusal direction, subtracted", "direction", 0, subtracted),
    ]


def rankings(work: Work, table: pd.DataFrame) -> list[Arm]:
    """The latents at the top of each ranking of the pool, over all layers, and the whole pool."""
    kinds = {
        "top cosine": "cosine",
        "activation difference": "activation_difference",
        "attribution": "attribution",
    }
    arms = [
        latent_arm(work, name, "baseline", _named(table.nlargest(work.settings.n_top, column)))
        for name, column in kinds.items()
    ]
    return [*arms, latent_arm(work, "whole pool", "baseline", _named(table[table["kept"]]))]


def by_gradients(work: Work, table: pd.DataFrame) -> Arm | None:
    """The published combination: latents near the direction, ranked by integrated gradients (`yeo2025`)."""
    near = table.sort_values("cosine", ascending=False).groupby("layer").head(NEAR)
    latents = top_by_gradients(work, _named(near))
    return latent_arm(work, "yeo2025", "baseline", latents) if latents else None


def by_components(work: Work, dictionaries: pd.DataFrame) -> Arm | None:
    """The same search over principal components with the L0 of each dictionary: what the dictionary adds.

    dictionaries: the table `features.dictionaries`. None where no set of components flips. Raises InputError
    where so many components cannot be had, as `pca_dictionary` does.
    """
    seen = [*work.refused, *work.answered]
    found = {}
    for layer, dictionary in work.dictionaries.items():
        l0 = float(dictionaries.loc[dictionaries["layer"] == layer, "l0"].iloc[0])
        n = min(2 * work.chat.anatomy.d_model, dictionary.d_sae)
        found[layer] = pca_dictionary(
            work.chat, work.prompts(seen), dictionary.site, n - n % 2, l0, work.settings.seed
        )
    other = replace(work, dictionaries=found)
    table = find_pool(other)
    searched = candidates(other, table)
    latents = search_pooled(other, searched) if searched else []
    if latents:
        return latent_arm(other, "PCA dictionary", "pca", latents)
    work.run.warn("The PCA dictionary has no arm: no set of its components flips enough prompts.")
    return None


def find_pool(work: Work) -> pd.DataFrame:
    """The table `features.pool` of the work's dictionaries, with the part of each latent (`pool.parts`)."""
    settings = work.settings
    table = pool(
        work.chat,
        work.prompts(work.refused),
        work.direction.vector,
        work.dictionaries,
        work.margin,
        harmless=work.prompts(work.answered),
        k=settings.pool_k,
        scope=settings.pool_scope,
        by=settings.pool_by,
        positions=settings.positions,
    )
    ends = work.direction.execution, work.direction.recognition
    return table.assign(part=parts(work.dictionaries, *ends))


def candidates(work: Work, table: pd.DataFrame) -> list[Write]:
    """What is searched: the pool's kept latents of the settings' part as writes, most contrastive first.

    Empty where the part holds none.
    """
    kept = table[table["kept"]]
    if work.settings.part == "execution":
        kept = kept[kept["part"] == "execution"]
    ranked = _named(kept.sort_values(["contrastive", "cosine"], ascending=False))
    if work.settings.unit == "latent":
        return [(latent,) for latent in ranked]
    return writes(ranked, work.dictionaries)


def ranked_by_machines(work: Work, members: Sequence[Latent], machine: pd.DataFrame) -> list[Arm]:
    """What the machines and the probes rank highest, alone and with the set; one strength, as published."""
    arms = []
    for inputs, table in machine.groupby("inputs", sort=False):
        for k in work.settings.machine_k:
            first = table[table["place"] < k].sort_values("place")
            probed = table[table["probe_place"] < k].sort_values("probe_place")
            wanted = {f"machine, {inputs}": _named(first), f"probe, {inputs}": _named(probed)}
            both = list(dict.fromkeys([*members, *_named(first)]))
            wanted[f"set and machine, {inputs}"] = both
            arms += [
                latent_arm(work, f"{name}, top {k}", "stage3", latents, (1.0,))
                for name, latents in wanted.items()
                if latents
            ]
    return arms


def random_arms(work: Work, members: Sequence[Latent], table: pd.DataFrame) -> list[Arm]:
    """Random latents like the members, by layer, decoder norm and activation mass: one arm a draw.

    A layer whose dictionary has no other latent raises InputError, as `matched_sets` does.
    """
    layers = {layer for layer, _ in members}
    near = table[table["layer"].isin(layers) & (table["decoder_norm"] > 0)].reset_index(drop=True)
    keys = list(zip(near["layer"], near["latent"], strict=True))
    places = {(int(layer), int(latent)): k for k, (layer, latent) in enumerate(keys)}
    matched = matched_sets(
        [places[member] for member in members],
        near["layer"].to_numpy(),
        near["decoder_norm"].to_numpy(),
        np.maximum(near["mass"].to_numpy(), 0),
        draws=work.settings.draws,
        seed=np.random.default_rng([work.settings.seed, 3]),
    )
    return [
        latent_arm(work, RANDOM, "random", [_key(keys[k]) for k in chosen], draw=number)
        for number, chosen in enumerate(matched.sets)
    ]


def _named(table: pd.DataFrame) -> list[Latent]:
    return [_key(key) for key in zip(table["layer"], table["latent"], strict=True)]


def _key(key: tuple[object, object]) -> Latent:
    return int(str(key[0])), int(str(key[1]))
