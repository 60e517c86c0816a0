"""The exact screen of all heads beside the procedure of arXiv 2604.04385 as it was coded.

    python benchmarks/routing.py                           120 pairs, 3 interleaved repeats
    python benchmarks/routing.py --pairs 10 --subset 1 --repeats 1 --threads 1

On builtin:chat and the bundled pairs; the refusal margin is learnt on the 40 pairs that are not screened.
`screen` swaps every head both ways at the last token, with statistics. `as coded` computes the same numbers
by n (2 + 4 heads) full forwards of one prompt each, captures redone for every head; it runs on a subset of
pairs, and its token-layer evaluations (tokens x layers computed) follow for all pairs by arithmetic that is
held against hooks on the subset. `published` is the procedure as it is: 20 candidates, 10 swaps, left map, NLL.
Ways take turns, so that a noisy moment falls on all of them; seconds are medians, cpu s those of the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rivals.problem import Way
from rivals.worker import counting

from refusalscope.judge import Judge
from refusalscope.judge.behaviour import learn_margin, reply
from refusalscope.model import ChatModel, Cost, RefusalMargin
from refusalscope.prompts import bundled_pairs
from refusalscope.studies.heads import MIN_PAIRS
from refusalscope.studies.routing import Pair, Screen, screen
from refusalscope.studies.routing.published import (
    N_REPLY,
    Published,
    Swaps,
    as_coded,
    interchange,
    published,
)
from refusalscope.studies.routing.significance import significance

N_PAIRS = 120
TOLERANCE = 1e-4
MIN_RATIO = 40.0
MAX_SECONDS = 60.0


@dataclass(frozen=True)
class Task:
    """The model, the pairs that are screened with their categories, the margin, the controls' replies."""

    chat: ChatModel
    pairs: list[Pair]
    categories: list[str]
    margin: RefusalMargin
    replies: list[tuple[int, ...]]

    def first(self, n: int) -> Task:
        return replace(
            self, pairs=self.pairs[:n], categories=self.categories[:n], replies=self.replies[:n]
        )

    @property
    def heads(self) -> list[tuple[int, int]]:
        anatomy = self.chat.anatomy
        return [(layer, h) for layer in range(anatomy.n_layers) for h in range(anatomy.n_heads)]


