"""What the features study promises of a hydra beside its minimal set, each as one number a seed."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from refusalscope.organisms.scoreboard.bars import FALSE_RESERVES, NECESSARY, PAIRS, RESERVES
from refusalscope.organisms.scoreboard.hydra_bench import MARGIN, Everywhere, HydraBench
from refusalscope.organisms.scoreboard.searches import found_set
from refusalscope.stats import mean_interval
from refusalscope.studies.features import (
    Moments,
    corner_sets,
    pair_moments,
    random_masks,
    two_by_two,
)
from refusalscope.studies.features.ablation import by_layer
from refusalscope.studies.features.dormant import dormant, reserves
from refusalscope.studies.features.rounds import Rounds, conditional_rounds

RESERVE_ROLES = ("backup", "second_backup")
MASKS, MASKED = 1000, 60
# The smallest interaction, in nats, that counts; as for the effect of a reserve.
FLOOR = 0.1


def hydra_checks(bench: HydraBench) -> dict[str, float]:
    """Everything below; what has nothing planted to find is left out."""
    rounds = conditional_rounds(
        bench.chat,
        bench.harmful,
        MARGIN,
        bench.dictionaries,
        candidates=bench.places(bench.candidates),
    )
    return waking(bench, rounds) | necessity(bench) | interactions(bench, rounds)


def waking(bench: HydraBench, rounds: Rounds) -> dict[str, float]:
    """Waking is tested each time that the rounds have added a wave, with all waves so far ablated.

    Found: the share of planted reserves that are called one at some layer. Other latents are those outside the
    set that woke on a prompt at all, at each layer, so that each was put to the test.
    """
    planted, called, tested = bench.with_roles(RESERVE_ROLES), set(), set()
    held: list[tuple[int, int]] = []
    for wave in rounds.rounds:
        if not wave.added:
            break
        held += wave.added
        table = dormant(
            bench.chat,
            bench.harmful,
            by_layer(sorted(held)),
            bench.slices,
            MARGIN,
            arms=("no_bos",),
            seed=bench.planted.truth.seed,
        )
        tested |= _places(table[~table["in_set"]])
        called |= _places(reserves(table))
    others = {place for place in tested if place[1] not in planted}
    wrong = called & others
    found = {
        FALSE_RESERVES: len(wrong) / max(len(others), 1),
        "another latent called reserve": float(bool(wrong)),
        "other latents tested": float(len(others)),
    }
    if planted:
        found[RESERVES] = len({latent for _, latent in called} & planted) / len(planted)
    return found


def necessity(bench: HydraBench) -> dict[str, float]:
    """Of the members of the recommended set that sleep in the clean run, the share that the flip needs.

    A member is needed where the margin that comes back once it alone is spared lies above 0 with its interval.
    """
    active = bench.ranking("active_share")
    members = sorted(found_set(bench, "recommended").latents)
    asleep = [i for i, latent in enumerate(members) if active[latent] == 0]
    if not asleep:
        return {}
    whole = frozenset(range(len(members)))
    margins = Everywhere(bench, members).margins([whole, *(whole - {i} for i in asleep)])
    lows = [mean_interval(column - margins[:, 0], seed=0).low for column in margins[:, 1:].T]
    return {NECESSARY: float(np.mean(np.array(lows) > 0))}


def interactions(bench: HydraBench, rounds: Rounds) -> dict[str, float]:
    """How well moments over random masks rank the planted pairs of a primary and a backup, and the 2 x 2 of the
    first six.

    Masked are the latents first by cosine, of those whose ablation alone leaves the refusal standing. What woke
    behind the second wave stands in for the pairs, so it is ablated throughout. Two more areas say what that is
    worth: it is masked like any latent (`masked too`), or no mask touches it (`left alone`).
    """
    if not bench.with_roles(("backup",)):
        return {}
    behind = {latent for wave in rounds.rounds[2:] for _, latent in wave.added}
    masked = _Masked(bench, frozenset(), frozenset(behind))
    found = {PAIRS: masked.area, "of the first six pairs, redundant": masked.redundant}
    if behind:
        found[f"{PAIRS}, masked too"] = _Masked(bench, frozenset(), frozenset()).area
        found[f"{PAIRS}, left alone"] = _Masked(bench, frozenset(behind), frozenset()).area
    return found


class _Masked:
    """Runs under random masks, one prompt each, while `held` are ablated throughout and `out` never."""

    def __init__(self, bench: HydraBench, out: frozenset[int], held: frozenset[int]) -> None:
        free = [latent for latent in bench.standing if latent not in out | held]
        self.latents = free[:MASKED]
        self._trial = Everywhere(bench, [*self.latents, *sorted(held)])
        self._held = frozenset(range(len(self.latents), len(self._trial.latents)))
        self._bench = bench

    @cached_property
    def moments(self) -> Moments:
        seed, prompts = self._bench.planted.truth.seed, self._bench.harmful
        masks = random_masks(MASKS, len(self.latents), seed=seed)
        sets = [self._held.union(np.flatnonzero(row).tolist()) for row in masks]
        prompt = np.arange(MASKS) % len(prompts)
        clean = self._trial.margins([self._held])[:, 0]
        change = self._trial.margin_each(prompt.tolist(), sets) - clean[prompt]
        clusters = [prompts[i].id for i in prompt]
        return pair_moments(masks, change, clusters, n_resamples=100, seed=seed)

    @cached_property
    def area(self) -> float:
        """AUROC of the planted pairs among all pairs, by how far below 0 their moment lies; NaN where one of
        them was not masked.
        """
        writers = self._bench.with_roles(("primary", "backup"))
        if not writers <= set(self.latents):
            return float("nan")
        roles = {each.index: each.role for each in self._bench.planted.truth.latents}
        first, second = np.triu_indices(len(self.latents), 1)
        planted = [
            {roles[self.latents[i]], roles[self.latents[j]]} == {"primary", "backup"}
            for i, j in zip(first, second, strict=True)
        ]
        return float(roc_auc_score(planted, -self.moments.pair[first, second]))

    @cached_property
    def redundant(self) -> float:
        """Of the six pairs of the lowest moment, the share that the exact 2 x 2 calls redundant (or OR)."""
        first, second = np.triu_indices(len(self.latents), 1)
        lowest = np.argsort(self.moments.pair[first, second])[:6]
        pairs = [(int(first[k]), int(second[k])) for k in lowest]
        corners = [members for pair in pairs for members in corner_sets(pair, self._held)]
        scores = self._trial.margins(corners).reshape(-1, len(pairs), 4)
        kinds = two_by_two(scores, pairs, floor=FLOOR, seed=0)["kind"]
        return float(kinds.isin(["redundant", "OR"]).mean())


def _places(table: pd.DataFrame) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in zip(table["layer"], table["latent"], strict=True)}
