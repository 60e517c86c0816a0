"""Probabilities of harm against slow fits, their intervals, and measures of calibration."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import brier_score_loss

from refusalscope.errors import InputError
from refusalscope.stats import Isotonic, Platt, Probability, brier, ece, fit_probability


def sample(n: int, seed: int, gap: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n harmless and n harmful prompts: two normals, so that the true curve is logistic."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], n)
    return rng.normal(size=2 * n) * 0.05 + gap * label, label


def slow_platt(score, label) -> tuple[float, float]:
    """Slope of at least 0 and intercept by minimising Platt's cross-entropy as it is printed."""
    n1, n0 = int(label.sum()), int((1 - label).sum())
    target = np.where(label == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    unit = score / np.abs(score).max()

    def loss(ab):
        z = ab[0] * unit + ab[1]
        return (target * np.logaddexp(0, -z) + (1 - target) * np.logaddexp(0, z)).sum()

    found = minimize(
        loss,
        [0.1, 0.0],
        method="Nelder-Mead",
        bounds=[(0, None), (None, None)],
        options={"xatol": 1e-9, "fatol": 1e-12},
    )
    return found.x[0] / np.abs(score).max(), found.x[1]


@pytest.mark.parametrize(("n", "gap"), [(8, 0.1), (60, 0.1), (60, -0.05), (25, 0.6)])
def test_platt_is_the_minimum_of_its_printed_loss(n, gap):
    score, label = sample(n, seed=n, gap=gap)
    found = fit_probability(score, label, n_resamples=1)
    slope, intercept = slow_platt(score, label)
    assert isinstance(found, Platt)
    assert found.slope[0] == pytest.approx(slope, rel=1e-4, abs=1e-7)
    assert found.intercept[0] == pytest.approx(intercept, rel=1e-4, abs=1e-7)
    grid = np.linspace(-0.2, 0.8, 9)
    expected = 1 / (1 + np.exp(-(slope * grid + intercept)))
    assert found.predict(grid)[0] == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=4, max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_probability_never_falls_as_the_score_rises(rows):
    score, label = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if label.min() == label.max() or np.ptp(score) == 0:
        return
    for method in ("platt", "isotonic"):
        p, low, high = fit_probability(score, label, method, n_resamples=5).predict(range(-9, 10))
        assert (np.diff(p) >= 0).all()
        assert low[0] <= p[-1] <= high[-1]


def test_scores_that_run_against_harm_get_the_base_rate_and_no_more():
    """Three harmful of nine: targets 4/5 of them and 1/8 of the six others."""
    score = np.arange(9.0)
    found = fit_probability(score, score < 3)
    p, low, high = found.predict([-50.0, 0.0, 4.0, 50.0])
    assert p == pytest.approx(np.full(4, (3 * 4 / 5 + 6 * 1 / 8) / 9), abs=1e-12)
    assert ((low <= p) & (p <= high)).all()
    assert min(found.slope) == found.slope[0] == 0


def test_separable_classes_stay_finite_and_short_of_certainty():
    score = np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    found = fit_probability(score, score > 0)
    p, low, high = found.predict(score)
    assert np.isfinite([found.slope, found.intercept]).all()
    assert (p > 0.01).all()
    assert (p < 0.99).all()
    assert p[2] < 0.5 < p[3]
    assert ((low <= p) & (p <= high)).all()


def test_probabilities_do_not_depend_on_the_unit_of_the_score():
    score, label = sample(40, seed=2)
    first = fit_probability(score, label, seed=3).predict(score)
    second = fit_probability(score * 1e4 - 7, label, seed=3).predict(score * 1e4 - 7)
    assert np.array(first) == pytest.approx(np.array(second), abs=1e-7)


def slow_isotonic(score, label) -> list[float]:
    """Pool adjacent violators, one block at a time; the fitted value of every row."""
    blocks = [
        [value, float(label[score == value].mean()), int((score == value).sum())]
        for value in sorted(set(score))
    ]
    blocks = [[[value], mean, size] for value, mean, size in blocks]
    while any(a[1] > b[1] for a, b in itertools.pairwise(blocks)):
        i = next(i for i in range(len(blocks) - 1) if blocks[i][1] > blocks[i + 1][1])
        a, b = blocks[i], blocks.pop(i + 1)
        blocks[i] = [a[0] + b[0], (a[1] * a[2] + b[1] * b[2]) / (a[2] + b[2]), a[2] + b[2]]
    return [next(mean for values, mean, _ in blocks if s in values) for s in score]


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=4, max_size=40))
@settings(max_examples=60, deadline=None)
def test_isotonic_is_the_slow_pooling(rows):
    score, label = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if label.min() == label.max() or np.ptp(score) == 0:
        return
    found = fit_probability(score, label, "isotonic", n_resamples=5)
    assert isinstance(found, Isotonic)
    p, low, high = found.predict(score)
    assert p == pytest.approx(slow_isotonic(score, label))
    assert ((low <= p) & (p <= high)).all()
    assert (high - low > 0).all()


def test_a_pure_step_keeps_the_exact_interval_of_its_count():
    """Twenty of twenty harmful is no certainty: at least 83 % by Clopper and Pearson."""
    score = np.arange(40.0)
    p, low, high = fit_probability(score, score >= 20, "isotonic").predict([-5, 5, 30, 99])
    assert p.tolist() == [0, 0, 1, 1]
    assert (low[3], high[0]) == pytest.approx((0.8316, 0.1684), abs=1e-4)
    assert low[2] <= low[3]
    assert high[1] >= high[0]


