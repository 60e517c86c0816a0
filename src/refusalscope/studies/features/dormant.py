"""Dormant latents: members of a set that sleep in the clean run, and latents that wake when it is ablated.

A latent wakes on a prompt when at some layer and token it is 0 in the clean run and above 0 in the edited
one: silence is asked for at that place, not over the prompt. Many wake under any edit of that size, so a
woken latent counts where it wakes more often than under random directions of the same norm, and where
taking it out as well lowers the margin. Source: sae_features sections 1.1 and 6 (our reconstruction).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary, DictionarySlice, activations, latent_variant
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.stats import PairedDifference, mean_interval, paired_difference
from refusalscope.stats.interval import NAN, Clusters, Seed
from refusalscope.studies.features.ledger import (
    Key,
    Members,
    Pieces,
    change_norms,
    matched_noise,
    whole,
)
from refusalscope.studies.features.nulls import MIN_DRAWS, matched_sets, waking_table

Array = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Null = Literal["directions", "stand_ins"]
NULLS: tuple[Null, ...] = get_args(Null)
ARMS = ("all", "no_bos")
COLUMNS = [
    *("set_id", "layer", "latent", "in_set", "active_clean", "woken", "null", "p", "q"),
    *("effect", "effect_low", "effect_high", "arm"),
]


@dataclass(frozen=True)
class Waking:
    """What an edit and its two nulls wake. keys: (layer, latent) of every column.

    in_set: [latents]; active: [prompts, latents], at some token of the clean run; woken: the same, silent at
    some layer and token of the clean run and active there under the edit; nulls: by name [draws, prompts,
    latents], woken by edits that stand for it. Members of the ablated set never count as woken.
    """

    keys: tuple[Key, ...]
    in_set: Bool
    active: Bool
    woken: Bool
    nulls: Mapping[Null, Bool]

    def counts(self, *, seed: Seed, clusters: Clusters = None) -> pd.DataFrame:
        """Woken latents a prompt, counted once a layer, against each null.

        Columns: null, woken, expected, excess, low, high, p. excess: woken less expected with a paired interval
        over prompts; p: that a random edit wakes as many over all prompts, (1 + draws that do) / (1 + draws).
        """
        own = self.woken.sum(axis=1)
        rows = []
        for name, runs in self.nulls.items():
            chance = runs.sum(axis=2)
            gap = mean_interval(own - chance.mean(axis=0), clusters, seed=seed)
            p = (1 + (chance.sum(axis=1) >= own.sum()).sum()) / (1 + len(chance))
            rows.append((name, own.mean(), chance.mean(), gap.value, gap.low, gap.high, p))
        columns = ["null", "woken", "expected", "excess", "low", "high", "p"]
        return pd.DataFrame(rows, columns=columns)


def waking(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    dictionaries: Mapping[int, Dictionary | DictionarySlice],
    *,
    arm: str = "no_bos",
    nulls: Sequence[Null] = NULLS,
    draws: int = MIN_DRAWS,
    seed: int,
) -> Waking:
    """Run the set live, and `draws` times each null, in one arm.

    `directions`: random directions, each prompt its own, that have at each layer and token the norm of what the
    live edit changes there. `stand_ins`: one set of random latents a draw, with the layers, about the decoder
    norms and the activation masses of the members (`matched_sets`). Holds draws x prompts x latents truth
    values a null. Raises InputError as `dormant` does.
    """
    if draws < MIN_DRAWS:
        raise InputError(f"{draws} draws are too few for a null; make {MIN_DRAWS} or more")
    unknown = [name for name in nulls if name not in NULLS]
    if unknown:
        raise InputError(f"there is no null {unknown[0]!r}; choose of {', '.join(NULLS)}")
    pieces = whole(dictionaries, members)
    keys = tuple((layer, latent) for layer, piece in pieces.items() for latent in piece.latents)
    column = {key: k for k, key in enumerate(keys)}
    own = [column[key] for key in _keys(members)]
    clean = activations(chat, prompts, pieces)
    read = [_places(acts, prompt, arm) for acts, prompt in zip(clean, prompts, strict=True)]
    fires = [acts > 0 for acts in read]

    def wakes(variants: Sequence[Variant], edited: Sequence[int] = ()) -> Bool:
        runs = activations(chat, prompts, pieces, variants)
        each = [
            (~before & (_places(acts, prompt, arm) > 0)).any(0)
            for before, acts, prompt in zip(fires, runs, prompts, strict=True)
        ]
        out = torch.stack(each).numpy()
        out[:, list(edited)] = False
        return out

    def ablated(chosen: Sequence[int]) -> Bool:
        variant = latent_variant(pieces, _by_layer({keys[k] for k in chosen}), positions=arm)
        return wakes([variant] * len(prompts), chosen)

    def directions() -> Bool:
        norms = change_norms(chat, prompts, members, pieces, positions=arm)
        draw = torch.Generator().manual_seed(seed)
        each = list(zip(norms, prompts, strict=True))
        runs = (
            [matched_noise(norm, pieces, prompt.resolve(arm), draw) for norm, prompt in each]
            for _ in range(draws)
        )
        return np.stack([wakes(run) for run in runs])

    def stand_ins() -> Bool:
        matched = matched_sets(
            own,
            [layer for layer, _ in keys],
            torch.cat([piece.W_dec.norm(dim=1).cpu() for piece in pieces.values()]).numpy(),
            torch.cat(read).sum(0).numpy(),
            draws=draws,
            seed=seed,
        )
        return np.stack([ablated(chosen) for chosen in matched.sets])

    makers = {"directions": directions, "stand_ins": stand_ins}
    return Waking(
        keys=keys,
        in_set=np.isin(np.arange(len(keys)), own),
        active=torch.stack([each.any(0) for each in fires]).numpy(),
        woken=ablated(own),
        nulls={name: makers[name]() for name in nulls},
    )


def dormant(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    dictionaries: Mapping[int, Dictionary | DictionarySlice],
    margin: Metric,
    *,
    set_id: str = "S",
    arms: Sequence[str] = ARMS,
    draws: int = MIN_DRAWS,
    level: float = 0.05,
    runs: Mapping[str, Waking] | None = None,
    parts: Sequence[Sequence[Key]] = (),
    exact: Container[Key] | None = None,
    clusters: Clusters = None,
    seed: int,
) -> pd.DataFrame:
    """The table features.dormant: one row an arm for each member of the set and each latent that woke.

    members: {layer: latents}. arms: `all` edits and reads every token, `no_bos` leaves BOS out of both.
    active_clean, woken, null: shares of prompts; null under random directions of the edit's norm (`draws` a
    prompt). p, q: of `waking_table`, NaN for members. effect, in nats with a paired interval: of a member, the
    margin that it holds, live S without it less live S; of a woken latent with q < level, the margin that it
    writes back, live S less S and the latent, while nothing that slept under S may wake (a second reserve
    would hide the first).

    runs: what `waking` gave of each arm, run here without it. parts: members that belong together, such as one
    write at several layers, and share one effect; each by itself without it. exact: woken latents to run, all
    without it; the effect of the others is NaN. clusters: one label a prompt. `no_wake` edits behind an effect
    need whole dictionaries. Raises InputError for members that no dictionary holds, an unknown arm, or fewer
    than MIN_DRAWS draws.

    Power: where random directions wake a latent on the share r of prompts, its p is about r to the power of n
    prompts, so that with r = .7, as on the planted hydra, fewer than about 20 prompts can show nothing.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise InputError(f"there is no arm {unknown[0]!r}; choose of {', '.join(ARMS)}")
    pieces = whole(dictionaries, members)
    tables = []
    for arm in arms:
        found = (runs or {}).get(arm) or waking(
            chat, prompts, members, pieces, arm=arm, nulls=("directions",), draws=draws, seed=seed
        )
        table = _shares(found)
        names = [
            key
            for key, q in zip(found.keys, table["q"], strict=True)
            if q < level and (exact is None or key in exact)
        ]
        effects = _written_back(chat, prompts, members, pieces, margin, arm, names)
        effects |= _held(chat, prompts, members, parts, pieces, margin, arm)
        table = table[table["in_set"] | (table["woken"] > 0)]
        tables.append(_with_effects(table, effects, clusters, seed).assign(arm=arm))
    return pd.concat(tables, ignore_index=True).assign(set_id=set_id)[COLUMNS]


