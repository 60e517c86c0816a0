"""A log against calibration: what moved is named, what did not is steady, whatever the size of the log."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from refusalscope.errors import InputError
from refusalscope.guard.drift import COLUMNS, MIN_ROWS, decile_counts, drift, psi

LAYERS = 4


def beliefs(n, seed, shift=0.0, layer=None, bare=0.15, rate=0.03):
    """Fields of `Belief` of n prompts; `shift` moves delta_harmful and, if given, one layer."""
    rng = np.random.default_rng(seed)
    per_layer = rng.normal(0, 0.1, (n, LAYERS))
    if layer is not None:
        per_layer[:, layer] += shift
    mark = np.where(rng.random(n) < bare, "none", rng.choice(["period", "question"], n))
    return pd.DataFrame(
        {
            "delta_harmful": rng.normal(0 if layer is not None else shift, 0.1, n),
            "delta_refuse": rng.normal(0, 0.2, n),
            "per_layer": [tuple(row) for row in per_layer.tolist()],
            "t_inst_class": mark,
            "flagged": rng.random(n) < rate,
        }
    )


def verdicts(frame) -> dict[str, str]:
    return {row.measure: row.verdict for row in frame.itertuples()}


REFERENCE = beliefs(800, seed=0)


def test_a_log_of_the_same_kind_is_steady():
    found = drift(REFERENCE, beliefs(500, seed=1), 0.05)
    assert tuple(found.columns) == COLUMNS
    assert found["measure"].tolist() == [
        *("delta_harmful", "delta_refuse", *(f"per_layer {i}" for i in range(LAYERS))),
        *("last token class", "flag rate"),
    ]
    assert set(found["verdict"]) == {"steady"}
    assert set(found["n_reference"]) == {800}
    assert set(found["n_log"]) == {500}


def test_false_alarms_are_rare_in_short_logs():
    alarms = 0
    for seed in range(60):
        found = drift(
            beliefs(MIN_ROWS["reference"], 1000 + seed),
            beliefs(MIN_ROWS["log"], 2000 + seed, rate=0.05),
            0.05,
        )
        alarms += (found["verdict"] != "steady").any()
    assert alarms <= binom.ppf(0.999, 60, 0.05)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_moved_score_is_named_with_its_sign(sign):
    found = drift(REFERENCE, beliefs(500, seed=2, shift=0.08 * sign), 0.05)
    said = verdicts(found)
    words = said.pop("delta_harmful")
    assert words.startswith(f"drifted: mean moved by {'+' if sign > 0 else '-'}0.0")
    assert set(said.values()) == {"steady"}
    row = found.iloc[0]
    assert row["low"] < 0.08 * sign < row["high"]
    assert row["low"] < row["shift"] < row["high"]
    assert row["low"] * row["high"] > 0


def test_a_moved_layer_is_named():
    said = verdicts(drift(REFERENCE, beliefs(500, seed=3, shift=0.1, layer=2), 0.05))
    assert said.pop("per_layer 2").startswith("drifted: ")
    assert set(said.values()) == {"steady"}


def test_a_wider_score_with_the_same_mean_is_named():
    log = beliefs(500, seed=4)
    log["delta_refuse"] *= 2
    assert verdicts(drift(REFERENCE, log, 0.05))["delta_refuse"].startswith("drifted: ")


def test_other_final_marks_are_named():
    said = verdicts(drift(REFERENCE, beliefs(500, seed=5, bare=0.8), 0.05))
    words = said.pop("last token class")
    assert words.startswith("drifted: final mark 'none' on 8")
    assert "1" in words.split("prompts, ")[1].split(" at")[0]
    assert set(said.values()) == {"steady"}
    watched = verdicts(drift(REFERENCE, beliefs(1000, seed=5, bare=0.31), 0.05))
    assert watched["last token class"].startswith("watch: ")


def test_flags_beyond_the_promise_are_named_and_fewer_are_not():
    log = beliefs(1000, seed=6)
    for flagged, verdict in (
        (0, "steady"),
        (50, "steady"),
        (60, "steady"),
        (72, "watch"),
        (90, "drifted"),
    ):
        log["flagged"] = np.arange(1000) < flagged
        row = drift(REFERENCE, log, 0.05).iloc[-1]
        assert row["verdict"].startswith(verdict), (flagged, row["verdict"])
        assert row["statistic"] == flagged / 1000
        assert row["shift"] == pytest.approx(flagged / 1000 - 0.05)
    assert row["verdict"] == "drifted: 9 % flagged, promised at most 5 % (control limit 6.2 %)"
    exceeded = [c for c in range(1001) if binom.sf(c, 1000, 0.05) <= 0.05]
    assert row["limit"] == exceeded[0] / 1000
    assert row["p"] == pytest.approx(binom.sf(89, 1000, 0.05))


def test_a_long_log_is_not_alarmed_by_trivia():
    """A hundredth of a deviation or so is certain in 100,000 rows, and matters to nobody."""
    log = beliefs(100_000, seed=7, shift=0.01, bare=0.17, rate=0.054)
    found = drift(beliefs(20_000, seed=8), log, 0.05).set_index("measure")
    for measure in ("delta_harmful", "last token class", "flag rate"):
        assert found.loc[measure, "p_adjusted"] < 0.001
        assert found.loc[measure, "verdict"] == "steady"


def test_p_values_are_corrected_for_their_number():
    found = drift(REFERENCE, beliefs(300, seed=9, shift=0.02), 0.05)
    p = found["p"].to_numpy()
    slow = [min(q * len(p) / sum(other <= q for other in p) for q in p if q >= mine) for mine in p]
    assert found["p_adjusted"].to_numpy() == pytest.approx(np.minimum(slow, 1))
    assert (found["p_adjusted"] > found["p"]).any()


numbers = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40)


@given(numbers, numbers)
@settings(deadline=None)
def test_bins_are_the_deciles_of_the_reference(reference, log):
    first, second = decile_counts(np.array(reference), np.array(log))
    ordered = sorted(reference)
    deciles = [
        next(x for x in ordered if 10 * sum(r <= x for r in ordered) >= i * len(ordered))
        for i in range(1, 10)
    ]
    edges = sorted({(d, 1) for d in deciles} | {(d, 0) for d in deciles if deciles.count(d) > 1})
    for values, counts in ((reference, first), (log, second)):
        # (d, 0) lies just below d: a value x is past it from x = d on.
        slow = [0] * (len(edges) + 1)
        for x in values:
            slow[bisect.bisect_left(edges, (x, 1))] += 1
        assert counts.tolist() == slow
    assert first.sum() == len(reference)


def test_the_index_is_the_printed_sum():
    before, now = [10, 20, 0, 70], [10, 10, 60, 120]
    slow = 0.0
    for a, b in zip(before, now, strict=True):
        p, q = (a / 100 + 0.005) / 1.02, (b / 200 + 0.005) / 1.02
        slow += (q - p) * math.log(q / p)
    assert psi(before, now) == pytest.approx(slow)
    assert psi(now, before) == pytest.approx(slow)
    assert psi(before, np.multiply(before, 1000)) == pytest.approx(0, abs=1e-12)


def test_the_statistic_is_the_largest_gap_of_the_distributions():
    log = beliefs(200, seed=10, shift=0.03)
    found = drift(REFERENCE, log, 0.05).set_index("measure").loc["delta_harmful", "statistic"]
    a, b = REFERENCE["delta_harmful"], log["delta_harmful"]
    assert found == pytest.approx(max(abs((a <= x).mean() - (b <= x).mean()) for x in [*a, *b]))


@pytest.mark.parametrize("moved", [-0.05, 0.05])
def test_a_constant_reference_sees_a_shift_to_either_side(moved):
    steady = REFERENCE.assign(delta_harmful=0.1)
    assert verdicts(drift(steady, steady, None))["delta_harmful"] == "steady"
    row = drift(steady, steady.assign(delta_harmful=0.1 + moved), None).iloc[0]
    assert row["verdict"].startswith("drifted: ")
    assert row["low"] == row["high"] == row["shift"] == pytest.approx(moved)


def test_what_was_not_kept_is_said_and_not_counted():
    log = beliefs(300, seed=11)[["delta_harmful", "delta_refuse"]]
    found = drift(REFERENCE.drop(columns="t_inst_class"), log, None)
    said = verdicts(found)
    assert said["per_layer"] == "not measured: per_layer was not kept in the log"
    assert said["last token class"] == (
        "not measured: t_inst_class was not kept in the reference and log"
    )
    assert said["flag rate"] == "not measured: no rate was promised"
    assert found["p"].notna().sum() == 2
    assert found["p_adjusted"].notna().sum() == 2


def test_one_class_of_last_tokens_is_no_drift():
    same = REFERENCE.assign(t_inst_class="none")
    assert verdicts(drift(same, same, None))["last token class"] == "steady"


def test_nothing_handed_in_is_changed_and_the_answer_repeats():
    reference, log = beliefs(200, seed=12), beliefs(200, seed=13, shift=0.1)
    before = reference.copy(deep=True), log.copy(deep=True)
    first = drift(reference, log, 0.05)
    pd.testing.assert_frame_equal(first, drift(reference, log, 0.05))
    pd.testing.assert_frame_equal(reference, before[0])
    pd.testing.assert_frame_equal(log, before[1])
    lists = log.assign(per_layer=[np.array(row) for row in log["per_layer"]])
    pd.testing.assert_frame_equal(first, drift(reference, lists.iloc[::-1], 0.05))


def broken(**columns) -> pd.DataFrame:
    return beliefs(200, seed=14).assign(**columns)


@pytest.mark.parametrize(
    ("log", "promised", "message"),
    [
        (beliefs(99, 1), 0.05, "at least 100 rows in the log, got 99"),
        (beliefs(0, 1), 0.05, "at least 100 rows in the log, got 0"),
        (broken().drop(columns="delta_refuse"), 0.05, "the log has no column delta_refuse"),
        (broken(delta_harmful=[None] + [0.1] * 199), 0.05, "1 values that are not finite"),
        (broken(delta_harmful=["high"] * 200), 0.05, "200 values that are not finite"),
        (broken(per_layer=[(0.1, 0.2)] * 200), 0.05, "2 rows in the log and 4 in the reference"),
        (broken(per_layer=[(0.1,)] + [(0.1, 0.2)] * 199), 0.05, "the same length in every row"),
        (broken(per_layer=[None] * 200), 0.05, "the same length in every row"),
        (broken(flagged=[None] + [True] * 199), 0.05, "True or False in the column flagged"),
        (broken().drop(columns="flagged"), 0.05, "True or False in the column flagged"),
        (broken(), 0.0, "strictly between 0 and 1, got 0.0"),
        (broken(), 1.5, "strictly between 0 and 1, got 1.5"),
    ],
)
def test_a_log_that_cannot_be_judged_is_refused(log, promised, message):
    with pytest.raises(InputError, match=message):
        drift(REFERENCE, log, promised)


def test_a_short_reference_is_refused():
    with pytest.raises(InputError, match="at least 50 rows in the reference, got 40"):
        drift(REFERENCE.head(40), REFERENCE, None)
