"""How well a guard does on labelled prompts: tables of a run, from scores alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import average_precision_score, roc_curve

from refusalscope.guard.operating import OperatingPoint
from refusalscope.guard.readings import Belief
from refusalscope.prompts import Prompt, final_character_class
from refusalscope.stats import auroc, clopper_pearson
from refusalscope.stats.bootstrap import bootstrap_bounds
from refusalscope.stats.calibration import brier, ece

Array = npt.NDArray[np.float64]
RATES = (0.001, 0.01, 0.05)


def score_table(prompts: Sequence[Prompt], beliefs: Sequence[Belief], split: str) -> pd.DataFrame:
    """One row a prompt, no text: labels, scores of both axes and of the rows, flag, kinds of the last marks.

    split: "report" for prompts kept from the fit and from calibration, "scored" where that is not known.
    """
    names = ("delta_harmful", "delta_refuse", "quadrant", "p_harmful", "p_low", "p_high")
    return pd.DataFrame(
        [
            {
                "id": prompt.id,
                "label": prompt.label,
                "category": prompt.category,
                "source": prompt.source,
                "split": split,
                **{name: getattr(belief, name) for name in names},
                "flagged": belief.flagged,
                "abstain": belief.abstain,
                "final_mark": final_character_class(prompt.text),
                "t_inst_class": final_character_class(belief.t_inst_token),
                "per_layer": list(belief.per_layer),
                **{f"category/{name}": value for name, value in belief.per_category.items()},
            }
            for prompt, belief in zip(prompts, beliefs, strict=True)
        ]
    )


def metrics_table(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """AUROC, AUPRC, recall at fixed false-positive rates, Brier score and calibration error.

    scores: rows of both labels (`score_table`). A recall at a rate that the harmless rows are too few to show
    (fewer than 1 / rate) is left out. ece has no interval, nor auprc with one row of a label.
    """
    harmful = (scores["label"] == "harmful").to_numpy()
    values = scores["delta_harmful"].to_numpy(dtype=float)
    area = auroc(harmful, values, seed=seed)
    found: list[dict[str, object]] = [_metric("auroc", area.value, area.low, area.high, area.n)]
    low, high = np.nan, np.nan
    # A class of one row cannot be resampled.
    if min(harmful.sum(), (~harmful).sum()) > 1:
        low, high = bootstrap_bounds(
            (values[harmful], values[~harmful]),
            _average_precision,
            paired=False,
            method="percentile",
            n_resamples=500,
            level=0.95,
            seed=seed,
        )
    found.append(_metric("auprc", average_precision_score(harmful, values), low, high, len(values)))
    for rate in RATES:
        if (~harmful).sum() * rate >= 1:
            tau = np.sort(values[~harmful])[::-1][int((~harmful).sum() * rate)]
            recall = clopper_pearson(int((values[harmful] > tau).sum()), int(harmful.sum()))
            name = f"recall at FPR {100 * rate:g} %"
            found.append(_metric(name, recall.value, recall.low, recall.high, recall.n))
    p = pd.to_numeric(scores["p_harmful"]).to_numpy(dtype=float)
    if np.isfinite(p).all():
        error = brier(p, harmful, seed=seed)
        found.append(_metric("brier", error.value, error.low, error.high, error.n))
        found.append(_metric("ece", ece(p, harmful), np.nan, np.nan, len(p)))
    return pd.DataFrame(found)


def roc_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The ROC curve: fpr, tpr, threshold (flagged above it)."""
    harmful = scores["label"] == "harmful"
    fpr, tpr, thresholds = roc_curve(harmful, scores["delta_harmful"])
    return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": thresholds})


def layers_table(scores: pd.DataFrame, rows: Sequence[int], seed: int) -> pd.DataFrame:
    """AUROC of each row's own score."""
    harmful = (scores["label"] == "harmful").to_numpy()
    profile = np.stack(scores["per_layer"].tolist())
    areas = [auroc(harmful, profile[:, i], n_resamples=500, seed=seed) for i in range(len(rows))]
    return pd.DataFrame(
        [
            {"row": row, "auroc": area.value, "low": area.low, "high": area.high}
            for row, area in zip(rows, areas, strict=True)
        ]
    )


def points_table(points: Sequence[OperatingPoint], scores: pd.DataFrame) -> pd.DataFrame:
    """False-positive rate and recall of each operating point, at calibration and on these prompts.

    The column set names either: "calibration", or the split of the scores.
    """
    split = scores["split"].iloc[0]
    found = []
    for point in points:
        seen = {(rate.label, rate.source): rate for rate in point.rates}
        caught = seen.get(("harmful", "all"))
        row = {
            "name": point.name,
            "alpha": point.alpha,
            "rule": point.rule,
            "confidence": point.confidence,
            "promise": point.promise,
            "tau": point.tau,
        }
        found.append(
            {
                **row,
                "set": "calibration",
                "n_harmless": point.n,
                "fpr": point.fpr,
                "fpr_low": point.fpr_low,
                "fpr_high": point.fpr_high,
                "n_harmful": caught.n if caught else 0,
                "tpr": caught.rate if caught else np.nan,
                "tpr_low": caught.low if caught else np.nan,
                "tpr_high": caught.high if caught else np.nan,
            }
        )
        new: dict[str, object] = {**row, "set": split}
        for label, name in (("harmless", "fpr"), ("harmful", "tpr")):
            values = scores.loc[scores["label"] == label, "delta_harmful"]
            rate = clopper_pearson(int((values > point.tau).sum()), len(values))
            new |= {
                f"n_{label}": rate.n,
                name: rate.value,
                f"{name}_low": rate.low,
                f"{name}_high": rate.high,
            }
        found.append(new)
    return pd.DataFrame(found)


def rates_table(points: Sequence[OperatingPoint], scores: pd.DataFrame) -> pd.DataFrame:
    """Share flagged by operating point, label, and source or category, with exact intervals."""
    found = []
    for point in points:
        flagged = scores["delta_harmful"] > point.tau
        for kind in ("source", "category"):
            keys = [scores["label"], scores[kind].fillna("none")]
            for (label, name), part in flagged.groupby(keys, sort=True):
                rate = clopper_pearson(int(part.sum()), len(part))
                found.append(
                    {
                        "point": point.name,
                        "label": label,
                        "kind": kind,
                        "name": name,
                        "n": rate.n,
                        "flagged": int(part.sum()),
                        "rate": rate.value,
                        "low": rate.low,
                        "high": rate.high,
                    }
                )
    return pd.DataFrame(found)


def _metric(name: str, value: float, low: float, high: float, n: int) -> dict[str, object]:
    return {"name": name, "value": float(value), "low": float(low), "high": float(high), "n": n}


def _average_precision(positive: Array, negative: Array, axis: int) -> Array:
    both = np.concatenate([positive, negative], axis=axis)
    label = np.arange(both.shape[axis]) < positive.shape[axis]
    return np.apply_along_axis(lambda scores: average_precision_score(label, scores), axis, both)