def reserves(table: pd.DataFrame, *, level: float = 0.05, least: float = 0.1) -> pd.DataFrame:
    """Rows of latents that wake beyond chance (q < level) and write back more than `least` nats.

    The lower bound of the effect is what must pass: a latent that wakes and does nothing is left out.
    """
    counts = ~table["in_set"] & (table["q"] < level) & (table["effect_low"] > least)
    return table[counts].reset_index(drop=True)


def dormant_value(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    dictionaries: Mapping[int, Dictionary | DictionarySlice],
    margin: Metric,
    *,
    arm: str = "no_bos",
    clusters: Clusters = None,
    seed: Seed,
) -> PairedDifference:
    """metric(clean_mask, S) - metric(live, S), paired over prompts: what its dormant members are worth.

    Under the clean mask an edit of a member that slept is an exact no-op (sae_features section 1.1).
    """
    pieces = whole(dictionaries, members)
    own = {layer: pieces[layer] for layer in members}
    clean = activations(chat, prompts, own)
    live = latent_variant(own, members, positions=arm)
    variants = [
        [
            latent_variant(
                own, members, mode="clean_mask", positions=arm, prompt=prompt, clean=acts
            ),
            live,
        ]
        for prompt, acts in zip(prompts, clean, strict=True)
    ]
    scores = _scores(chat, prompts, variants, margin)
    return paired_difference(scores[:, 0], scores[:, 1], clusters, seed=seed)


