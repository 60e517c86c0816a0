"""Paired differences, McNemar, equivalence and false-discovery control."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest, ttest_1samp

from refusalscope.errors import InputError
from refusalscope.stats import fdr_bh, mcnemar, mean_interval, paired_difference, tost

small = st.lists(st.integers(-20, 20), min_size=2, max_size=8)
bits = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def sign_flip_p(differences: list[float]) -> float:
    """The share of all sign patterns whose total is at least as far from zero."""
    observed = abs(sum(differences))
    totals = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= observed for total in totals) / len(totals)


@given(small)
@settings(max_examples=60, deadline=None)
def test_p_is_that_of_all_sign_patterns_when_there_are_few_rows(differences):
    result = paired_difference(differences, [0] * len(differences), n_resamples=20, seed=0)
    assert result.p == pytest.approx(sign_flip_p(differences))


@given(st.lists(small, min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_p_with_clusters_flips_whole_clusters(groups):
    differences = [d for group in groups for d in group]
    names = [number for number, group in enumerate(groups) for _ in group]
    result = paired_difference(differences, [0] * len(differences), names, n_resamples=20, seed=0)
    assert result.p == pytest.approx(sign_flip_p([sum(group) for group in groups]))


def test_p_by_monte_carlo_has_the_one_that_was_seen_and_so_is_never_zero():
    a = np.random.default_rng(0).normal(5, 1, 40)
    result = paired_difference(a, np.zeros(40), n_flips=199, seed=1)
    assert result.p == 1 / 200
    weak = np.random.default_rng(1).normal(0.3, 1, 12)
    exact = paired_difference(weak, np.zeros(12), seed=1).p
    drawn = paired_difference(weak, np.zeros(12), n_flips=3000, seed=1).p
    assert exact == pytest.approx(sign_flip_p(list(weak)))
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 3000))


def test_p_is_uniform_when_nothing_differs():
    generator = np.random.default_rng(2)
    found = []
    for _ in range(300):
        a, b = generator.normal(size=(2, 30))
        found.append(paired_difference(a, b, n_resamples=10, n_flips=499, seed=generator).p)
    assert kstest(found, "uniform").pvalue > 0.01


def test_the_difference_and_its_interval_are_those_of_the_mean_of_differences():
    a, b = np.random.default_rng(3).normal(size=(2, 24))
    names = np.repeat(list("abcdef"), 4)
    result = paired_difference(a, b, names, seed=5)
    mean = mean_interval(a - b, names, seed=np.random.default_rng(5))
    assert (result.value, result.low, result.high) == (mean.value, mean.low, mean.high)
    turned = paired_difference(b, a, names, seed=5)
    assert (turned.value, turned.p) == (-result.value, result.p)


def test_too_few_pairs_show_nothing():
    assert paired_difference([3.0], [1.0], seed=0).p == 1.0
    assert paired_difference([3.0, 4.0], [1.0, 1.0], ["a", "a"], seed=0).p == 1.0
    assert paired_difference([1.0] * 3, [1.0] * 3, seed=0).p == 1.0
    assert math.isnan(paired_difference([], [], seed=0).p)
    with pytest.raises(InputError, match="2 rows, b has 1"):
        paired_difference([1, 2], [1], seed=0)


@given(bits)
def test_mcnemar_is_a_fair_coin_over_the_rows_that_differ(rows):
    a, b = zip(*rows, strict=True)
    result = mcnemar(a, b)
    only_a, only_b = sum(x and not y for x, y in rows), sum(y and not x for x, y in rows)
    assert (result.only_a, result.only_b, result.n) == (only_a, only_b, len(rows))
    differ = only_a + only_b
    expected = binomtest(only_a, differ).pvalue if differ else 1.0
    assert result.p == pytest.approx(min(1.0, expected))


def test_mcnemar_refuses_what_is_not_yes_or_no():
    with pytest.raises(InputError, match="True/False"):
        mcnemar([0.5, 1], [1, 0])
    with pytest.raises(InputError, match="one length"):
        mcnemar([1], [1, 0])


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30))
def test_adjusted_p_is_the_smallest_rate_at_which_the_step_up_rule_finds_the_test(values):
    adjusted = fdr_bh(values)
    made = sorted(v for v in values if not math.isnan(v))
    for value, q in zip(values, adjusted, strict=True):
        if math.isnan(value):
            assert math.isnan(q)
            continue
        ranks = [i for i, p in enumerate(made, 1) if p >= value]
        expected = min(1.0, *(len(made) * made[i - 1] / i for i in ranks), 1.0)
        assert q == pytest.approx(expected)


def test_p_values_outside_zero_to_one_are_refused():
    with pytest.raises(InputError, match="between 0 and 1"):
        fdr_bh([0.1, 1.2])


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=30).filter(lambda v: np.ptp(v) > 1e-3),
    st.floats(0.01, 5),
)
def test_equivalence_is_two_one_sided_t_tests_and_agrees_with_its_interval(values, bound):
    result = tost(values, bound)
    above = ttest_1samp(values, -bound, alternative="greater").pvalue
    below = ttest_1samp(values, bound, alternative="less").pvalue
    assert result.p == pytest.approx(max(above, below), abs=1e-9)
    if abs(result.p - 0.05) > 1e-6:
        assert (result.p < 0.05) == (-bound < result.low and result.high < bound)


def test_equivalence_of_constant_or_single_values_follows_the_stated_rule():
    assert tost([0.1] * 4, 0.2).p == 0.0
    assert tost([0.3] * 4, 0.2).p == 1.0
    single = tost([0.0], 0.2)
    assert (single.value, single.p) == (0.0, 1.0)
    assert math.isnan(single.low)
    with pytest.raises(InputError, match="above 0"):
        tost([1, 2], 0)
