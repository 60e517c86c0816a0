"""Stage 2 of the study: minimal sets, pooled, of single prompts and of halves of the prompts, with a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from refusalscope.studies.features.ablation import Latent
from refusalscope.studies.features.overlap import stability
from refusalscope.studies.features.rounds import Rounds, conditional_rounds
from refusalscope.studies.features.search import Search, minimal_sets
from refusalscope.studies.features.work import Work
from refusalscope.studies.features.writes import Write
from refusalscope.studies.subject import spent

# How the budget is shared out: pooled sets, single prompts, halves.
POOLED, SINGLE, HALVES = 0.5, 0.375, 0.125
SET_COLUMNS = [
    *("set_id", "prompt_id", "layer", "latent", "place", "write", "verified", "minimal"),
    "forwards",
    *("margin", "flipped", "size", "by"),
]
SEARCH_COLUMNS = [
    *("search", "prompt_id", "n_prompts", "share", "candidates", "sets", "forwards", "repairs"),
    *("exhausted", "complete", "why"),
]
MEMBER_COLUMNS = ["layer", "latent", "frequency", "low", "high", "n_sets", "pooled"]


def search_sets(work: Work, candidates: Sequence[Write]) -> None:
    """Write `features.rounds`, `features.sets`, `features.searches`, `.members` and `.stability`."""
    rounds = work.stage("features.rounds", lambda: _rounds(work, work.refused, candidates).frame())
    carried = list(zip(rounds["layer"].astype(int), rounds["latent"].astype(int), strict=True))
    jobs = _jobs(work)
    sets, searches = work.run.shards("features.sets"), work.run.shards("features.searches")
    track = work.progress.track("minimal sets")
    for number, job in enumerate(jobs):
        if not (sets.done(job.name) & searches.done(job.name)):
            before = replace(work.chat.cost)
            found, told = _searched(work, job, candidates, carried)
            sets.write(job.name, found, spent(before, work.chat.cost))
            searches.write(job.name, told)
        track(number + 1, len(jobs))
    if not work.run.has_table("features.sets"):
        work.run.write_table("features.sets", sets.collect())
    table = work.run.table("features.sets")
    work.stage("features.searches", searches.collect)
    work.stage("features.members", lambda: _members(table))
    work.stage("features.stability", lambda: _stability(table))


@dataclass(frozen=True)
class _Job:
    """One search. evaluations: runs that it may use; share: of the prompts that a set must flip."""

    name: str
    prompt_id: str
    rows: tuple[int, ...]
    n_sets: int
    evaluations: int
    share: float


def _jobs(work: Work) -> list[_Job]:
    settings, rows = work.settings, work.refused
    rng = np.random.default_rng([settings.seed, 1])
    budget = settings.max_forwards
    ids = [work.subject.prompts[i].id for i in range(len(work.subject.prompts))]
    jobs = [
        _Job("pool", "", rows, settings.n_sets, int(POOLED * budget / len(rows)), settings.share)
    ]
    single = sorted(rng.permutation(rows)[: settings.n_prompts].tolist())
    each = int(SINGLE * budget / max(1, len(single)))
    jobs += [_Job(f"prompt/{ids[i]}", ids[i], (i,), 1, each, 1.0) for i in single]
    for k in range(settings.n_halves if len(rows) >= 4 else 0):
        order = rng.permutation(rows)
        half = len(order) // 2
        parts = sorted(order[:half].tolist()), sorted(order[half:].tolist())
        runs = int(HALVES * budget / (2 * settings.n_halves * (len(order) - half)))
        jobs += [
            _Job(f"half/{2 * k + n}", "", tuple(part), 1, runs, settings.share)
            for n, part in enumerate(parts)
        ]
    return jobs


def search_pooled(work: Work, candidates: Sequence[Write]) -> list[Latent]:
    """One minimal set of all refused prompts, strongest member first; empty where none flips enough of them.

    It takes the budget of the pooled sets once more.
    """
    runs = int(POOLED * work.settings.max_forwards / len(work.refused))
    job = _Job("pool", "", work.refused, 1, runs, work.settings.share)
    carried = _rounds(work, job.rows, candidates).members
    found, _ = _searched(work, job, candidates, carried)
    return latents_of(found, "pool/0")


def _rounds(work: Work, rows: Sequence[int], candidates: Sequence[Write]) -> Rounds:
    return conditional_rounds(
        work.chat,
        work.prompts(rows),
        work.margin,
        work.dictionaries,
        candidates=[latent for write in candidates for latent in write],
        positions=work.settings.positions,
        share=work.settings.share,
    )


def _searched(
    work: Work, job: _Job, candidates: Sequence[Write], carried: Sequence[Latent]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the sets found, and one row on the search."""
    trial = work.trial(job.rows, candidates, job.share)
    owner = {latent: k for k, write in enumerate(candidates) for latent in write}
    repair = trial.repair(work.dictionaries)
    if job.name.startswith("half"):
        carried = _rounds(work, job.rows, candidates).members
    # What the rounds took, in their order, flips as a rule; a single prompt has an order of its own first.
    own = repair(frozenset()) if job.prompt_id else []
    known = list(dict.fromkeys(owner[each] for each in carried))
    order = list(dict.fromkeys([*own, *known, *range(len(candidates))]))
    start = None if job.prompt_id else len(known) or None
    found = minimal_sets(
        trial,
        order,
        max_forwards=max(3, job.evaluations),
        n_sets=job.n_sets,
        start=start,
        seed=work.settings.seed,
        repair=repair,
    )
    rows = []
    for k, each in enumerate(found.sets):
        margins = trial.margins([frozenset(each.members)])[:, 0]
        told = (
            *(each.outcome.flipped, each.minimal, each.evaluations * len(job.rows)),
            *(float(margins.mean()), float((margins < 0).mean()), len(each.members), "bisection"),
        )
        chosen = [candidates[member] for member in each.members]
        rows += set_rows(f"{job.name}/{k}", job.prompt_id, chosen, told)
    search = (
        *(job.name, job.prompt_id, len(job.rows), job.share, len(candidates), len(found.sets)),
        *(found.evaluations * len(job.rows), found.repairs, found.exhausted, found.complete),
        _why_not(found),
    )
    return pd.DataFrame(rows, columns=SET_COLUMNS), pd.DataFrame([search], columns=SEARCH_COLUMNS)


