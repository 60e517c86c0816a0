"""Likeness of category directions against NumPy, and which categories are told of."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from refusalscope.studies.directions.category_directions import category_tables
from refusalscope.studies.directions.category_likeness import (
    bootstrap_likeness,
    half_cosine,
    likeness,
)
from studies.directions.belief_case import cosine, fit_rows, states, work


def slow(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """cosines, to_others, to_mean and the share of the first singular component; [K, rows, d_model]."""
    k, n_rows = directions.shape[:2]
    cosines = np.array(
        [
            [np.mean([cosine(a[r], b[r]) for r in range(n_rows)]) for b in directions]
            for a in directions
        ]
    )
    to_others = [np.mean([cosines[i, j] for j in range(k) if j != i]) for i in range(k)]
    to_mean, shared = [], []
    for i in range(k):
        rest = np.delete(directions, i, axis=0).mean(0)
        to_mean.append(np.mean([cosine(directions[i, r], rest[r]) for r in range(n_rows)]))
    for r in range(n_rows):
        unit = directions[:, r] / np.linalg.norm(directions[:, r], axis=-1, keepdims=True)
        singular = np.linalg.svd(unit, compute_uv=False)
        shared.append(singular[0] ** 2 / (singular**2).sum())
    return cosines, np.array(to_others), np.array(to_mean), float(np.mean(shared))


def test_likeness_is_that_of_numpy():
    directions = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1)) + 0.5
    found = likeness(directions)
    cosines, to_others, to_mean, shared = slow(directions.double().numpy())
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-6)
    np.testing.assert_allclose(found.to_others, to_others, atol=1e-6)
    np.testing.assert_allclose(found.to_mean, to_mean, atol=1e-6)
    assert found.shared == pytest.approx(shared, abs=1e-6)
    pairs = [cosines[i, j] for i, j in combinations(range(5), 2)]
    np.testing.assert_allclose(
        found.flat(), [*pairs, *to_others, to_others.mean(), *to_mean, shared], atol=1e-6
    )


def test_orthogonal_directions_share_nothing_and_equal_ones_everything():
    apart = likeness(torch.eye(4).unsqueeze(1))
    assert apart.shared == pytest.approx(1 / 4)
    np.testing.assert_allclose(apart.to_others, 0, atol=1e-12)
    same = likeness(torch.ones(4, 2, 3) * torch.arange(1.0, 5)[:, None, None])
    assert same.shared == pytest.approx(1)
    np.testing.assert_allclose([same.to_others, same.to_mean], 1)


def case() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Three groups of prompts around directions of their own and a common one, two rows, twelve wide."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(2, 12, generator=generator)
    groups = [
        common
        + torch.randn(2, 12, generator=generator)
        + torch.randn(n, 2, 12, generator=generator)
        for n in (10, 14, 18)
    ]
    return groups, torch.randn(30, 2, 12, generator=generator)


def test_intervals_spread_as_a_loop_of_resamples_does():
    groups, harmless = case()
    value, low, high = bootstrap_likeness(groups, harmless, 400, 0)
    rng = np.random.default_rng(99)
    draws = []
    for _ in range(400):
        means = [
            states[torch.from_numpy(rng.integers(len(states), size=len(states)))].mean(0)
            for states in (*groups, harmless)
        ]
        draws.append(likeness(torch.stack(means[:-1]) - means[-1]).flat())
    spread = 1.96 * np.std(draws, axis=0)
    clipped = (high >= 1) | (low <= -1)
    np.testing.assert_allclose((high - low)[~clipped] / 2, spread[~clipped], rtol=0.15)
    assert (~clipped).sum() > len(value) / 2
    assert (low <= value).all()
    assert (value <= high).all()
    again = bootstrap_likeness(groups, harmless, 400, 0)
    np.testing.assert_array_equal(again, (value, low, high))


def test_halves_agree_where_there_is_a_direction_and_not_in_noise():
    generator = torch.Generator().manual_seed(5)
    noise, harmless = (torch.randn(n, 2, 64, generator=generator) for n in (20, 40))
    assert abs(half_cosine(noise, harmless, 0)) < 0.15
    assert half_cosine(noise + 3, harmless, 0) > 0.9
    # Through the shared harmless mean, directions of pure noise look alike.
    alike = likeness(torch.stack([part.mean(0) - harmless[:4].mean(0) for part in noise.split(10)]))
    assert alike.cosines[0, 1] > 0.4


# Tables


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return work(tmp_path_factory.mktemp("categories"), min_category=2)


def test_categories_are_compared_by_the_directions_of_a_loop(mine):
    harmful, harmless = fit_rows(mine.subject)
    table, pairs = category_tables(mine, harmful, harmless)
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
        directions = np.stack(
            [
                mean([i for i in harmful if prompts[i].category == name], axis)
                - mean(harmless, axis)
                for name in names
            ]
        )
        cosines, to_others, to_mean, shared = slow(directions)
        rows = table[table["axis"] == axis].set_index("category")
        np.testing.assert_allclose(rows.loc[names, "to_others"], to_others, atol=1e-4)
        np.testing.assert_allclose(rows.loc[names, "to_mean"], to_mean, atol=1e-4)
        assert rows.loc["all", "to_others"] == pytest.approx(to_others.mean(), abs=1e-4)
        assert rows.loc["all", "shared"] == pytest.approx(shared, abs=1e-4)
        assert rows.loc["all", "shared_if_orthogonal"] == pytest.approx(1 / 3)
        assert rows.loc["all", "n"] == len(harmful)
        assert rows.loc["home", "n"] == sum(prompts[i].category == "home" for i in harmful)
        assert rows.loc[names, "halves"].notna().all()
        part = pairs[pairs["axis"] == axis]
        assert list(zip(part["a"], part["b"], strict=True)) == list(combinations(names, 2))
        np.testing.assert_allclose(part["cosine"], cosines[np.triu_indices(3, 1)], atol=1e-4)


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
    assert (table.loc[table["category"] == "all", "n"] == len(few) - 1).all()
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