def test_auto_bends_the_curve_only_from_1000_rows():
    assert isinstance(fit_probability(*sample(499, 0), n_resamples=1), Platt)
    assert isinstance(fit_probability(*sample(500, 0), n_resamples=1), Isotonic)
    assert isinstance(fit_probability(*sample(500, 0), "platt", n_resamples=1), Platt)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_interval_covers_the_true_probability(method):
    """Normals of deviation .05, .05 apart: p = 1 / (1 + exp(-20 (s - .025))), classes of 150."""
    at = np.array([-0.05, 0.0, 0.025, 0.05, 0.1])
    truth = 1 / (1 + np.exp(-20 * (at - 0.025)))
    inside = []
    for repeat in range(50):
        fitted = fit_probability(*sample(150, 100 + repeat, gap=0.05), method, n_resamples=60)
        _, low, high = fitted.predict(at)
        inside.append((low <= truth) & (truth <= high))
    assert np.mean(inside) > 0.88


def test_more_rows_narrow_the_interval_and_a_seed_repeats_it():
    widths = []
    for n in (30, 300):
        _, low, high = fit_probability(*sample(n, 4)).predict([0.05])
        widths.append(float(high[0] - low[0]))
    assert widths[1] < widths[0] / 2
    score, label = sample(30, 4)
    for method in ("platt", "isotonic"):
        first, again, other = (fit_probability(score, label, method, seed=s) for s in (5, 5, 6))
        assert first == again
        assert first != other


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_fit_survives_json_to_the_bit(method):
    score, label = sample(30, seed=8)
    fitted = fit_probability(score, label, method, n_resamples=20)
    record = fitted.to_dict()
    again = Probability.from_dict(json.loads(json.dumps(record)))
    assert again == fitted
    assert again.to_dict() == record
    assert np.array_equal(again.predict(score), fitted.predict(score))
    assert (again.n_harmful, again.n_harmless) == (30, 30)


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("method"),
        lambda r: r.update(method="histogram"),
        lambda r: r.pop("slope"),
        lambda r: r.update(slope=r["slope"][:-1]),
        lambda r: r.update(slope=[], intercept=[]),
        lambda r: r.update(slope="steep"),
        lambda r: r.update(slope=[-1.0] * len(r["slope"])),
        lambda r: r.update(slope=[None] * len(r["slope"])),
        lambda r: r.update(n_harmful="30"),
        lambda r: r.update(extra=1),
    ],
)
def test_a_damaged_record_is_refused(damage):
    record = fit_probability(*sample(10, 0), n_resamples=3).to_dict()
    damage(record)
    with pytest.raises(InputError):
        Probability.from_dict(record)


@pytest.mark.parametrize(
    ("score", "label", "options", "message"),
    [
        ([0.1, 0.2], [1, 1], {}, "got 2 harmful and 0 harmless"),
        ([0.1, 0.2], [0, 0], {}, "got 0 harmful and 2 harmless"),
        ([], [], {}, "got 0 harmful and 0 harmless"),
        ([0.1, 0.1], [0, 1], {}, "all 2 scores are 0.1"),
        ([0.1, 0.2], [0, 2], {}, "True/False or 1/0"),
        ([0.1, 0.2], [0], {}, "one for each of the 2 scores"),
        ([0.1, math.nan], [0, 1], {}, "not finite"),
        ([0.1, 0.2], [0, 1], {"method": "beta"}, "unknown method 'beta'"),
        ([0.1, 0.2], [0, 1], {"n_resamples": 0}, "at least one resample"),
    ],
)
def test_what_cannot_be_fitted_is_refused(score, label, options, message):
    with pytest.raises(InputError, match=message):
        fit_probability(score, label, **options)


def test_fresh_prompts_of_the_same_mix_are_calibrated():
    score, label = sample(2000, seed=9)
    for method in ("platt", "isotonic"):
        p = fit_probability(*sample(600, seed=10), method, n_resamples=1).predict(score)[0]
        assert ece(p, label) < 0.05
        assert brier(p, label, seed=0).value < brier(np.full(4000, 0.5), label, seed=0).value
    assert ece(np.clip(p + 0.2, 0, 1), label) > 0.1


chances = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0])), st.booleans()
    ),
    min_size=1,
    max_size=50,
)


@given(chances, st.integers(1, 15))
def test_calibration_error_is_the_slow_sum(rows, bins):
    slow = 0.0
    for i in range(bins):
        held = [(p, y) for p, y in rows if min(math.floor(p * bins), bins - 1) == i]
        if held:
            gap = sum(p for p, _ in held) / len(held) - sum(y for _, y in held) / len(held)
            slow += len(held) / len(rows) * abs(gap)
    assert ece([p for p, _ in rows], [y for _, y in rows], bins) == pytest.approx(slow, abs=1e-12)


def test_perfect_probabilities_score_the_stated_floor():
    rng = np.random.default_rng(3)
    for n in (200, 3200):
        p = rng.random((100, n))
        found = np.mean([ece(row, rng.random(n) < row) for row in p])
        assert found == pytest.approx(math.sqrt(10 / n) / 3, rel=0.15)


@given(chances)
@settings(deadline=None, max_examples=30)
def test_brier_is_that_of_scikit_learn(rows):
    p, y = [p for p, _ in rows], [y for _, y in rows]
    found = brier(p, y, seed=0)
    assert found.value == pytest.approx(brier_score_loss(y, p, labels=[False, True]))
    assert found.n == len(rows)


def test_outcomes_and_probabilities_are_checked():
    assert math.isnan(ece([], []))
    for measure in (ece, lambda p, y: brier(p, y, seed=0)):
        for p, y in (([1.1], [1]), ([0.5], [2]), ([0.5, 0.5], [1]), ([math.nan], [1])):
            with pytest.raises(InputError):
                measure(p, y)
    with pytest.raises(InputError, match="at least one bin"):
        ece([0.5], [1], bins=0)
