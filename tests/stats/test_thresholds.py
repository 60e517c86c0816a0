"""Thresholds keep the false-positive rate they promise, exactly and over resamples, or are refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from refusalscope.errors import InputError
from refusalscope.stats import Interval, clopper_pearson, fpr_threshold, negatives_needed

RULES = ("conformal", "learn_then_test")
POOL = 20_000


def pool(ties: bool) -> np.ndarray:
    """Benign scores, sorted; with ties, 40 values of which some hold a twentieth of all rows."""
    scores = np.random.default_rng(11).gamma(2.0, 0.05, POOL) - 0.2
    return np.sort(scores.round(2) if ties else scores)


def slow_rank(n: int, alpha: Fraction, rule: str, confidence: Fraction) -> int | None:
    """k, counting from 1, in exact fractions; None when no order statistic will do."""
    for k in range(1, n + 1):
        if rule == "conformal":
            if k >= (n + 1) * (1 - alpha):
                return k
        else:
            chance = sum(
                math.comb(n, i) * alpha**i * (1 - alpha) ** (n - i) for i in range(n - k + 1)
            )
            if chance <= 1 - confidence:
                return k
    return None


@given(
    st.integers(1, 90),
    st.sampled_from(["0.03", "0.05", "0.07", "0.1", "0.29", "0.5", "0.9"]),
    st.sampled_from(RULES),
    st.sampled_from(["0.8", "0.95"]),
    st.randoms(),
)
@settings(max_examples=150, deadline=None)
def test_the_threshold_is_the_order_statistic_of_the_slow_rule(n, alpha, rule, confidence, random):
    k = slow_rank(n, Fraction(alpha), rule, Fraction(confidence))
    scores = list(range(1, n + 1))
    random.shuffle(scores)
    options = {"rule": rule, "confidence": float(confidence)}
    if k is None:
        with pytest.raises(InputError, match=f"got {n}"):
            fpr_threshold(scores, float(alpha), **options)
    else:
        found = fpr_threshold(scores, float(alpha), **options)
        assert found.tau == k
        assert found.flagged == n - k
        assert found.fpr == clopper_pearson(n - k, n, float(confidence))
        assert (found.n, found.rule, found.confidence) == (n, rule, float(confidence))


@pytest.mark.parametrize(
    ("alpha", "conformal", "certified"),
    # methods/harmfulness_and_refusal.md, section 11; 59 is the classic number for 95 % by 95 %.
    [(0.05, 19, 59), (0.01, 99, 299), (0.001, 999, 2995)],
)
def test_the_negatives_needed_are_those_of_the_specification(alpha, conformal, certified):
    for rule, needed in zip(RULES, (conformal, certified), strict=True):
        assert negatives_needed(alpha, rule) == needed
        found = fpr_threshold(np.arange(needed), alpha, rule=rule)
        assert (found.tau, found.flagged) == (needed - 1, 0)
        with pytest.raises(InputError, match=f"at least {needed} benign scores, got {needed - 1}"):
            fpr_threshold(np.arange(needed - 1), alpha, rule=rule)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_the_negatives_needed_to_certify_are_the_fewest_that_can(confidence):
    for alpha in np.linspace(0.003, 0.97, 60):
        n = negatives_needed(alpha, "learn_then_test", confidence)
        assert (1 - alpha) ** n <= (1 - confidence) * (1 + 1e-9)
        assert n == 1 or (1 - alpha) ** (n - 1) > (1 - confidence) * (1 - 1e-9)


def exact_promise(scores: np.ndarray, n: int, k: int, alpha: float) -> tuple[float, float]:
    """Mean FPR, and chance that it passes alpha, of the k-th smallest of n draws from the pool."""
    counts = np.unique(scores, return_counts=True)[1]
    below = np.cumsum(counts) / scores.size
    chance = np.diff(binom.sf(k - 1, n, below), prepend=0)
    fpr = 1 - below
    return float(chance @ fpr), float(chance[fpr > alpha + 1e-12].sum())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3])
def test_the_promise_holds_exactly_in_a_finite_pool(ties, alpha):
    scores = pool(ties)
    for n in (29, 59, 99, 100, 299, 300, 473, 1000, 2500):
        for rule in RULES:
            if n < negatives_needed(alpha, rule):
                continue
            k = int(fpr_threshold(np.arange(n), alpha, rule=rule).tau) + 1
            mean, failures = exact_promise(scores, n, k, alpha)
            if rule == "conformal":
                assert mean <= alpha
                assert ties or mean > alpha - 1 / (n + 1) - 1 / POOL
            else:
                assert failures <= 0.05


def true_rates(scores, n, alpha, rule, seed):
    """FPR in the whole pool of the thresholds from 1,000 draws of n scores."""
    rng = np.random.default_rng(seed)
    draws = scores[rng.integers(0, scores.size, (1000, n))]
    tau = [fpr_threshold(draw, alpha, rule=rule).tau for draw in draws]
    return 1 - np.searchsorted(scores, tau, side="right") / scores.size


@pytest.fixture
def no_interval(monkeypatch):
    """The exact interval costs a millisecond, which a thousand thresholds feel; it has its own test."""
    monkeypatch.setattr(
        "refusalscope.stats.thresholds.clopper_pearson",
        lambda k, n, level: Interval(k / n, 0, 1, n),
    )


@pytest.mark.usefixtures("no_interval")
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "alpha"), [(400, 0.01), (1000, 0.01), (120, 0.05), (800, 0.05)])
def test_certified_rates_are_kept_in_95_percent_of_1000_resamples(n, alpha, ties):
    rates = true_rates(pool(ties), n, alpha, "learn_then_test", seed=n)
    assert (rates <= alpha).mean() >= 0.95


@pytest.mark.usefixtures("no_interval")
def test_the_fewest_negatives_sit_at_the_edge_of_the_promise():
    """With 299 the chance to fail is 4.95 %, so that 1,000 resamples lie about it on either side."""
    rates = true_rates(pool(False), 299, 0.01, "learn_then_test", seed=1)
    failures = int((rates > 0.01).sum())
    assert binom.ppf(0.001, 1000, 0.99**299) <= failures <= binom.ppf(0.999, 1000, 0.99**299)


@pytest.mark.usefixtures("no_interval")
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "alpha"), [(150, 0.01), (950, 0.01), (130, 0.05)])
def test_conformal_rates_are_kept_on_average_over_1000_resamples(n, alpha, ties):
    rates = true_rates(pool(ties), n, alpha, "conformal", seed=n)
    assert rates.mean() <= alpha
    # The promise is marginal only: single draws do pass it, which is what the other rule is for.
    assert ties or (rates > alpha).mean() > 0.1


@given(st.lists(st.integers(-3, 3), min_size=20, max_size=80), st.sampled_from(RULES))
def test_scores_tied_with_the_threshold_are_not_flagged(scores, rule):
    found = fpr_threshold(scores, 0.2, rule=rule)
    assert found.flagged == sum(s > found.tau for s in scores) == int(found.flags(scores).sum())
    assert not found.flags([found.tau])[0]
    assert found.flags([np.nextafter(found.tau, np.inf)])[0]
    assert found.flagged <= 0.2 * len(scores)


def test_a_rate_counts_as_it_is_written():
    """In floats 100 times 0.29 is a little less than 29, which would cost a place."""
    assert fpr_threshold(np.arange(99), 0.29, rule="conformal").flagged == 28


def test_equal_scores_flag_nothing_of_their_kind():
    found = fpr_threshold(np.full(500, 0.25), 0.05)
    assert (found.tau, found.flagged, found.fpr.value) == (0.25, 0, 0.0)


def test_each_rule_says_what_it_promises():
    scores = np.arange(400)
    assert fpr_threshold(scores, 0.01).promise == "FPR <= 0.01 at confidence 0.95"
    average = fpr_threshold(scores, 0.01, rule="conformal")
    assert average.promise == "FPR <= 0.01 on average over calibration draws"
    assert average.tau < fpr_threshold(scores, 0.01).tau


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {"alpha": 0.05}, "at least 59 benign scores, got 0"),
        ([0.1] * 58, {"alpha": 0.05}, "5 % by the rule learn_then_test needs at least 59"),
        ([0.1] * 400 + [math.nan], {"alpha": 0.05}, "1 values that are not finite"),
        ([0.1] * 400, {"alpha": 0.0}, "alpha must lie strictly between 0 and 1"),
        ([0.1] * 400, {"alpha": 1.0, "rule": "conformal"}, "alpha must lie strictly between"),
        ([0.1] * 400, {"alpha": 0.05, "confidence": 1.0}, "confidence must lie strictly between"),
        ([0.1] * 400, {"alpha": 0.05, "rule": "youden"}, "expected one of conformal, learn_then"),
    ],
)
def test_what_cannot_be_promised_is_refused(scores, options, message):
    alpha = options.pop("alpha")
    with pytest.raises(InputError, match=message):
        fpr_threshold(scores, alpha, **options)
