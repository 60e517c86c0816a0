"""A planted hydra as the features methods meet it: prompts, dictionaries, pool, trials; and its exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from refusalscope.dictionary import Dictionary, DictionarySlice
from refusalscope.model import ChatModel, RefusalMargin, Rendered, Site
from refusalscope.organisms.planted import Planted, tokens
from refusalscope.organisms.planted.dictionary import held_dictionaries
from refusalscope.studies.directions.extract import mean_difference
from refusalscope.studies.features.ablation import Latent, LatentTrial, flips_enough
from refusalscope.studies.features.one_set import Repair
from refusalscope.studies.features.pool import parts, pool
from refusalscope.studies.features.rounds import make_repair
from refusalscope.studies.features.trial import Outcome

Array = npt.NDArray[np.float64]
MARGIN = RefusalMargin((tokens.REFUSE,), (tokens.COMPLY,))
# The latents that write refusal, which are what a minimal set is made of.
WRITERS = ("primary", "backup", "second_backup")
# Latents a layer of the cosine pool (arXiv 2509.09708 on Llama, 2505.23556 on both models).
POOL_K = 10


@dataclass(frozen=True)
class FoundSet:
    """latents: claimed, by number; flipped: whether a run of the set flips every prompt; runs: sets run.

    ranking: a value for every latent, for methods that rank them all. sites: (layer, latent) edits of the set.
    """

    latents: frozenset[int]
    flipped: bool
    runs: int
    sites: int
    ranking: pd.Series | None = None


@dataclass(frozen=True)
class HydraBench:
    """An organism with its prompts rendered and its latents measured. No method reads `planted.truth`.

    pool: `features.pool` as the study makes it, with the columns near, the cosine pool alone, and part, see
    `refusalscope.studies.features.arms.find_pool`. claims: by method, as they are made.
    """

    planted: Planted
    chat: ChatModel
    harmful: list[Rendered]
    dictionaries: dict[int, Dictionary]
    slices: dict[int, DictionarySlice]
    pool: pd.DataFrame
    claims: dict[str, FoundSet] = field(default_factory=dict)

    @cached_property
    def pooled(self) -> list[int]:
        """Latents of the cosine pool at any layer."""
        return _named(self.pool[self.pool["near"]])

    @cached_property
    def candidates(self) -> list[int]:
        """Those of the cosine pool that carry out a refusal rather than recognise harm."""
        return _named(self.pool[self.pool["near"] & (self.pool["part"] == "execution")])

    def places(self, latents: Sequence[int]) -> list[Latent]:
        """(layer, latent) of each latent at every layer."""
        return [(layer, latent) for latent in latents for layer in self.dictionaries]

    def ranking(self, measure: str) -> pd.Series:
        """The largest value of a column of the pool over layers, by latent, largest first."""
        return self.pool.groupby("latent")[measure].max().sort_values(ascending=False)

    def with_roles(self, roles: Sequence[str]) -> frozenset[int]:
        """Latents of some planted roles: for scoring alone."""
        return frozenset(each.index for each in self.planted.truth.latents if each.role in roles)

    @cached_property
    def standing(self) -> list[int]:
        """Latents by cosine, largest first, of those whose ablation alone leaves the refusal standing."""
        ranked = [int(latent) for latent in self.ranking("cosine").index]
        alone = Everywhere(self, ranked).flips([frozenset({i}) for i in range(len(ranked))])
        return [latent for latent, one in zip(ranked, alone, strict=True) if one.score >= 0]

    @cached_property
    def true_sets(self) -> list[frozenset[int]]:
        """The minimal flipping sets of the writers, by running every subset of them on every prompt."""
        writers = sorted(self.with_roles(WRITERS))
        trial = Everywhere(self, writers)
        subsets = [
            frozenset(chosen)
            for size in range(len(writers) + 1)
            for chosen in combinations(range(len(writers)), size)
        ]
        found: list[frozenset[int]] = []
        for subset, outcome in zip(subsets, trial.flips(subsets), strict=True):
            if outcome.flipped and not any(known <= subset for known in found):
                found.append(subset)
        return [frozenset(writers[i] for i in subset) for subset in found]


class Everywhere:
    """A `Trial` whose candidates are latents, each zeroed at every layer.

    The planted dictionary is one for all layers, so that a latent is the same thing at each of them. runs: sets
    run so far, each on all prompts. A set flips where it flips every prompt.
    """

    def __init__(self, bench: HydraBench, latents: Sequence[int]) -> None:
        self.latents = tuple(latents)
        self.runs = 0
        self._deep = len(bench.dictionaries)
        self._trial = LatentTrial(
            bench.chat, bench.harmful, bench.places(latents), bench.slices, MARGIN
        )
        self._dictionaries = bench.dictionaries

    def flips(self, sets: Sequence[frozenset[int]]) -> list[Outcome]:
        """Mean margin over the prompts, and whether every one of them flips, for each set."""
        return [
            Outcome(float(column.mean()), flips_enough(column, 1.0))
            for column in self.margins(sets).T
        ]

    def margins(self, sets: Sequence[frozenset[int]]) -> Array:
        """Refusal margin, in nats, of each prompt under each set: [prompts, sets]."""
        self.runs += len(sets)
        return self._trial.margins([self._whole(members) for members in sets])

    def margin_each(self, places: Sequence[int], sets: Sequence[frozenset[int]]) -> Array:
        """Refusal margin of the prompt at each of `places` under the set beside it: [sets]."""
        trial = self._trial
        return trial.chat.measure(
            [trial.prompts[i] for i in places],
            [[trial.variant(self._whole(members))] for members in sets],
            {"margin": MARGIN},
        ).scores["margin"][:, 0]

    def repair(self) -> Repair:
        """Candidates by conditional attribution at their strongest layer, given that some are ablated."""
        inner = make_repair(self._trial, self._dictionaries)

        def more(ablated: frozenset[int]) -> list[int]:
            return list(dict.fromkeys(i // self._deep for i in inner(self._whole(ablated))))

        return more

    def _whole(self, members: frozenset[int]) -> frozenset[int]:
        return frozenset(i * self._deep + k for i in members for k in range(self._deep))


def set_up(planted: Planted) -> HydraBench:
    """The organism with its refusal direction, its pool and the direction of harm measured on its pairs."""
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id=planted.truth.variant)
    sides = [
        list(chat.render(tuple(p for p in planted.pairs.prompts() if p.label == label)))
        for label in ("harmful", "harmless")
    ]
    assert planted.dictionary is not None
    dictionaries = held_dictionaries(planted.dictionary, planted.truth.generator)
    refusal, harm = _directions(chat, *sides)
    table = pool(
        chat, sides[0], refusal, dictionaries, MARGIN, harmless=sides[1], k=POOL_K, by="union"
    )
    ranks = table.groupby("layer")["cosine"].rank(ascending=False, method="first")
    table = table.assign(near=ranks <= POOL_K, part=parts(dictionaries, refusal, harm))
    slices = {layer: each.slice() for layer, each in dictionaries.items()}
    return HydraBench(planted, chat, sides[0], dictionaries, slices, table)


def _directions(
    chat: ChatModel, harmful: Sequence[Rendered], harmless: Sequence[Rendered]
) -> tuple[Tensor, Tensor]:
    """Mean differences at the prompt's end and at the instruction's, at the last layer arditi2024 allows."""
    site = Site("resid_post", int(0.8 * chat.anatomy.n_layers) - 1)
    states = [
        chat.capture(side, [site], ["prompt_last", "instruction_last"])[site]
        for side in (harmful, harmless)
    ]
    refusal, harm = mean_difference(*states)
    return refusal, harm


def _named(rows: pd.DataFrame) -> list[int]:
    return sorted({int(latent) for latent in rows["latent"]})
