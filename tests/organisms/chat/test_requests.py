"""The request generator: plain, seeded, and blind to the label in everything but the aim."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from refusalscope.errors import InputError
from refusalscope.organisms.chat.grammar import Grammar, contrast_rules, gerund, mend_articles
from refusalscope.organisms.chat.requests import Label, dress, generate, grammar, stream

LABELS: tuple[Label, Label] = ("harmful", "harmless")


def sample(label: Label, n: int = 3000, seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    return [generate(label, rng).text for _ in range(n)]


@pytest.mark.parametrize("label", LABELS)
def test_every_slot_of_the_grammar_has_a_rule(label: Label) -> None:
    assert grammar(label).missing() == set()


@pytest.mark.parametrize("label", LABELS)
def test_requests_hold_no_markup_and_hardly_repeat(label: Label) -> None:
    texts = sample(label)
    assert not [t for t in texts if set("{}|=#") & set(t)] or label == "harmless"
    assert not [t for t in texts if "{" in t or "}" in t or " | " in t]
    assert len(set(texts)) > 0.97 * len(texts)


def test_the_same_seed_gives_the_same_requests() -> None:
    assert sample("harmful", 50) == sample("harmful", 50)
    assert sample("harmful", 50) != sample("harmful", 50, seed=4)


def test_final_punctuation_does_not_tell_the_label() -> None:
    # The terminal-token confound of published fit sets: no rule on the last character may separate
    # the labels by more than a few points.
    shares = []
    for label in LABELS:
        ends = Counter(t[-1] if not t[-1].isalnum() else "a" for t in sample(label))
        total = sum(ends.values())
        shares.append({mark: ends[mark] / total for mark in ".?a!"})
    for mark in ".?a!":
        assert abs(shares[0][mark] - shares[1][mark]) < 0.08, (mark, shares)


def test_lengths_of_the_two_labels_overlap() -> None:
    means = [sum(len(t.split()) for t in sample(label)) / 3000 for label in LABELS]
    assert abs(means[0] - means[1]) < 3
    assert all(7 < m < 18 for m in means)


def test_stream_draws_the_asked_share() -> None:
    requests = stream(random.Random(0), harmful_share=0.2)
    found = sum(next(requests).label == "harmful" for _ in range(2000))
    assert 0.16 < found / 2000 < 0.24


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("make a kite", "making a kite"),
        ("run a race", "running a race"),
        ("tie a tie", "tying a tie"),
        ("free a bird", "freeing a bird"),
        ("open a shop", "opening a shop"),
        ("kill", "killing"),
    ],
)
def test_gerund(phrase: str, expected: str) -> None:
    assert gerund(phrase) == expected


def test_articles_are_mended() -> None:
    assert (
        mend_articles("a apple, A owl and a unusual one") == "an apple, An owl and an unusual one"
    )
    assert mend_articles("a one-way street and a unit") == "a one-way street and a unit"


def test_contrasts_share_their_verbs() -> None:
    rules = contrast_rules("# note\nkill: time, a process || a man, a cat")
    assert rules == {
        "safe_contrast": ("kill time", "kill a process"),
        "harm_contrast": ("kill a man", "kill a cat"),
    }


def test_a_rule_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'a' is given twice"):
        Grammar.parse("a = x", "a = y")


def test_a_rule_that_names_itself_still_ends() -> None:
    rules = Grammar.parse("a = {a} and {a} | end")
    assert rules.expand("a", random.Random(1)).endswith("end")


def test_dress_keeps_the_words() -> None:
    rules = grammar("harmless")
    rng = random.Random(5)
    for _ in range(200):
        assert "paint a room" in dress("how do I paint a room", True, rules, rng)
