"""Drift between checkpoints: a planted move is found, and drawing other pairs is not called one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.prompts import PromptRecipe, draw_pairs
from refusalscope.stats import max_t_signflip, mean_interval
from refusalscope.studies.routing import Pair, Screen, screen
from refusalscope.studies.routing.drift import drift, rank_biased_overlap
from studies.routing.test_interchange import MARGIN, row

GATE = (3, 1)
PLACES = {1: (2, 4), 2: (4, 2), 3: (3, 6)}
CIRCUIT = {(1, 2), GATE, (5, 0), (5, 3), (6, 2), (7, 0), (4, 7)}


@cache
def screened(place=0, seed=0, jitter=0.0, n=24, units=None):
    """A screen of one checkpoint: gate at a place, noise, all weights moved by N(0, jitter^2); same pairs."""
    organism = build("planted-routes", "relocated", seed=seed, place=place)
    moves = torch.Generator().manual_seed(99)
    for parameter in organism.model.parameters():
        parameter.add_(jitter * torch.randn(parameter.shape, generator=moves))
    drawn = draw_pairs(PromptRecipe(seed=0, count=n))
    pairs = [Pair(row(h, f"h{i}"), row(c, f"c{i}")) for i, (h, c) in enumerate(drawn)]
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=f"{place} {seed} {jitter}")
    return screen(chat, pairs, MARGIN, units=units)


def table_screen(table):
    """A screen of single heads with these necessities [pairs, heads], of a gap of 1."""
    table = np.asarray(table, dtype=float)[:, None]
    clean = {"margin": np.ones(len(table))}
    units = tuple(((i, 0),) for i in range(table.shape[2]))
    return Screen(
        units, clean, {"margin": 0 * clean["margin"]}, {"margin": table}, {"margin": table}
    )


def part(found, rows):
    """The same screen of some of its pairs."""
    tables = (found.harmful, found.control, found.necessity, found.sufficiency)
    return Screen(found.units, *({"margin": table["margin"][rows]} for table in tables))


def moved_heads(moved):
    return {(int(r.layer), int(r.head)) for r in moved[moved["moved"]].itertuples()}


def slow_overlap(first, second, p, depth=3_000):
    """The sum over all depths; a ranking that has ended goes on agreeing at the rate of its end."""
    shorter, longer = sorted((first, second), key=len)
    s, n = len(shorter), len(longer)

    def shared(d):
        found = len(set(longer[:d]) & set(shorter))
        if d <= s:
            return len(set(longer[:d]) & set(shorter[:d])) / d
        return (found + len(set(longer[:s]) & set(shorter)) / s * (d - s)) / d

    return (1 - p) * sum(p ** (d - 1) * shared(min(d, n)) for d in range(1, depth))


rankings = st.lists(st.integers(0, 12), min_size=1, max_size=12, unique=True)


@given(rankings, rankings, st.floats(0.05, 0.98))
def test_the_overlap_is_the_sum_of_its_definition(first, second, p):
    got = rank_biased_overlap(first, second, p)
    assert got == pytest.approx(slow_overlap(first, second, p), abs=1e-9)
    assert got == pytest.approx(rank_biased_overlap(second, first, p), abs=1e-12)


def test_the_overlap_of_rankings_worked_by_hand():
    assert rank_biased_overlap("abc", "abc") == pytest.approx(1)
    assert rank_biased_overlap("abc", "xyz") == 0
    # Agreements 0, 1, 1 at p = .5: .5 * (0 + .5 + .25) + .125.
    assert rank_biased_overlap("abc", "bac", 0.5) == pytest.approx(0.5)
    # Agreements 1, then (1 + 1) / 2 beyond the end of the shorter one.
    assert rank_biased_overlap("a", "ab", 0.5) == pytest.approx(1)
    top = rank_biased_overlap("abcdef", "bacdef")
    assert top < rank_biased_overlap("abcdef", "abcdfe")


@pytest.mark.parametrize("place", PLACES)
def test_a_relocated_gate_is_the_move_while_behaviour_stays(place):
    before, after = screened(), screened(place)
    moved, ranking = drift(before, after, "margin", n_flips=1_000, n_null=99)
    assert moved_heads(moved) == {GATE, PLACES[place]}
    change = moved.set_index(["layer", "head"])["change"]
    assert change[GATE] < -0.8
    assert change[PLACES[place]] > 0.8
    row = ranking.iloc[0]
    assert row["rbo"] < row["null_low"]
    assert row["rbo_halves"] < row["null_low"]
    assert row["p"] == pytest.approx(1 / 100)
    for side in ("harmful", "control"):
        refused = [(getattr(s, side)["margin"] > 0).mean() for s in (before, after)]
        assert refused[0] == refused[1] == (side == "harmful")


def test_a_checkpoint_does_not_move_against_itself():
    moved, ranking = drift(screened(), screened(), "margin", n_flips=1_000, n_null=99)
    row = ranking.iloc[0]
    assert row["rbo"] == pytest.approx(1)
    # On halves even the same checkpoint overlaps with itself as far as redrawn pairs do, and no further.
    assert row["null_low"] < row["null_mean"] < 1
    assert row["rbo_halves"] == pytest.approx(row["null_mean"])
    assert row["p"] > 0.2
    assert not moved["moved"].any()
    assert (moved["p_familywise"] == 1).all()
    assert (moved[["change", "low", "high"]] == 0).all(axis=None)


def test_tiny_changes_of_all_weights_are_significant_and_move_nobody():
    moved, ranking = drift(screened(), screened(jitter=5e-4), "margin", n_flips=1_000, n_null=99)
    assert (moved["p_familywise"] < 0.05).sum() > 20
    assert moved_heads(moved) == set()
    assert ranking["p"].iloc[0] > 0.05


def test_another_noise_reorders_idle_heads_and_moves_none_of_them():
    """The planted heads' own shares do differ between noises, by up to .1, and may be called moved."""
    moved, ranking = drift(screened(), screened(seed=1), "margin", n_flips=1_000, n_null=99)
    assert moved_heads(moved) <= CIRCUIT
    assert moved["change"].abs().max() < 0.1
    assert ranking["rbo"].iloc[0] < ranking["null_low"].iloc[0]


