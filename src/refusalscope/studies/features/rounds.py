"""Rounds of conditional attribution: ablate, see which latents carry the refusal now, ablate those too.

What wakes in place of ablated latents is found in as many rounds as reserves stand behind each other, however
many latents there are. sae_features section 7.1 (our reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from refusalscope.dictionary import Dictionary, latent_variant
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.model.sites import Positions
from refusalscope.studies.features.ablation import (
    Latent,
    LatentTrial,
    by_layer,
    flips_enough,
    require_share,
)
from refusalscope.studies.features.attribution import run_effects, slices_of
from refusalscope.studies.features.one_set import Repair


@dataclass(frozen=True)
class Round:
    """One round, over prompts. margin: mean, in nats, before the round adds; flipped: share of prompts below 0.

    added: strongest first; effects: their mean effects in nats; woken: the share of prompts on which each is
    active here and silent everywhere without an edit.
    """

    margin: float
    flipped: float
    added: tuple[Latent, ...]
    effects: tuple[float, ...]
    woken: tuple[float, ...]


@dataclass(frozen=True)
class Rounds:
    """members: those held, then those added round by round; flipped: whether they flip enough prompts."""

    members: tuple[Latent, ...]
    rounds: tuple[Round, ...]
    flipped: bool

    def frame(self) -> pd.DataFrame:
        """One row an added latent: round, layer, latent, effect, woken, margin, flipped (before the round)."""
        rows = [
            (number, *latent, effect, woken, each.margin, each.flipped)
            for number, each in enumerate(self.rounds)
            for latent, effect, woken in zip(each.added, each.effects, each.woken, strict=True)
        ]
        columns = ["round", "layer", "latent", "effect", "woken", "margin", "flipped"]
        return pd.DataFrame(rows, columns=columns)


def conditional_rounds(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    metric: Metric,
    dictionaries: Mapping[int, Dictionary],
    *,
    candidates: Sequence[Latent] | None = None,
    held: Sequence[Latent] = (),
    positions: Positions = "no_bos",
    share: float = 1.0,
    least: float = 0.02,
    max_rounds: int = 10,
) -> Rounds:
    """Ablate, see what speaks for refusal now, add it, until enough prompts flip or nothing more speaks.

    candidates: all latents of the dictionaries without them. held: ablated from the start. share: of prompts
    that must flip. least: a latent is added from this mean effect on, as a share of the unedited mean margin.
    A round costs one forward and one backward a prompt; with `held` one more tells what woke. The last round
    adds nothing: it is the run of all members. Raises InputError without prompts or for values out of range.
    """
    require_share(share)
    if not prompts or not least > 0 or max_rounds < 1:
        raise InputError(
            f"rounds need prompts, least above 0 and max_rounds of 1 or more; got {len(prompts)} prompts, "
            f"{least} and {max_rounds}"
        )
    pool = _Pool.of(dictionaries, candidates)
    members, rounds = list(held), list[Round]()

    def run(latents: Sequence[Latent]) -> _Found:
        named = by_layer(latents)
        variant = latent_variant(slices_of(dictionaries, named), named, positions=positions)
        return pool.run(chat, prompts, metric, variant, positions)

    clean = run(())
    floor = least * abs(clean.margins.mean())
    found = run(members) if members else clean
    while True:
        flipped = flips_enough(found.margins, share)
        added = [] if flipped or len(rounds) == max_rounds else pool.above(found, floor, members)
        names = tuple(pool.latents(added))
        woken = (found.active & ~clean.active).mean(0)
        rounds.append(
            Round(
                float(found.margins.mean()),
                float((found.margins < 0).mean()),
                names,
                tuple(found.effect[added].tolist()),
                tuple(woken[added].tolist()),
            )
        )
        if not names:
            return Rounds(tuple(members), tuple(rounds), flipped)
        members += names
        found = run(members)


def make_repair(trial: LatentTrial, dictionaries: Mapping[int, Dictionary]) -> Repair:
    """What `minimal_sets` asks for more: the trial's candidates by effect, given that some are ablated.

    Only those with a positive mean effect over the prompts, strongest first. `make_repair(...)(frozenset())` is
    the order to begin with. A call costs one forward and one backward a prompt. Raises InputError where a layer
    of a candidate has no dictionary.
    """
    pool = _Pool.of(dictionaries, trial.candidates)
    number = {latent: i for i, latent in enumerate(trial.candidates)}

    def repair(ablated: frozenset[int]) -> list[int]:
        variant = trial.variant(ablated)
        found = pool.run(trial.chat, trial.prompts, trial.metric, variant, trial.positions)
        names = pool.latents(pool.above(found, 0.0, [trial.candidates[i] for i in ablated]))
        return [number[latent] for latent in names]

    return repair


@dataclass(frozen=True)
class _Found:
    """margins: [prompts]; effect: [candidates], mean; active: [prompts, candidates]."""

    margins: np.ndarray
    effect: np.ndarray
    active: np.ndarray


@dataclass(frozen=True)
class _Pool:
    """Candidates in one row. index: layer -> latents, in the order of the row."""

    dictionaries: dict[int, Dictionary]
    index: dict[int, np.ndarray]

    @classmethod
    def of(
        cls, dictionaries: Mapping[int, Dictionary], candidates: Sequence[Latent] | None
    ) -> _Pool:
        if candidates is None:
            index = {k: np.arange(each.d_sae) for k, each in dictionaries.items()}
            return cls(dict(dictionaries), index)
        named = by_layer(candidates)
        slices_of(dictionaries, named)
        index = {layer: np.array(latents) for layer, latents in named.items()}
        return cls({layer: dictionaries[layer] for layer in index}, index)

    def run(
        self,
        chat: ChatModel,
        prompts: Sequence[Rendered],
        metric: Metric,
        variant: Variant,
        positions: Positions,
    ) -> _Found:
        margins, active = [], []
        effect = np.zeros(sum(map(len, self.index.values())))
        for prompt in prompts:
            found = run_effects(chat, prompt, metric, self.dictionaries, variant, positions)
            margins.append(found.margin)
            effect += self._row(found.effect) / len(prompts)
            active.append(self._row(found.active))
        return _Found(np.array(margins), effect, np.stack(active))

    def _row(self, values: Mapping[int, Tensor]) -> np.ndarray:
        return np.concatenate(
            [values[layer][chosen].numpy() for layer, chosen in self.index.items()]
        )

    def above(self, found: _Found, floor: float, members: Sequence[Latent]) -> list[int]:
        """Places of candidates that are no members, with an effect above the floor, strongest first."""
        order = np.argsort(-found.effect, kind="stable")
        strong = order[found.effect[order] > floor].tolist()
        known = set(members)
        return [
            i for i, name in zip(strong, self.latents(strong), strict=True) if name not in known
        ]

    def latents(self, places: Sequence[int]) -> list[Latent]:
        starts = np.cumsum([0, *map(len, self.index.values())])
        layers = list(self.index)
        found = []
        for place in places:
            k = int(np.searchsorted(starts, place, side="right")) - 1
            found.append((layers[k], int(self.index[layers[k]][place - starts[k]])))
        return found
