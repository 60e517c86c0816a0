"""Rates, means and AUROC with their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from refusalscope.errors import InputError
from refusalscope.stats import Interval, auroc, clopper_pearson, mean_interval, wilson

counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
floats = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # methods/harmfulness_and_refusal.md, section 9, in percent.
    [(5, 12, 19, 68), (11, 12, 65, 99), (11, 14, 52, 92), (31, 33, 80, 98), (35, 59, 47, 71)],
)
def test_wilson_gives_the_intervals_worked_out_for_the_published_rates(k, n, low, high):
    interval = wilson(k, n)
    assert (round(100 * interval.low), round(100 * interval.high)) == (low, high)
    assert interval.value == k / n


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_bounds_are_where_the_score_test_just_rejects(count, level):
    from scipy.stats import norm

    k, n = count
    interval = wilson(k, n, level)
    z = norm.ppf((1 + level) / 2)
    for bound in (interval.low, interval.high):
        if 0 < bound < 1:
            score = abs(k / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert score == pytest.approx(z, rel=1e-6)
    assert 0 <= interval.low <= k / n <= interval.high <= 1


@given(counts)
def test_clopper_pearson_bounds_are_beta_quantiles(count):
    k, n = count
    interval = clopper_pearson(k, n)
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_rates_of_nothing_are_unknown_and_impossible_rates_are_refused():
    for rate in (wilson, clopper_pearson):
        nothing = rate(0, 0)
        assert nothing.n == 0
        assert all(map(math.isnan, (nothing.value, nothing.low, nothing.high)))
        for k, n in ((3, 2), (-1, 4)):
            with pytest.raises(InputError, match="not a rate"):
                rate(k, n)
    assert wilson(np.int64(3), np.int64(4)) == wilson(3, 4)


@given(st.lists(floats, min_size=2, max_size=30), st.sampled_from(["bca", "percentile"]))
@settings(max_examples=60, deadline=None)
def test_a_mean_interval_is_finite_and_inside_the_range_of_the_values(values, method):
    interval = mean_interval(values, method=method, n_resamples=99, seed=0)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval.value == pytest.approx(np.mean(values), abs=slack)
    assert interval.n == len(values)


def test_the_percentile_interval_is_that_of_a_plain_loop():
    values = np.random.default_rng(1).exponential(size=40)
    generator = np.random.default_rng(2)
    means = [generator.choice(values, values.size).mean() for _ in range(20_000)]
    interval = mean_interval(values, method="percentile", n_resamples=20_000, seed=3)
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=0.015
    )


def test_the_cluster_interval_is_that_of_a_plain_loop_over_clusters():
    generator = np.random.default_rng(4)
    sizes = [3, 9, 4, 6, 12, 5, 2, 8]
    groups = [generator.normal(generator.normal(), 0.3, size) for size in sizes]
    values = np.concatenate(groups)
    names = [name for name, size in zip("abcdefgh", sizes, strict=True) for _ in range(size)]
    means = []
    for _ in range(20_000):
        drawn = [groups[i] for i in generator.integers(0, len(groups), len(groups))]
        means.append(np.concatenate(drawn).mean())
    interval = mean_interval(values, names, method="percentile", n_resamples=20_000, seed=5)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=0.03
    )


def test_clusters_of_one_are_no_clusters_and_their_order_and_names_do_not_matter():
    values = np.random.default_rng(0).normal(size=12)
    plain = mean_interval(values, seed=1)
    assert mean_interval(values, list("abcdefghijkl"), seed=1) == plain
    by_text = mean_interval(values, list("aabbccddeeff"), seed=1)
    by_number = mean_interval(values, np.repeat([10, 20, 30, 40, 50, 60], 2), seed=1)
    assert by_text == by_number != plain


def test_dependent_rows_are_covered_with_clusters_and_not_without():
    generator = np.random.default_rng(11)
    rows, clustered = 0, 0
    names = np.repeat(np.arange(20), 8)
    for _ in range(150):
        values = np.repeat(generator.normal(size=20), 8) + generator.normal(0, 0.3, 160)
        alone = mean_interval(values, n_resamples=300, seed=generator)
        together = mean_interval(values, names, n_resamples=300, seed=generator)
        rows += alone.low <= 0 <= alone.high
        clustered += together.low <= 0 <= together.high
    assert clustered / 150 > 0.88
    assert rows / 150 < 0.65


def test_the_stated_rules_hold_where_the_bootstrap_has_nothing_to_say():
    nothing = mean_interval([], seed=0)
    assert nothing.n == 0
    assert math.isnan(nothing.value)
    for single in (mean_interval([2.0], seed=0), mean_interval([1.0, 3.0], ["a", "a"], seed=0)):
        assert single.value == 2.0
        assert math.isnan(single.low)
        assert math.isnan(single.high)
    assert mean_interval([0.1] * 3, seed=0) == Interval(0.1, 0.1, 0.1, 3)
    assert mean_interval([0.1] * 3, list("aab"), seed=0) == Interval(0.1, 0.1, 0.1, 3)
    # Different rows, equal clusters: every resample has the same mean.
    assert mean_interval([0, 1, 0, 1], list("aabb"), seed=0) == Interval(0.5, 0.5, 0.5, 4)
    with pytest.raises(InputError, match="1 values that are not finite of 2"):
        mean_interval([1.0, math.nan], seed=0)
    with pytest.raises(InputError, match="one label for 2 rows"):
        mean_interval([1.0, 2.0], ["a"], seed=0)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


labelled = st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=40)


@given(labelled)
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_pairs_in_order_with_its_bounds_around_it(rows):
    labels, scores = zip(*rows, strict=True)
    result = auroc(labels, scores, n_resamples=99, seed=0)
    above = [s for label, s in rows if label]
    below = [s for label, s in rows if not label]
    if not above or not below:
        assert math.isnan(result.value)
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    assert result.value == pytest.approx(np.mean(pairs))
    assert 0 <= result.low <= result.high <= 1
    assert result.n == len(rows)


def test_the_auroc_interval_is_that_of_a_plain_stratified_loop():
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(0.8, 1, 40), generator.normal(0, 1, 60)
    areas = []
    labels = np.repeat([1, 0], [40, 60])
    for _ in range(1000):
        drawn = [generator.choice(positive, 40), generator.choice(negative, 60)]
        areas.append(roc_auc_score(labels, np.concatenate(drawn)))
    scores = np.concatenate([positive, negative])
    result = auroc(labels, scores, method="percentile", n_resamples=4000, seed=1)
    assert (result.low, result.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.015)


@pytest.mark.parametrize("sign", [1, -1])
def test_complete_separation_is_not_certainty(sign):
    result = auroc([0] * 20 + [1] * 10, sign * np.arange(30), seed=0)
    expected = wilson(10 if sign > 0 else 0, 10)
    assert (result.value, result.low, result.high) == (
        expected.value,
        expected.low,
        expected.high,
    )


def test_auroc_with_one_positive_says_that_it_knows_little():
    result = auroc([1, 0, 0, 0, 0], [2.5, 1, 2, 3, 4], seed=0)
    assert (result.value, result.low, result.high) == (0.5, 0.0, 1.0)


def test_auroc_refuses_what_is_not_two_classes_of_numbers():
    with pytest.raises(InputError, match="True/False or 1/0"):
        auroc(["harmful", "harmless"], [1, 2], seed=0)
    with pytest.raises(InputError, match="the same"):
        auroc([1], [1, 2], seed=0)
    with pytest.raises(InputError, match="not finite"):
        auroc([1, 0], [1, math.nan], seed=0)
