"""What a push does: margins and replies of a grid of variants, the layer chosen, intervals of the change.

A grid is [variants][prompts], as the positions of an edit differ from prompt to prompt. All edits end with
the prompt (arXiv 2507.11878: the prefill only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

import numpy as np
import numpy.typing as npt

from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.stats import wilson
from refusalscope.stats.interval import NAN, Interval
from refusalscope.studies.directions.belief_work import Work
from refusalscope.studies.directions.pushes import SIGNS, Push

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Grid = list[list[Variant]]
Chosen = Mapping[tuple[str, str], int]
MARGIN_COLUMNS = tuple(
    name + end
    for name in ("margin", "margin_change", "over_random")
    for end in ("", "_low", "_high")
)
# Of a row whose margin could not be read.
NO_MARGIN: dict[str, float] = {"n_margin": 0, **dict.fromkeys(MARGIN_COLUMNS, NAN)}


def score_grid(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    grid: Grid,
    metrics: Mapping[str, Metric],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Array]:
    """Scores of a grid of variants [variants][prompts]: metric -> [variants, prompts]."""
    by_prompt = [[variants[p] for variants in grid] for p in range(len(prompts))]
    found = chat.measure(prompts, by_prompt, metrics, policy="prompt_only", progress=progress)
    return {name: scores.T for name, scores in found.scores.items()}


def reply_grid(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    grid: Grid,
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[str]]:
    """Greedy replies under a grid of variants, edited in the prefill only: [variants][prompts]."""
    ids = chat.generate(
        [prompt for _ in grid for prompt in prompts],
        [variant for variants in grid for variant in variants],
        max_new_tokens=max_new_tokens,
        policy="prompt_only",
        progress=progress,
    )
    texts = [chat.decode(row) for row in ids]
    n = len(prompts)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def chosen_layers(pushes: Sequence[Push], gains: Mapping[str, Array]) -> dict[tuple[str, str], int]:
    """Layer of largest mean gain of each direction and rule, labels weighing alike.

    gains: label -> [pushes, prompts], change of the margin times the sign.
    """
    mean = np.mean([gain.mean(axis=1) for gain in gains.values()], axis=0)
    best: dict[tuple[str, str], int] = {}
    for kind in dict.fromkeys(push.kind for push in pushes):
        mine = [n for n, push in enumerate(pushes) if push.kind == kind and push.seed < 0]
        best[kind] = pushes[max(mine, key=lambda n: mean[n])].layer
    return best


def to_be_answered(push: Push | None, chosen: Chosen) -> bool:
    """Whether replies are generated: without a push, for directions, and for rotations at the chosen layer.

    Without a choice every rotation is answered.
    """
    return push is None or push.seed < 0 or chosen.get(push.kind, push.layer) == push.layer


def rotations(cells: Sequence[Push | None], n: int) -> list[int]:
    """Places of the random rotations beside the direction at place `n`; none beside anything else."""
    mine = cells[n]
    if mine is None or mine.seed >= 0:
        return []
    beside = (mine.kind, mine.layer)
    return [
        place
        for place, push in enumerate(cells)
        if push is not None and push.seed >= 0 and (push.kind, push.layer) == beside
    ]


def push_columns(push: Push | None, label: str, chosen: Chosen) -> dict:
    """The columns that name a row; None is the run with nothing added."""
    if push is None:
        return {
            "direction": "none",
            "positions": "none",
            "layer": -1,
            "sign": 0,
            "scale": 0.0,
            "scale_in_residual_norms": 0.0,
            "label": label,
            "control": "none",
            "seed": -1,
            "chosen": False,
        }
    return {
        "direction": push.direction,
        "positions": push.positions,
        "layer": push.layer,
        "sign": SIGNS[label],
        "scale": push.scale,
        "scale_in_residual_norms": push.in_norms,
        "label": label,
        "control": push.control,
        "seed": push.seed,
        "chosen": chosen.get(push.kind) == push.layer,
    }


def margin_columns(
    work: Work, indices: Sequence[int], margins: Array, clean: Array, random: Array
) -> dict[str, float]:
    """Mean margin of prompts, its paired change from the clean run, and its excess over the rotations.

    random: [rotations, prompts] of the same layer and length, none for a row that is no direction; the
    excess is over their mean, prompt by prompt. Bootstrap intervals, over categories where there are several.
    """
    found = {"margin": margins, "margin_change": margins - clean}
    if len(random):
        found["over_random"] = margins - random.mean(axis=0)
    categories = [work.subject.prompts[i].category for i in indices]
    columns = NO_MARGIN | {"n_margin": len(margins)}
    for name, values in found.items():
        mean = work.interval(values, categories)
        columns |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    return columns


def paired_rates(a: Flags, b: Flags) -> Interval:
    """Rate of `a` minus rate of `b` on the same rows [n], with Newcombe's interval, 95 %.

    Method 10 of Newcombe (1998, Statistics in Medicine 17, 2635): it keeps a width where every row changes
    alike, which a bootstrap does not. NaN throughout without rows.
    """
    n = len(a)
    if not n:
        return Interval(NAN, NAN, NAN, 0)
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    first, second = wilson(both + only_a, n), wilson(both + only_b, n)
    sides = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # Correlation with the continuity correction of the source, for a positive one only.
    phi = (max(cross - n / 2, 0) if cross > 0 else cross) / sqrt(sides) if sides else 0.0
    below, above = first.value - first.low, first.high - first.value
    under, over = second.value - second.low, second.high - second.value
    difference = first.value - second.value
    low = difference - sqrt(below**2 - 2 * phi * below * over + over**2)
    high = difference + sqrt(above**2 - 2 * phi * above * under + under**2)
    return Interval(difference, max(low, -1.0), min(high, 1.0), n)
