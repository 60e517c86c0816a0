"""The methods that are scored on the hydra: each claims one set of latents as what a refusal hangs on.

None sees the truth. Candidates come from the measured pool; a latent is zeroed at every layer, except by the
method that says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from refusalscope.organisms.scoreboard.hydra_bench import MARGIN, Everywhere, FoundSet, HydraBench
from refusalscope.studies.features import Repair, Trial, block_greedy, minimal_sets
from refusalscope.studies.features.ablation import LatentTrial
from refusalscope.studies.features.rounds import make_repair
from refusalscope.studies.features.writes import WriteTrial, writes

MAX_RUNS = 1000
# As many latents as the cosine, activation and attribution baselines of arXiv 2505.23556 take.
TOP = 20


def found_set(bench: HydraBench, method: str) -> FoundSet:
    """What a method claims of an organism, worked out once."""
    if method not in bench.claims:
        bench.claims[method] = METHODS[method](bench)
    return bench.claims[method]


def recommended(bench: HydraBench) -> FoundSet:
    """The study's own search: the pool by cosine and contrastive attribution, the executing part, as writes."""
    kept = bench.pool[bench.pool["kept"] & (bench.pool["part"] == "execution")]
    ranked = kept.sort_values(["contrastive", "cosine"], ascending=False)
    latents = [(int(a), int(b)) for a, b in zip(ranked["layer"], ranked["latent"], strict=True)]
    found = writes(latents, bench.dictionaries)
    trial = WriteTrial(bench.chat, bench.harmful, found, bench.slices, MARGIN)
    members, runs = _first_set(trial, trial.repair(bench.dictionaries))
    sites = [latent for member in members for latent in found[member]]
    return FoundSet(frozenset(latent for _, latent in sites), bool(members), runs, len(sites))


def searched(bench: HydraBench, latents: Sequence[int]) -> FoundSet:
    """Order by attribution, bisection, 1-minimal pass, and conditional attribution where reserves wake."""
    trial = Everywhere(bench, latents)
    members, runs = _first_set(trial, trial.repair())
    claimed = frozenset(latents[i] for i in members)
    return FoundSet(claimed, bool(members), runs, len(members) * len(bench.dictionaries))


def layer_by_layer(bench: HydraBench) -> FoundSet:
    """The same search where each (layer, latent) is a candidate of its own.

    Two primaries taken out behind the layer at which the reserves have read them flip the prompts, with no
    reserve woken: a smaller set of another kind than the planted one.
    """
    places = bench.places(bench.candidates)
    trial = LatentTrial(bench.chat, bench.harmful, places, bench.slices, MARGIN)
    members, runs = _first_set(trial, make_repair(trial, bench.dictionaries))
    return FoundSet(frozenset(places[i][1] for i in members), bool(members), runs, len(members))


def _first_set(trial: Trial, repair: Repair) -> tuple[tuple[int, ...], int]:
    """Members of the first minimal set, none where no set flips, and the sets that were run."""
    order = repair(frozenset())
    if not order:
        return (), 0
    search = minimal_sets(trial, order, max_forwards=MAX_RUNS, repair=repair)
    return search.sets[0].members if search.sets else (), search.evaluations


def published(bench: HydraBench, latents: Sequence[int]) -> FoundSet:
    """prakash2025: block greedy from three orders, their sets intersected; tau is a mean margin of 0."""
    trial = Everywhere(bench, latents)
    found = block_greedy(trial, range(len(latents)), tau=0.0, seed=bench.planted.truth.seed)
    members = frozenset(latents[i] for i in found.intersection)
    sites = len(members) * len(bench.dictionaries)
    flipped = trial.flips([found.intersection])[0].flipped
    return FoundSet(members, flipped, trial.runs, sites)


def top(bench: HydraBench, measure: str) -> FoundSet:
    """The shortest beginning of a ranking that flips every prompt, up to TOP latents; all TOP if none does."""
    ranking = bench.ranking(measure)
    latents = [int(latent) for latent in ranking.index[:TOP]]
    trial = Everywhere(bench, latents)
    beginnings = [frozenset(range(n)) for n in range(1, TOP + 1)]
    flipping = [
        members
        for members, outcome in zip(beginnings, trial.flips(beginnings), strict=True)
        if outcome.flipped
    ]
    chosen = flipping[0] if flipping else beginnings[-1]
    members = frozenset(latents[i] for i in chosen)
    sites = len(members) * len(bench.dictionaries)
    return FoundSet(members, bool(flipping), trial.runs, sites, ranking)


METHODS: dict[str, Callable[[HydraBench], FoundSet]] = {
    "recommended": recommended,
    "recommended, harm not told apart": lambda bench: searched(bench, bench.pooled),
    "recommended, layer by layer": layer_by_layer,
    "as published": lambda bench: published(bench, bench.pooled),
    "as published, same candidates": lambda bench: published(bench, bench.candidates),
    "top cosine": partial(top, measure="cosine"),
    "attribution": partial(top, measure="attribution"),
    "activation difference": partial(top, measure="activation_difference"),
}
