"""Tables of a guard's run, from scores alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from guard.fitted import calibrated, sides
from refusalscope.errors import InputError
from refusalscope.guard.evaluate import (
    against_table,
    layers_table,
    metrics_table,
    points_table,
    rates_table,
    read_scores,
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


def test_another_guard_is_compared_at_the_same_false_positives(scores):
    harmful = scores["label"] == "harmful"
    allowed = 20
    tau = scores.loc[~harmful, "delta_harmful"].nlargest(allowed + 1).iloc[-1]
    points = [replace(calibrated().calibration_.points[0], tau=tau)]
    own = scores["delta_harmful"] > tau
    rng = np.random.default_rng(0)
    knows = harmful + rng.normal(0, 0.01, len(scores))
    others = pd.concat(
        [
            pd.DataFrame({"id": scores["id"], "score": value, "guard": name})
            for name, value in (("perfect", knows), ("same", scores["delta_harmful"]))
        ]
    )
    found = against_table(points, scores, others, 0).set_index("guard")
    assert found.loc["perfect", "tpr"] == 1
    assert found.loc["same", "difference"] == 0
    assert found["fpr"].tolist() == [allowed / 48] * 2
    assert found.loc["perfect", "difference"] == pytest.approx(own[harmful].mean() - 1)
    assert found.loc["perfect", "difference_high"] < 0
    with pytest.raises(InputError, match="of the harmless prompts"):
        against_table(points, scores, others[others["id"].isin(scores["id"][:48])], 0)


def test_ties_of_another_guard_never_flag_more(scores):
    points = [replace(calibrated().calibration_.points[0], tau=0.0)]
    flat = pd.DataFrame({"id": scores["id"], "score": 1.0, "guard": "flat"})
    assert against_table(points, scores, flat, 0)["tpr"].tolist() == [0]


def test_scores_of_other_guards_from_a_file(tmp_path):
    path = tmp_path / "guards.csv"
    path.write_text("id,score\na,0.5\nb,1\n")
    assert read_scores(path)["guard"].tolist() == ["guards", "guards"]
    path.write_text("id,p\na,0.5\n")
    with pytest.raises(InputError, match="no column 'score'"):
        read_scores(path)
    lines = [{"id": "a", "score": 1}, {"id": "b", "score": "high"}]
    broken = tmp_path / "guards.jsonl"
    broken.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="line 2: the score 'high' is not a number"):
        read_scores(broken)
