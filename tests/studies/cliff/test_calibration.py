"""Scales of position classes against a slow regression, and what they take away."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from refusalscope.errors import InputError
from refusalscope.studies.cliff.calibration import centred, learn_scales, settled
from studies.cliff.planted_case import subject


@pytest.fixture(scope="module")
def case():
    """Eight refused harmful, six complied harmless and three complied harmful traces, with random logits."""
    it = subject()
    traces = [*it.of("unsuppressed")[:8], *it.of("benign")[:6], *it.of("suppressed")[:3]]
    refused = np.arange(17) < 8
    harmful = np.array([one.prompt.label == "harmful" for one in traces])
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=len(one)) + refused[i] for i, one in enumerate(traces)]
    return traces, logits, settled(harmful, refused)


def test_a_scale_is_the_logistic_regression_of_softened_labels(case):
    traces, logits, known = case
    assert known == (list(range(8)), list(range(8, 14)))
    found = learn_scales(traces, logits, known)
    assert list(found) == ["prompt", "thinking", "closing[0]", "closing[1]", "closing[2]"]
    for name in ("thinking", "closing[1]"):
        x, y, w = [], [], []
        for i, trace in enumerate(traces[:14]):
            n = 8 if i < 8 else 6
            kinds = [at for at, kind in enumerate(trace.classes) if kind == name]
            for at in kinds:
                sure = (n + 1) / (n + 2) if i < 8 else 1 / (n + 2)
                for label, share in ((1, sure), (0, 1 - sure)):
                    x.append([logits[i][at]])
                    y.append(label)
                    w.append(share / n / len(kinds))
        # Weights that sum to much, so that what is left of the penalty is nothing.
        slow = LogisticRegression(C=1e6, tol=1e-10, max_iter=5000)
        slow.fit(x, y, np.array(w) * 1000)
        assert found[name] == pytest.approx((slow.coef_[0, 0], slow.intercept_[0]), abs=1e-3)


def test_the_prompt_is_learnt_on_its_tail(case):
    traces, logits, known = case
    first = traces[0].rendered.instruction[1] + 1
    other = [values.copy() for values in logits]
    for values in other:
        values[:first] = 100
    assert learn_scales(traces, other, known) == learn_scales(traces, logits, known)


def test_a_shift_of_all_traces_at_a_closing_token_changes_no_calibrated_score(case):
    traces, logits, known = case
    shifted = [values.copy() for values in logits]
    for trace, values in zip(traces, shifted, strict=True):
        values[list(trace.closing)] = 3 * values[list(trace.closing)] - 40
    scores = []
    for raw in (logits, shifted):
        scales = learn_scales(traces, raw, known)
        scores.append(
            [scales["closing[2]"][0] * values[-1] + scales["closing[2]"][1] for values in raw]
        )
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_a_class_in_which_refusal_lowers_the_logit_says_nothing(case):
    traces, logits, known = case
    turned = [values.copy() for values in logits]
    for i, values in enumerate(turned):
        values[-1] = -1.0 if i < 8 else 1.0
    slope, intercept = learn_scales(traces, turned, known)["closing[2]"]
    assert slope == 0
    assert expit(intercept) == pytest.approx(0.5, abs=0.02)
    for values in turned:
        values[-1] = 7.0
    assert learn_scales(traces, turned, known)["closing[2]"] == (0.0, 0.0)


def test_a_null_keeps_the_slopes_and_is_0_on_average_in_every_class(case):
    traces, logits, known = case
    scales = learn_scales(traces, logits, known)
    found = centred(scales, traces, logits, known)
    for name, (slope, intercept) in found.items():
        assert slope == scales[name][0]
        if name == "prompt":
            continue
        means = [
            np.mean(
                [slope * v + intercept for v, k in zip(values, t.classes, strict=True) if k == name]
            )
            for t, values in zip(traces[:14], logits[:14], strict=True)
        ]
        assert np.mean(means[:8]) + np.mean(means[8:]) == pytest.approx(0, abs=1e-9)


def test_both_sides_are_needed():
    with pytest.raises(InputError, match="got 1 and 0; give more prompts to the split 'select'"):
        settled(np.array([True, False]), np.array([True, True]))
