"""Likeness of directions against NumPy and loops: estimates, bootstraps, shuffles and halves."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from refusalscope.studies.directions.category_likeness import (
    SPLITS,
    bootstrap_likeness,
    half_cosine,
    harmless_means,
    likeness,
    shuffled_likeness,
)
from studies.directions.belief_case import cosine


def slow(
    groups: np.ndarray, halves: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """cosines, to_others, to_mean and shared, in loops; groups [K, rows, d_model], halves [splits, 2, ...]."""
    k, n_rows = groups.shape[:2]
    ways = [(pair[a], pair[1 - a]) for pair in halves for a in (0, 1)]
    by_row = np.ones((n_rows, k, k))
    to_mean = np.zeros(k)
    for r in range(n_rows):
        for i in range(k):
            for j in range(k):
                if i != j:
                    both = [
                        cosine(groups[i, r] - one[r], groups[j, r] - other[r])
                        for one, other in ways
                    ]
                    by_row[r, i, j] = np.mean(both)
            rest = [
                cosine(
                    groups[i, r] - one[r],
                    np.mean([groups[j, r] - other[r] for j in range(k) if j != i], axis=0),
                )
                for one, other in ways
            ]
            to_mean[i] += np.mean(rest) / n_rows
    cosines = by_row.mean(0)
    to_others = [np.mean([cosines[i, j] for j in range(k) if j != i]) for i in range(k)]
    shared = np.mean([np.linalg.eigvals(each).real.max() / k for each in by_row])
    return cosines, np.array(to_others), to_mean, float(shared)


def test_likeness_is_that_of_numpy():
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(5, 3, 16, generator=generator) + 0.5
    halves = torch.randn(4, 2, 3, 16, generator=generator) / 3
    found = likeness(groups, halves)
    cosines, to_others, to_mean, shared = slow(groups.double().numpy(), halves.double().numpy())
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-6)
    np.testing.assert_allclose(found.to_others, to_others, atol=1e-6)
    np.testing.assert_allclose(found.to_mean, to_mean, atol=1e-6)
    assert found.shared == pytest.approx(shared, abs=1e-6)
    pairs = [cosines[i, j] for i, j in combinations(range(5), 2)]
    np.testing.assert_allclose(
        found.flat(), [*pairs, *to_others, to_others.mean(), *to_mean, shared], atol=1e-6
    )


def test_from_one_harmless_mean_shared_is_the_energy_of_the_first_component():
    generator = torch.Generator().manual_seed(2)
    groups, harmless = torch.randn(5, 3, 16, generator=generator), torch.randn(9, 3, 16)
    found = likeness(groups, harmless_means(harmless, True, 0))
    energy = []
    for r in range(3):
        directions = (groups[:, r] - harmless[:, r].mean(0)).double().numpy()
        unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
        singular = np.linalg.svd(unit, compute_uv=False)
        energy.append(singular[0] ** 2 / (singular**2).sum())
    assert found.shared == pytest.approx(np.mean(energy), abs=1e-6)


def test_both_halves_of_a_split_hold_other_prompts():
    harmless = torch.eye(9).unsqueeze(1)
    halves = harmless_means(harmless, False, 0)
    assert halves.shape == (SPLITS, 2, 1, 9)
    used = halves > 0
    assert (used.sum(1) == 1).all()
    assert set(used.sum(-1).flatten().tolist()) == {4, 5}
    assert len({tuple(row) for row in used[:, 0, 0].tolist()}) > 1
    np.testing.assert_array_equal(halves, harmless_means(harmless, False, 0))


def test_orthogonal_directions_share_nothing_and_equal_ones_everything():
    nothing = torch.zeros(1, 2, 1, 4)
    apart = likeness(torch.eye(4).unsqueeze(1), nothing)
    assert apart.shared == pytest.approx(1 / 4)
    np.testing.assert_allclose(apart.to_others, 0, atol=1e-12)
    lengths = torch.arange(1.0, 5)[:, None, None]
    same = likeness(torch.ones(4, 2, 3) * lengths, torch.zeros(1, 2, 2, 3))
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


@pytest.mark.parametrize("shared", [True, False])
def test_intervals_spread_as_a_loop_of_resamples_does(shared):
    groups, harmless = case()
    value, low, high = bootstrap_likeness(groups, harmless, shared, 400, 0)
    rng = np.random.default_rng(99)
    draws = []

    def again(states):
        return states[torch.from_numpy(rng.integers(len(states), size=len(states)))].mean(0)

    for _ in range(400):
        means = torch.stack([again(states) for states in groups])
        order = torch.from_numpy(rng.permutation(len(harmless)))
        halves = [again(harmless)] * 2 if shared else [again(harmless[order[k::2]]) for k in (0, 1)]
        draws.append(likeness(means, torch.stack(halves).unsqueeze(0)).flat())
    spread = 1.96 * np.std(draws, axis=0)
    clipped = (high >= 1) | (low <= -1)
    np.testing.assert_allclose((high - low)[~clipped] / 2, spread[~clipped], rtol=0.15)
    assert (~clipped).sum() > len(value) / 2
    assert (low <= value).all()
    assert (value <= high).all()
    same = bootstrap_likeness(groups, harmless, shared, 400, 0)
    np.testing.assert_array_equal(same, (value, low, high))


def noise(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(n, 2, 256, generator=generator) for n in sizes]


def test_noise_alone_is_alike_through_one_harmless_mean_and_not_through_halves():
    *groups, harmless = noise(10, 10, 10, 12)
    means = torch.stack([group.mean(0) for group in groups])
    lifted = likeness(means, harmless_means(harmless, True, 0))
    apart = likeness(means, harmless_means(harmless, False, 0))
    assert lifted.to_others.mean() > 0.35
    assert abs(apart.to_others.mean()) < 0.08
    assert lifted.shared > 0.55
    assert apart.shared < 0.4


@pytest.mark.parametrize("shared", [True, False])
def test_categories_that_say_nothing_lie_within_their_shuffles(shared):
    """One direction of all, categories by lot: the figure is high and so is that of any other dealing."""
    *groups, harmless = noise(10, 14, 18, 40)
    common = 0.15 * noise(1)[0][0]
    groups = [group + common for group in groups]
    found = bootstrap_likeness(groups, harmless, shared, 100, 0)[0]
    null = shuffled_likeness(groups, harmless, shared, 200, 0)
    overall = 3 + 3
    low, high = np.quantile(null[:, overall], [0.025, 0.975])
    assert low < found[overall] < high
    assert low > 0.1
    own = [group + 0.3 * axis for group, axis in zip(groups, noise(3)[0], strict=True)]
    found = bootstrap_likeness(own, harmless, shared, 100, 0)[0]
    null = shuffled_likeness(own, harmless, shared, 200, 0)
    assert found[overall] < null[:, overall].min()
    assert found[-1] < null[:, -1].min()


def test_shuffles_deal_all_prompts_into_groups_of_the_same_sizes():
    groups, harmless = case()
    found = shuffled_likeness(groups, harmless, False, 3, 0)
    halves = harmless_means(harmless, False, 0)
    rng = np.random.default_rng([0, 2])
    pool = torch.cat(groups)
    for row in found:
        dealt = rng.permutation(np.repeat([0, 1, 2], [10, 14, 18]))
        means = torch.stack([pool[torch.from_numpy(dealt == k)].mean(0) for k in range(3)])
        np.testing.assert_allclose(row, likeness(means, halves).flat(), atol=1e-5)


def test_halves_agree_where_there_is_a_direction_and_not_in_noise():
    generator = torch.Generator().manual_seed(5)
    noise, harmless = (torch.randn(n, 2, 64, generator=generator) for n in (20, 40))
    assert abs(half_cosine(noise, harmless, 0)) < 0.15
    assert half_cosine(noise + 3, harmless, 0) > 0.9
    rng, found = np.random.default_rng(9), []
    for _ in range(50):
        orders = [torch.from_numpy(rng.permutation(len(each))) for each in (noise, harmless)]
        first, second = (
            noise[orders[0][k::2]].mean(0) - harmless[orders[1][k::2]].mean(0) for k in (0, 1)
        )
        found.append(np.mean([cosine(first[r].numpy(), second[r].numpy()) for r in (0, 1)]))
    assert half_cosine(noise, harmless, 0) == pytest.approx(np.mean(found), abs=0.04)
