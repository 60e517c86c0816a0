"""Verdicts on shortcuts say what the numbers say."""

from __future__ import annotations

import numpy as np

from refusalscope.studies.directions.shortcuts import shortcuts

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def verdicts(mark: str, belief: np.ndarray, controls: dict | None = None) -> dict[str, str]:
    """40 prompts; harmful ones end in `mark`, harmless ones in a full stop; words say nothing."""
    rng = np.random.default_rng(0)
    harmful = [i % 2 == 0 for i in range(40)]
    texts = [" ".join(rng.choice(WORDS, 6)) + (mark if bad else ".") for bad in harmful]
    beliefs = {"belief": belief, **(controls or {})}
    table = shortcuts(texts, harmful, texts, harmful, beliefs, seed=0)
    return dict(zip(table["name"], table["verdict"], strict=True))


HARM = np.array([float(i % 2 == 0) for i in range(40)])


def test_a_punctuation_confound_fails_the_belief_score():
    found = verdicts("", HARM)
    assert found["belief"] == "the score under test"
    assert found["final punctuation"].startswith("as good as belief")


def test_matched_punctuation_is_not_shown_to_carry_the_label():
    assert verdicts(".", HARM)["final punctuation"] == "not shown to carry the label"


def test_a_belief_at_chance_is_called_that_and_no_cue_is_as_good_as_it():
    noise = np.random.default_rng(1).normal(size=40)
    found = verdicts("", noise)
    assert "not shown to be above chance" in found["belief"]
    assert found["final punctuation"] == "carries some of the label, more than belief"


def test_the_same_score_elsewhere_is_told_by_its_distance():
    found = verdicts(".", HARM, {"belief at the last word": 1 - HARM})
    assert found["belief at the last word"] == "the same score, -1.00 from the one under test"
