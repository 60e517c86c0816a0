"""The belief study: harm and refusal as two beliefs, the studies of arXiv 2507.11878 on any chat model.

Centroids come from the fit split alone, and the layer that a direction is told at from the select split;
everything that is said is measured on the report split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from refusalscope.model import ChatModel
from refusalscope.progress import Progress, Silent
from refusalscope.prompts.wrappers import Wrapper, get_wrapper
from refusalscope.runs import Run
from refusalscope.studies.directions import category_directions, position_scores
from refusalscope.studies.directions.belief_settings import BeliefSettings
from refusalscope.studies.directions.belief_shortcuts import (
    control_frame,
    marks_table,
    shortcut_table,
)
from refusalscope.studies.directions.belief_work import Work, band_rows, fit_centroids, sample
from refusalscope.studies.directions.category_directions import category_tables
from refusalscope.studies.directions.clusters import (
    ENOUGH,
    cluster_table,
    prompt_frame,
    thin_clusters,
)
from refusalscope.studies.directions.extract import Centroids
from refusalscope.studies.directions.inversion import run_inversion
from refusalscope.studies.directions.jailbreak_plane import jailbreak_table, wrapped_prompts
from refusalscope.studies.directions.position_scores import cut_table, position_table
from refusalscope.studies.directions.steering import run_steering
from refusalscope.studies.directions.tuned import tuned_prompts, tuned_table
from refusalscope.studies.subject import Subject, spending

ARRAY = "belief"


@dataclass(frozen=True)
class Fit:
    """Rows that the centroids are means of: refused harmful and accepted harmless prompts of the fit split."""

    harmful: list[int]
    harmless: list[int]


def run_belief(
    run: Run,
    subject: Subject,
    settings: BeliefSettings,
    tuned: ChatModel | None = None,
    progress: Progress | None = None,
    wrappers: Sequence[Wrapper] = (),
) -> None:
    """Run the studies and write their tables; finished stages of a resumed run are not redone.

    tuned: the model after fine-tuning, with the same tokenizer and shape (`require_same_shape`). wrappers: more
    of them than the settings name. Where the model refuses too few harmful or answers too few harmless prompts
    of the fit split, the study warns and stops.
    """
    progress = progress or Silent()
    fit = _fit_rows(run, subject, settings)
    if fit is None:
        return
    work = Work(run, subject, settings, _centroids(run, subject, fit, progress), progress)
    _say_bands(work)
    prompts = _clusters(work, fit)
    _shortcuts(work, fit, prompts)
    _categories(work, fit)
    # By name: a wrapper of the patient's own takes the place of a known one.
    named = {each.name: each for each in (*map(get_wrapper, settings.wrappers), *wrappers)}
    if named:
        wrapped = work.stage("belief.wrapped", lambda: wrapped_prompts(work, list(named.values())))
        work.stage("belief.jailbreaks", lambda: jailbreak_table(work, wrapped))
    run_steering(run, subject, settings, work.means, progress)
    run_inversion(run, subject, settings, work.means, progress)
    if tuned is not None:
        both = work.stage(
            "belief.tuned_prompts",
            lambda: tuned_prompts(work, tuned, prompts, fit.harmful, fit.harmless),
        )
        work.stage("belief.tuned", lambda: tuned_table(work, both))


def _fit_rows(run: Run, subject: Subject, settings: BeliefSettings) -> Fit | None:
    """The prompts to fit on; None, with a warning, where there are too few of a kind."""
    refused = subject.table["refused"].to_numpy(dtype=bool)
    found = {
        "harmful": [i for i in subject.pick("fit", "harmful") if refused[i]],
        "harmless": [i for i in subject.pick("fit", "harmless", "compliance") if not refused[i]],
    }
    for label, rows in found.items():
        if len(rows) < ENOUGH:
            does = "refuses" if label == "harmful" else "answers"
            run.warn(
                f"The belief study was left out: the model {does} only {len(rows)} {label} prompts of the fit "
                f"split, {ENOUGH} are needed; give more prompts."
            )
            return None
    drawn = [sample(rows, settings.n_fit, settings.seed) for rows in found.values()]
    return Fit(*drawn)


def _centroids(run: Run, subject: Subject, fit: Fit, progress: Progress) -> Centroids:
    """The centroids, from the run where it holds them; array `belief` otherwise."""
    names = ("harm", "harmless", "refuse", "accept")
    if not run.has_array(ARRAY):
        with spending(run, subject.chat):
            means = fit_centroids(
                subject.chat, subject.take(fit.harmful), subject.take(fit.harmless), progress
            )
        run.write_array(ARRAY, {f"mean_{name}": getattr(means, name) for name in names})
    held = run.array(ARRAY)
    return Centroids(*(torch.as_tensor(held[f"mean_{name}"]) for name in names))


def _say_bands(work: Work) -> None:
    """Warn of a band that is not in the model, or not all of it."""
    settings, n_layers = work.settings, work.chat.anatomy.n_layers
    bands = (
        (settings.band, position_scores.BAND, "positions"),
        (settings.category_band, category_directions.BAND, "categories"),
    )
    for band, shares, what in bands:
        rows = band_rows(band, shares, n_layers)
        if band is not None and (rows[0], rows[-1]) != band:
            work.run.warn(
                f"Of {what}, layers {band[0]} to {band[1]} are not in the model of {n_layers} layers, so "
                f"layers {rows[0]} to {rows[-1]} were taken."
            )


def _clusters(work: Work, fit: Fit) -> pd.DataFrame:
    """What the four clusters say by layer and by position, and what the template does."""
    if not work.run.has_table("belief.prompts"):
        prompts = work.stage("belief.prompts", lambda: prompt_frame(work))
        for text in thin_clusters(prompts):
            work.run.warn(text)
    prompts = work.run.table("belief.prompts")
    work.stage("belief.template_cut", lambda: cut_table(prompts))
    work.stage("belief.clusters", lambda: cluster_table(work, prompts))
    harmful = np.arange(len(fit.harmful) + len(fit.harmless)) < len(fit.harmful)
    rows = [*fit.harmful, *fit.harmless]
    work.stage("belief.positions", lambda: position_table(work, prompts, rows, harmful))
    return prompts


def _shortcuts(work: Work, fit: Fit, prompts: pd.DataFrame) -> None:
    """What else than harm could have given the scores."""
    controls = work.stage(
        "belief.controls", lambda: control_frame(work, prompts, fit.harmful, fit.harmless)
    )
    work.stage("belief.marks", lambda: marks_table(work, controls))
    work.stage("belief.shortcuts", lambda: shortcut_table(work, controls))


def _categories(work: Work, fit: Fit) -> None:
    if work.run.has_table("belief.categories"):
        return
    with spending(work.run, work.chat):
        categories, cosines = category_tables(work, fit.harmful, fit.harmless)
    if categories.empty:
        work.run.warn(
            "No harmful prompt names a category, so no directions of categories are told."
        )
    for axis, part in categories[categories["unsteady"]].groupby("axis"):
        work.run.warn(
            f"On the axis of {axis} the directions of {', '.join(part['category'])} are less like themselves "
            f"in another half of the prompts than like the other categories, so they are not told apart; give "
            f"more prompts of them."
        )
    work.run.write_table("belief.category_cosines", cosines)
    work.run.write_table("belief.categories", categories)