@dataclass
class Row:
    """What was measured of one way; `own` is the cost that the package gives, the rest is counted by hooks."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    forwards: int = 0
    token_layers: int = 0
    own: tuple[int, int] = (0, 0)
    result: Any = None


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads)
    task = make_task(args.pairs)
    rows = measure(task, task.first(args.subset), args.repeats)
    result = summarise(task, args.subset, rows)
    result |= {"threads": args.threads, "cores": os.cpu_count(), "repeats": args.repeats}
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["broken"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help=f"default {N_PAIRS}")
    parser.add_argument(
        "--subset", type=int, default=8, help="pairs that run as coded too (default 8)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    args = parser.parse_args()
    if not MIN_PAIRS <= args.pairs <= N_PAIRS:
        parser.error(f"--pairs must be from {MIN_PAIRS} (for the statistics) to {N_PAIRS}")
    if not 1 <= args.subset <= args.pairs:
        parser.error("--subset must be from 1 to --pairs")
    if args.repeats < 1 or args.threads < 1:
        parser.error("--repeats and --threads must be 1 or more")
    return args


def make_task(n_pairs: int) -> Task:
    """The first pairs to screen, and a margin learnt on those that no size of this benchmark screens."""
    chat = ChatModel.load("builtin:chat")
    chosen = list(bundled_pairs())
    prompts = [prompt for pair in chosen for prompt in pair.prompts()]
    rendered = chat.render(prompts)
    held_out = slice(2 * N_PAIRS, None)
    judged = reply(chat, prompts[held_out], rendered[held_out], Judge.from_name("text"), 24)
    harmful, control = rendered[: 2 * n_pairs : 2], rendered[1 : 2 * n_pairs : 2]
    return Task(
        chat,
        [Pair(*members) for members in zip(harmful, control, strict=True)],
        [str(pair.category) for pair in chosen[:n_pairs]],
        learn_margin(judged.judgements, judged.first),
        [tuple(ids) for ids in chat.generate(control, max_new_tokens=N_REPLY)],
    )


def measure(task: Task, subset: Task, repeats: int) -> dict[str, Row]:
    """One counted run of each way (the warm-up), then timed runs in turns."""
    ways: dict[str, Callable[[ChatModel], Any]] = {
        "screen": lambda chat: screened(chat, task),
        "screen, subset": lambda chat: screen(chat, subset.pairs, {"margin": task.margin}),
        "as coded, subset": lambda chat: interchange(
            chat, subset.pairs, task.heads, task.margin, positions="last"
        ),
        "published, subset": lambda chat: published(
            chat, subset.pairs, task.margin, subset.replies
        ),
    }
    rows = {name: Row() for name in ways}
    turns = [(name, turn) for turn in range(repeats + 1) for name in ways]
    for name, turn in track(turns, "Routing", console=Console(stderr=True), transient=True):
        chat = as_coded(task.chat) if name.startswith("as coded") else task.chat
        chat = replace(chat, cost=Cost())
        if turn:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            ways[name](chat)
            rows[name].seconds.append(time.perf_counter() - wall)
            rows[name].cpu_seconds.append(time.process_time() - cpu)
            continue
        spent = {"forwards": 0, "token_layers": 0}
        trunk = chat.anatomy.decoder
        with counting(Way(lambda: (torch.empty(0), None), trunk, list(trunk.layers)), spent):
            rows[name].result = ways[name](chat)
        rows[name].forwards, rows[name].token_layers = spent["forwards"], spent["token_layers"]
        rows[name].own = (chat.cost.forwards, chat.cost.token_layers)
    return rows


def screened(chat: ChatModel, task: Task) -> Screen:
    """All heads, both ways, with intervals and familywise p of all of them."""
    found = screen(chat, task.pairs, {"margin": task.margin})
    significance(found, "margin", categories=task.categories)
    return found


def as_coded_cost(task: Task, n_reply: int = 0) -> tuple[int, int]:
    """Forwards and token-layers of the exhaustive interchange as coded, by arithmetic.

    Each member of a pair is scored once clean and once a head, with its reply, and captured once a head
    without. n_reply: teacher-forced reply tokens.
    """
    bare = sum(len(side) for pair in task.pairs for side in (pair.harmful, pair.control))
    n, heads = len(task.pairs), len(task.heads)
    tokens = (1 + heads) * (bare + 2 * n * n_reply) + heads * bare
    return n * (2 + 4 * heads), tokens * task.chat.anatomy.n_layers


def published_forwards(n: int, table: Published) -> int:
    """Forwards of the procedure as it is on n pairs, from the numbers of heads it went through."""
    candidates, swapped = len(table.candidates), len(table.interchange)
    spent = table.cost.set_index("stage")["forwards"]
    knocked_out = int(spent["null"] // spent["cascade"])
    return n * (2 + 2 + 2 + candidates + 2 + 4 * swapped + 4) + 4 * min(n, 20) * knocked_out


def largest_difference(exact: Screen, coded: Swaps) -> float:
    """Between the two ways, over pairs, heads and both directions; in nats."""
    return max(
        float(np.abs(getattr(exact, name)["margin"][:, 0] - getattr(coded, name)).max())
        for name in ("necessity", "sufficiency")
    )


def summarise(task: Task, n_subset: int, rows: dict[str, Row]) -> dict[str, Any]:
    """All figures, ready for JSON."""
    whole, small = rows["screen"], rows["screen, subset"]
    coded, original = rows["as coded, subset"], rows["published, subset"]
    forwards, token_layers = as_coded_cost(task)
    spoken = as_coded_cost(task, N_REPLY)[1]
    difference = largest_difference(small.result, coded.result)
    ratios = [a / b for a, b in zip(coded.seconds, small.seconds, strict=True)]
    cpu = [a / b for a, b in zip(coded.cpu_seconds, small.cpu_seconds, strict=True)]
    seconds = statistics.median(whole.seconds)
    return {
        "pairs": len(task.pairs),
        "subset": n_subset,
        "heads": len(task.heads),
        "ways": {
            name: {
                "median_seconds": statistics.median(row.seconds),
                "median_cpu_seconds": statistics.median(row.cpu_seconds),
                "seconds": row.seconds,
                "forwards": row.forwards,
                "token_layers": row.token_layers,
            }
            for name, row in rows.items()
        },
        "as_coded": {"forwards": forwards, "token_layers": token_layers, "with_reply": spoken},
        "published_forwards": published_forwards(len(task.pairs), original.result),
        "token_layers_ratio": token_layers / whole.token_layers,
        "token_layers_ratio_with_reply": spoken / whole.token_layers,
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "cpu_ratio": statistics.median(cpu),
        "gap": whole.result.gap("margin"),
        "largest_difference": difference,
        "bars": bars(token_layers / whole.token_layers, difference, seconds),
        "broken": broken(difference, rows, as_coded_cost(task.first(n_subset))),
    }


def bars(ratio: float, difference: float, seconds: float) -> list[dict[str, Any]]:
    return [
        {
            "bar": f"at least {MIN_RATIO:.0f} times fewer token-layers than as coded",
            "value": ratio,
            "met": ratio >= MIN_RATIO,
        },
        {
            "bar": f"differs by less than {TOLERANCE:.0e}",
            "value": difference,
            "met": difference < TOLERANCE,
        },
        {
            "bar": f"screen and statistics in less than {MAX_SECONDS:.0f} s",
            "value": seconds,
            "met": seconds < MAX_SECONDS,
        },
    ]


def broken(difference: float, rows: dict[str, Row], arithmetic: tuple[int, int]) -> list[str]:
    """What makes a run worthless however fast it was; a missed bar on cost or time is not among it."""
    found = []
    # Written so that a score that is not a number counts as a difference.
    if not difference < TOLERANCE:
        found.append(f"the screen differs from the plain forwards by {difference:.1e}")
    for name, row in rows.items():
        if row.own != (row.forwards, row.token_layers):
            found.append(
                f"{name} says that it spent {row.own}; the hooks on the model counted "
                f"{(row.forwards, row.token_layers)}"
            )
    coded = rows["as coded, subset"]
    if arithmetic != (coded.forwards, coded.token_layers):
        found.append(
            f"by arithmetic the subset costs {arithmetic} as coded; the hooks counted "
            f"{(coded.forwards, coded.token_layers)}"
        )
    return found


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(
        f"builtin:chat, {result['pairs']} pairs, {result['heads']} heads, both ways, margin; "
        f"{result['threads']} torch threads on {result['cores']} cores; {result['repeats']} repeats, "
        f"interleaved; subset: {result['subset']} pairs"
    )
    table = Table()
    for column in ("way", "forwards", "token-layers", "median s", "cpu s"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name, way in result["ways"].items():
        table.add_row(
            f"{name}, with statistics" if name == "screen" else name,
            f"{way['forwards']:,}", f"{way['token_layers']:,}",
            f"{way['median_seconds']:.2f}", f"{way['median_cpu_seconds']:.2f}",
        )  # fmt: skip
    coded = result["as_coded"]
    table.add_row("as coded, all pairs", f"{coded['forwards']:,}", f"{coded['token_layers']:,}")
    table.add_row(
        "  the same, NLL of 5 tokens", f"{coded['forwards']:,}", f"{coded['with_reply']:,}"
    )
    table.add_row("published, all pairs", f"{result['published_forwards']:,}")
    console.print(table)
    low, high = result["time_ratio_range"]
    console.print(
        f"as coded / screen: {result['token_layers_ratio']:.1f} x the token-layers "
        f"({result['token_layers_ratio_with_reply']:.1f} x with 5 reply tokens), on the subset "
        f"{result['time_ratio']:.1f} x the time ({low:.1f}, {high:.1f}), "
        f"{result['cpu_ratio']:.1f} x the cpu time; mean gap {result['gap']:.2f} nats"
    )
    for bar in result["bars"]:
        console.print(f"{bar['bar']}: {bar['value']:.3g}, {'met' if bar['met'] else 'NOT met'}")
    for line in result["broken"]:
        console.print(f"BROKEN: {line}")


if __name__ == "__main__":
    sys.exit(main())
