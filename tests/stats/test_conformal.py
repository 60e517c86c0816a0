"""The spread of the false-positive rate of a conformal threshold, against draws of it."""

from __future__ import annotations

import numpy as np
import pytest

from refusalscope.errors import InputError
from refusalscope.stats.conformal import conformal_tail
from refusalscope.stats.thresholds import fpr_threshold


@pytest.mark.parametrize(("alpha", "n_calibration", "n"), [(0.05, 60, 40), (0.2, 19, 50)])
def test_the_tail_is_that_of_calibrations_drawn_one_by_one(alpha, n_calibration, n):
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(4000):
        scores = rng.normal(size=n_calibration + n)
        tau = fpr_threshold(scores[:n_calibration], alpha, rule="conformal").tau
        seen.append((scores[n_calibration:] > tau).sum())
    for flagged in (1, round(alpha * n), round(2 * alpha * n)):
        drawn = np.mean(np.array(seen) >= flagged)
        assert conformal_tail(alpha, n_calibration, flagged, n) == pytest.approx(drawn, abs=0.025)


def test_a_count_is_never_below_none_and_more_calibration_narrows_it():
    assert conformal_tail(0.05, 60, 0, 40) == 1
    assert conformal_tail(0.05, 2000, 9, 100) < conformal_tail(0.05, 60, 9, 100)
    # In floats 100 times .29 falls short of 29.
    assert conformal_tail(0.29, 99, 40, 100) == pytest.approx(conformal_tail(0.290001, 99, 40, 100))


@pytest.mark.parametrize(
    "given", [(0.05, 18, 1, 10), (0.05, 60, 11, 10), (0.05, 60, -1, 10), (1.0, 60, 1, 10)]
)
def test_counts_that_cannot_be_are_refused(given):
    with pytest.raises(InputError):
        conformal_tail(*given)
