"""A small audit-like job, and a child process that is killed in the middle of it.

`python interrupted_work.py FOLDER SIGNAL before|after N` sends itself SIGNAL just before or after
the N-th rename, which is the moment a file becomes visible.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from refusalscope.runs import Run

KEYS = [f"template[{-i}]/{layer}" for layer in range(2) for i in range(1, 4)]


def clock() -> datetime:
    return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def start(folder: Path, resume: bool = False, **changes) -> Run:
    given = {"command": "audit", "settings": {"n": 6}, "inputs": {"model": "ab12"}, **changes}
    return Run.create(folder, resume=resume, clock=clock, **given)


def work(folder: Path, resume: bool) -> Run:
    run = start(folder, resume)
    if run.finished:
        return run
    if not run.has_table("prompts"):
        run.add_cost(forwards=3, tokens=30)
        run.write_table("prompts", pd.DataFrame({"id": ["a", "b"], "margin": [0.5, -1.0]}))
    if not run.has_table("directions.candidates"):
        shards = run.shards("directions.candidates")
        for number, key in enumerate(KEYS):
            if shards.done(key):
                continue
            frame = pd.DataFrame({"key": [key] * 2, "x": np.random.default_rng(number).random(2)})
            shards.write(key, frame, cost={"forwards": 2, "token_layers": 7})
        run.warn("a tie was found")
        run.write_table("directions.candidates", shards.collect())
    if not run.has_array("directions"):
        run.add_cost(forwards=1)
        run.write_array("directions", {"refusal": np.arange(4, dtype=np.float32)})
    run.finish()
    return run


@contextmanager
def at_rename(number: int, when: str, act) -> Iterator[None]:
    """Call `act` just before or after the `number`-th rename inside the block."""
    rename, count = os.replace, 0

    def counted(source, target):
        nonlocal count
        count += 1
        if count == number and when == "before":
            act()
        rename(source, target)
        if count == number and when == "after":
            act()

    with mock.patch("os.replace", counted):
        yield


if __name__ == "__main__":
    folder, name, when, number = sys.argv[1:]
    sent = signal.Signals[name]
    with at_rename(int(number), when, lambda: os.kill(os.getpid(), sent)):
        work(Path(folder), resume=False)
