"""Final marks made alike."""

from __future__ import annotations

from collections import Counter

import pytest

from refusalscope.guard.matching import mark_shares, match_marks, with_marks_like
from refusalscope.prompts import Prompt, final_character_class


def prompts(label: str, *marks: tuple[str, int]) -> list[Prompt]:
    texts = [f"{label} {mark or 'none'} {i}{mark}" for mark, n in marks for i in range(n)]
    return [Prompt(text, text, label) for text in texts]


def kinds(side) -> Counter:
    return Counter(final_character_class(prompt.text) for prompt in side)


def test_as_many_of_each_mark_as_the_rarer_side_has():
    harmful = prompts("harmful", ("", 40), ("?", 10), ("!", 3))
    harmless = prompts("harmless", (".", 50), ("?", 30), ("", 25))
    one, other, how = match_marks(harmful, harmless, 0)
    assert how == "drawn"
    assert kinds(one) == kinds(other) == {"none": 25, "question": 10}
    assert match_marks(harmful, harmless, 0)[0] == one
    assert match_marks(harmful, harmless, 1)[0] != one
    assert set(one) <= set(harmful)


@pytest.mark.parametrize("shared", [0, 5])
def test_marks_are_rewritten_where_too_few_would_be_left(shared):
    harmful = prompts("harmful", ("", 40), ("?", shared))
    harmless = prompts("harmless", (".", 50), ("?", shared))
    one, other, how = match_marks(harmful, harmless, 0)
    assert how == "rewritten"
    assert len(one) == 3 * len(harmful)
    assert (
        mark_shares(one)
        == mark_shares(other)
        == {"none": 1 / 3, "period": 1 / 3, "question": 1 / 3}
    )
    assert len({prompt.id for prompt in one}) == len(one)
    assert {prompt.label for prompt in one} == {"harmful"}


def test_marks_are_dealt_out_in_shares_and_the_words_stay():
    given = prompts("harmful", ("", 40))
    made = with_marks_like(given, {"period": 0.5, "question": 0.25, "other": 0.1}, 0)
    assert kinds(made) == {"period": 20, "question": 10, "none": 10}
    assert [prompt.id for prompt in made] == [prompt.id for prompt in given]
    assert [prompt.text.rstrip(".?") for prompt in made] == [prompt.text for prompt in given]
    assert with_marks_like(given, {}, 0) == given


def test_a_small_set_of_one_mark_stays_as_it_is():
    harmful, harmless = prompts("harmful", ("?", 6)), prompts("harmless", ("?", 9))
    one, other, how = match_marks(harmful, harmless, 0)
    assert (how, len(one), len(other)) == ("drawn", 6, 6)
    assert one == harmful
