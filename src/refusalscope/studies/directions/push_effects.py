"""What a push does: margins and replies of a grid of variants, the layer chosen, intervals of the change.

A grid is [variants][prompts], as the positions of an edit differ from prompt to prompt. All edits end with
the prompt (arXiv 2507.11878: the prefill only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.stats.interval import NAN
from refusalscope.studies.directions.belief_work import Work
from refusalscope.studies.directions.pushes import SIGNS, Push

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Grid = list[list[Variant]]
Chosen = Mapping[tuple[str, str], int]
MARGIN_COLUMNS = tuple(
    name + end for name in ("margin", "margin_change") for end in ("", "_low", "_high")
)
# Of a row whose margin could not be read.
NO_MARGIN: dict[str, float] = {
    "n_margin": 0,
    **dict.fromkeys((*MARGIN_COLUMNS, "random_most", "p_random"), NAN),
    "n_random": 0,
}
# Rotations whose replies are generated; the others have margins only, which cost a fraction of a reply.
MOST_REPLIED = 5


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

    gains: label -> [pushes, prompts], change of the margin (or of what replies say) times the sign.
    """
    mean = np.mean([gain.mean(axis=1) for gain in gains.values()], axis=0)
    best: dict[tuple[str, str], int] = {}
    for kind in dict.fromkeys(push.kind for push in pushes):
        mine = [n for n, push in enumerate(pushes) if push.kind == kind and push.seed < 0]
        best[kind] = pushes[max(mine, key=lambda n: mean[n])].layer
    return best


def to_be_answered(push: Push | None, chosen: Chosen, first_seed: int) -> bool:
    """Whether replies are generated: without a push, for directions, and for a few rotations where chosen."""
    if push is None or push.seed < 0:
        return True
    return chosen[push.kind] == push.layer and push.seed < first_seed + MOST_REPLIED


def rotations(cells: Sequence[Push | None], n: int) -> list[list[int]]:
    """Places of each rotation of the direction at place `n`, at all layers: [rotations][layers].

    None for anything but a direction.
    """
    mine = cells[n]
    if mine is None or mine.seed >= 0:
        return []
    found: dict[int, list[int]] = {}
    for place, push in enumerate(cells):
        if push is not None and push.seed >= 0 and push.kind == mine.kind:
            found.setdefault(push.seed, []).append(place)
    return list(found.values())


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
    work: Work,
    indices: Sequence[int],
    margins: Array,
    cells: Sequence[Push | None],
    n: int,
    sign: int,
) -> dict[str, float]:
    """Mean margin of the cell at place `n`, its paired change from the clean run, and its rank among rotations.

    margins: [cells, prompts], the clean run first. The layer of a direction is chosen by its effect, so each
    rotation stands by its own best layer: `random_most` is the change of the rotation that went furthest the
    pushed way, and p_random = (1 + rotations that went as far) / (1 + rotations), one-sided and valid at
    any layer; NaN for what is no direction. Bootstrap intervals, over categories where there are several.
    """
    changes = margins - margins[0]
    categories = [work.subject.prompts[i].category for i in indices]
    columns = NO_MARGIN | {"n_margin": len(indices)}
    for name, values in (("margin", margins[n]), ("margin_change", changes[n])):
        mean = work.interval(values, categories)
        columns |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    far = sign * changes.mean(axis=1)
    best = np.array([far[places].max() for places in rotations(cells, n)])
    if len(best):
        beyond = int((best >= far[n]).sum())
        columns |= {"random_most": sign * best.max(), "p_random": (1 + beyond) / (1 + len(best))}
    return columns | {"n_random": len(best)}
