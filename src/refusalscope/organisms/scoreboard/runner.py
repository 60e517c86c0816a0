"""What the suites share: a resumable run over cases and seeds, the means of its scores, precision, recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.scoreboard.bars import POLICY
from refusalscope.organisms.scoreboard.suite import Case
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run, RunView, open_run
from refusalscope.studies.subject import spent

T = TypeVar("T")

# The rows of `organisms.scores` and of `organisms.checks` that one seed of a case gives.
Measured = tuple[pd.DataFrame, pd.DataFrame]
CHECK_COLUMNS = ["organism", "case", "seed", "check", "value"]
# Columns of numbers that a mean over seeds says nothing about.
_NO_MEANS = {"seed", "barred", "policy", "positives"}


def score_suite(
    out: str | Path,
    suite: str,
    cases: Sequence[Case],
    known_methods: Collection[str],
    measure: Callable[[Case, int], Measured],
    *,
    seeds: Sequence[int],
    only: Sequence[str],
    methods: Sequence[str],
    resume: bool,
    progress: Progress | None,
    closing: Callable[[], pd.DataFrame] | None = None,
) -> RunView:
    """Measure every seed of the cases that `only` names into `organisms.scores` and `organisms.checks`.

    closing: further checks, made once at the end. A case without a variant is measured once, at seed 0. Raises
    InputError for an organism or a method that is not there, before anything is written.
    """
    known = {case.organism for case in cases}
    for name in only:
        if name not in known:
            raise InputError(f"there is no organism {name!r}; choose of {', '.join(sorted(known))}")
    for name in methods:
        if name not in known_methods:
            raise InputError(f"there is no method {name!r}; choose of {', '.join(known_methods)}")
    chosen = [case for case in cases if not only or case.organism in only]
    run = Run.create(
        out,
        command="organism score",
        settings={
            "suite": suite,
            "seeds": list(seeds),
            "only": list(only),
            "methods": list(methods),
        },
        inputs={},
        resume=resume,
    )
    if run.finished:
        return open_run(out)
    progress = progress or Silent()
    scores, checks = run.shards("organisms.scores"), run.shards("organisms.checks")
    for number, case in enumerate(chosen):
        track = progress.track(f"{case.name} ({number + 1} of {len(chosen)})")
        own = seeds if case.variant else (0,)
        for done, seed in enumerate(own):
            key = f"{case.name}/{seed}"
            if not (scores.done(key) & checks.done(key)):
                rows, found = measure(case, seed)
                scores.write(key, rows)
                checks.write(key, found)
            track(done + 1, len(own))
    run.write_table("organisms.scores", scores.collect())
    frame = checks.collect()
    if closing is not None:
        frame = pd.concat([frame, closing()])
    run.write_table("organisms.checks", frame)
    run.finish()
    return open_run(out)


def check_rows(case: Case, seed: int, found: dict[str, float]) -> pd.DataFrame:
    """Checks of one seed as rows of `organisms.checks`."""
    rows = [(case.organism, case.name, seed, name, value) for name, value in found.items()]
    return pd.DataFrame(rows, columns=CHECK_COLUMNS)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: one row a case and method, in the order of the suite.

    Only of models that follow their own policy; the count of them is the column seeds.
    """
    numbers = scores.select_dtypes(["number", "bool"]).columns
    columns = [name for name in numbers if name not in _NO_MEANS]
    grouped = scores[scores["policy"] >= POLICY].groupby(["case", "method"], sort=False)
    return grouped[columns].mean().join(grouped.size().rename("seeds")).reset_index()


def priced(chat: ChatModel, work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `work` gives, and what it spent: forwards, token_layers, tokens, seconds."""
    before, started = replace(chat.cost), time.perf_counter()
    made = work()
    seconds = time.perf_counter() - started
    return made, {**spent(before, chat.cost), "seconds": seconds}


def precision(claimed: frozenset[Any], planted: frozenset[Any]) -> float:
    """Nothing claimed is nothing claimed wrongly."""
    return len(claimed & planted) / len(claimed) if claimed else 1.0


def recall(claimed: frozenset[Any], planted: frozenset[Any]) -> float:
    """NaN where nothing is planted."""
    return len(claimed & planted) / len(planted) if planted else float("nan")
