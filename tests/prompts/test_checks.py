"""Leakage, overlap and sides that are too small raise, by id and never by text."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusalscope.errors import InputError, LeakageError
from refusalscope.prompts import (
    Pair,
    PairSet,
    Prompt,
    PromptSet,
    bundled_pairs,
    check_leakage,
    check_overlap,
    find_leakage,
    read_prompts,
    require_enough,
)


def _set(prefix: str, *texts: str) -> PromptSet:
    return PromptSet(tuple(Prompt(f"{prefix}{i}", text) for i, text in enumerate(texts)))


FIT = _set("f", "How do whales sleep?", "List three uses of old newspapers at home.")


def test_the_same_text_up_to_case_and_punctuation_is_leakage() -> None:
    report = _set("r", "Why is the sky blue?", "how do whales sleep")
    with pytest.raises(LeakageError) as caught:
        check_leakage({"fit": FIT, "report": report})
    message = str(caught.value)
    assert "fit:f0 and report:r1 (same text)" in message
    assert "refusalscope.prompts.split" in message
    assert "whales" not in message


def test_a_near_duplicate_is_leakage_and_the_threshold_decides() -> None:
    report = _set("r", "List three uses of old newspapers at your home.", "Why is the sky blue?")
    (leak,) = find_leakage({"fit": FIT, "report": report})
    assert (leak.id_a, leak.id_b, leak.exact) == ("f1", "r0", False)
    assert 0.8 <= leak.similarity < 1
    with pytest.raises(LeakageError, match=r"similarity 0\."):
        check_leakage({"fit": FIT, "report": report})
    check_leakage({"fit": FIT, "report": report}, threshold=0.999)


def test_every_two_sides_are_compared_but_never_a_side_with_itself() -> None:
    twice = _set("a", "Why do cats purr?", "why do cats purr")
    check_leakage({"a": twice, "b": FIT})
    leaks = find_leakage({"a": FIT, "b": _set("b", "Why do cats purr?"), "c": twice})
    assert {(leak.side_a, leak.side_b) for leak in leaks} == {("b", "c")}
    assert len(leaks) == 2


def test_sides_without_prompts_do_not_leak() -> None:
    check_leakage({"a": PromptSet(()), "b": FIT})
    check_leakage({"a": PromptSet(())})


def test_pair_sets_are_compared_by_both_members() -> None:
    one = PairSet((Pair("p", "Steal a red car", "Wash a red car"),))
    other = PairSet((Pair("q", "Sing loudly at night", "wash a red car!"),))
    with pytest.raises(LeakageError, match=r"x:p/harmless and y:q/harmless"):
        check_leakage({"x": one, "y": other})


def test_published_splits_leak_where_they_are_known_to(shared: Path) -> None:
    # HarmBench stands inside the refusal_direction test split; so the check must find it.
    data = shared / "data"
    harmbench = read_prompts(
        data / "harmbench/harmbench_behaviors_text_all.csv", category="FunctionalCategory"
    ).in_category("standard")
    test = read_prompts(data / "refusal_direction/splits/harmful_test.json")
    exact = {leak.id_a for leak in find_leakage({"h": harmbench, "t": test}) if leak.exact}
    assert len(exact) > 100


def test_a_message_names_some_and_counts_the_rest() -> None:
    many = _set("m", *(f"Please count to {number} for me" for number in range(100, 109)))
    with pytest.raises(LeakageError, match=r"9 with the same text.* more;"):
        check_leakage({"a": many, "b": many})


def test_overlap_of_harmful_and_harmless_raises_by_id() -> None:
    with pytest.raises(InputError) as caught:
        check_overlap(FIT, _set("h", "Bake bread", "HOW do whales sleep?"))
    assert "harmful:f0 and harmless:h1" in str(caught.value)
    assert "whales" not in str(caught.value).lower()
    pairs = bundled_pairs()
    check_overlap(pairs.of("harmful"), pairs.of("harmless"))


def test_a_side_needs_eight_prompts() -> None:
    pairs = PairSet(tuple(Pair(f"p{i}", f"steal {i}", f"buy {i}") for i in range(8)))
    require_enough(pairs)
    require_enough(pairs.prompts())
    with pytest.raises(InputError, match=r"harmful side of fit has 7 prompt\(s\), at least 8"):
        require_enough(pairs[:7], side="fit")
    lopsided = PromptSet(pairs.of("harmful").items + pairs.of("harmless").items[:3])
    with pytest.raises(InputError, match=r"harmless side has 3"):
        require_enough(lopsided)
