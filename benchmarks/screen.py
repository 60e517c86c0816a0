"""The exact screen of all heads: the plan beside the hook loop, nnsight's and TransformerLens's loop.

    python benchmarks/screen.py                     all four, 5 interleaved repeats
    python benchmarks/screen.py --only hook,plan --heads-subset 6 --repeats 1

All ways run on the same weights and token ids, each in a process of its own that stays alive, taking
turns (a b c d, a b c d, ...), so that a noisy moment of the machine falls on all of them. nnsight and
TransformerLens run in environments that `bash benchmarks/setup_rivals.sh` makes. A speed is the median
of the ratios within a repeat; the count of token-layer evaluations (tokens x layers computed, counted
by hooks on the decoder layers) never varies. What is timed includes the capture of the donors.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rivals.client import Failed, Skipped, Worker
from rivals.problem import Shape, make_model, make_problem, write
from rivals.summary import Row, summarise
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
SETUP = "bash benchmarks/setup_rivals.sh"


@dataclass(frozen=True)
class Source:
    """Where a way's code is and which environment runs it."""

    module: str
    python: Path


SOURCES = {
    "hook": Source("rivals.hook", Path(sys.executable)),
    "nnsight": Source("rivals.nnsight", ROOT / ".venv-nnsight" / "bin" / "python"),
    "transformer_lens": Source("rivals.transformer_lens", ROOT / ".venv-tl" / "bin" / "python"),
    "plan": Source("plan_screen", Path(sys.executable)),
}


def main() -> int:
    args = arguments()
    logging.disable_progress_bar()
    shape = Shape()
    rows = {name: Row() for name in args.only}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write(Path(folder), make_model(shape), make_problem(shape, args.heads_subset))
        workers = start(rows, Path(folder), args.threads, stack)
        measure(rows, workers, args.repeats)
    result = summarise(rows, shape, args.heads_subset, args.repeats, args.threads)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["broken"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        type=_names,
        default=list(SOURCES),
        metavar="NAME,NAME",
        help=f"which of {', '.join(SOURCES)} to run",
    )
    parser.add_argument("--repeats", type=_positive, default=5, help="timed repeats (default 5)")
    parser.add_argument(
        "--heads-subset",
        type=_positive,
        metavar="N",
        help="only N heads, spread over the layers: a quick look, not a measurement",
    )
    parser.add_argument("--threads", type=_positive, default=2, help="torch threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    return parser.parse_args()


def start(rows: dict[str, Row], folder: Path, threads: int, stack: ExitStack) -> dict[str, Worker]:
    """Start every way and wait until its model is loaded; one after the other, to load undisturbed."""
    workers = {}
    for name, row in rows.items():
        source = SOURCES[name]
        if not source.python.is_file():
            row.state, row.reason = "skipped", f"no {source.python.parents[1].name}: run {SETUP}"
            continue
        worker = Worker(name, source.python, source.module, folder, threads)
        stack.enter_context(worker)
        answer = attempt(row, worker.hear)
        if answer is not None:
            row.ready, workers[name] = answer, worker
    return workers


def measure(rows: dict[str, Row], workers: dict[str, Worker], repeats: int) -> None:
    """One counted run of each (the warm-up), then timed runs in turns."""
    turns = [(name, turn) for turn in range(repeats + 1) for name in workers]
    for name, turn in track(turns, "Screening", console=Console(stderr=True), transient=True):
        row = rows[name]
        if row.state != "ran":
            continue
        command = "time" if turn else "count"
        answer = attempt(row, lambda: workers[name].ask(command))  # noqa: B023 - called at once
        if answer is None:
            continue
        row.scores.append(np.array(answer["scores"]))
        if turn:
            row.seconds.append(answer["seconds"])
        else:
            row.forwards, row.token_layers = answer["forwards"], answer["token_layers"]
            row.own_count = answer["own_count"]


def attempt(row: Row, call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Call a worker; where it cannot answer, write down why and go on without it."""
    try:
        return call()
    except Skipped as error:
        row.state, row.reason = "skipped", str(error)
    except Failed as error:
        row.state, row.reason = "failed", str(error)
    return None


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    shape, reference = result["shape"], result["reference"]
    console.print(
        f"{result['heads']} heads of {shape['layers']} layers x {shape['heads']} heads x width "
        f"{shape['width']}, {shape['prompts']} prompts of {shape['positions']} tokens, float32; "
        f"{result['threads']} torch threads on {result['cores']} cores; {result['repeats']} repeats, "
        f"interleaved"
    )
    table = Table()
    ratio = f"time / {reference} (min, max)"
    for column in (
        "way",
        "median s",
        ratio,
        "token-layers",
        f"/ {reference}",
        "forwards",
        "largest difference",
    ):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name, way in result["ways"].items():
        if way["state"] != "ran":
            continue
        low, high = way["ratio_range"] if "ratio_range" in way else (float("nan"),) * 2
        table.add_row(
            name, f"{way['median_seconds']:.3f}",
            f"{way.get('ratio', float('nan')):.1f} ({low:.1f}, {high:.1f})",
            f"{way['token_layers']:,}", f"{way.get('token_layers_ratio', float('nan')):.1f}",
            f"{way['forwards']:,}",
            f"{way['largest_difference']:.1e}" if "largest_difference" in way else "no hook loop",
        )  # fmt: skip
    console.print(table)
    for name, way in result["ways"].items():
        if way["state"] == "ran":
            packages = ", ".join(f"{package} {v}" for package, v in way["versions"].items())
            console.print(f"{name}: {packages}; {way['threads']} threads", highlight=False)
        else:
            console.print(f"{name}: {way['state']}: {way['reason']}", highlight=False)
    if result["spread_over_heads"] is not None:
        console.print(
            f"Scores vary over heads by {result['spread_over_heads']:.1e} (standard deviation)."
        )
    for bar in result["bars"]:
        verdict = "met" if bar["met"] else "NOT met"
        console.print(f"bar {bar['bar']:.0f} x {bar['what']}: {bar['value']:.1f}, {verdict}")
    for line in result["broken"]:
        console.print(f"BROKEN: {line}")


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SOURCES)}")
    return [name for name in SOURCES if name in names]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
