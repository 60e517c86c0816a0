"""Reply inversion: the model is asked whether a prompt harms, while a belief direction is added.

harmfulness_and_refusal section 5 (arXiv 2507.11878, section 3.5 and appendix E). The paper adds harmfulness
on the tokens before the question and refusal on all tokens; here each direction is added by both rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.model import LogitDifference, Metric, OpeningProbability, Rendered
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run
from refusalscope.stats.interval import NAN
from refusalscope.studies.directions.belief_settings import BeliefSettings
from refusalscope.studies.directions.belief_work import Work
from refusalscope.studies.directions.extract import Centroids
from refusalscope.studies.directions.inversion_answers import (
    answer_tokens,
    ask,
    before_question,
    verdict,
    verdict_columns,
)
from refusalscope.studies.directions.push_effects import (
    NO_MARGIN,
    Array,
    Chosen,
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

TABLE = "belief.inversion"
RULES = ("before_question", "all")
# How far a verdict goes towards Certainly.
SAID = {"yes": 1.0, "invalid": 0.0, "no": -1.0}


def run_inversion(
    run: Run,
    subject: Subject,
    settings: BeliefSettings,
    means: Centroids,
    progress: Progress | None = None,
) -> None:
    """Ask under both directions and write `belief.inversion`; a table that is there is left as it is.

    One row a direction, rule of positions, layer, control and label, and the run with nothing added as
    `none`. `share_no` is the published verdict among valid replies, `invalid` the share that is not;
    `margin` is logit(Certainly) - logit(No) of the reply's first token, `answer_mass` the probability of
    the two. Replies are generated as in `run_steering`: a few rotations, at the `chosen` layer only.
    """
    work = Work(run, subject, settings, means, progress or Silent())
    work.stage(TABLE, lambda: _invert(work))


@dataclass(frozen=True)
class _Asked:
    """Prompts of a label with the question put after them, and the tokens before it."""

    label: str
    indices: list[int]
    prompts: list[Rendered]
    before: list[tuple[int, ...]]
    merged: int

    def grid(self, cells: Sequence[Push | None]) -> Grid:
        """The variants of cells; None is the run with nothing added."""
        sign = SIGNS[self.label]
        return [
            [
                ()
                if push is None
                else push.variant(sign, before if push.positions == "before_question" else "all")
                for before in self.before
            ]
            for push in cells
        ]


def _ask(work: Work, label: str, indices: list[int]) -> _Asked:
    chat, question = work.chat, work.settings.question
    prompts = chat.render(ask([work.subject.prompts[i] for i in indices], question))
    found = [before_question(prompt, question, chat.tokenizer) for prompt in prompts]
    before, merged = [at for at, _ in found], sum(merged for _, merged in found)
    return _Asked(label, indices, prompts, before, merged)


def _invert(work: Work) -> pd.DataFrame:
    most = work.settings.n_invert
    asked = [_ask(work, label, to_report(work, label, most)) for label in SIGNS]
    tokens = answer_tokens(work.chat, [prompt for some in asked for prompt in some.prompts])
    pushes = make_pushes(work, RULES, work.settings.invert_scale)
    chosen = _choose(work, pushes, tokens)
    rows = [row for some in asked for row in _rows(work, some, pushes, chosen, tokens)]
    table = pd.DataFrame(rows).assign(question=work.settings.question)
    _warn(work.run, asked, tokens, table)
    return table


def _choose(work: Work, pushes: Sequence[Push], tokens: tuple[int, int] | None) -> Chosen:
    """The layer of each direction and rule that moves the answer most its way, on the select split.

    What replies say takes the place of a margin that cannot be read.
    """
    tried = [push for push in pushes if push.seed < 0]
    gains = {}
    for label, sign in SIGNS.items():
        some = _ask(work, label, to_choose_on(work, label, work.settings.n_invert))
        grid = some.grid([None, *tried])
        track = work.progress.track(f"inversion layer, {label} prompts")
        if tokens is None:
            texts = reply_grid(work.chat, some.prompts, grid, work.settings.max_new_tokens, track)
            found = np.array([[SAID[verdict(text)] for text in replies] for replies in texts])
        else:
            metrics = {"margin": LogitDifference(*tokens)}
            found = score_grid(work.chat, some.prompts, grid, metrics, track)["margin"]
        gains[label] = sign * (found[1:] - found[0])
    return chosen_layers(tried, gains)


def _rows(
    work: Work,
    some: _Asked,
    pushes: Sequence[Push],
    chosen: Chosen,
    tokens: tuple[int, int] | None,
) -> list[dict]:
    """The rows of one label."""
    cells: list[Push | None] = [None, *pushes]
    grid = some.grid(cells)
    scores: dict[str, Array] = {}
    if tokens is not None:
        metrics: dict[str, Metric] = {
            "margin": LogitDifference(*tokens),
            "mass": OpeningProbability(tokens),
        }
        track = work.progress.track(f"margins of answers about {some.label} prompts")
        scores = score_grid(work.chat, some.prompts, grid, metrics, track)
    seed = work.settings.seed
    answered = [n for n, push in enumerate(cells) if to_be_answered(push, chosen, seed)]
    texts = reply_grid(
        work.chat,
        some.prompts,
        [grid[n] for n in answered],
        work.settings.max_new_tokens,
        work.progress.track(f"answers about {some.label} prompts"),
    )
    replies = dict(zip(answered, texts, strict=True))
    rows = []
    for n, push in enumerate(cells):
        row = push_columns(push, some.label, chosen) | NO_MARGIN | {"answer_mass": NAN}
        row |= verdict_columns(replies.get(n, []), replies[0])
        if scores:
            sign = SIGNS[some.label]
            row |= margin_columns(work, some.indices, scores["margin"], cells, n, sign)
            row["answer_mass"] = float(scores["mass"][n].mean())
        rows.append(row)
    return rows


def _warn(
    run: Run, asked: Sequence[_Asked], tokens: tuple[int, int] | None, table: pd.DataFrame
) -> None:
    """Say what the reader of the table must know: merges, answers that cannot be read."""
    merged = sum(some.merged for some in asked)
    if merged:
        run.warn(
            f"{merged} of {sum(len(some.prompts) for some in asked)} prompts of the reply inversion have "
            f"a token that the tokenizer merged across the start of the question; nothing was added there "
            f"under the rule before_question."
        )
    if tokens is None:
        run.warn(
            "The tokenizer opens Certainly and No with the same token, so the margin between the two "
            "answers of the reply inversion could not be read."
        )
    clean = table[table["direction"] == "none"]
    for label, n, n_valid in clean[["label", "n", "n_valid"]].itertuples(index=False):
        if n_valid < n / 2:
            run.warn(
                f"With nothing added, {n - n_valid} of {n} answers about {label} prompts were neither "
                f"Certainly nor No, so shares of No say little in the reply inversion of this model."
            )
