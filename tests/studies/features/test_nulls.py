"""Matched random latents, and waking against chance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from refusalscope.errors import InputError
from refusalscope.studies.features import matched_sets, waking_table


def dictionary(seed=0, count=600, layers=4):
    rng = np.random.default_rng(seed)
    mass = rng.lognormal(0, 1, count) * (rng.random(count) < 0.5)
    return np.arange(count) % layers, rng.lognormal(0.4, 0.3, count), mass


def test_stand_ins_have_the_layers_the_norms_and_the_masses_of_the_members():
    layers, norms, masses = dictionary()
    large = [i for i in np.argsort(-norms)[40:] if masses[i] > 0][:6]
    members = [int(i) for i in (*large, *np.flatnonzero(masses == 0)[:6])]
    found = matched_sets(members, layers, norms, masses, seed=0)
    assert len(found.sets) == 20
    drawn = np.array(found.sets)
    assert (layers[drawn] == layers[members]).all()
    assert not set(drawn.ravel()) & set(members)
    assert all(len(set(row)) == len(members) for row in found.sets)
    assert (masses[drawn[:, -6:]] == 0).mean() > 0.95
    assert len(set(found.sets)) == 20
    assert np.log(norms[members]).mean() > np.log(norms).mean() + 0.1
    assert abs(found.norm_gap) < 0.15
    assert abs(found.mass_gap) < 0.15
    assert matched_sets(members, layers, norms, masses, seed=0) == found
    assert matched_sets(members, layers, norms, masses, seed=1) != found


def test_a_poor_match_shows_in_its_gaps():
    layers, norms, masses = dictionary()
    found = matched_sets(np.argsort(-norms)[:6].tolist(), layers, norms, masses, seed=0)
    assert found.norm_gap < -0.5


def test_a_layer_of_one_norm_and_no_mass_is_drawn_from_as_a_whole():
    found = matched_sets([0], np.zeros(11), np.ones(11), np.zeros(11), draws=200, seed=0)
    assert {row[0] for row in found.sets} == set(range(1, 11))
    assert (found.norm_gap, found.mass_gap) == (0.0, 0.0)


def test_what_cannot_be_matched_is_said():
    layers, norms, masses = dictionary()
    for members, options, message in (
        ([1], {"draws": 19}, "20 or more"),
        ([], {}, "at least one"),
        ([1, 1], {}, "none twice"),
        (range(0, 600, 4), {}, "too few latents"),
        ([1], {"masses": masses - 1}, "0 or more"),
        ([1], {"masses": masses[:3]}, "one value a latent"),
    ):
        given = {"masses": masses, **options}
        with pytest.raises(InputError, match=message):
            matched_sets(list(members), layers, norms, seed=0, **given)


def slow_p(real, chance):
    """Which edit of a prompt was the real one, enumerated: share of labellings with as many wakings."""
    edits = np.concatenate([real[None], chance])
    choices = list(product(range(len(edits)), repeat=real.shape[0]))
    sums = [sum(edits[e, prompt] for prompt, e in enumerate(pick)) for pick in choices]
    return np.mean(np.array(sums) >= real.sum())


def test_with_draws_of_its_own_for_each_prompt_p_counts_all_labellings():
    rng = np.random.default_rng(0)
    real, chance = rng.random((3, 4)) < 0.6, rng.random((20, 3, 4)) < 0.3
    table = waking_table(real, chance, draws="per_prompt")
    for j in range(4):
        assert table["p"][j] == pytest.approx(slow_p(real[:, j], chance[:, :, j]))


def test_with_shared_draws_p_is_the_rank_of_the_edit():
    rng = np.random.default_rng(1)
    real, chance = rng.random((6, 5)) < 0.5, rng.random((40, 6, 5)) < 0.4
    table = waking_table(real, chance, draws="shared")
    want = [(1 + sum(d[:, j].sum() >= real[:, j].sum() for d in chance)) / 41 for j in range(5)]
    np.testing.assert_allclose(table["p"], want)


def hydra_like(seed, prompts=24, draws=20, idle=60):
    """Two backups and an inert latent wake on all prompts, a distractor on some; chance wakes any."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.05, 0.5, idle + 4)
    chance = rng.random((draws, prompts, idle + 4)) < rates
    real = rng.random((prompts, idle + 4)) < rates
    real[:, :3] = True
    real[:, 4:] = False
    return real, chance


@pytest.mark.parametrize("seed", range(3))
def test_what_an_edit_wakes_on_every_prompt_counts_and_a_distractor_does_not(seed):
    real, chance = hydra_like(seed)
    table = waking_table(real, chance, draws="per_prompt")
    assert table.loc[table["more"], "latent"].tolist() == [0, 1, 2]
    assert table["null_rate"][0] == pytest.approx(chance[:, :, 0].mean())
    assert (table["woken"][0], table["rate"][0], table["high"][0]) == (24, 1.0, 1.0)
    assert 0.8 < table["low"][0] < 1


@pytest.mark.parametrize("draws", ["per_prompt", "shared"])
def test_an_edit_that_is_one_of_chance_is_rarely_told_from_it(draws):
    wrong, low = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shape = (21, 12, 20)
        rates = rng.uniform(0.05, 0.6, 20)
        if draws == "shared":
            # An edit that wakes a latent does so on most prompts or on none.
            edits = rng.random(shape) < np.where(rng.random((21, 1, 20)) < rates, 0.8, 0.05)
        else:
            edits = rng.random(shape) < rates
        table = waking_table(edits[0], edits[1:], draws=draws)
        wrong.append(table["more"].any())
        low.append((table["p"] <= 0.05).mean())
    assert np.mean(low) <= 0.06
    assert np.mean(wrong) <= 0.1


def test_a_latent_that_nothing_wakes_is_no_test():
    real, chance = hydra_like(0)
    real[:, 9], chance[:, :, 9] = False, False
    table = waking_table(real, chance, draws="per_prompt")
    assert np.isnan(table["p"][9])
    assert not table["more"][9]
    without = waking_table(np.delete(real, 9, 1), np.delete(chance, 9, 2), draws="per_prompt")
    np.testing.assert_allclose(table["p_adjusted"].drop(9), without["p_adjusted"])


def test_wrong_shapes_are_said_to_be_wrong():
    real, chance = hydra_like(0)
    for args, options, message in (
        ((real, chance[:19]), {"draws": "shared"}, "20 or more"),
        ((real, chance[:, :3]), {"draws": "shared"}, "expected"),
        ((real, chance), {"draws": "own"}, "kind of draws"),
    ):
        with pytest.raises(InputError, match=message):
            waking_table(*args, **options)
