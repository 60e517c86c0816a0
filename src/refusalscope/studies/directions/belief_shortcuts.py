"""What else could tell harm from no harm: cues of the text, other final marks, the last word.

The controls that stand beside every score of belief (harmfulness_and_refusal section 7, b to d), on the
prompts of the report split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import Rendered
from refusalscope.prompts import Prompt, punctuation_variants
from refusalscope.studies.directions.belief import profile
from refusalscope.studies.directions.belief_work import Work, in_parts
from refusalscope.studies.directions.shortcuts import shortcuts

AS_IS, LAST_WORD = "as is", "last word"
# How the prompts end otherwise -> the variant of `punctuation_variants`.
OTHER = {"no mark": "stripped", "full stop": "period", "question mark": "question"}
MARKS = (AS_IS, *OTHER)


def other_marks(prompts: Sequence[Prompt]) -> list[Prompt]:
    """All prompts with each other end, in the order of `OTHER`: [ends * prompts]."""
    return [
        replace(prompt, text=punctuation_variants(prompt.text)[variant])
        for variant in OTHER.values()
        for prompt in prompts
    ]


def control_frame(
    work: Work, prompts: pd.DataFrame, harmful: Sequence[int], harmless: Sequence[int]
) -> pd.DataFrame:
    """The table `belief.controls`: delta_harmful of each report prompt, ended otherwise, and read elsewhere.

    prompts: `belief.prompts`; harmful, harmless: rows of the centroids. A column each of `MARKS`, by the
    centroids at the last token, and `last word`, by centroids of its own.
    """
    subject, means = work.subject, work.means
    report = [subject.prompts[i] for i in work.report]
    ended = work.chat.render(other_marks(report))
    by_mark = _scores(work, ended, "instruction_last", means.harm, means.harmless)
    at_word = "instruction_last_word"
    towards, away = (_mean(work, subject.take(rows), at_word) for rows in (harmful, harmless))
    table = prompts[["id", "label", "category"]].assign(**{AS_IS: prompts["delta_harmful"]})
    table[list(OTHER)] = by_mark.reshape(len(OTHER), len(report)).T
    table[LAST_WORD] = _scores(work, subject.take(work.report), at_word, towards, away)
    return table


def _scores(
    work: Work, prompts: Sequence[Rendered], anchor: str, towards: Tensor, away: Tensor
) -> npt.NDArray[np.float64]:
    """Mean of s_l over the rows of belief at an anchor: [prompts]; centroids [L+1, d_model]."""
    rows = work.rows
    parts = [
        profile(states[:, 0, rows], towards[rows], away[rows]).mean(-1)
        for states in in_parts(work.chat, prompts, [anchor], "controls of belief", work.progress)
    ]
    return torch.cat(parts).double().numpy()


def _mean(work: Work, prompts: Sequence[Rendered], anchor: str) -> Tensor:
    """Mean state at an anchor: [L+1, d_model]."""
    total = torch.zeros((), dtype=torch.float64)
    for states in in_parts(work.chat, prompts, [anchor], "controls of belief", work.progress):
        total = total + states[:, 0].double().sum(0)
    return (total / len(prompts)).float()


def shortcut_table(work: Work, controls: pd.DataFrame) -> pd.DataFrame:
    """The table `belief.shortcuts`, as `shortcuts.shortcuts` gives it; controls: `belief.controls`."""
    subject, fit, report = work.subject, work.subject.pick("fit"), work.report
    beliefs = {"belief (delta_harmful)": controls[AS_IS].to_numpy(dtype=float)}
    beliefs["belief at the last word"] = controls[LAST_WORD].to_numpy(dtype=float)
    for mark in OTHER:
        beliefs[f"belief, prompts ending in {mark}"] = controls[mark].to_numpy(dtype=float)
    return shortcuts(
        [subject.prompts[i].text for i in fit],
        subject.harmful(fit).tolist(),
        [subject.prompts[i].text for i in report],
        subject.harmful(report).tolist(),
        beliefs,
        work.settings.seed,
    )


def marks_table(work: Work, controls: pd.DataFrame) -> pd.DataFrame:
    """The table `belief.marks`: mean delta_harmful of each label by how its prompts end.

    spread: how far apart the scores of one prompt lie over all its ends, the mean of the label's prompts.
    """
    rows = []
    for label, part in controls.groupby("label", sort=True):
        categories = part["category"].tolist()
        ends = part[list(MARKS)].to_numpy(dtype=float)
        spread = work.interval(np.ptp(ends, axis=1), categories)
        for mark, scores in zip(MARKS, ends.T, strict=True):
            mean = work.interval(scores, categories)
            row = {"label": label, "mark": mark, "n": mean.n, "mean": mean.value}
            row |= {"low": mean.low, "high": mean.high, "spread": spread.value}
            rows.append(row | {"spread_low": spread.low, "spread_high": spread.high})
    return pd.DataFrame(rows)
