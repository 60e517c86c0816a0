"""The difference of two areas, held against a loop over resamples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from refusalscope.errors import InputError
from refusalscope.stats import auroc
from refusalscope.stats.auroc_difference import auroc_difference

LABELS = np.repeat([True, False], [60, 90])


def scores(shift: float, seed: int) -> np.ndarray:
    return LABELS * shift + np.random.default_rng(seed).normal(size=LABELS.size)


def test_value_and_bounds_are_those_of_a_slow_paired_bootstrap():
    a = scores(1.5, 0)
    b = a + scores(-0.7, 1)
    found = auroc_difference(LABELS, a, b, method="percentile", n_resamples=2000, seed=0)
    assert found.value == pytest.approx(roc_auc_score(LABELS, a) - roc_auc_score(LABELS, b))
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(1000):
        rows = np.concatenate(
            [
                rng.choice(rows, rows.size)
                for rows in (np.flatnonzero(LABELS), np.flatnonzero(~LABELS))
            ]
        )
        draws.append(roc_auc_score(LABELS[rows], a[rows]) - roc_auc_score(LABELS[rows], b[rows]))
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)


def test_pairing_narrows_the_interval_of_like_scores():
    a = scores(1.0, 0)
    b = a + 0.1 * scores(0.0, 1)
    paired = auroc_difference(LABELS, a, b, seed=0)
    apart = [auroc(LABELS, each, seed=0) for each in (a, b)]
    assert paired.high - paired.low < 0.3 * (apart[0].high - apart[1].low)


def test_two_complete_separations_are_not_called_equal_for_certain():
    perfect = LABELS.astype(float)
    found = auroc_difference(LABELS, perfect, perfect, seed=0)
    assert found.value == 0
    assert found.low < -0.03
    assert found.high > 0.03


def test_a_class_of_one_row_and_of_none():
    few = np.array([True, False, False, False])
    found = auroc_difference(few, [3.0, 1, 2, 0], [0.0, 1, 2, 3], seed=0)
    assert found.value == 1
    assert found.low <= 0
    assert np.isnan(auroc_difference([False, False], [0.0, 1], [1.0, 0], seed=0).value)


def test_unequal_lengths_are_refused():
    with pytest.raises(InputError, match="a has 2 rows, b has 1"):
        auroc_difference([True, False], [0.0, 1], [1.0], seed=0)
