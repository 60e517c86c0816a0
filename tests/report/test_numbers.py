"""Numbers are written so that they cannot be misread."""

from __future__ import annotations

import math

import pytest

from refusalscope.report.numbers import (
    ABSENT,
    MINUS,
    NBSP,
    decimal,
    duration,
    large,
    p_value,
    percent,
    span,
)


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0"), (1, "100"), (0.004, "0.4"), (0.9967, "99.7"), (0.123, "12"), (0.995, "99.5")],
)
def test_a_rate_never_rounds_to_none_or_all(rate: float, text: str):
    assert percent(rate) == f"{text}{NBSP}%"


def test_what_is_not_a_number_is_a_dash():
    for write in (percent, decimal, large, p_value, duration):
        assert write(math.nan) == ABSENT
        assert write(None) == ABSENT
    assert span(math.nan, 1) == ABSENT


def test_decimals_have_a_true_minus_and_no_negative_zero():
    assert decimal(-1.234) == f"{MINUS}1.23"
    assert decimal(-0.001) == "0.00"


def test_counts_and_times_are_in_units_a_reader_would_use():
    assert large(4_712_330) == f"4.71{NBSP}million"
    assert large(1284) == "1\u202f284"
    assert duration(3.21) == f"3.2{NBSP}s"
    assert duration(600) == f"10{NBSP}min"
    assert duration(7300) == f"2{NBSP}h 2{NBSP}min"
    assert p_value(0.00002) == "< 0.001"
