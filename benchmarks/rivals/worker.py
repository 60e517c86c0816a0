"""One way of running the task, kept alive in its own process (`python -m rivals.worker`).

Started as `python -m rivals.worker MODULE FOLDER THREADS`; MODULE has `load(model, problem) -> Way`.
Speaks JSON lines: it says {"ready": ...} once loaded, answers "count" with scores and what was
computed (that run is the warm-up), "time" with seconds and scores, and ends when its input does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rivals.problem import Way, read
from torch import Tensor, nn

PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens", "refusalscope")


def main() -> None:
    module, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # Libraries print to standard output when they like, which would break the line protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    torch.set_num_threads(threads)
    try:
        way = importlib.import_module(module).load(*read(folder))
        say(
            {
                "ready": True,
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "logits_error": way.logits_error,
            }
        )
        for line in sys.stdin:
            say({"count": count, "time": timed}[line.strip()](way))
    except ImportError as error:
        say({"skipped": str(error)})


def count(way: Way) -> dict[str, Any]:
    """Scores and cost of one run: forwards, and tokens x layers whose output was computed."""
    spent = {"forwards": 0, "token_layers": 0}
    with counting(way, spent):
        scores, own = way.screen()
    return {"scores": scores.tolist(), **spent, "own_count": own}


def timed(way: Way) -> dict[str, Any]:
    """Seconds of one run, with nothing but the way itself inside the clock."""
    gc.collect()
    start = time.perf_counter()
    scores, _ = way.screen()
    return {"seconds": time.perf_counter() - start, "scores": scores.tolist()}


@contextlib.contextmanager
def counting(way: Way, spent: dict[str, int]) -> Iterator[None]:
    """Count by hooks on the modules, so that no way is taken at its word."""

    def trunk_ran(module: nn.Module, args: tuple, output: Any) -> None:
        spent["forwards"] += 1

    def layer_ran(module: nn.Module, args: tuple, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        spent["token_layers"] += hidden.shape[:-1].numel()

    handles = [way.trunk.register_forward_hook(trunk_ran)]
    handles += [layer.register_forward_hook(layer_ran) for layer in way.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    main()
