"""Tables of a guard's run, from scores alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from guard.fitted import calibrated, sides
from refusalscope.guard.evaluate import (
    layers_table,
    metrics_table,
    points_table,
    rates_table,
    roc_table,
    score_table,
)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    report = [
        replace(prompt, source=f"s{i % 2}")
        for side in sides()["report"]
        for i, prompt in enumerate(side)
    ]
    return score_table(report, calibrated().beliefs(report), "report")


def test_a_score_table_has_no_text(scores):
    words = {prompt.text for side in sides()["report"] for prompt in side}
    assert not words & {str(value) for value in scores.to_numpy().ravel()}
    assert scores["label"].value_counts().to_dict() == {"harmful": 48, "harmless": 48}


def test_metrics_are_scikit_learns(scores):
    found = metrics_table(scores, 0).set_index("name")
    harmful, values = scores["label"] == "harmful", scores["delta_harmful"]
    assert found.loc["auroc", "value"] == pytest.approx(roc_auc_score(harmful, values))
    assert found.loc["auprc", "value"] == pytest.approx(average_precision_score(harmful, values))
    assert found.loc["auprc", "low"] < found.loc["auprc", "value"] < found.loc["auprc", "high"]
    # 48 harmless prompts cannot show a rate of 1 %.
    assert [name for name in found.index if name.startswith("recall")] == ["recall at FPR 5 %"]
    tau = np.sort(values[~harmful])[::-1][2]
    assert found.loc["recall at FPR 5 %", "value"] == (values[harmful] > tau).mean()
    assert found.loc["brier", "value"] == pytest.approx(
        ((scores["p_harmful"] - harmful) ** 2).mean()
    )


def test_the_curve_and_the_rows(scores):
    curve = roc_table(scores)
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    harmful = (scores["label"] == "harmful").to_numpy()
    assert area == pytest.approx(roc_auc_score(harmful, scores["delta_harmful"]))
    rows = calibrated().rows_
    layers = layers_table(scores, rows, 0)
    first = np.array([profile[0] for profile in scores["per_layer"]])
    assert layers["row"].tolist() == rows
    assert layers["auroc"][0] == pytest.approx(roc_auc_score(harmful, first))


def test_points_and_rates_count_what_lies_above_the_threshold(scores):
    points = calibrated().calibration_.points
    table = points_table(points, scores).set_index("set")
    harmless = scores[scores["label"] == "harmless"]
    assert table.loc["report", "fpr"] == (harmless["delta_harmful"] > points[0].tau).mean()
    assert table.loc["calibration", "n_harmless"] == table.loc["calibration", "n_harmful"] == 64
    rates = rates_table(points, scores).set_index(["kind", "label", "name"])
    part = harmless[harmless["source"] == "s1"]
    row = rates.loc[("source", "harmless", "s1")]
    assert (row["n"], row["flagged"]) == (len(part), (part["delta_harmful"] > points[0].tau).sum())
    assert row["low"] <= row["rate"] <= row["high"]
    assert rates.loc["category"]["n"].sum() == len(scores)


def test_points_name_the_prompts_that_their_scores_are_of(scores):
    points = calibrated().calibration_.points
    assert set(points_table(points, scores)["set"]) == {"calibration", "report"}
    table = points_table(points, scores.assign(split="scored"))
    assert set(table["set"]) == {"calibration", "scored"}