def _shares(found: Waking) -> pd.DataFrame:
    """One row a latent of the dictionaries, in the order of `found.keys`."""
    table = pd.DataFrame(found.keys, columns=["layer", "latent"])
    table["in_set"] = found.in_set
    table["active_clean"] = found.active.mean(axis=0)
    table["woken"] = found.woken.mean(axis=0)
    table["null"] = found.nulls["directions"].mean(axis=(0, 1))
    table["p"] = table["q"] = NAN
    outside = ~found.in_set
    if outside.any():
        chance = found.nulls["directions"][:, :, outside]
        tests = waking_table(found.woken[:, outside], chance, draws="per_prompt")
        table.loc[outside, ["p", "q"]] = tests[["p", "p_adjusted"]].to_numpy()
    return table


def _written_back(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    pieces: Pieces,
    margin: Metric,
    arm: str,
    names: Sequence[Key],
) -> dict[Key, Array]:
    """Effect of each latent on each prompt, while all that slept in the run with S ablated is held asleep."""
    if not names:
        return {}
    live = latent_variant(pieces, members, positions=arm)
    asleep = activations(chat, prompts, pieces, [live] * len(prompts))
    own = set(_keys(members))
    sets = [members, *(_by_layer(own | {name}) for name in names)]
    variants = [
        [
            latent_variant(pieces, chosen, mode="no_wake", positions=arm, prompt=prompt, clean=acts)
            for chosen in sets
        ]
        for prompt, acts in zip(prompts, asleep, strict=True)
    ]
    scores = _scores(chat, prompts, variants, margin)
    return {name: scores[:, 0] - scores[:, 1 + k] for k, name in enumerate(names)}


def _held(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    parts: Sequence[Sequence[Key]],
    pieces: Pieces,
    margin: Metric,
    arm: str,
) -> dict[Key, Array]:
    """Margin on each prompt that a part of the set holds once the rest is gone, all live; by member."""
    own = _keys(members)
    named = {key for part in parts for key in part}
    parts = [*parts, *([key] for key in own if key not in named)]
    sets = [members, *(_by_layer(set(own).difference(part)) for part in parts)]
    variants = [latent_variant(pieces, chosen, positions=arm) for chosen in sets]
    scores = _scores(chat, prompts, [variants] * len(prompts), margin)
    return {name: scores[:, 1 + k] - scores[:, 0] for k, part in enumerate(parts) for name in part}


def _scores(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    variants: Sequence[Sequence[Variant]],
    margin: Metric,
) -> Any:
    return chat.measure(prompts, variants, {"margin": margin}).scores["margin"]


def _with_effects(
    table: pd.DataFrame, effects: Mapping[Key, Array], clusters: Clusters, seed: int
) -> pd.DataFrame:
    bounds = np.full((len(table), 3), NAN)
    for row, key in enumerate(zip(table["layer"], table["latent"], strict=True)):
        if key in effects:
            found = mean_interval(effects[key], clusters, seed=seed)
            bounds[row] = found.value, found.low, found.high
    return table.assign(**dict(zip(COLUMNS[9:12], bounds.T, strict=True)))


def _keys(members: Members) -> list[Key]:
    return [(layer, latent) for layer, latents in members.items() for latent in latents]


def _by_layer(keys: Iterable[Key]) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for layer, latent in sorted(keys):
        found[layer] = (*found.get(layer, ()), latent)
    return found


def _places(acts: Mapping[int, Tensor], prompt: Rendered, arm: str) -> Tensor:
    """Activations of all layers side by side at the tokens of an arm: [tokens, latents of all layers]."""
    return torch.cat(list(acts.values()), dim=1)[list(prompt.resolve(arm))]
