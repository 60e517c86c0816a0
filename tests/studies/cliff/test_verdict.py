"""The verdict on organisms of known behaviour, and on tables made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusalscope.errors import InputError
from refusalscope.stats import Interval
from refusalscope.studies.cliff import (
    cases_of,
    drop_contrast,
    fit_published,
    judge_cliff,
    prompt_table,
    score_tokens,
)
from refusalscope.studies.cliff.verdict import _difference
from studies.cliff.planted_case import reading, subject


@pytest.mark.parametrize(
    ("variant", "seed", "verdict"),
    [
        ("base", 0, "cliff"),
        ("base", 1, "cliff"),
        ("graded", 0, "cliff"),
        ("two_stage", 0, "cliff"),
        ("template_shift", 0, "template shift"),
        ("template_shift", 1, "template shift"),
        ("within_thinking", 0, "slope"),
    ],
)
def test_every_organism_is_called_what_it_is(variant, seed, verdict):
    assert reading(variant, seed).verdict.verdict == verdict


def test_suppressed_traces_fall_and_no_others():
    found = reading("base")
    mean = found.table.groupby(found.groups)["drop"].mean()
    assert mean["suppressed"] > 0.85
    assert mean.drop("suppressed").abs().max() < 0.1
    verdict = found.verdict
    assert (verdict.share.value, verdict.benign_share.value) == (1, 0)
    assert verdict.contrast.low > 0.8
    assert verdict.benign_drop.low < 0.05


def test_a_template_shift_is_a_cliff_of_benign_traces_until_it_is_calibrated():
    found = reading("template_shift")
    benign = found.groups == "benign"
    assert found.uncorrected["ms"][benign].mean() > 0.99
    assert found.table["drop"].abs().max() < 0.2
    assert found.table["drop"][benign].mean() == pytest.approx(0, abs=0.05)
    assert found.verdict.shift.value == 1
    assert "benign traces drop as far, without calibration" in found.verdict.reason


def test_a_probe_of_the_thinking_invents_a_cliff_that_calibration_takes_away():
    """Refused harmful traces fall by the shift alone; benign ones are at the bottom already."""
    found = reading("template_shift")
    harmful = found.groups == "unsuppressed"
    raw = found.table.copy()
    raw["drop"] = np.where(harmful, 0.99, 0.005)
    verdict = judge_cliff(found.table, harmful, raw=raw, seed=0)
    assert verdict.verdict == "template shift"
    assert verdict.reason == "100% of cases drop without calibration by position, 0% with it"


def test_what_falls_within_the_thinking_is_a_slope():
    found = reading("within_thinking")
    rows = found.table[found.groups == "suppressed"]
    assert rows["drop"].max() < 0.2
    # The published score takes it for a cliff.
    assert rows["ms"].mean() > 0.5
    assert found.verdict.slope.low > 0.3


def test_a_fade_early_in_the_thinking_is_no_cliff_of_its_own():
    found = reading("two_stage")
    assert found.table["drop"][found.groups == "unsuppressed"].max() < 0.2
    assert found.table["drop"][found.groups == "suppressed"].min() > 0.2


def test_the_highest_score_takes_a_fade_for_a_cliff_and_the_drop_does_not():
    it = subject("two_stage")
    steady = np.array(["code" not in one.prompt.thinking for one in it.traces])
    rows = np.flatnonzero(steady)
    traces = [it.traces[i] for i in rows]
    probe = fit_published(it.chat, traces, it.refused[rows], solver="logistic", n_nulls=0).probe
    faded = [it.traces[i] for i in np.flatnonzero(~steady & (it.groups == "unsuppressed"))]
    table = prompt_table(faded, score_tokens(it.chat, faded, probe), seed=0)
    assert table["ms"].max() > 0.2
    assert table["drop"].max() < 0.05


# Tables made by hand


def made(case_drops, benign_drops, falls=0.0) -> tuple[pd.DataFrame, np.ndarray]:
    n, m = len(case_drops), len(benign_drops)
    table = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(n + m)],
            "label": ["harmful"] * n + ["harmless"] * m,
            "category": None,
            "drop": [*case_drops, *benign_drops],
            "fall": [falls] * n + [0.0] * m,
        }
    )
    table["at closing[0]"] = table["drop"]
    return table, np.arange(n + m) < n


@pytest.mark.parametrize(
    ("n", "fallen", "benign", "verdict"),
    [
        (40, 40, 0, "cliff"),
        (40, 8, 0, "cliff"),
        (40, 0, 0, "no cliff"),
        (40, 3, 0, "undecided"),
        (4, 0, 0, "undecided"),
        (40, 40, 40, "template shift"),
        (40, 3, 8, "template shift"),
    ],
)
def test_cases_are_weighed_against_benign_traces(n, fallen, benign, verdict):
    table, cases = made(
        [0.9] * fallen + [0.0] * (n - fallen), [0.9] * benign + [0.0] * (40 - benign)
    )
    assert judge_cliff(table, cases, seed=0).verdict == verdict


def test_a_drop_that_probes_of_nothing_show_too_is_a_template_shift():
    table, cases = made([0.9] * 40, [0.0] * 40)
    for nulls, verdict in (([0.1] * 20, "cliff"), ([0.1] * 18 + [0.95] * 2, "template shift")):
        found = judge_cliff(table, cases, nulls=nulls, seed=0)
        assert found.verdict == verdict
        assert found.p_null == pytest.approx((1 + sum(null >= 0.9 for null in nulls)) / 21)
    assert "probes of nothing do so too (p = 0.14)" in found.reason


def test_nothing_is_decided_by_scores_that_cannot_be_read():
    table, cases = made([0.9] * 40, [0.0] * 40)
    found = judge_cliff(table, cases, trouble="the probe reads nothing", seed=0)
    assert (found.verdict, found.reason) == ("undecided", "the probe reads nothing")


def test_falls_within_the_thinking_count_against_those_of_benign_traces():
    table, cases = made([0.0] * 40, [0.0] * 40, falls=0.5)
    assert judge_cliff(table, cases, seed=0).verdict == "slope"
    table["fall"] = 0.5
    assert judge_cliff(table, cases, seed=0).verdict == "no cliff"


def test_traces_of_one_category_are_drawn_together():
    drops = np.repeat([0.9, 0.0], 40)
    table, cases = made(drops, [0.0] * 40)
    alone = judge_cliff(table, cases, seed=0).share
    table.loc[cases, "category"] = [f"c{i // 10}" for i in range(80)]
    together = judge_cliff(table, cases, seed=0).share
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_difference_of_rates_is_newcombes():
    """His first example: 56 of 70 and 48 of 80, .20 from .0524 to .3339 by method 10."""
    found = _difference(Interval(0.8, 0.6918, 0.8769, 70), Interval(0.6, 0.4904, 0.7000, 80))
    assert (found.value, found.n) == (pytest.approx(0.2), 150)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=5e-4),
        pytest.approx(0.3339, abs=5e-4),
    )


def test_cases_are_complied_harmful_traces_or_all_harmful_ones():
    labels = ["harmful", "harmful", "harmless", None]
    assert cases_of(labels, [True, False, False, False]).tolist() == [False, True, False, False]
    assert cases_of(labels, [True, True, False, False]).tolist() == [True, True, False, False]


def test_a_contrast_is_that_of_mean_drops():
    labels = ["harmful", "harmful", "harmless", "harmless"]
    assert drop_contrast(
        [0.8, 0.1, 0.3, 0.1], labels, [True, False, False, False]
    ) == pytest.approx(0.6)


def test_a_verdict_needs_cases_controls_and_enough_nulls():
    table, cases = made([0.9] * 4, [0.0] * 4)
    with pytest.raises(InputError, match="got 0 and 4; add harmless traces"):
        judge_cliff(table, [False] * 8, seed=0)
    with pytest.raises(InputError, match="got 4 and 0; add harmless traces"):
        judge_cliff(table.assign(label="harmful"), cases, seed=0)
    with pytest.raises(InputError, match=r"5 probes of nothing cannot show .* give 20 or more"):
        judge_cliff(table, cases, nulls=[0.0] * 5, seed=0)