def test_shares_changes_and_tests_are_those_of_the_paired_differences():
    before, after = screened(), screened(3, 1)
    categories = [f"c{i % 8}" for i in range(24)]
    moved, ranking = drift(before, after, "margin", categories=categories, n_flips=300, n_null=19)
    shares = [s.necessity["margin"][:, 0] / s.gap("margin") for s in (before, after)]
    np.testing.assert_allclose(moved["first"], shares[0].mean(axis=0))
    np.testing.assert_allclose(moved["second"], shares[1].mean(axis=0))
    at = before.units.index((GATE,))
    want = mean_interval((shares[1] - shares[0])[:, at], categories, seed=0)
    got = moved.iloc[at]
    assert (got["change"], got["low"], got["high"]) == pytest.approx(
        (want.value, want.low, want.high)
    )
    test = max_t_signflip(shares[1] - shares[0], 300, seed=0)
    np.testing.assert_array_equal(moved["p_familywise"], test.p_familywise)
    order = [np.argsort(-np.abs(share.mean(axis=0))).tolist() for share in shares]
    assert ranking["rbo"].iloc[0] == pytest.approx(slow_overlap(*order, 0.9))
    assert ranking["n"].iloc[0] == 24


def some_heads():
    idle = [(layer, head) for layer in range(8) for head in (0, 1, 4)]
    return tuple((head,) for head in sorted(CIRCUIT | set(idle[:9])))


def planted_halves(seed):
    whole = screened(n=96, units=some_heads())
    order = np.random.default_rng((seed, 1)).permutation(96)
    return part(whole, order[:48]), part(whole, order[48:])


def drawn_halves(seed):
    rng = np.random.default_rng((seed, 2))
    effects = np.linspace(1, 0, 12)
    return tuple(table_screen(effects + rng.standard_normal((40, 12))) for _ in range(2))


@pytest.mark.parametrize("halves", [planted_halves, drawn_halves])
def test_other_pairs_of_one_model_are_not_called_drift(halves):
    p = np.array(
        [
            drift(*halves(seed), "margin", n_flips=10, n_null=79, seed=seed)[1]["p"].iloc[0]
            for seed in range(40)
        ]
    )
    assert (p < 0.05).mean() <= 0.1
    assert (p < 0.2).mean() <= 0.35
    assert 0.25 < np.median(p) < 0.75


def test_halves_share_every_category_evenly():
    """Each topic has a head of its own, so halves of other topics would rank other heads first."""
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(6), 4)
    table = np.eye(6)[topics] + np.linspace(0.06, 0.01, 6) + 0.001 * rng.standard_normal((24, 6))
    found = table_screen(table)
    names = [f"c{i}" for i in topics]
    split = drift(found, found, "margin", categories=names, n_flips=10, n_null=99)[1]
    blind = drift(found, found, "margin", n_flips=10, n_null=99)[1]
    assert split["null_low"].iloc[0] > 0.9
    assert blind["null_low"].iloc[0] < 0.8


def test_the_null_redraws_the_pairs_of_either_checkpoint():
    rng = np.random.default_rng(0)
    steady = table_screen(np.tile(np.linspace(1, 0.1, 10), (24, 1)))
    shaky = table_screen(np.linspace(1, 0.1, 10) + 3 * rng.standard_normal((24, 10)))
    rows = [
        drift(*checkpoints, "margin", n_flips=10, n_null=100)[1].iloc[0]
        for checkpoints in ((steady, steady), (steady, shaky), (shaky, steady), (shaky, shaky))
    ]
    still, one, other, both = (row["null_mean"] for row in rows)
    assert still == pytest.approx(1)
    assert both < 0.9
    assert one == pytest.approx((still + both) / 2, abs=0.05)
    assert other == pytest.approx((still + both) / 2, abs=0.05)


def test_bad_input_is_refused_in_one_sentence():
    found = table_screen(np.ones((10, 3)))
    with pytest.raises(InputError, match="do not share the metric 'nll'"):
        drift(found, found, "nll")
    with pytest.raises(InputError, match="different units"):
        drift(found, table_screen(np.ones((10, 4))), "margin")
    with pytest.raises(InputError, match="has 10 pairs and the second 9"):
        drift(found, part(found, range(9)), "margin")
    with pytest.raises(InputError, match="7 pairs are too few"):
        drift(part(found, range(7)), part(found, range(7)), "margin")
    with pytest.raises(InputError, match="2 categories for 10 pairs"):
        drift(found, found, "margin", categories=["a", "b"])
    with pytest.raises(InputError, match="n_null = 0"):
        drift(found, found, "margin", n_null=0)
    flat = Screen(found.units, found.control, found.control, found.necessity, found.sufficiency)
    with pytest.raises(InputError, match="under the second checkpoint"):
        drift(found, flat, "margin")
    with pytest.raises(InputError, match="under the first checkpoint"):
        drift(flat, found, "margin")
    with pytest.raises(InputError, match="between 0 and 1"):
        drift(found, found, "margin", top_weight=1.0)
    with pytest.raises(InputError, match="an item twice"):
        rank_biased_overlap([1, 1], [1, 2])
    with pytest.raises(InputError, match="empty ranking"):
        rank_biased_overlap([], [1])
