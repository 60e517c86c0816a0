"""Splits are disjoint, stratified, seeded, and keep near-duplicates on one side."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusalscope.errors import InputError
from refusalscope.prompts import (
    Pair,
    PairSet,
    Prompt,
    PromptSet,
    bundled_pairs,
    check_leakage,
    read_prompts,
    split,
)


def _word(number: int) -> str:
    return "".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=12))


def _unlike(n: int, categories: int = 4) -> PromptSet:
    return PromptSet(
        tuple(
            Prompt(f"p{i}", f"{_word(i)} {_word(-i - 1)}", category=f"c{i % categories}")
            for i in range(n)
        )
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 80), categories=st.integers(1, 12), seed=st.integers(0, 99))
def test_sides_are_disjoint_and_complete_and_close_to_their_fractions(
    n: int, categories: int, seed: int
) -> None:
    items = _unlike(n, categories)
    sides = split(items, seed=seed)
    ids = [p.id for side in sides.values() for p in side]
    assert sorted(ids) == sorted(p.id for p in items)
    for name, share in {"fit": 0.5, "select": 0.25, "report": 0.25}.items():
        assert abs(len(sides[name]) - share * n) <= 2


def test_every_category_is_shared_out_in_proportion() -> None:
    sides = split(_unlike(160, categories=10), seed=3)
    for name, expected in {"fit": 8, "select": 4, "report": 4}.items():
        counts = Counter(p.category for p in sides[name])
        assert len(counts) == 10
        assert all(abs(count - expected) <= 1 for count in counts.values())


@pytest.mark.parametrize("seed", range(5))
def test_categories_of_odd_sizes_are_shared_out_in_proportion(seed: int) -> None:
    sizes = {"a": 5, "b": 7, "c": 9, "d": 11, "e": 13, "f": 6}
    names = [name for name, size in sizes.items() for _ in range(size)]
    prompts = [
        Prompt(f"p{i}", f"{_word(i)} {_word(-i - 1)}", category=c) for i, c in enumerate(names)
    ]
    shares = {"fit": 0.5, "select": 0.2, "report": 0.3}
    sides = split(PromptSet(tuple(prompts)), shares, seed=seed)
    for side, share in shares.items():
        counts = Counter(p.category for p in sides[side])
        assert all(abs(counts[name] - share * size) <= 1.5 for name, size in sizes.items())


def test_categories_of_one_prompt_do_not_all_go_to_one_side() -> None:
    sides = split(_unlike(40, categories=40))
    assert [len(side) for side in sides.values()] == [20, 10, 10]


def test_the_seed_decides_and_the_order_of_the_file_does_not() -> None:
    items = _unlike(40)
    turned = PromptSet(tuple(reversed(items.items)))

    def ids(sides: dict[str, PromptSet]) -> dict[str, set[str]]:
        return {name: {p.id for p in side} for name, side in sides.items()}

    assert ids(split(items, seed=1)) == ids(split(turned, seed=1))
    assert ids(split(items, seed=1)) != ids(split(items, seed=2))
    positions = [items.items.index(p) for p in split(items)["fit"]]
    assert positions == sorted(positions)


def test_near_duplicates_never_stand_on_two_sides() -> None:
    copies = [
        Prompt(f"p{i}{mark!r}", f"{_word(i)} {_word(-i - 1)} {_word(i + 1000)}{mark}")
        for i in range(30)
        for mark in ("", ".", " please?")
    ]
    sides = split(PromptSet(tuple(copies)))
    for side in sides.values():
        assert all(
            count == 3 for count in Counter(p.text.split()[0].strip(".") for p in side).values()
        )
    check_leakage(sides)


def test_pairs_that_share_one_member_stay_together() -> None:
    pairs = [
        Pair(
            f"p{i}",
            f"steal {_word(i)} {_word(i + 500)}",
            f"buy {_word(i // 2 + 900)} {_word(i // 2 + 7000)}",
        )
        for i in range(40)
    ]
    sides = split(PairSet(tuple(pairs)))
    assert isinstance(sides["fit"], PairSet)
    for side in sides.values():
        assert all(count == 2 for count in Counter(int(p.id[1:]) // 2 for p in side).values())
    check_leakage(sides)


def test_the_bundled_pairs_split_without_leakage_and_in_every_category() -> None:
    sides = split(bundled_pairs())
    assert {name: len(side) for name, side in sides.items()} == {
        "fit": 80,
        "select": 40,
        "report": 40,
    }
    assert all(len({p.category for p in side}) == 10 for side in sides.values())
    check_leakage(sides)


def test_a_split_of_real_prompts_passes_its_own_leakage_check(shared: Path) -> None:
    prompts = read_prompts(shared / "data/refusal_direction/raw/advbench.csv")
    sides = split(prompts, {"fit": 0.6, "report": 0.4}, seed=5)
    check_leakage(sides)
    assert abs(len(sides["fit"]) - 0.6 * 513) < 8
    assert sides["fit"].sources == prompts.sources


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "b": 0.6}])
def test_fractions_that_are_none_raise(fractions: dict[str, float]) -> None:
    with pytest.raises(InputError, match="sum to 1"):
        split(_unlike(10), fractions)


def test_too_few_prompts_or_too_much_alike_raise() -> None:
    with pytest.raises(InputError, match="would be empty"):
        split(_unlike(2))
    alike = PromptSet(tuple(Prompt(f"p{i}", "the very same words") for i in range(20)))
    with pytest.raises(InputError, match="20 items in 1 groups"):
        split(alike)
    with pytest.raises(InputError, match="empty set"):
        split(PromptSet(()))
