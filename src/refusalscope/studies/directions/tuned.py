"""Belief before and after fine-tuning (arXiv 2507.11878, section 5.2), on the same prompts.

The paper does not say whether centroids are fitted again after the tuning, so both are given: "kept" are the
first model's, "refitted" the means of the same fit prompts in the tuned one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.judge.behaviour import reply
from refusalscope.model import ChatModel
from refusalscope.studies.directions.belief_work import (
    AXES,
    Work,
    believe,
    change_columns,
    estimate,
    fit_centroids,
)
from refusalscope.studies.subject import spent


def require_same_shape(chat: ChatModel, tuned: ChatModel) -> None:
    """InputError unless the tuned model has the tokenizer, the chat template and the shape of the first."""
    for key, what in (("tokenizer_sha256", "tokenizer"), ("template_sha256", "chat template")):
        if chat.fingerprint[key] != tuned.fingerprint[key]:
            raise InputError(
                f"the tuned model {tuned.id} has another {what} than {chat.id}, so the same prompts cannot be "
                f"compared; give a model that was fine-tuned from it"
            )
    for name in ("n_layers", "d_model"):
        first, second = getattr(chat.anatomy, name), getattr(tuned.anatomy, name)
        if first != second:
            raise InputError(
                f"the tuned model {tuned.id} has {name} {second}, {chat.id} has {first}; give a model that was "
                f"fine-tuned from it"
            )


def tuned_prompts(
    work: Work, tuned: ChatModel, prompts: pd.DataFrame, harmful: list[int], harmless: list[int]
) -> pd.DataFrame:
    """The table `belief.tuned_prompts`: each report prompt in both models; prompts: `belief.prompts`.

    harmful, harmless: the prompts of the fit split that the centroids are means of. `_before` is the first
    model, `_kept` and `_refitted` the tuned one by either centroids.
    """
    subject, settings, progress = work.subject, work.settings, work.progress
    before = replace(tuned.cost)
    rendered = subject.take(work.report)
    refitted = fit_centroids(tuned, subject.take(harmful), subject.take(harmless), progress)
    said = reply(
        tuned,
        [subject.prompts[i] for i in work.report],
        rendered,
        subject.judge,
        settings.max_new_tokens,
        progress=progress.track("replies of the tuned model"),
    )
    table = prompts[["id", "label", "category"]].assign(
        refused_before=prompts["refused"],
        refused_after=said.refused,
        verdict_after=pd.Series([judgement.label for judgement in said.judgements], dtype=object),
    )
    for axis in AXES:
        table[f"{axis}_before"] = prompts[axis]
    for name, means in (("kept", work.means), ("refitted", refitted)):
        found = believe(tuned, rendered, means, work.rows, f"belief by {name} centroids", progress)
        for column in (*AXES, "quadrant"):
            table[f"{column}_{name}"] = found[column]
    work.run.add_cost(**spent(before, tuned.cost))
    return table


def tuned_table(work: Work, prompts: pd.DataFrame) -> pd.DataFrame:
    """The table `belief.tuned`: before, after and the paired difference, by label, quantity and centroids.

    prompts: `belief.tuned_prompts`. quantity: refused (share; Wilson, the change by Newcombe with McNemar's p),
    delta_harmful, delta_refuse (bootstrap, with p of the sign-flip test).
    """
    rows: list[dict[str, Any]] = []
    for label, part in prompts.groupby("label", sort=True):
        columns = [("refused", "", "refused_after")]
        columns += [
            (axis, name, f"{axis}_{name}") for axis in AXES for name in ("kept", "refitted")
        ]
        for quantity, name, column in columns:
            kind = bool if quantity == "refused" else float
            first, second = (
                part[each].to_numpy(dtype=kind) for each in (f"{quantity}_before", column)
            )
            row = {"label": label, "quantity": quantity, "centroids": name, "n": len(part)}
            rows.append(row | _compare(work, first, second, part["category"].tolist()))
    return pd.DataFrame(rows)


def _compare(
    work: Work,
    before: npt.NDArray[Any],
    after: npt.NDArray[Any],
    categories: Sequence[str | None],
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, values in (("before", before), ("after", after)):
        each = estimate(work, values, categories)
        found |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    return found | change_columns(work, after, before, categories)
