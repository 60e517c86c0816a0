"""Other guards beside this one at the same false-positive rate, ties and all."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from refusalscope.errors import InputError
from refusalscope.guard.against import against_table, read_scores
from refusalscope.guard.same_rate import matched_flags
from refusalscope.stats import clopper_pearson, fdr_bh

N = 48
POINT = SimpleNamespace(name="fpr=0.05", alpha=0.05, tau=0.0)


def own(flagged_harmful: int, flagged_harmless: int) -> pd.DataFrame:
    """N prompts of each label, of which this guard flags so many."""
    rows = [
        {
            "id": f"{label}-{i}",
            "label": label,
            "delta_harmful": 1.0 + i if i < flagged else -1.0 - i,
        }
        for label, flagged in (("harmful", flagged_harmful), ("harmless", flagged_harmless))
        for i in range(N)
    ]
    return pd.DataFrame(rows)


def named(scores: pd.DataFrame, values: object, name: str = "other") -> pd.DataFrame:
    return pd.DataFrame({"id": scores["id"], "score": values, "guard": name})


def hard(scores: pd.DataFrame, harmful: int, harmless: int) -> pd.DataFrame:
    """A guard that says 1 of so many prompts, the last of each label, and 0 of the rest."""
    ones = {"harmful": harmful, "harmless": harmless}
    place = scores.groupby("label").cumcount()
    return named(scores, (place >= N - scores["label"].map(ones)).astype(float))


def test_another_guard_is_compared_at_the_same_false_positives():
    scores = own(40, 20)
    harmful = scores["label"] == "harmful"
    rng = np.random.default_rng(0)
    knows = harmful + rng.normal(0, 0.01, len(scores))
    others = pd.concat(
        [named(scores, knows, "perfect"), named(scores, scores["delta_harmful"], "same")]
    )
    found = against_table([POINT], scores, others, 0).set_index("guard")
    assert found.loc["perfect", "tpr"] == 1
    assert found.loc["same", "difference"] == 0
    assert found["fpr"].tolist() == found["other_fpr"].tolist() == [20 / N] * 2
    assert found.loc["perfect", "difference"] == pytest.approx(40 / N - 1)
    assert found.loc["perfect", "difference_high"] < 0
    exact = clopper_pearson(N, N)
    assert found.loc["perfect", ["low", "high"]].tolist() == [exact.low, exact.high]
    with pytest.raises(InputError, match="of the harmless prompts"):
        against_table([POINT], scores, others[others["id"].isin(scores["id"][:N])], 0)


def test_a_guard_of_hard_labels_is_interpolated_as_its_roc_curve():
    """It says 1 of 36 harmful and 8 harmless prompts; at 4 false alarms half of these are left, at 16 more."""
    for allowed, expected in ((4, 36 * 4 / 8), (8, 36), (16, 36 + 12 * 8 / 40), (0, 0)):
        scores = own(30, allowed)
        other = hard(scores, 36, 8)
        row = against_table([POINT], scores, other, 0).iloc[0]
        harmful = scores["label"] == "harmful"
        curve = roc_curve(harmful, other["score"], drop_intermediate=False)
        assert row["tpr"] == pytest.approx(np.interp(allowed / N, *curve[:2]))
        assert row["tpr"] == pytest.approx(expected / N)
        assert row["fpr"] == allowed / N
        assert row["other_fpr"] == {4: 0, 8: 8, 16: 8, 0: 0}[allowed] / N
        assert row["difference"] == pytest.approx(30 / N - row["tpr"])
        bounds = (
            clopper_pearson(int(expected), N).low,
            clopper_pearson(-int(-expected // 1), N).high,
        )
        assert (row["low"], row["high"]) == bounds
        assert row["difference_low"] < row["difference"] < row["difference_high"]


def test_a_guard_that_says_the_same_of_all_prompts_is_guessing():
    scores = own(40, 12)
    row = against_table([POINT], scores, named(scores, 1.0), 0).iloc[0]
    assert (row["tpr"], row["other_fpr"]) == (12 / N, 0)
    exact = clopper_pearson(12, N)
    assert (row["low"], row["high"]) == (exact.low, exact.high)


def test_the_chances_flag_as_many_harmless_prompts_as_allowed_on_average():
    rng = np.random.default_rng(1)
    values, harmless = rng.integers(0, 4, 60).astype(float), rng.random(60) < 0.5
    for allowed in range(int(harmless.sum()) + 1):
        chances, alone = matched_flags(values, harmless, allowed)
        assert chances[harmless].sum() == pytest.approx(allowed)
        assert alone <= allowed
        assert (np.diff(chances[np.argsort(values, kind="stable")]) >= 0).all()


def test_p_is_corrected_over_guards_and_points():
    scores = own(36, 6)
    rng = np.random.default_rng(2)
    noise = [
        named(scores, scores["delta_harmful"] + rng.normal(0, 30, 2 * N), name) for name in "abc"
    ]
    points = [POINT, SimpleNamespace(name="fpr=0.01", alpha=0.01, tau=3.0)]
    table = against_table(points, scores, pd.concat(noise), 0)
    assert len(table) == 6
    assert table["p_adjusted"].tolist() == fdr_bh(table["p"]).tolist()
    assert (table["p_adjusted"] > table["p"]).any()
    assert against_table([], scores, pd.concat(noise), 0).empty


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
