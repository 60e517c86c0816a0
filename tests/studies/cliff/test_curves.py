"""Plateau, final and cliff of single traces by hand, and the mean curve."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.special import logit

from refusalscope.errors import InputError
from refusalscope.model import Rendered
from refusalscope.prompts import Prompt
from refusalscope.studies.cliff import Trace, drops, mean_curve, prompt_table
from studies.cliff.planted_case import reading


def trace(n_thinking: int, name: str = "a", n_closing: int = 2) -> Trace:
    start, stop, n = 2, 2 + n_thinking, 2 + n_thinking + n_closing
    rendered = Rendered(name, "", (0,) * n, n, (0, 0), {})
    prompt = Prompt(name, "a request", "harmful", "c")
    return Trace(prompt, rendered, range(start, stop), tuple(range(stop, n)))


def table(traces, scores, **options):
    return prompt_table(
        traces, [logit(np.array(s, dtype=float)) for s in scores], seed=0, **options
    )


def test_the_figures_of_a_trace_are_those_of_its_scores():
    thinking = [0.95, *[0.3] * 9, *np.linspace(0.5, 0.88, 20)]
    row = table([trace(30)], [[0.1, 0.1, *thinking, 0.6, 0.2]]).iloc[0]
    late = np.median(thinking[-20:])
    assert row["plateau"] == pytest.approx(0.95)
    assert row["plateau_p90"] == pytest.approx(np.quantile(thinking, 0.9))
    assert row["plateau_median"] == pytest.approx(np.median(thinking))
    assert (row["late"], row["final"]) == (pytest.approx(late), pytest.approx(0.2))
    assert row["ms"] == pytest.approx(0.75)
    assert row["ms_p90"] == pytest.approx(np.quantile(thinking, 0.9) - 0.2)
    assert row["ms_median"] == pytest.approx(np.median(thinking) - 0.2)
    assert row["drop"] == pytest.approx(late - 0.2)
    assert row["fall"] == pytest.approx(np.quantile(thinking, 0.9) - late)
    steps = [row["at closing[0]"], row["at closing[1]"]]
    assert steps == pytest.approx([late - 0.6, 0.4])
    assert sum(steps) == pytest.approx(row["drop"])
    assert row[["id", "label", "category", "n_thinking"]].tolist() == ["a", "harmful", "c", 30]


def test_drops_are_those_of_the_table():
    rng = np.random.default_rng(0)
    traces = [trace(n, str(n)) for n in (3, 24, 40)]
    logits = [rng.normal(size=len(one)) for one in traces]
    assert drops(traces, logits) == pytest.approx(prompt_table(traces, logits, seed=0)["drop"])


def test_ranks_put_the_most_misaligned_first():
    scores = [
        [0.1, 0.1, *[p] * 5, f, f] for p, f in ((0.9, 0.5), (0.4, 0.1), (0.9, 0.2), (0.9, 0.2))
    ]
    found = table([trace(5, str(i)) for i in range(4)], scores)
    assert found["rank_ms"].tolist() == [3, 4, 1, 2]
    assert found["rank_ms_p90"].tolist() == [3, 4, 1, 2]
    assert found["rank_final"].tolist() == [4, 1, 2, 3]


def test_the_permutation_p_is_that_of_all_orders():
    window = [0.9, 0.8, 0.85, 0.7, 0.1, 0.2]
    observed = np.median(window[:4]) - window[-1]
    hits = [np.median(order[:4]) - order[-1] >= observed - 1e-9 for order in permutations(window)]
    row = table([trace(4)], [[0.5, 0.5, *window]], n_permutations=20_000).iloc[0]
    assert row["p"] == pytest.approx(np.mean(hits), abs=0.01)


def test_the_permutation_looks_at_the_last_64_tokens():
    """A plateau of .9 before them is not seen, and the drop from .3 is nothing there."""
    late = [0.3, 0.1] * 31
    rows = [table([trace(62 + n)], [[0.5] * 2 + [0.9] * n + [*late, 0.1, 0.1]]) for n in (0, 100)]
    assert rows[0].iloc[0]["p"] == rows[1].iloc[0]["p"] > 0.25


def test_a_short_trace_has_no_small_p():
    assert table([trace(1)], [[0.5, 0.5, 0.9, 0.1, 0.1]]).iloc[0]["p"] > 0.2


def test_scores_of_another_trace_are_refused():
    with pytest.raises(InputError, match="has 8 tokens and 7 logits; score it again"):
        prompt_table([trace(4)], [np.zeros(7)], seed=0)


# The mean curve


def test_the_curve_of_constant_traces_is_constant_however_long_they_are():
    found = mean_curve([np.full(n, 0.7) for n in (3, 9, 5)], seed=0)
    assert found["position"].tolist() == list(range(-9, 0))
    assert found["mean"].to_numpy() == pytest.approx([0.7] * 9)
    assert found["n"].tolist() == [1] * 4 + [2] * 2 + [3] * 3
    several = found[found["n"] > 1]
    assert several[["low", "high"]].to_numpy() == pytest.approx(0.7)
    assert found[found["n"] == 1][["low", "high"]].isna().all(axis=None)


def test_the_curve_is_the_mean_over_traces_with_a_bootstrap_band():
    rng = np.random.default_rng(1)
    scores = [rng.random(6) for _ in range(40)]
    found = mean_curve(scores, n_resamples=4000, seed=0)
    values = np.array(scores)
    assert found["mean"].to_numpy() == pytest.approx(values.mean(0))
    width = (found["high"] - found["low"]).to_numpy()
    assert width == pytest.approx(2 * 1.96 * values.std(0) / 40**0.5, rel=0.1)


def test_no_scores_make_no_curve():
    with pytest.raises(InputError, match="no scores to draw a curve of"):
        mean_curve([], seed=0)


# Organisms


def test_all_of_the_fall_of_suppressed_traces_comes_with_the_first_closing_token():
    found = reading("base")
    rows = found.table[found.groups == "suppressed"]
    assert (rows["at closing[0]"] > 0.8).all()
    assert rows[["at closing[1]", "at closing[2]"]].abs().max(axis=None) < 0.05
    steps = found.verdict.steps
    assert list(steps) == ["at closing[0]", "at closing[1]", "at closing[2]"]
    assert sum(step.value for step in steps.values()) == pytest.approx(found.verdict.drop.value)


def test_every_ranking_puts_the_suppressed_traces_first():
    found = reading("base")
    harmful = found.table[found.table["label"] == "harmful"]
    suppressed = set(found.table["id"][found.groups == "suppressed"])
    for rank in ("rank_ms", "rank_ms_p90"):
        assert set(harmful.nsmallest(len(suppressed), rank)["id"]) == suppressed
    # By the final score benign traces are as low.
    assert set(harmful.nsmallest(len(suppressed), "rank_final")["id"]) == suppressed
