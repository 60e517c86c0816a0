"""Stage 2 as published: block greedy for every tau and reading, or the top latents by integrated gradients.

Block greedy goes by the probability of the refusal's opening, P("I") in arXiv 2509.09708.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from refusalscope.model import OpeningProbability
from refusalscope.studies.features.ablation import Latent, by_layer, flips_enough
from refusalscope.studies.features.published import BlockGreedy, Reading, block_greedy
from refusalscope.studies.features.searching import SET_COLUMNS, set_rows
from refusalscope.studies.features.work import Work
from refusalscope.studies.features.writes import Write, WriteTrial
from refusalscope.studies.features.yeo2025 import yeo2025
from refusalscope.studies.subject import spent

COLUMNS = [
    *("prompt_id", "reading", "tau", "nothing", "everything", "why_not", "sizes_mean"),
    *("intersection_size", "intersection_score", "intersection_flipped", "evaluations"),
]


def search_published(work: Work, candidates: Sequence[Write]) -> None:
    """Write `features.published` and the sets of its intersections as `features.sets`.

    Sets of all prompts together are named `greedy/READING/TAU`, those of a prompt `greedy/READING/TAU/ID`. Each
    tau and reading is a search of its own; prompts after `max_forwards` is spent are left out, and said to be.
    """
    settings = work.settings
    rng = np.random.default_rng([settings.seed, 1])
    single = sorted(rng.permutation(work.refused)[: settings.n_prompts].tolist())
    jobs: list[tuple[str, tuple[int, ...]]] = [("", work.refused)]
    jobs += [(work.subject.prompts[i].id, (i,)) for i in single]
    runs = 3 + settings.orders * -(-len(candidates) // settings.block)
    sweep = [(reading, tau) for reading in settings.readings for tau in settings.taus]
    sets, tables = work.run.shards("features.sets"), work.run.shards("features.published")
    track = work.progress.track("block greedy")
    used = left_out = 0
    for number, (prompt_id, rows) in enumerate(jobs):
        used += runs * len(sweep) * len(rows)
        if used > settings.max_forwards and number:
            left_out += 1
        elif not (sets.done(prompt_id or "pool") & tables.done(prompt_id or "pool")):
            before = replace(work.chat.cost)
            found, told = _swept(work, prompt_id, rows, candidates, sweep)
            sets.write(prompt_id or "pool", found, spent(before, work.chat.cost))
            tables.write(prompt_id or "pool", told)
        track(number + 1, len(jobs))
    if left_out:
        work.run.warn(
            f"{left_out} of {len(single)} prompts were not searched one by one: block greedy would have "
            f"taken more than the {settings.max_forwards} forwards of max_forwards."
        )
    work.stage("features.published", tables.collect)
    work.stage("features.sets", sets.collect)


def _swept(
    work: Work,
    prompt_id: str,
    rows: Sequence[int],
    candidates: Sequence[Write],
    sweep: Sequence[tuple[Reading, float]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    settings = work.settings
    trial = work.trial(rows, candidates)
    probability = WriteTrial(
        work.chat,
        trial.prompts,
        candidates,
        trial.latents.slices,
        OpeningProbability(work.margin.refuse),
        positions=settings.positions,
    )
    members, told = [], []
    for reading, tau in sweep:
        found = block_greedy(
            probability,
            range(len(candidates)),
            tau=tau,
            block=settings.block,
            seeds=settings.orders,
            reading=reading,
            seed=settings.seed,
        )
        told.append(_row(prompt_id, reading, tau, found))
        if not found.intersection:
            continue
        margins = trial.margins([found.intersection])[:, 0]
        name = "/".join(["greedy", reading, f"{tau:g}", *([prompt_id] if prompt_id else [])])
        row = (
            *(found.intersection_flipped, False, found.evaluations * len(rows)),
            *(float(margins.mean()), float((margins < 0).mean())),
            *(len(found.intersection), "block_greedy"),
        )
        chosen = [candidates[member] for member in sorted(found.intersection)]
        members += set_rows(name, prompt_id, chosen, row)
    return pd.DataFrame(members, columns=SET_COLUMNS), pd.DataFrame(told, columns=COLUMNS)


def _row(prompt_id: str, reading: Reading, tau: float, found: BlockGreedy) -> tuple[object, ...]:
    sizes = [len(each) for each in found.sets]
    return (
        *(prompt_id, reading, tau, found.nothing, found.everything, found.why_not),
        *(float(np.mean(sizes)) if sizes else float("nan"), len(found.intersection)),
        *(found.intersection_score, found.intersection_flipped, found.evaluations),
    )


def search_ranked(work: Work, candidates: Sequence[Write]) -> None:
    """Write the `n_top` candidates with the largest published attribution as the one set, `yeo2025`."""

    def rows() -> pd.DataFrame:
        pooled = [latent for write in candidates for latent in write]
        members = [(latent,) for latent in top_by_gradients(work, pooled)]
        if not members:
            return pd.DataFrame(columns=SET_COLUMNS)
        trial = work.trial(work.refused, members, work.settings.share)
        margins = trial.margins([frozenset(range(len(members)))])[:, 0]
        told = (
            *(flips_enough(margins, work.settings.share), False, len(margins)),
            *(float(margins.mean()), float((margins < 0).mean()), len(members), "top_attribution"),
        )
        return pd.DataFrame(set_rows("yeo2025", "", members, told), columns=SET_COLUMNS)

    work.stage("features.sets", rows)


def top_by_gradients(work: Work, candidates: Sequence[Latent]) -> tuple[Latent, ...]:
    """The `n_top` candidates with the largest mean attribution of arXiv 2505.23556 over the refused prompts."""
    prompts = work.prompts(work.refused)
    openings = {str(token): OpeningProbability((token,)) for token in work.margin.refuse}
    scores = work.chat.measure(prompts, [()], openings).scores
    usual = max(openings, key=lambda token: float(scores[token].mean()))
    found = yeo2025(
        work.chat,
        prompts,
        work.direction.vector,
        work.dictionaries,
        refusal=int(usual),
        candidates=by_layer(candidates),
    )
    return found.top_global(work.settings.n_top)
