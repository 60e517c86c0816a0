"""The tables of category directions: against loops, and which categories are told of."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from refusalscope.studies.directions.category_directions import category_tables
from studies.directions.belief_case import fit_rows, states, work
from studies.directions.test_category_likeness import slow


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return work(tmp_path_factory.mktemp("categories"), min_category=2)


def shared_mean(mine):
    """The same study as published: every direction from all the harmless prompts."""
    settings = mine.settings.model_copy(update={"category_harmless": "shared"})
    return replace(mine, settings=settings)


def test_categories_are_compared_by_the_directions_of_a_loop(mine):
    mine = shared_mean(mine)
    harmful, harmless = fit_rows(mine.subject)
    table, pairs = category_tables(mine, harmful, harmless)
    assert set(table["harmless"]) == set(pairs["harmless"]) == {"shared"}
    band = [2, 3]
    assert set(table["first_layer"]) == {2}
    assert set(table["last_layer"]) == {3}
    prompts = mine.subject.prompts
    names = sorted({str(prompts[i].category) for i in harmful})
    assert names == ["home", "sea", "town"]

    def mean(rows, end):
        found = []
        for i in rows:
            prompt = mine.subject.rendered[i]
            at = prompt.instruction[1] if end == "harmfulness" else prompt.n_prompt - 1
            found.append(states(mine.chat, prompt.ids)[band, at])
        return np.mean(found, axis=0)

    for axis in ("harmfulness", "refusal"):
        groups = np.stack(
            [mean([i for i in harmful if prompts[i].category == name], axis) for name in names]
        )
        both = np.stack([mean(harmless, axis)] * 2)[None]
        cosines, to_others, to_mean, shared = slow(groups, both)
        rows = table[table["axis"] == axis].set_index("category")
        np.testing.assert_allclose(rows.loc[names, "to_others"], to_others, atol=1e-4)
        np.testing.assert_allclose(rows.loc[names, "to_mean"], to_mean, atol=1e-4)
        assert rows.loc["all", "to_others"] == pytest.approx(to_others.mean(), abs=1e-4)
        assert rows.loc["all", "shared"] == pytest.approx(shared, abs=1e-4)
        assert rows["total"].tolist() == [False] * 3 + [True]
        null = rows.loc["all", ["shared_null_low", "shared_null", "shared_null_high"]]
        assert null.is_monotonic_increasing
        assert 0 < rows.loc["all", "shared_p"] <= 1
        unsteady = rows.loc[names, "halves"] < rows.loc[names, "to_others"]
        assert rows.loc[names, "unsteady"].tolist() == unsteady.tolist()
        assert rows.loc["all", "n"] == len(harmful)
        assert rows.loc["home", "n"] == sum(prompts[i].category == "home" for i in harmful)
        assert rows.loc[names, "halves"].notna().all()
        part = pairs[pairs["axis"] == axis]
        assert list(zip(part["a"], part["b"], strict=True)) == list(combinations(names, 2))
        np.testing.assert_allclose(part["cosine"], cosines[np.triu_indices(3, 1)], atol=1e-4)


def test_by_halves_no_two_directions_start_from_the_same_prompts(mine):
    harmful, harmless = fit_rows(mine.subject)
    table, pairs = category_tables(mine, harmful, harmless)
    published, _ = category_tables(shared_mean(mine), harmful, harmless)
    assert set(table["harmless"]) == set(pairs["harmless"]) == {"halves"}
    ours, theirs = (each.loc[each["total"], "to_others"].to_numpy() for each in (table, published))
    assert (ours < theirs).all()


def test_a_category_that_is_called_all_is_none_of_the_totals(mine):
    harmful, harmless = fit_rows(mine.subject)
    renamed = tuple(
        replace(p, category="all") if p.category == "home" else p for p in mine.subject.prompts
    )
    other = replace(mine, subject=replace(mine.subject, prompts=renamed))
    table, _ = category_tables(other, harmful, harmless)
    home = sum(renamed[i].category == "all" for i in harmful)
    rows = table[table["category"] == "all"]
    assert rows["total"].tolist() == [False, True] * 2
    assert rows["n"].tolist() == [home, len(harmful)] * 2


def test_a_category_of_too_few_prompts_is_named_without_figures(mine):
    harmful, harmless = fit_rows(mine.subject)
    prompts = mine.subject.prompts
    town = [i for i in harmful if prompts[i].category == "town"]
    few = [i for i in harmful if i not in town[1:]]
    table, pairs = category_tables(mine, few, harmless)
    left = table[table["category"] == "town"]
    assert left["axis"].tolist() == ["harmfulness", "refusal"]
    assert left["n"].tolist() == [1, 1]
    assert left["reason"].tolist() == ["too few prompts"] * 2
    assert left[["to_others", "to_mean", "halves"]].isna().all(axis=None)
    assert set(pairs["a"]) | set(pairs["b"]) == {"home", "sea"}
    assert (table.loc[table["total"], "n"] == len(few) - 1).all()
    assert not left["total"].any()
    enough, _ = category_tables(mine, [i for i in harmful if i not in town[2:]], harmless)
    assert (enough["reason"] == "").all()
    assert enough.loc[enough["category"] == "town", "n"].tolist() == [2, 2]


def test_one_category_alone_is_compared_with_nothing(mine):
    harmful, harmless = fit_rows(mine.subject)
    home = [i for i in harmful if mine.subject.prompts[i].category == "home"]
    table, pairs = category_tables(mine, home, harmless)
    assert table["category"].tolist() == ["home", "home"]
    assert set(table["reason"]) == {"no other category has enough prompts"}
    assert pairs.empty
    none, _ = category_tables(mine, [], harmless)
    assert none.empty
