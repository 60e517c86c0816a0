"""The familywise sign-flip test against a slow one, and under a null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest, ttest_1samp

from refusalscope.errors import InputError
from refusalscope.stats import max_t_signflip


def t_of_head(values: list[float], clusters: list[int]) -> float:
    """Mean over its cluster-robust standard error, written out."""
    n, names = len(values), sorted(set(clusters))
    mean = sum(values) / n
    spread = 0.0
    for name in names:
        mine = [v for v, c in zip(values, clusters, strict=True) if c == name]
        spread += (sum(mine) - len(mine) * mean) ** 2
    error = math.sqrt(len(names) / (len(names) - 1) * spread) / n
    if error < 1e-9:
        return 0.0 if abs(mean) < 1e-9 else math.copysign(math.inf, mean)
    return mean / error


def slow_max_t(x: np.ndarray, clusters: list[int]) -> tuple[list[float], list[float]]:
    """T of each head and its exact p, one flipped table at a time."""
    names = sorted(set(clusters))
    observed = [t_of_head(list(head), clusters) for head in x.T]
    largest = []
    for signs in itertools.product((-1, 1), repeat=len(names)):
        flipped = x * np.array([signs[names.index(c)] for c in clusters])[:, None]
        largest.append(max(abs(t_of_head(list(head), clusters)) for head in flipped.T))
    hits = [sum(m >= abs(t) * (1 - 1e-9) for m in largest) for t in observed]
    return observed, [h / len(largest) for h in hits]


tables = st.tuples(st.integers(3, 7), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-4, 4).map(float))
)


@given(tables)
@settings(max_examples=60, deadline=None)
def test_p_and_t_are_those_of_the_slow_test(x):
    result = max_t_signflip(x, seed=0)
    t, p = slow_max_t(x, list(range(len(x))))
    assert result.exact
    assert result.p_familywise == pytest.approx(p)
    assert result.t == pytest.approx(t)
    assert result.mean == pytest.approx(x.mean(0))


@given(tables, st.data())
@settings(max_examples=60, deadline=None)
def test_p_and_t_with_clusters_are_those_of_the_slow_test(x, data):
    clusters = data.draw(st.lists(st.integers(0, 4), min_size=len(x), max_size=len(x)))
    result = max_t_signflip(x, clusters=clusters, seed=0)
    if len(set(clusters)) < 2:
        assert (result.p_familywise == 1).all()
        assert np.isnan(result.t).all()
        return
    t, p = slow_max_t(x, clusters)
    assert result.p_familywise == pytest.approx(p)
    assert result.t == pytest.approx(t)


def test_t_is_the_ordinary_t_of_each_head():
    x = np.random.default_rng(0).normal(0.2, 1, (40, 6))
    result = max_t_signflip(x, n_flips=100, seed=0)
    assert result.t == pytest.approx(ttest_1samp(x, 0).statistic)


def test_drawn_flips_agree_with_all_flips_and_never_give_zero():
    x = np.random.default_rng(1).normal(0.4, 1, (13, 5))
    every = max_t_signflip(x, n_flips=4096, seed=0)
    drawn = max_t_signflip(x, n_flips=4000, seed=0)
    assert (every.exact, every.n_flips, drawn.exact, drawn.n_flips) == (True, 4096, False, 4000)
    assert drawn.p_familywise == pytest.approx(every.p_familywise, abs=0.035)
    clear = max_t_signflip(np.full((40, 1), 3.0), n_flips=99, seed=0)
    assert (clear.p_familywise[0], clear.t[0]) == (1 / 100, math.inf)


def test_blocks_of_flips_change_nothing(monkeypatch):
    x = np.random.default_rng(2).normal(size=(30, 4))
    whole = max_t_signflip(x, n_flips=500, seed=3)
    monkeypatch.setattr("refusalscope.stats.max_t._MEMORY_CELLS", 28)
    assert (max_t_signflip(x, n_flips=500, seed=3).p_familywise == whole.p_familywise).all()


def test_one_real_head_is_found_among_many_and_only_it():
    x = np.random.default_rng(4).normal(size=(40, 300))
    x[:, 17] += 1.2
    p = max_t_signflip(x, n_flips=999, seed=5).p_familywise
    assert np.flatnonzero(p <= 0.05).tolist() == [17]


def test_the_unit_of_a_head_does_not_matter_and_more_heads_only_raise_p():
    x = np.random.default_rng(6).normal(0.3, 1, (30, 8))
    alone = max_t_signflip(x[:, :4], n_flips=500, seed=7).p_familywise
    scaled = max_t_signflip(x[:, :4] * [1, 1e-6, 1e6, -3], n_flips=500, seed=7).p_familywise
    more = max_t_signflip(x, n_flips=500, seed=7).p_familywise[:4]
    assert (scaled == alone).all()
    assert (more >= alone).all()


@pytest.mark.parametrize("clustered", [False, True])
def test_the_smallest_p_is_uniform_when_labels_are_shuffled(clustered):
    generator = np.random.default_rng(8)
    effects = generator.normal(0.5, 1, (48, 1)) + generator.gamma(2, 1, (48, 6))
    names = np.repeat(np.arange(16), 3) if clustered else np.arange(48)
    smallest = []
    for _ in range(400):
        signs = generator.choice([-1, 1], names.max() + 1)[names]
        shuffled = effects * signs[:, None]
        result = max_t_signflip(shuffled, 199, clusters=names, seed=generator)
        smallest.append(result.p_familywise.min())
    # The p has steps of 1 / 200; spread each over its step before the continuous test.
    spread = np.array(smallest) - generator.random(400) / 200
    assert kstest(spread, "uniform").pvalue > 0.01
    assert np.mean(np.array(smallest) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_rows_that_move_together_are_no_discovery_with_clusters():
    generator = np.random.default_rng(9)
    names = np.repeat(np.arange(15), 8)
    false = {"rows": 0, "clusters": 0}
    for _ in range(100):
        x = np.repeat(generator.normal(size=(15, 3)), 8, axis=0)
        x = x + generator.normal(0, 0.1, (120, 3))
        false["rows"] += max_t_signflip(x, 199, seed=generator).p_familywise.min() <= 0.05
        found = max_t_signflip(x, 199, clusters=names, seed=generator)
        false["clusters"] += found.p_familywise.min() <= 0.05
    assert false["clusters"] <= 12
    assert false["rows"] > 60


@pytest.mark.parametrize("names", [None, [0, 0, 1, 2, 3, 4, 5]])
def test_the_observed_table_counts_among_its_flips_whatever_the_rounding(names):
    generator = np.random.default_rng(12)
    patterns = 2 ** (6 if names is None else 5)
    for _ in range(100):
        x = np.abs(generator.normal(0.1, 1, (7, 3))) * 10.0 ** generator.integers(-8, 8)
        p = max_t_signflip(x, clusters=names, seed=0).p_familywise
        assert (p >= 1 / patterns).all()
        assert p.min() == pytest.approx(1 / patterns)


@pytest.mark.parametrize("names", [None, [0, 0, 1, 2, 2, 2, 3]])
def test_one_constant_effect_has_no_spread_whatever_the_rounding(names):
    for value in (0.1, -0.3, 1e-7, 7e9 / 3):
        result = max_t_signflip(np.full((7, 1), value), clusters=names, seed=0)
        assert result.t[0] == math.copysign(math.inf, value)


def test_a_head_without_effect_and_too_few_rows_follow_the_stated_rules():
    x = np.random.default_rng(10).normal(3, 1, (12, 2))
    x[:, 1] = 0
    result = max_t_signflip(x, seed=0)
    assert (result.t[1], result.p_familywise[1]) == (0.0, 1.0)
    single = max_t_signflip(x[:1], seed=0)
    assert (single.p_familywise == 1).all()
    assert np.isnan(single.t).all()
    with pytest.raises(InputError, match="2 values that are not finite"):
        max_t_signflip([[math.nan, math.inf]], seed=0)
    with pytest.raises(InputError, match="1 dimensions, expected 2"):
        max_t_signflip([1.0, 2.0], seed=0)
