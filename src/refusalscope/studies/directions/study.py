"""The directions study: find the refusal direction, prove it, and read belief beside it.

Fits on the fit split, chooses on the select split, and reports on the report split only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import Metric, RefusalMargin, RefusalScore
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import punctuation_variants
from refusalscope.runs import Run
from refusalscope.studies.directions.belief import belief_rows, belief_scores, geometry, profile
from refusalscope.studies.directions.extract import (
    Centroids,
    centroids,
    mean_difference,
    stack,
    template_anchors,
)
from refusalscope.studies.directions.interventions import arms, intervene
from refusalscope.studies.directions.selection import (
    Rule,
    select,
    select_relaxed,
    select_stable,
    stability,
)
from refusalscope.studies.directions.settings import DirectionsSettings
from refusalscope.studies.directions.shortcuts import shortcuts
from refusalscope.studies.directions.sweep import score_candidates
from refusalscope.studies.subject import Subject, spending, spent, stage

ENOUGH = 8
ENDS = ("instruction_last", "template[-1]", "instruction_last_word")
# Prompts whose states are held at once while belief is read.
AT_ONCE = 256
MARKS = {
    "stripped": "without its final mark",
    "period": "ending in a full stop",
    "question": "ending in ?",
}


def run_directions(
    run: Run, subject: Subject, settings: DirectionsSettings, progress: Progress | None = None
) -> None:
    """Run the study and write its tables and arrays; finished stages of a resumed run are not redone.

    Where the model gives nothing to fit on (too few refusals or too few answers) the study warns and stops.
    """
    progress = progress or Silent()
    arrays = find_directions(run, subject, settings, progress)
    if arrays is None:
        return
    if not run.has_table("directions.belief"):
        _believe(run, subject, settings, arrays, progress)
    if "refusal" not in arrays:
        return
    margin = subject.margin
    assert margin is not None
    layer = int(run.table("directions.candidates").query("chosen")["layer"].iloc[0])
    stage(
        run,
        subject.chat,
        "directions.interventions",
        lambda: intervene(
            subject,
            subject.pick("report"),
            arms(subject.chat, arrays["refusal"], layer, settings),
            margin,
            settings,
            progress,
        ),
    )


def find_directions(
    run: Run, subject: Subject, settings: DirectionsSettings, progress: Progress | None = None
) -> dict[str, Tensor] | None:
    """The candidates, their scores and the choice, written to the run; the arrays of `directions`.

    `candidates` is [anchors, layers, d_model]; `refusal` and `refusal_unit` [d_model] are there where a
    candidate was chosen. None, with a warning, where the model gives nothing to fit on (too few refusals or
    too few answers).
    """
    groups = _fit_groups(run, subject, settings)
    if groups is None:
        return None
    margin = subject.margin
    assert margin is not None
    if "directions" not in run.arrays() or not run.has_table("directions.candidates"):
        _find(run, subject, settings, groups, margin, progress or Silent())
    if not run.table("directions.candidates")["chosen"].any():
        run.warn(
            "No candidate passed the filters, so no refusal direction was chosen; see the candidates "
            "table for which filter dropped which, and relax max_kl, min_induce or depth_cut with care."
        )
    return {name: torch.as_tensor(value) for name, value in run.array("directions").items()}


def _fit_groups(
    run: Run, subject: Subject, settings: DirectionsSettings
) -> dict[str, list[int]] | None:
    """Prompts to fit and select on, whose reply (or score) agrees with their label."""
    if subject.margin is None:
        run.warn("The directions study was left out: refusals and replies could not be told apart.")
        return None
    if not run.has_table("directions.groups"):
        with spending(run, subject.chat):
            run.write_table("directions.groups", _draw_groups(subject, settings, subject.margin))
    table = run.table("directions.groups")
    groups: dict[str, list[int]] = {}
    for (split, label), part in table.groupby(["split", "label"], sort=False):
        found = part.loc[part["used"], "row"].tolist()
        groups[f"{split}/{label}"] = found
        if len(found) < ENOUGH:
            what = "refuses" if label == "harmful" else "answers"
            run.warn(
                f"The directions study was left out: the model {what} only {len(found)} {label} "
                f"prompts of the {split} split, {ENOUGH} are needed; give more prompts."
            )
            return None
        spare = int(part["agrees"].sum()) - len(found)
        if spare:
            run.warn(
                f"{spare} {label} prompts of the {split} split were not drawn: "
                f"n_{split} takes {len(found)} at most."
            )
    return groups


def _draw_groups(
    subject: Subject, settings: DirectionsSettings, margin: RefusalMargin
) -> pd.DataFrame:
    """One row a fit or select prompt: whether reply or score agrees with the label, whether it is used."""
    rng = np.random.default_rng(settings.seed)
    frames = []
    for split, most in (("fit", settings.n_fit), ("select", settings.n_select)):
        for label, refuses, sign in (("harmful", True, 1), ("harmless", False, -1)):
            rows = np.array(subject.pick(split, label), dtype=int)
            if settings.fit_filter == "score":
                metric = {"score": _score(margin, settings)}
                found = subject.chat.measure(subject.take(rows.tolist()), [()], metric)
                agrees = sign * found.scores["score"][:, 0] > 0
            else:
                agrees = _agrees(subject.table.iloc[rows], refuses)
            drawn = rng.permutation(np.flatnonzero(agrees))[:most]
            used = np.isin(np.arange(len(rows)), drawn)
            frames.append(
                pd.DataFrame(
                    {
                        "row": rows,
                        "id": [subject.prompts[i].id for i in rows],
                        "split": split,
                        "label": label,
                        "agrees": agrees,
                        "used": used,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def _agrees(table: pd.DataFrame, refuses: bool) -> npt.NDArray[np.bool_]:
    """Replies that refused, fully or in part; or that answered, which a degenerate one did not."""
    found = table["refused"] if refuses else table["verdict"] == "compliance"
    return found.to_numpy(dtype=bool)


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
    if settings.anchors == "last":
        anchors = anchors[-1:]
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
    table, said = _choose(scores, anchors, n_layers, settings)
    if said is not None:
        run.warn(
            f"No candidate passed the published filters; the direction was chosen with a looser rule "
            f"that lets go of {said}."
        )
    means = _means(states, [*anchors, *ends])
    at = [[*anchors, *ends].index(name) for name in ENDS]
    arrays = {
        "candidates": candidates,
        "harmfulness": means.v_harm,
        "refuse_direction": means.v_refuse,
        "mean_harm": means.harm,
        "mean_harmless": means.harmless,
        "mean_refuse": means.refuse,
        "mean_accept": means.accept,
        "mean_harm_last_word": states["harmful"][:, at[2]].double().mean(0).float(),
        "mean_harmless_last_word": states["harmless"][:, at[2]].double().mean(0).float(),
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
    at = [anchors.index(name) for name in ENDS[:2]]
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
) -> tuple[pd.DataFrame, str | None]:
    """The candidates with the chosen one marked, and what a looser rule let go of, if one was needed."""
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

    def shares(used: Rule) -> npt.NDArray[np.float64]:
        return stability(
            by_prompt["bypass"],
            by_prompt["induce"],
            by_prompt["kl"],
            table["layer"].to_numpy(float),
            n_layers,
            used,
            settings.n_bootstrap,
            settings.seed,
        )

    if settings.selection == "bootstrap_stable":
        found = select_stable(table, shares(rule), n_layers, rule)
    else:
        found = select(table, n_layers, rule).assign(stability=shares(rule))
    if found["chosen"].any() or not settings.relax:
        return found, None
    relaxed = select_relaxed(found, n_layers, rule)
    if relaxed is None:
        return found, None
    return relaxed.table.assign(stability=shares(relaxed.rule)), relaxed.let_go


def _believe(
    run: Run,
    subject: Subject,
    settings: DirectionsSettings,
    arrays: dict[str, Tensor],
    progress: Progress,
) -> None:
    """Belief of every prompt by the fit split's centroids, and what shortcuts do on the same prompts."""
    chat = subject.chat
    means = Centroids(
        *(arrays[f"mean_{name}"] for name in ("harm", "harmless", "refuse", "accept"))
    )
    word = (arrays["mean_harm_last_word"], arrays["mean_harmless_last_word"])
    rows = belief_rows(settings.belief_rows, chat.anatomy.n_layers)
    track = progress.track("belief of all prompts")
    frames, at_word = [], []
    fit, report = subject.pick("fit"), subject.pick("report")
    with spending(run, chat):
        for start in range(0, len(subject.rendered), AT_ONCE):
            part = subject.rendered[start : start + AT_ONCE]
            states = stack(chat, part, ENDS, "belief")
            frames.append(belief_scores(states[:, 0], states[:, 1], means, rows))
            at_word.append(profile(states[:, 2][:, rows], word[0][rows], word[1][rows]).mean(-1))
            track(min(start + AT_ONCE, len(subject.rendered)), len(subject.rendered))
        marked = _other_marks(subject, report, means, rows)
    info = subject.table[["id", "label", "category", "split", "refused"]].reset_index(drop=True)
    table = pd.concat([info, pd.concat(frames, ignore_index=True)], axis=1)
    beliefs = {
        "belief (delta_harmful)": table["delta_harmful"].to_numpy()[report],
        "belief at the last word": torch.cat(at_word).numpy().astype(float)[report],
        **{f"belief, prompts {MARKS[mark]}": scores for mark, scores in marked.items()},
    }
    baselines = shortcuts(
        [subject.prompts[i].text for i in fit],
        subject.harmful(fit).tolist(),
        [subject.prompts[i].text for i in report],
        subject.harmful(report).tolist(),
        beliefs,
        settings.seed,
    )
    run.write_table("directions.shortcuts", baselines)
    run.write_table("directions.belief", table)


def _other_marks(
    subject: Subject, report: list[int], means: Centroids, rows: list[int]
) -> dict[str, npt.NDArray[np.float64]]:
    """delta_harmful of the report prompts with another final mark (harmfulness_and_refusal 7, b)."""
    found: dict[str, list[npt.NDArray[np.float64]]] = {mark: [] for mark in MARKS}
    for start in range(0, len(report), AT_ONCE):
        prompts = [subject.prompts[i] for i in report[start : start + AT_ONCE]]
        for mark in MARKS:
            changed = [replace(p, text=punctuation_variants(p.text)[mark]) for p in prompts]
            states = stack(subject.chat, subject.chat.render(changed), ENDS[:1], mark)
            scores = profile(states[:, 0][:, rows], means.harm[rows], means.harmless[rows]).mean(-1)
            found[mark].append(scores.numpy().astype(float))
    return {mark: np.concatenate(parts) for mark, parts in found.items()}
