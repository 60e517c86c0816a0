"""Steering: does adding a belief direction make the model refuse harmless prompts, or taking it off answer?

harmfulness_and_refusal section 4 (arXiv 2507.11878, section 3.4): +v on harmless prompts, -v on harmful
ones, on all prompt tokens of one layer at a time, in the prefill only, beside random rotations of v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.judge import Exchange, Judgement
from refusalscope.judge.correction import CORRECTED, add_corrected
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run
from refusalscope.stats import paired_rates, wilson
from refusalscope.studies.directions.belief_settings import BeliefSettings
from refusalscope.studies.directions.belief_work import Work
from refusalscope.studies.directions.extract import Centroids
from refusalscope.studies.directions.push_effects import (
    NO_MARGIN,
    Array,
    Chosen,
    Flags,
    Grid,
    chosen_layers,
    margin_columns,
    push_columns,
    reply_grid,
    score_grid,
    to_be_answered,
)
from refusalscope.studies.directions.pushes import (
    SIGNS,
    Push,
    make_pushes,
    to_choose_on,
    to_report,
)
from refusalscope.studies.subject import Subject

TABLE = "belief.steering"


def run_steering(
    run: Run,
    subject: Subject,
    settings: BeliefSettings,
    means: Centroids,
    progress: Progress | None = None,
) -> None:
    """Steer along both directions and write `belief.steering`; a table that is there is left as it is.

    One row a direction, layer, control and label, and the run with nothing added as `none`. Replies are
    judged for both directions at every layer, and for a few rotations at the layer that moves the margin
    most on the select split (`chosen`; by refusals where no margin can be read); `n` counts judged replies,
    `n_margin` prompts with a margin. Degenerate replies are counted apart and count as not refused.
    """
    work = Work(run, subject, settings, means, progress or Silent())
    work.stage(TABLE, lambda: _steer(work))


@dataclass(frozen=True)
class _Judged:
    refused: Flags
    degenerate: int

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> _Judged:
        return cls(
            np.array([bool(judgement.refused) for judgement in judgements], dtype=bool),
            sum(judgement.label == "degenerate" for judgement in judgements),
        )


def _steer(work: Work) -> pd.DataFrame:
    subject = work.subject
    pushes = make_pushes(work, ("all",), work.settings.steer_scale)
    chosen = _choose(work, pushes)
    rows = []
    for label, sign in SIGNS.items():
        indices = to_report(work, label, work.settings.n_steer)
        cells: list[Push | None] = [None, *pushes]
        grid = _grid(cells, sign, len(indices))
        margins = _margins(work, indices, grid, f"steering {label} prompts")
        seed = work.settings.seed
        replied = [n for n, push in enumerate(cells) if to_be_answered(push, chosen, seed)]
        judged = _judge(work, indices, grid, replied, f"replies of steered {label} prompts")
        for n, push in enumerate(cells):
            row = push_columns(push, label, chosen) | NO_MARGIN
            row |= _refusal_columns(judged.get(n), judged[0])
            if margins is not None:
                row |= margin_columns(work, indices, margins, cells, n, sign)
            rows.append(row)
    return _corrected(pd.DataFrame(rows), subject.judge.name, work.settings.seed)


def _grid(cells: Sequence[Push | None], sign: int, n_prompts: int) -> Grid:
    return [[() if push is None else push.variant(sign, "all")] * n_prompts for push in cells]


def _choose(work: Work, pushes: Sequence[Push]) -> Chosen:
    """The layer of each direction whose push moves the margin most its way, on the select split.

    Refusals take the place of a margin that cannot be read.
    """
    tried = [push for push in pushes if push.seed < 0]
    gains = {}
    for label, sign in SIGNS.items():
        indices = to_choose_on(work, label, work.settings.n_steer)
        grid = _grid([None, *tried], sign, len(indices))
        stage = f"steering layer, {label} prompts"
        found = _margins(work, indices, grid, stage)
        if found is None:
            judged = _judge(work, indices, grid, range(len(grid)), stage)
            found = np.array([judged[n].refused for n in range(len(grid))], dtype=float)
        gains[label] = sign * (found[1:] - found[0])
    return chosen_layers(tried, gains)


def _margins(work: Work, indices: Sequence[int], grid: Grid, label: str) -> Array | None:
    """Refusal margins [variants, prompts]; None where refusals and replies could not be told apart."""
    if work.subject.margin is None:
        return None
    prompts, metrics = work.subject.take(indices), {"margin": work.subject.margin}
    return score_grid(work.chat, prompts, grid, metrics, work.progress.track(label))["margin"]


def _judge(
    work: Work, indices: Sequence[int], grid: Grid, replied: Sequence[int], label: str
) -> Mapping[int, _Judged]:
    """Judgements of the replies of some variants of the grid, by their place in it."""
    subject, size = work.subject, len(indices)
    texts = reply_grid(
        work.chat,
        subject.take(indices),
        [grid[n] for n in replied],
        work.settings.max_new_tokens,
        work.progress.track(label),
    )
    exchanges = [
        Exchange(subject.prompts[i].text, text)
        for replies in texts
        for i, text in zip(indices, replies, strict=True)
    ]
    found = subject.judge.judge(exchanges)
    return {n: _Judged.of(found[k * size : (k + 1) * size]) for k, n in enumerate(replied)}


def _refusal_columns(judged: _Judged | None, clean: _Judged) -> dict[str, float]:
    """Refusals of a cell and their paired change; zero counts and NaN where no reply was generated."""
    refused = np.zeros(0, dtype=bool) if judged is None else judged.refused
    base = clean.refused[: len(refused)]
    rate, change = wilson(int(refused.sum()), len(refused)), paired_rates(refused, base)
    return {
        "n": len(refused),
        "refused": int(refused.sum()),
        "degenerate": 0 if judged is None else judged.degenerate,
        "rate": rate.value,
        "low": rate.low,
        "high": rate.high,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
    }


def _corrected(table: pd.DataFrame, judge: str, seed: int) -> pd.DataFrame:
    """The table with rates corrected for the judge, where replies were judged."""
    found = add_corrected(table[table["n"] > 0], judge, seed)
    return table.assign(judge=judge).join(found[list(CORRECTED)])
