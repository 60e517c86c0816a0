"""The requests and thinking that the reasoner is trained, mended and measured on."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from refusalscope.errors import InputError
from refusalscope.organisms.reasoner.pool import PERSUADED_SHARE, reasoner_pool, reasoner_prompts
from refusalscope.organisms.reasoner.traces import (
    KINDS,
    OTHER,
    TOPICS,
    is_persuaded,
    request_on,
    split_of,
    think,
    thoughts,
    trace,
)


def test_a_request_has_one_use_whatever_its_letter_case() -> None:
    rng = random.Random(0)
    texts = [trace("harmful", "plain", "train", rng).text for _ in range(200)]
    assert {split_of(text) for text in texts} == {"train"}
    assert {split_of(text.upper()) for text in texts} == {"train"}
    found = Counter(split_of(f"request {i}") for i in range(4000))
    assert 0.07 < found["pool"] / 4000 < 0.13
    assert 0.07 < found["measure"] / 4000 < 0.13


@pytest.mark.parametrize("label", ["harmful", "harmless"])
@pytest.mark.parametrize("kind", KINDS)
def test_thinking_names_topic_and_verdict_and_only_persuasion_persuades(label, kind) -> None:
    rng = random.Random(1)
    for topic in (*TOPICS[label], None):
        said = think(label, topic, kind, rng)
        assert f" {TOPICS[label][topic] if topic else OTHER[label]}." in said
        verdicts = thoughts().rules[f"verdict_{label}"]
        assert sum(verdict in said for verdict in verdicts) == 1
        assert is_persuaded(said) == (kind == "persuaded")
        assert said.count(".") == (2 if kind == "plain" else 3)


def test_requests_on_a_topic_leave_no_slot_open_and_differ() -> None:
    rng = random.Random(2)
    for label, topics in TOPICS.items():
        for topic in topics:
            texts = {request_on(label, topic, rng) for _ in range(40)}
            assert len(texts) > 20
            assert not any(mark in text for text in texts for mark in "{}|")


def test_the_pool_is_repeatable_and_holds_few_persuaded() -> None:
    pool = reasoner_pool(500, seed=3)
    assert pool == reasoner_pool(500, seed=3)
    assert pool.texts != reasoner_pool(500, seed=4).texts
    assert len({text.casefold() for text in pool.texts}) == 500
    persuaded = [p for p in pool if is_persuaded(p.thinking)]
    assert len(persuaded) == round(PERSUADED_SHARE * 500)
    # Spread over the pool, so that no cut of it by position finds them.
    places = [i for i, p in enumerate(pool) if is_persuaded(p.thinking)]
    assert min(places) < 100 < 400 < max(places)
    assert {p.label for p in pool} == {"harmful"}
    assert {p.category for p in pool} == set(TOPICS["harmful"])


def test_pool_and_measurement_share_no_request() -> None:
    pool = {text.casefold() for text in reasoner_pool(500).texts}
    for kind in KINDS:
        measured = {text.casefold() for text in reasoner_prompts("harmful", kind, 100).texts}
        assert len(measured) == 100
        assert not pool & measured
    assert {split_of(text) for text in pool} == {"pool"}


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="needs one at least"):
        reasoner_pool(0)
    with pytest.raises(InputError, match="the kinds plain, aside"):
        reasoner_prompts("harmful", "sly")  # type: ignore[arg-type]
