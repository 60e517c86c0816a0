"""Final punctuation is classed and varied, and nothing else is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusalscope.prompts import final_character_class, punctuation_variants


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Go.", "period"),
        ("Go…", "period"),
        ("去。", "period"),
        ("Go? \n", "question"),
        ("去？", "question"),
        ("Go!", "exclamation"),
        ("Go", "none"),
        ("1 + 1", "none"),
        ('Say "go"', "other"),
        ("Go:", "other"),
        ("  ", "empty"),
    ],
)
def test_class_of_the_final_character(text: str, expected: str) -> None:
    assert final_character_class(text) == expected


def test_variants_differ_in_the_final_marks_only() -> None:
    assert punctuation_variants("Is it so?! ") == {
        "as_is": "Is it so?! ",
        "stripped": "Is it so",
        "period": "Is it so.",
        "question": "Is it so?",
    }
    assert punctuation_variants("A (b)")["period"] == "A (b)."
    assert punctuation_variants("???")["stripped"] == "???"


@given(st.from_regex(r"[a-z]{1,5}( [a-z]{1,5}){0,4}[.?!]{0,3}", fullmatch=True))
def test_variants_of_variants_agree(text: str) -> None:
    variants = punctuation_variants(text)
    assert final_character_class(variants["stripped"]) == "none"
    assert final_character_class(variants["period"]) == "period"
    assert final_character_class(variants["question"]) == "question"
    for variant in variants.values():
        assert punctuation_variants(variant) | {"as_is": text} == variants
