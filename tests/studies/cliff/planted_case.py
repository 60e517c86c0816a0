"""A cliff organism read as the study reads a model: probes, scores and verdict, run once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from refusalscope.model import ChatModel, Site
from refusalscope.organisms.planted import build
from refusalscope.studies.cliff import (
    Fitted,
    ModelCliff,
    Trace,
    cases_of,
    drop_contrast,
    drops,
    fit_published,
    fit_recommended,
    judge_cliff,
    prompt_table,
    score_probes,
    separation_table,
    traces_of,
    unreadable,
)

FINAL = Site("final")
SUPPRESSORS = ((4, 1), (5, 6), (6, 3))


@dataclass(frozen=True)
class Subject:
    """Traces of an organism with what they came to; half are reported on."""

    chat: ChatModel
    traces: list[Trace]
    refused: np.ndarray
    groups: np.ndarray
    splits: np.ndarray

    def of(self, *groups: str) -> list[Trace]:
        return [t for t, group in zip(self.traces, self.groups, strict=True) if group in groups]


@dataclass(frozen=True)
class Reading:
    """Both pipelines on the traces reported on; `groups` and `refused` are theirs."""

    fitted: Fitted
    uncorrected: pd.DataFrame
    table: pd.DataFrame
    separation: pd.DataFrame
    verdict: ModelCliff
    groups: np.ndarray
    nulls: list[float]


@cache
def subject(variant: str = "base", seed: int = 0, pairs: int = 60) -> Subject:
    planted = build("planted-cliff", variant, seed=seed, pairs=pairs)
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id="planted")
    truths = planted.truth.thinking
    drawn = np.random.default_rng(seed).integers(0, 4, len(truths))
    return Subject(
        chat,
        traces_of(chat, list(planted.prompts)),
        np.array([truth.refused for truth in truths]),
        np.array([truth.group for truth in truths]),
        np.array(["fit", "select", "report", "report"])[drawn],
    )


@cache
def reading(variant: str, seed: int = 0, site: Site = FINAL) -> Reading:
    it = subject(variant, seed)
    (fitted,) = fit_recommended(it.chat, it.traces, it.refused, it.splits, sites=[site])
    fit, report = (np.flatnonzero(it.splits == name) for name in ("fit", "report"))
    published = fit_published(
        it.chat, [it.traces[i] for i in fit], it.refused[fit], solver="logistic"
    )
    traces, refused = [it.traces[i] for i in report], it.refused[report]
    probes = [published.probe, fitted.probe, *fitted.shuffled, *fitted.random]
    scores = score_probes(it.chat, traces, probes)
    before, table = (prompt_table(traces, [s[row] for s in scores], seed=0) for row in (0, 1))
    labels = table["label"].tolist()
    cases = cases_of(labels, refused)
    nulls = [
        drop_contrast(drops(traces, [s[row] for s in scores]), labels, cases)
        for row in range(2, len(probes))
    ]
    separation = separation_table(traces, refused, [s[1] for s in scores], seed=0)
    verdict = judge_cliff(
        table, cases, raw=before, nulls=nulls, trouble=unreadable(separation), seed=0
    )
    return Reading(fitted, before, table, separation, verdict, it.groups[report], nulls)
