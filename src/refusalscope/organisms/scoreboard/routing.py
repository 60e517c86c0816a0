"""`refusalscope organism score routing`: every method on every organism and seed, and what else is promised."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from refusalscope.errors import InputError
from refusalscope.organisms.planted import build
from refusalscope.organisms.scoreboard.checks import CHECKS, type_one_error
from refusalscope.organisms.scoreboard.methods import (
    METHODS,
    SETTINGS,
    Bench,
    Claim,
    claim,
    set_up,
)
from refusalscope.organisms.scoreboard.suite import ROUTING, Case
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run, RunView, open_run
from refusalscope.studies.routing.interchange import Head
from refusalscope.studies.subject import spent


def score_routing(
    out: str | Path,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    only: Sequence[str] = (),
    methods: Sequence[str] = tuple(METHODS),
    resume: bool = False,
    progress: Progress | None = None,
) -> RunView:
    """Score methods on the routing suite into a run folder: `organisms.scores` and `organisms.checks`.

    seeds: of the organisms. only: numbers such as O1 or O7'; all without it. Raises InputError for a number or
    method that is not there. An organism whose own policy holds on fewer than 95 % of its pairs is scored,
    and marked: its truth does not describe it.
    """
    known = {case.organism for case in ROUTING}
    for name in only:
        if name not in known:
            raise InputError(f"there is no organism {name!r}; choose of {', '.join(sorted(known))}")
    for name in methods:
        if name not in METHODS:
            raise InputError(f"there is no method {name!r}; choose of {', '.join(METHODS)}")
    cases = [case for case in ROUTING if not only or case.organism in only]
    run = Run.create(
        out,
        command="organism score",
        settings={"seeds": list(seeds), "only": list(only), "methods": list(methods)},
        inputs={},
        resume=resume,
    )
    if run.finished:
        return open_run(out)
    progress = progress or Silent()
    scores, checks = run.shards("organisms.scores"), run.shards("organisms.checks")
    for number, case in enumerate(cases):
        options: dict[str, Any] = dict(case.options)
        track = progress.track(f"{case.name} ({number + 1} of {len(cases)})")
        for done, seed in enumerate(seeds):
            key = f"{case.name}/{seed}"
            if not (scores.done(key) & checks.done(key)):
                bench = set_up(
                    build(
                        "planted-routes",
                        case.variant,
                        seed=seed,
                        noise=case.noise,
                        allow_weak=True,
                        **options,
                    )
                )
                rows = [_score(case, seed, bench, name) for name in methods]
                found = CHECKS[case.organism](bench) if case.organism in CHECKS else {}
                scores.write(key, pd.DataFrame(rows))
                checks.write(key, _checks(case, seed, found))
            track(done + 1, len(seeds))
    run.write_table("organisms.scores", scores.collect())
    frame = checks.collect()
    if not only or "O1" in only:
        frame = pd.concat([frame, _checks(Case("all", "base"), -1, type_one_error(seeds))])
    run.write_table("organisms.checks", frame)
    run.finish()
    return open_run(out)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: one row a case and method, in the order of the suite."""
    columns = [
        "precision",
        "recall",
        "precision_strict",
        "recall_strict",
        "auprc",
        "gate_rank",
        "claimed",
    ]
    columns += ["forwards", "token_layers", "seconds"]
    sound = scores[scores["policy"] >= 0.95]
    grouped = sound.groupby(["case", "method"], sort=False)
    return grouped[columns].mean().join(grouped.size().rename("seeds")).reset_index()


def _score(case: Case, seed: int, bench: Bench, method: str) -> dict[str, object]:
    before, started = replace(bench.chat.cost), time.perf_counter()
    made = claim(bench, method)
    seconds = time.perf_counter() - started
    truth = bench.planted.truth
    # The same claims under twice the effect floor: how much hangs on where it lies.
    strict = frozenset(head for head in made.heads if made.score[head] > 2 * SETTINGS.floor)
    return {
        "organism": case.organism,
        "case": case.name,
        "seed": seed,
        "method": method,
        "barred": case.barred,
        "policy": truth.policy_accuracy,
        "precision": _precision(made.heads, truth.circuit),
        "recall": _recall(made.heads, truth.circuit),
        "precision_strict": _precision(strict, truth.circuit),
        "recall_strict": _recall(strict, truth.circuit),
        "auprc": _auprc(made, bench),
        "gate_rank": _gate_rank(made, bench),
        "claimed": len(made.heads),
        "positives": len(truth.circuit),
        **spent(before, bench.chat.cost),
        "seconds": seconds,
    }


def _precision(claimed: frozenset[Head], circuit: frozenset[Head]) -> float:
    """Nothing claimed is nothing claimed wrongly."""
    return len(claimed & circuit) / len(claimed) if claimed else 1.0


def _recall(claimed: frozenset[Head], circuit: frozenset[Head]) -> float:
    return len(claimed & circuit) / len(circuit) if circuit else float("nan")


def _auprc(made: Claim, bench: Bench) -> float:
    circuit = bench.planted.truth.circuit
    if not circuit:
        return float("nan")
    planted = np.zeros(made.score.shape, dtype=bool)
    for head in circuit:
        planted[head] = True
    return float(average_precision_score(planted.ravel(), made.score.ravel()))


def _gate_rank(made: Claim, bench: Bench) -> float:
    """Rank of the first gate, 1 the best; heads with an equal score stand before it."""
    gates = bench.planted.truth.with_role("gate")
    if not gates:
        return float("nan")
    best = max(made.score[gate] for gate in gates)
    return float((made.score >= best).sum())


def _checks(case: Case, seed: int, found: dict[str, float]) -> pd.DataFrame:
    columns = ["organism", "case", "seed", "check", "value"]
    rows = [(case.organism, case.name, seed, name, value) for name, value in found.items()]
    return pd.DataFrame(rows, columns=columns)
