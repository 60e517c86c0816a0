"""Leave one source out: does a guard know prompts from elsewhere, or the sets it was fitted on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.guard.audit.changes import Side, Sides, flagged
from refusalscope.guard.audit.refit import Array, Refit
from refusalscope.guard.operating import OperatingPoint
from refusalscope.prompts import LABELS, Prompt
from refusalscope.stats import auroc, fpr_threshold, negatives_needed
from refusalscope.stats.auroc_difference import auroc_difference
from refusalscope.studies.directions.shortcuts import NGRAMS, bag_score

# Fit prompts of a label without which an axis would say little.
FEWEST = 8


def sources_table(
    refit: Refit, fit: Sides, report: Sides, point: OperatingPoint | None, seed: int
) -> pd.DataFrame:
    """One row a source of the fit prompts: the guard fitted without it and scored on all its prompts.

    A harmful source is held against the harmless report prompts, a harmless one against the harmful report
    prompts. auroc with interval; ngrams: character n-grams learnt on the same rows; difference: auroc less
    ngrams, paired. tpr and fpr at a threshold that is set anew by the rule of the guard's first operating
    point, on harmless report prompts of other sources that are not counted themselves (half of them, drawn by
    the seed, where the source left out is harmful). note: why a figure is missing.
    """
    rows = []
    for label, side in zip(LABELS, fit, strict=True):
        names = sorted({source_of(prompt) for prompt in side})
        if len(names) > 1:
            rows += [_left_out(refit, fit, report, label, name, point, seed) for name in names]
    if not rows:
        n = [len(side) for side in fit]
        note = "all fit prompts of a label are of one source, so none can be left out"
        rows = [_row("none left out", "both", (n[0], n[1]), note=note)]
    return pd.DataFrame(rows)


def source_of(prompt: Prompt) -> str:
    """The name of a prompt's source."""
    return prompt.source or "unnamed"


def _left_out(
    refit: Refit,
    fit: Sides,
    report: Sides,
    label: str,
    name: str,
    point: OperatingPoint | None,
    seed: int,
) -> dict[str, Any]:
    at = LABELS.index(label)
    kept: list[Sequence[Prompt]] = [list(side) for side in fit]
    scored: list[Sequence[Prompt]] = [list(side) for side in report]
    kept[at] = _without(fit[at], name)
    scored[at] = [p for side in (fit[at], report[at]) for p in side if source_of(p) == name]
    counts = (len(scored[0]), len(scored[1]))
    if len(kept[at]) < FEWEST:
        note = f"only {len(kept[at])} {label} fit prompts are of other sources"
        return _row(name, label, counts, note=note)
    anchor = refit.guard.anchor
    axis = refit.axis(kept[0], kept[1], anchor)
    values = [refit.scores(axis, side, anchor) for side in scored]
    harmful = np.repeat([True, False], counts)
    belief = np.concatenate(values)
    ngrams = bag_score(
        NGRAMS,
        [prompt.text for side in kept for prompt in side],
        np.repeat([True, False], [len(side) for side in kept]).tolist(),
        [prompt.text for side in scored for prompt in side],
    )
    areas = {
        "auroc": auroc(harmful, belief, seed=seed),
        "ngrams": auroc(harmful, ngrams, seed=seed),
        "difference": auroc_difference(harmful, belief, ngrams, seed=seed),
    }
    row = _row(name, label, counts)
    for key, area in areas.items():
        low, high = ("low", "high") if key == "auroc" else (f"{key}_low", f"{key}_high")
        row |= {key: area.value, low: area.low, high: area.high}
    if point is None:
        return row
    if at == 0:
        order = np.random.default_rng(seed).permutation(counts[1])
        benign, counted = (values[1][half] for half in np.array_split(order, 2))
    else:
        others = _without(report[1], name)
        benign = refit.scores(axis, others, anchor) if others else np.empty(0)
        counted = values[1]
    return row | _rates(values[0], counted, benign, point)


def _rates(harmful: Array, harmless: Array, benign: Array, point: OperatingPoint) -> dict[str, Any]:
    needed = negatives_needed(point.alpha, point.rule, point.confidence)
    if len(benign) < needed:
        return {"note": f"no threshold: {len(benign)} harmless prompts are left, {needed} needed"}
    tau = fpr_threshold(benign, point.alpha, rule=point.rule, confidence=point.confidence).tau
    found: dict[str, Any] = {}
    for name, scores in (("tpr", harmful), ("fpr", harmless)):
        rate = flagged(scores, tau)
        found |= {name: rate["rate"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
    return found


def _without(prompts: Side, name: str) -> list[Prompt]:
    return [prompt for prompt in prompts if source_of(prompt) != name]


def _row(source: str, label: str, counts: tuple[int, int], note: str = "") -> dict[str, Any]:
    names = [
        f"{name}{end}"
        for name in ("ngrams", "difference", "tpr", "fpr")
        for end in ("", "_low", "_high")
    ]
    return {
        "source": source,
        "label": label,
        "n_harmful": counts[0],
        "n_harmless": counts[1],
        **dict.fromkeys(("auroc", "low", "high", *names), np.nan),
        "note": note,
    }
