"""Pair moments against plain averages and planted pairs, and the kinds of 2 x 2."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from refusalscope.errors import InputError
from refusalscope.studies.features import corner_sets, pair_moments, random_masks, two_by_two
from studies.features.oracles import BACKUP, PRIMARY, SECOND, hydra_margin

D = 60
TWELVE = [(2 * i, 2 * i + 1) for i in range(12)]
HYDRA_PAIRS = [(i, j) for i in PRIMARY for j in BACKUP]


def measured(score, masks, noise, seed):
    ablated = [set(np.flatnonzero(row).tolist()) for row in masks]
    error = noise * np.random.default_rng([seed, 7]).standard_normal(len(masks))
    return np.array([score(members) - score(set()) for members in ablated]) + error


def slow_moments(masks, y):
    sigma = 2.0 * masks - 1
    y = y - y.mean()
    main = np.array([np.mean(y * sigma[:, i]) for i in range(sigma.shape[1])])
    left = y - sum(m * sigma[:, i] for i, m in enumerate(main))
    pair = np.full((sigma.shape[1],) * 2, np.nan)
    for i in range(len(pair)):
        for j in range(len(pair)):
            if i != j:
                pair[i, j] = np.mean(left * sigma[:, i] * sigma[:, j])
    return main, pair


def area(score, planted, n, noise, draws=8):
    """AUROC of the planted pairs among all pairs by how far below 0 their moment is, over draws."""
    upper = np.triu_indices(D, 1)
    labels = np.zeros((D, D), dtype=int)
    labels[tuple(np.transpose(planted))] = 1
    areas = []
    for seed in range(draws):
        masks = random_masks(n, D, seed=seed)
        y = measured(score, masks, noise, seed)
        pair = pair_moments(masks, y, n_resamples=2, seed=0).pair
        areas.append(roc_auc_score(labels[upper], -pair[upper]))
    return float(np.mean(areas))


def redundant_pairs(ablated):
    return -float(sum(i in ablated and j in ablated for i, j in TWELVE))


@pytest.mark.parametrize(("n", "page"), [(200, 0.87), (400, 0.96), (1000, 0.99)])
def test_twelve_planted_pairs_are_found_as_the_page_says(n, page):
    # The page does not state its noise; one value has to give all three figures.
    found = area(redundant_pairs, TWELVE, n, noise=1.3, draws=40)
    assert found == pytest.approx(page, abs=0.02)
    assert n < 1000 or found >= 0.95


@pytest.mark.parametrize(("n", "full", "partial"), [(200, 0.88, 0.60), (1000, 0.995, 0.995)])
def test_the_six_pairs_of_the_hydra_are_found(n, full, partial):
    assert area(hydra_margin, HYDRA_PAIRS, n, noise=0.01) >= full
    assert area(lambda s: hydra_margin(s, 0.4), HYDRA_PAIRS, n, noise=0.01) >= partial


def test_moments_are_blind_behind_a_second_reserve_until_it_is_ablated():
    def chain(ablated):
        return hydra_margin(ablated - {SECOND}, chain=True)

    assert area(chain, HYDRA_PAIRS, 400, noise=0.01) < 0.6
    exhausted = area(lambda s: hydra_margin(s | {SECOND}, chain=True), HYDRA_PAIRS, 400, 0.01)
    assert exhausted > 0.95


def test_moments_equal_plain_averages():
    masks = random_masks(50, 6, seed=0)
    y = measured(hydra_margin, masks, 0.3, 0)
    got = pair_moments(masks, y, n_resamples=20, seed=0)
    main, pair = slow_moments(masks, y)
    np.testing.assert_allclose(got.main, main, atol=1e-12)
    np.testing.assert_allclose(got.pair, pair, atol=1e-12)
    assert got.n == 50


def test_the_intervals_are_percentiles_of_the_whole_computation_resampled():
    masks = random_masks(40, 5, seed=1)
    y = measured(hydra_margin, masks, 0.3, 1)
    prompts = np.repeat(np.arange(10), 4)
    got = pair_moments(masks, y, prompts, n_resamples=200, level=0.9, seed=3)
    drawn = np.random.default_rng(3).multinomial(10, np.full(10, 0.1), size=200)
    found = []
    for counts in drawn:
        rows = np.repeat(np.arange(40), counts[prompts])
        found.append(slow_moments(masks[rows], y[rows]))
    for k, (low, high) in enumerate([(got.main_low, got.main_high), (got.pair_low, got.pair_high)]):
        want = np.quantile(np.stack([f[k] for f in found]), [0.05, 0.95], axis=0)
        np.testing.assert_allclose(low, want[0], atol=1e-6)
        np.testing.assert_allclose(high, want[1], atol=1e-6)


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    inside = []
    for seed in range(40):
        masks = random_masks(300, 8, seed=seed)
        y = -1.0 * (masks[:, 0] & masks[:, 1]) + np.random.default_rng([seed, 1]).normal(
            0, 0.5, 300
        )
        got = pair_moments(masks, y, n_resamples=200, seed=seed)
        truth = np.zeros((8, 8))
        truth[0, 1] = truth[1, 0] = -0.25
        upper = np.triu_indices(8, 1)
        inside.append(((got.pair_low <= truth) & (truth <= got.pair_high))[upper])
    assert 0.92 <= np.mean(inside) <= 0.97


def test_many_latents_are_resampled_in_parts(monkeypatch):
    masks = random_masks(60, 7, seed=2)
    y = measured(hydra_margin, masks, 0.1, 2)
    whole = pair_moments(masks, y, n_resamples=30, seed=0)
    monkeypatch.setattr("refusalscope.studies.features.interactions._MEMORY_CELLS", 450)
    parts = pair_moments(masks, y, n_resamples=30, seed=0)
    np.testing.assert_array_equal(whole.pair_low, parts.pair_low)


GATES = {
    "OR": lambda i, j: float(i or j),
    "AND": lambda i, j: float(i and j),
    "additive": lambda i, j: i + 0.5 * j,
    "redundant": lambda i, j: min(1.0, 0.7 * i + 0.7 * j),
    "synergistic": lambda i, j: 0.3 * i + 0.3 * j + 0.4 * i * j,
}


def corners(gate, prompts, noise, seed=0):
    kept = [gate(1 - i, 1 - j) for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return np.array(kept) + noise * np.random.default_rng(seed).standard_normal((prompts, 4))


@pytest.mark.parametrize("kind", GATES)
def test_each_gate_gets_its_name(kind):
    scores = corners(GATES[kind], 24, 0.05)[:, None]
    (row,) = two_by_two(scores, [(3, 8)], floor=0.1, seed=0).to_dict("records")
    assert row["kind"] == kind
    assert (row["first"], row["second"], row["n"]) == (3, 8, 24)
    mean = scores[:, 0].mean(axis=0)
    assert row["effect"] == pytest.approx(mean @ [1, -1, -1, 1])
    assert row["low"] < row["effect"] < row["high"]
    assert row["alone_second"] == pytest.approx(mean[2] - mean[0])
    assert row["both"] == pytest.approx(mean[3] - mean[0])


def test_what_the_data_cannot_tell_is_undecided():
    wide = corners(GATES["additive"], 10, 1.0)[:, None]
    single = corners(GATES["OR"], 1, 0.0)[:, None]
    for scores in (wide, single):
        assert two_by_two(scores, [(0, 1)], floor=0.1, seed=0)["kind"][0] == "undecided"


def test_the_two_by_two_of_primaries_and_backups_is_that_of_the_page():
    for eta, chain, effect, kind in (
        (1.0, False, -3.87, "OR"),
        (0.4, False, -1.59, "redundant"),
        (0.0, False, 0.0, "additive"),
        (1.0, True, -0.08, "additive"),
    ):
        sets = [frozenset(), frozenset(PRIMARY), frozenset(BACKUP), frozenset(PRIMARY + BACKUP)]
        scores = [hydra_margin(s, eta, chain=chain) for s in sets]
        table = np.tile(scores, (12, 1, 1)) + np.random.default_rng(0).normal(0, 0.01, (12, 1, 4))
        (row,) = two_by_two(table, [(0, 3)], floor=0.2, seed=0).to_dict("records")
        assert row["effect"] == pytest.approx(effect, abs=0.12)
        assert row["kind"] == kind


def test_the_corners_stand_on_what_is_held():
    assert corner_sets((4, 7), frozenset({1})) == ({1}, {1, 4}, {1, 7}, {1, 4, 7})


def test_wrong_shapes_are_said_to_be_wrong():
    with pytest.raises(InputError, match="expected"):
        pair_moments(np.ones((3, 2), dtype=bool), [1.0, 2.0], seed=0)
    with pytest.raises(InputError, match="two clusters"):
        pair_moments(np.ones((3, 2), dtype=bool), [1.0, 2.0, 3.0], ["a"] * 3, seed=0)
    with pytest.raises(InputError, match="4 corners"):
        two_by_two(np.zeros((5, 1, 3)), [(0, 1)], floor=0.1, seed=0)
    with pytest.raises(InputError, match="floor"):
        two_by_two(np.zeros((5, 1, 4)), [(0, 1)], floor=0.0, seed=0)
