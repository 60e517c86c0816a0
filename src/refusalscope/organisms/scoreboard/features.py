"""`refusalscope organism score features`: the features methods on planted hydras, and what else is promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from refusalscope.organisms.planted import build
from refusalscope.organisms.scoreboard.hydra_bench import WRITERS, FoundSet, HydraBench, set_up
from refusalscope.organisms.scoreboard.hydra_checks import hydra_checks
from refusalscope.organisms.scoreboard.runner import (
    Measured,
    check_rows,
    precision,
    priced,
    recall,
    score_suite,
)
from refusalscope.organisms.scoreboard.searches import METHODS, found_set
from refusalscope.organisms.scoreboard.suite import FEATURES, Case
from refusalscope.organisms.scoreboard.threshold import measure_threshold
from refusalscope.progress import Progress
from refusalscope.runs import RunView


def score_features(
    out: str | Path,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    only: Sequence[str] = (),
    methods: Sequence[str] = tuple(METHODS),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunView:
    """Score methods on the planted hydras into a run folder: `organisms.scores` and `organisms.checks`.

    seeds: of the organisms. only: variants of the hydra, threshold, or "threshold, rough"; all without it.
    Raises InputError for an organism or a method that is not there.

    Truth: the minimal flipping sets of the planted writers (primaries, backups, second backup), by running
    every subset of them, each latent zeroed at every layer, on the same prompts; a set flips where every
    prompt does. precision: the share of the set claimed that are writers, whatever the layer. recall: the
    share claimed of the true minimal set that it holds most of. planted: whether the set is a true one.
    auprc: of the writers in a method's ranking of all latents, where it makes one. sites: (layer, latent)
    edits of the set. runs: sets run, on all prompts. forwards and the like leave out the pool and its
    directions, which all methods share.
    """
    return score_suite(
        out,
        "features",
        FEATURES,
        METHODS,
        lambda case, seed: _measure(case, seed, methods),
        seeds=seeds,
        only=only,
        methods=methods,
        resume=resume,
        progress=progress,
    )


def _measure(case: Case, seed: int, methods: Sequence[str]) -> Measured:
    if not case.variant:
        return measure_threshold(case, methods)
    bench = set_up(
        build("planted-hydra", case.variant, seed=seed, noise=case.noise, allow_weak=True)
    )
    rows = [_score(case, seed, bench, method) for method in methods]
    return pd.DataFrame(rows), check_rows(case, seed, hydra_checks(bench))


def _score(case: Case, seed: int, bench: HydraBench, method: str) -> dict[str, object]:
    made, cost = priced(bench.chat, lambda: found_set(bench, method))
    return {
        "organism": case.organism,
        "case": case.name,
        "seed": seed,
        "method": method,
        "barred": case.barred,
        "policy": bench.planted.truth.policy_accuracy,
        "precision": precision(made.latents, bench.with_roles(WRITERS)),
        "recall": max(recall(made.latents, planted) for planted in bench.true_sets),
        "planted": float(made.latents in bench.true_sets),
        "auprc": _auprc(made, bench),
        "claimed": len(made.latents),
        "sites": made.sites,
        "flipped": float(made.flipped),
        "positives": len(bench.true_sets),
        "runs": made.runs,
        **cost,
    }


def _auprc(made: FoundSet, bench: HydraBench) -> float:
    if made.ranking is None:
        return float("nan")
    writers = np.isin(made.ranking.index, sorted(bench.with_roles(WRITERS)))
    return float(average_precision_score(writers, made.ranking))
