"""The routing benchmark on one pair: both ways give the same numbers, and every count is a counted one."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What the script writes for ten pairs, of which one runs as coded; and its exit status."""
    out = tmp_path_factory.mktemp("routing") / "routing.json"
    given = ["--pairs", "10", "--subset", "1", "--repeats", "1", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(sys, "argv", ["routing.py", *given, "--json", str(out)])
        status = importlib.import_module("routing").main()
    return status, json.loads(out.read_text())


def test_the_script_finds_both_ways_equal_and_says_what_they_cost(figures):
    status, result = figures
    assert status == 0
    assert result["broken"] == []
    assert result["largest_difference"] < 1e-4
    heads = result["heads"]
    assert heads == 40
    coded = result["ways"]["as coded, subset"]
    assert coded["forwards"] == 2 + 4 * heads
    assert result["as_coded"]["forwards"] == 10 * (2 + 4 * heads)
    assert result["as_coded"]["with_reply"] - result["as_coded"]["token_layers"] == (
        10 * 2 * 5 * 5 * (1 + heads)
    )
    small = result["ways"]["screen, subset"]
    assert coded["token_layers"] > 10 * small["token_layers"]
    ratio = result["as_coded"]["token_layers"] / result["ways"]["screen"]["token_layers"]
    assert result["token_layers_ratio"] == ratio
    # 20 candidates, 10 swaps, a null of 10: what 10 pairs cost in the published procedure.
    assert result["published_forwards"] == 10 * (4 + 22 + 42 + 4) + 4 * 10 * 11
    assert result["ways"]["published, subset"]["forwards"] == 4 + 22 + 42 + 4 + 4 * 11
    assert abs(result["gap"]) > 1


def test_bars_are_met_or_missed_by_their_own_figure(figures):
    routing = importlib.import_module("routing")
    assert [bar["met"] for bar in figures[1]["bars"]][1:] == [True, True]
    met = lambda *values: [bar["met"] for bar in routing.bars(*values)]  # noqa: E731
    assert met(40.0, 9e-5, 59.0) == [True, True, True]
    assert met(39.9, 1e-4, 60.0) == [False, False, False]
    assert met(50.0, float("nan"), 1.0) == [True, False, True]


def test_a_wrong_number_or_count_breaks_the_run():
    routing = importlib.import_module("routing")

    def rows(own=(162, 900)):
        return {"as coded, subset": routing.Row(forwards=162, token_layers=900, own=own)}

    assert routing.broken(0.0, rows(), (162, 900)) == []
    assert "differs" in routing.broken(float("nan"), rows(), (162, 900))[0]
    assert "the hooks on the model counted" in routing.broken(0.0, rows((162, 901)), (162, 900))[0]
    assert "by arithmetic" in routing.broken(0.0, rows(), (161, 900))[0]


def test_the_largest_difference_is_looked_for_in_both_directions():
    routing = importlib.import_module("routing")
    zeros, one = np.zeros((2, 3)), np.array([[0, 0, 0], [0, 0.5, 0]])
    exact = routing.Screen((), {}, {}, {"margin": zeros[:, None]}, {"margin": zeros[:, None]})
    for pair in ((one, zeros), (zeros, one)):
        assert routing.largest_difference(exact, routing.Swaps(zeros, zeros, *pair)) == 0.5


@pytest.mark.parametrize("given", [["--pairs", "7"], ["--pairs", "8", "--subset", "9"]])
def test_sizes_that_cannot_be_run_are_refused(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["routing.py", *given])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("routing").main()
    assert "must be from" in capsys.readouterr().err
