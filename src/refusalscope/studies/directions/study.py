"""The directions study: find the refusal direction, prove it, and read belief beside it.

Fits on the fit split, chooses on the select split, and reports on the report split only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import Metric, RefusalMargin, RefusalScore
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run
from refusalscope.studies.directions.belief import belief_rows, belief_scores, geometry
from refusalscope.studies.directions.extract import (
    Centroids,
    centroids,
    mean_difference,
    stack,
    template_anchors,
)
from refusalscope.studies.directions.interventions import arms, intervene
from refusalscope.studies.directions.selection import Rule, select, select_stable, stability
from refusalscope.studies.directions.settings import DirectionsSettings
from refusalscope.studies.directions.shortcuts import shortcuts
from refusalscope.studies.directions.sweep import score_candidates
from refusalscope.studies.subject import Subject, spending, spent

ENOUGH = 8
ENDS = ("instruction_last", "template[-1]")


def run_directions(
    run: Run, subject: Subject, settings: DirectionsSettings, progress: Progress | None = None
) -> None:
    """Run the study and write its tables and arrays; finished stages of a resumed run are not redone.

    Where the model gives nothing to fit on (too few refusals or too few answers) the study warns and stops.
    """
    progress = progress or Silent()
    groups = _fit_groups(run, subject, settings)
    if groups is None:
        return
    margin = subject.margin
    assert margin is not None
    if "directions" not in run.arrays() or not run.has_table("directions.candidates"):
        _find(run, subject, settings, groups, margin, progress)
    arrays = {name: torch.as_tensor(value) for name, value in run.array("directions").items()}
    if not run.has_table("directions.belief"):
        _believe(run, subject, settings, arrays, progress)
    chosen = run.table("directions.candidates").query("chosen")
    if chosen.empty:
        run.warn(
            "No candidate passed the filters, so no refusal direction was chosen; see the candidates "
            "table for which filter dropped which, and relax max_kl, min_induce or depth_cut with care."
        )
        return
    if not run.has_table("directions.interventions"):
        report = subject.pick("report")
        with spending(run, subject.chat):
            frame = intervene(
                subject.chat,
                subject.take(report),
                subject.table["label"].iloc[report].tolist(),
                [subject.prompts[i].category for i in report],
                arms(subject.chat, arrays["refusal"], int(chosen["layer"].iloc[0]), settings),
                margin,
                settings,
                progress,
            )
        run.write_table("directions.interventions", frame)


def _fit_groups(
    run: Run, subject: Subject, settings: DirectionsSettings
) -> dict[str, list[int]] | None:
    """Prompts to fit and select on, whose reply (or score) agrees with their label."""
    if subject.margin is None:
        run.warn("The directions study was left out: refusals and replies could not be told apart.")
        return None
    verdict_of = {"harmful": "refused", "harmless": "answered"}
    groups: dict[str, list[int]] = {}
    scores = None
    if settings.fit_filter == "score":
        metric = {"score": _score(subject.margin, settings)}
        scores = subject.chat.measure(subject.rendered, [()], metric).scores["score"][:, 0]
    for split in ("fit", "select"):
        for label, verdict in verdict_of.items():
            if scores is None:
                found = subject.pick(split, label, verdict)
            else:
                sign = 1 if label == "harmful" else -1
                found = [i for i in subject.pick(split, label) if sign * scores[i] > 0]
            groups[f"{split}/{label}"] = found
            if len(found) < ENOUGH:
                what = "refuses" if label == "harmful" else "answers"
                run.warn(
                    f"The directions study was left out: the model {what} only {len(found)} {label} "
                    f"prompts of the {split} split, {ENOUGH} are needed; give more prompts."
                )
                return None
    return groups


def _score(margin: RefusalMargin, settings: DirectionsSettings) -> Metric:
    return RefusalScore(margin.refuse, settings.score_eps)


def _find(
    run: Run,
    subject: Subject,
    settings: DirectionsSettings,
    groups: dict[str, list[int]],
    margin: RefusalMargin,
    progress: Progress,
) -> None:
    """Candidates at every anchor and layer, their scores, and the choice."""
    chat = subject.chat
    n_layers = chat.anatomy.n_layers
    anchors = template_anchors(subject.rendered)
    if settings.anchors == "template_and_instruction":
        anchors = ["instruction_last", *anchors]
    ends = [anchor for anchor in ENDS if anchor not in anchors]
    with spending(run, chat):
        states = {
            label: stack(
                chat,
                subject.take(groups[f"fit/{label}"]),
                [*anchors, *ends],
                f"states of the {label} fit prompts",
                progress,
            )
            for label in ("harmful", "harmless")
        }
    differences = mean_difference(states["harmful"], states["harmless"])
    candidates = _without_nothing(differences[: len(anchors), :n_layers], states["harmless"])
    scores = _sweep(run, subject, settings, groups, anchors, candidates, margin, progress)
    table = _choose(scores, anchors, n_layers, settings)
    means = _means(states, [*anchors, *ends])
    arrays = {
        "candidates": candidates,
        "harmfulness": means.v_harm,
        "refuse_direction": means.v_refuse,
        "mean_harm": means.harm,
        "mean_harmless": means.harmless,
        "mean_refuse": means.refuse,
        "mean_accept": means.accept,
    }
    chosen = table.index[table["chosen"]]
    if len(chosen):
        where = table.loc[chosen[0]]
        direction = candidates[anchors.index(where["anchor"]), int(where["layer"])]
        arrays |= {"refusal": direction, "refusal_unit": direction / direction.norm()}
        flat = candidates.reshape(-1, candidates.shape[-1])
        table["cosine_to_chosen"] = (
            torch.nn.functional.cosine_similarity(flat, direction, dim=-1).numpy().astype(float)
        )
    run.write_array("directions", arrays)
    at = [[*anchors, *ends].index(name) for name in ENDS]
    both = torch.cat([states["harmful"], states["harmless"]])
    harmful = torch.arange(len(both)) < len(states["harmful"])
    frame = geometry(both[:, at[0]], both[:, at[1]], harmful, seed=settings.seed)
    run.write_table("directions.geometry", frame)
    run.write_table("directions.candidates", table)


def _without_nothing(directions: Tensor, states: Tensor) -> Tensor:
    """Set to zero what is rounding only: row 0 at a template token, where all prompts are the same."""
    size = states.norm(dim=-1).mean(0)[: directions.shape[0], : directions.shape[1]]
    return torch.where((directions.norm(dim=-1) > 1e-5 * size).unsqueeze(-1), directions, 0.0)


def _means(states: dict[str, Tensor], anchors: list[str]) -> Centroids:
    at = [anchors.index(name) for name in ENDS]
    both = torch.cat([states["harmful"], states["harmless"]])
    harmful = torch.arange(len(both)) < len(states["harmful"])
    return centroids(both[:, at[0]], both[:, at[1]], harmful)


def _sweep(
    run: Run,
    subject: Subject,
    settings: DirectionsSettings,
    groups: dict[str, list[int]],
    anchors: list[str],
    candidates: Tensor,
    margin: RefusalMargin,
    progress: Progress,
) -> pd.DataFrame:
    """Scores of all candidates, prompt by prompt, an anchor at a time so that a killed run loses little."""
    harmful, harmless = groups["select/harmful"], groups["select/harmless"]
    shards = run.shards("directions.scores")
    for number, anchor in enumerate(anchors):
        if shards.done(anchor):
            continue
        before = replace(subject.chat.cost)
        found = score_candidates(
            subject.chat,
            candidates[number],
            subject.take(harmful),
            subject.take(harmless),
            _score(margin, settings),
            settings.score_eps,
            progress.track(f"candidates at {anchor} ({number + 1} of {len(anchors)})"),
        )
        frames = []
        for name, members in (("bypass", harmful), ("induce", harmless), ("kl", harmless)):
            n_layers, n_prompts = found[name].shape
            frames.append(
                pd.DataFrame(
                    {
                        "anchor": anchor,
                        "layer": np.repeat(np.arange(n_layers), n_prompts),
                        "score": name,
                        "prompt_id": [subject.prompts[i].id for i in members] * n_layers,
                        "value": found[name].ravel(),
                    }
                )
            )
        shards.write(anchor, pd.concat(frames, ignore_index=True), spent(before, subject.chat.cost))
    scores = shards.collect()
    run.write_table("directions.scores", scores)
    return scores


def _choose(
    scores: pd.DataFrame, anchors: list[str], n_layers: int, settings: DirectionsSettings
) -> pd.DataFrame:
    rule = Rule(settings.depth_cut, settings.max_kl, settings.min_induce, settings.tie)
    by_prompt = {
        name: part["value"].to_numpy().reshape(len(anchors) * n_layers, -1)
        for name, part in scores.groupby("score", sort=False)
    }
    table = pd.DataFrame(
        {
            "anchor": np.repeat(anchors, n_layers),
            "layer": np.tile(np.arange(n_layers), len(anchors)),
            **{name: values.mean(1) for name, values in by_prompt.items()},
        }
    )
    shares = stability(
        by_prompt["bypass"],
        by_prompt["induce"],
        by_prompt["kl"],
        table["layer"].to_numpy(float),
        n_layers,
        rule,
        settings.n_bootstrap,
        settings.seed,
    )
    if settings.selection == "bootstrap_stable":
        return select_stable(table, shares, n_layers, rule)
    return select(table, n_layers, rule).assign(stability=shares)


def _believe(
    run: Run,
    subject: Subject,
    settings: DirectionsSettings,
    arrays: dict[str, Tensor],
    progress: Progress,
) -> None:
    """Belief of every prompt by the fit split's centroids, and what shortcuts do on the same prompts."""
    with spending(run, subject.chat):
        states = stack(subject.chat, subject.rendered, ENDS, "belief of all prompts", progress)
    means = Centroids(
        *(arrays[f"mean_{name}"] for name in ("harm", "harmless", "refuse", "accept"))
    )
    rows = belief_rows(settings.belief_rows, subject.chat.anatomy.n_layers)
    frame = belief_scores(states[:, 0], states[:, 1], means, rows)
    info = subject.table[["id", "label", "category", "split", "refused"]].reset_index(drop=True)
    table = pd.concat([info, frame], axis=1)
    fit, report = subject.pick("fit"), subject.pick("report")
    baselines = shortcuts(
        [subject.prompts[i].text for i in fit],
        subject.harmful(fit).tolist(),
        [subject.prompts[i].text for i in report],
        subject.harmful(report).tolist(),
        table["delta_harmful"].to_numpy()[report],
        settings.seed,
    )
    run.write_table("directions.shortcuts", baselines)
    run.write_table("directions.belief", table)
