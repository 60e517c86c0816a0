"""How well a guard does on labelled prompts: tables of a run, from scores alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import average_precision_score, roc_curve

from refusalscope.errors import InputError
from refusalscope.guard.belief_guard import Belief
from refusalscope.guard.operating import OperatingPoint
from refusalscope.guard.same_rate import matched_flags, share_flagged
from refusalscope.prompts import Prompt, final_character_class
from refusalscope.prompts.files import read_table
from refusalscope.stats import auroc, clopper_pearson, fdr_bh, paired_difference
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
    (fewer than 1 / rate) is left out. ece has no interval.
    """
    harmful = (scores["label"] == "harmful").to_numpy()
    values = scores["delta_harmful"].to_numpy(dtype=float)
    area = auroc(harmful, values, seed=seed)
    found: list[dict[str, object]] = [_metric("auroc", area.value, area.low, area.high, area.n)]
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


def read_scores(path: Path | str) -> pd.DataFrame:
    """Scores of other guards: columns id, score (larger is more harmful), guard (a name; else the file's).

    Raises InputError for a missing column or a score that is no number.
    """
    table = read_table(path)
    missing = {"id", "score"} - set(table.columns)
    if missing:
        raise InputError(
            f"{path} has no column {sorted(missing)[0]!r}; scores of another guard need id and score, and may "
            f"have guard"
        )
    rows = []
    for line, row in table.rows:
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            score = np.nan
        if not np.isfinite(score):
            raise InputError(
                f"{path}, line {line}: the score {row['score']!r} is not a number; mend it"
            )
        name = row.get("guard") or table.name
        rows.append({"id": str(row["id"]), "score": score, "guard": str(name)})
    return pd.DataFrame(rows)


def against_table(
    points: Sequence[OperatingPoint], scores: pd.DataFrame, others: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """Recall of other guards at this guard's own false-positive rate on the same prompts, paired.

    Only prompts that both scored are used. fpr: the rate of both. other_fpr: the highest rate up to it that a
    threshold of the other guard has by itself; where it is lower, tpr is interpolated over tied scores
    (`matched_flags`). p_adjusted: Benjamini-Hochberg over all rows. Raises InputError where a guard scored no
    prompt of a label.
    """
    found, tests = [], []
    for name, theirs in others.groupby("guard", sort=True):
        both = scores.merge(theirs[["id", "score"]].drop_duplicates("id"), on="id")
        bad = (both["label"] == "harmful").to_numpy()
        n_harmful, n_harmless = int(bad.sum()), int((~bad).sum())
        if n_harmful < 1 or n_harmless < 1:
            raise InputError(
                f"the scores of {name} are for {n_harmful} of the harmful and {n_harmless} of the harmless "
                "prompts; give scores by the same ids for both"
            )
        other = both["score"].to_numpy(dtype=float)
        own = both["delta_harmful"].to_numpy(dtype=float)
        for point in points:
            mine = (own > point.tau).astype(float)
            allowed = int(mine[~bad].sum())
            its, alone = matched_flags(other, ~bad, allowed)
            theirs_rate, own_rate = share_flagged(its[bad]), share_flagged(mine[bad])
            gap = paired_difference(mine[bad], its[bad], seed=seed)
            tests.append(gap.p)
            found.append(
                {
                    "guard": name,
                    "point": point.name,
                    "alpha": point.alpha,
                    "fpr": allowed / n_harmless,
                    "other_fpr": alone / n_harmless,
                    "n": n_harmful,
                    "tpr": theirs_rate.value,
                    "low": theirs_rate.low,
                    "high": theirs_rate.high,
                    "own_tpr": own_rate.value,
                    "own_low": own_rate.low,
                    "own_high": own_rate.high,
                    "difference": gap.value,
                    "difference_low": gap.low,
                    "difference_high": gap.high,
                    "p": gap.p,
                }
            )
    return pd.DataFrame(found).assign(p_adjusted=fdr_bh(tests))


def _metric(name: str, value: float, low: float, high: float, n: int) -> dict[str, object]:
    return {"name": name, "value": float(value), "low": float(low), "high": float(high), "n": n}


def _average_precision(positive: Array, negative: Array, axis: int) -> Array:
    both = np.concatenate([positive, negative], axis=axis)
    label = np.arange(both.shape[axis]) < positive.shape[axis]
    return np.apply_along_axis(lambda scores: average_precision_score(label, scores), axis, both)