def set_rows(
    set_id: str, prompt_id: str, members: Sequence[Write], told: tuple[object, ...]
) -> list[tuple[object, ...]]:
    """Rows of `features.sets`, one a latent. place: in the set; write: number of the write it belongs to."""
    latents = [(number, latent) for number, write in enumerate(members) for latent in write]
    return [
        (set_id, prompt_id, *latent, place, number, *told)
        for place, (number, latent) in enumerate(latents)
    ]


def _why_not(found: Search) -> str:
    if found.already_flipped:
        return "it is not refused without an edit"
    if found.sets:
        return ""
    return "max_forwards ran out" if found.exhausted else "no set of the candidates flips it"


def _members(table: pd.DataFrame) -> pd.DataFrame:
    """How often each latent is a member of the sets of single prompts."""
    single = table[table["prompt_id"] != ""]
    if single.empty:
        return pd.DataFrame(columns=MEMBER_COLUMNS)
    pooled = set(latents_of(table, "pool/0"))
    found = stability(_sets(single))
    rows = [
        (*latent, rate.value, rate.low, rate.high, found.n_sets, latent in pooled)
        for latent, rate in found.frequency.items()
        if isinstance(latent, tuple)
    ]
    return pd.DataFrame(rows, columns=MEMBER_COLUMNS)


def _stability(table: pd.DataFrame) -> pd.DataFrame:
    kinds = {
        "distinct sets": table[table["set_id"].str.startswith("pool/")],
        "prompts": table[table["prompt_id"] != ""],
        "halves of the prompts": table[table["set_id"].str.startswith("half/")],
    }
    rows = []
    for name, part in kinds.items():
        if part["set_id"].nunique() > 1:
            found = stability(_sets(part))
            rows.append((name, found.n_sets, found.jaccard, found.lowest, len(found.core)))
    return pd.DataFrame(rows, columns=["over", "n_sets", "jaccard", "lowest", "core"])


def _sets(table: pd.DataFrame) -> list[list[Latent]]:
    return [latents_of(table, name) for name in table["set_id"].unique()]


def latents_of(table: pd.DataFrame, set_id: str) -> list[Latent]:
    """Members of a set of `features.sets`, strongest first."""
    part = table[table["set_id"] == set_id].sort_values("place")
    return [(int(a), int(b)) for a, b in zip(part["layer"], part["latent"], strict=True)]
