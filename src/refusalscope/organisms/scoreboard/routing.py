"""`refusalscope organism score routing`: every method on every organism and seed, and what else is promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

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
from refusalscope.organisms.scoreboard.runner import (
    Measured,
    check_rows,
    precision,
    priced,
    recall,
    score_suite,
)
from refusalscope.organisms.scoreboard.suite import ROUTING, Case
from refusalscope.progress import Progress
from refusalscope.runs import RunView


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
    return score_suite(
        out,
        "routing",
        ROUTING,
        METHODS,
        lambda case, seed: _measure(case, seed, methods),
        seeds=seeds,
        only=only,
        methods=methods,
        resume=resume,
        progress=progress,
        closing=None if only and "O1" not in only else lambda: _type_one_error(seeds),
    )


def _measure(case: Case, seed: int, methods: Sequence[str]) -> Measured:
    options: dict[str, Any] = dict(case.options)
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
    return pd.DataFrame(rows), check_rows(case, seed, found)


def _type_one_error(seeds: Sequence[int]) -> pd.DataFrame:
    return check_rows(Case("all", "base"), -1, type_one_error(seeds))


def _score(case: Case, seed: int, bench: Bench, method: str) -> dict[str, object]:
    made, cost = priced(bench.chat, lambda: claim(bench, method))
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
        "precision": precision(made.heads, truth.circuit),
        "recall": recall(made.heads, truth.circuit),
        "precision_strict": precision(strict, truth.circuit),
        "recall_strict": recall(strict, truth.circuit),
        "auprc": _auprc(made, bench),
        "gate_rank": _gate_rank(made, bench),
        "claimed": len(made.heads),
        "positives": len(truth.circuit),
        **cost,
    }


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
