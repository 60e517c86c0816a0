"""Prompt sets and pair sets: frozen, with distinct ids and an account of their rows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from refusalscope.errors import InputError
from refusalscope.prompts import BadRow, Pair, PairSet, Prompt, PromptSet, Source, concat

SOURCE = Source("mine", "mine.csv", "0" * 64, "MIT", 2)


def _set(*ids: str, source: str = "mine") -> PromptSet:
    return PromptSet(tuple(Prompt(i, f"text {i}", source=source) for i in ids), (SOURCE,))


def test_a_set_is_a_sequence_of_its_prompts() -> None:
    three = _set("a", "b", "c")
    assert len(three) == 3
    assert [p.id for p in three] == ["a", "b", "c"]
    assert three[1].id == "b"
    assert three[-1].id == "c"
    assert isinstance(three[:2], PromptSet)
    assert three[:2].texts == ("text a", "text b")
    assert three[:2].sources == (SOURCE,)


@pytest.mark.parametrize("thing", [Prompt("a", "x"), Pair("a", "x", "y"), PromptSet(()), SOURCE])
def test_everything_is_frozen(thing: object) -> None:
    field = dataclasses.fields(thing)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, field, "new")


def test_prompts_and_sets_are_hashable() -> None:
    assert len({_set("a"), _set("a"), _set("b")}) == 2


def test_an_empty_text_or_an_unknown_label_raises() -> None:
    with pytest.raises(InputError, match="'a' has an empty text"):
        Prompt("a", " \n")
    with pytest.raises(InputError, match="label 'bad'"):
        Prompt("a", "x", "bad")  # type: ignore[arg-type]


def test_repeated_ids_raise() -> None:
    with pytest.raises(InputError, match=r"'a'.*distinct"):
        _set("a", "b", "a")
    with pytest.raises(InputError, match="distinct"):
        PairSet((Pair("p", "x", "y"), Pair("p", "v", "w")))


def test_of_and_in_category_select_and_name_what_is_unknown() -> None:
    both = PromptSet((Prompt("a", "x", "harmful", "tea"), Prompt("b", "y", "harmless", "milk")))
    assert both.of("harmful").texts == ("x",)
    assert both.in_category("milk", "tea").texts == ("x", "y")
    with pytest.raises(InputError, match=r"category 'rum'.*milk, tea"):
        both.in_category("rum")
    with pytest.raises(InputError, match="harmful or harmless"):
        both.of("bad")  # type: ignore[arg-type]


def test_a_pair_set_gives_both_members_with_ids_by_pair_and_label() -> None:
    pairs = PairSet(
        (Pair("p", "x", "y", "tea", "mine"), Pair("q", "v", "w", "milk")),
        (SOURCE,),
        (BadRow(3, "empty line"),),
    )
    prompts = pairs.prompts()
    assert [(p.id, p.text, p.label, p.category) for p in prompts] == [
        ("p/harmful", "x", "harmful", "tea"),
        ("p/harmless", "y", "harmless", "tea"),
        ("q/harmful", "v", "harmful", "milk"),
        ("q/harmless", "w", "harmless", "milk"),
    ]
    assert prompts[0].source == "mine"
    assert (prompts.sources, prompts.skipped) == (pairs.sources, pairs.skipped)
    assert pairs.of("harmless").texts == ("y", "w")
    assert [pair.id for pair in pairs.in_category("milk")] == ["q"]


def test_frames_have_the_columns_of_the_contract() -> None:
    frame = _set("a", "b").frame()
    assert list(frame.columns) == [
        "id",
        "text",
        "label",
        "category",
        "source",
        "system",
        "thinking",
        "history",
        "language",
    ]
    assert list(frame["text"]) == ["text a", "text b"]
    assert list(PairSet((Pair("p", "x", "y"),)).frame().columns) == [
        "id",
        "harmful",
        "harmless",
        "category",
        "source",
        "language",
    ]
    assert list(PromptSet(()).frame().columns)[:2] == ["id", "text"]


def test_concat_keeps_ids_that_differ_and_prefixes_those_that_clash() -> None:
    assert [p.id for p in concat(_set("a"), _set("b"))] == ["a", "b"]
    assert [p.id for p in concat(_set("a"), _set("a", "b", source="other"))] == [
        "mine/a",
        "other/a",
        "other/b",
    ]
    assert concat(_set("a"), _set("b")).sources == (SOURCE,)
    with pytest.raises(InputError, match="pass each file once"):
        concat(_set("a"), _set("a"))


def test_importing_the_room_loads_no_heavy_library() -> None:
    code = (
        "import sys, refusalscope.prompts as p; p.bundled_pairs().prompts();"
        "print(sorted({'pandas','sklearn','scipy','numpy','pyarrow','torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_exported_name_resolves() -> None:
    import refusalscope.prompts as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = room.nope
