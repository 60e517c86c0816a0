"""The statistics of a screen on planted circuits, and on screens whose truth is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from refusalscope.errors import InputError
from refusalscope.stats import mean_interval
from refusalscope.studies.heads import all_heads
from refusalscope.studies.routing import screen
from refusalscope.studies.routing.interchange import Screen
from refusalscope.studies.routing.redundancy import conditional, leave_one_out, windows
from refusalscope.studies.routing.significance import significance, stability
from studies.routing.test_interchange import MARGIN, planted

GATE, BACKUP = (3, 1), (4, 2)


def drawn(effects, n=40, noise=0.05, seed=0, donors=1):
    """A screen of heads with given mean effects, of a gap of 2 nats."""
    rng = np.random.default_rng(seed)
    table = np.asarray(effects) + noise * rng.standard_normal((n, donors, len(effects)))
    clean = {"margin": np.ones(n)}
    return Screen(
        tuple(((i, 0),) for i in range(len(effects))),
        clean,
        {"margin": -np.ones(n)},
        {"margin": table},
        {"margin": table / 2},
    )


def test_effects_are_shares_of_the_gap_with_their_intervals():
    found = drawn([1.0, 0.0])
    table = significance(found, "margin", n_flips=500)
    row = table.iloc[0]
    want = mean_interval(found.necessity["margin"][:, 0, 0] / 2, seed=0)
    assert (row["necessity"], row["necessity_low"]) == (
        pytest.approx(want.value),
        pytest.approx(want.low),
    )
    assert row["sufficiency"] == pytest.approx(row["necessity"] / 2)
    assert table["passes"].tolist() == [True, False]


def test_a_consistent_tiny_effect_is_significant_and_does_not_pass_the_floor():
    table = significance(drawn([0.004, 1.0, 0.0], noise=0.002), "margin", n_flips=500)
    assert table["p_familywise"].iloc[0] < 0.05
    assert table["passes"].tolist() == [False, True, False]
    assert table["p_equivalent"].iloc[0] < 0.05
    assert table["p_equivalent"].iloc[1] > 0.95


def test_the_familywise_test_errs_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        found = drawn(np.zeros(12), n=24, noise=1.0, seed=seed)
        hits += bool(
            (significance(found, "margin", n_flips=199, seed=seed)["p_familywise"] < 0.05).any()
        )
    assert 0.01 <= hits / 200 <= 0.10


def test_whole_categories_are_resampled():
    found = drawn([1.0, 0.5])
    shift = np.repeat(np.linspace(-1, 1, 8), 5)[:, None, None]
    table = {"margin": found.necessity["margin"] + shift}
    moved = Screen(found.units, found.harmful, found.control, table, found.sufficiency)
    categories = [f"c{i // 5}" for i in range(40)]
    alone = significance(moved, "margin", n_flips=200).iloc[0]
    together = significance(moved, "margin", categories=categories, n_flips=200).iloc[0]
    width = lambda row: row["necessity_high"] - row["necessity_low"]  # noqa: E731
    assert width(together) > 1.5 * width(alone)


def test_a_stable_top_set_is_called_stable_and_noise_is_not():
    strong = stability(drawn([1, 0.8, 0.6, *[0] * 20]), "margin", top=3, resamples=50)
    noise = stability(drawn([0] * 23, noise=1.0), "margin", top=3, resamples=50)
    assert strong == {"resamples": 1, "halves": 1, "donors": 1}
    assert noise["halves"] < 0.4
    two = stability(drawn([0] * 23, noise=1.0, donors=2), "margin", top=3, resamples=5)
    assert two["donors"] < 0.6


def test_too_few_pairs_or_no_gap_are_refused():
    with pytest.raises(InputError, match="7 pairs are too few"):
        significance(drawn([1.0], n=7), "margin")
    flat = drawn([1.0])
    flat = Screen(flat.units, flat.harmful, flat.harmful, flat.necessity, flat.sufficiency)
    with pytest.raises(InputError, match="no gap"):
        significance(flat, "margin")


def test_windows_show_what_single_heads_hide():
    _, chat, _, mine = planted("backup", redundancy=2)
    singles = screen(chat, mine, MARGIN)
    table = windows(chat, mine, MARGIN["margin"], singles, "margin", widest=2)
    both = table.set_index(["start", "stop"])
    assert both.loc[(3, 5), "necessity"] > 0.8
    assert abs(both.loc[(3, 5), "summed"]) < 0.3
    assert both.loc[(3, 5), "searched"]
    # The detector is alone in its layer, and the layers about it add nothing.
    assert not both.loc[(1, 2), "searched"]
    assert not both.loc[(0, 2), "searched"]
    assert both.loc[(3, 5), "low"] <= both.loc[(3, 5), "necessity"] <= both.loc[(3, 5), "high"]


def test_leaving_one_out_is_the_difference_of_two_plain_screens():
    _, chat, _, mine = planted("backup", redundancy=2)
    sets = [(GATE, BACKUP, (5, 0)), (BACKUP, (5, 3))]
    lost = leave_one_out(chat, mine, MARGIN["margin"], sets)
    at = 0
    for heads in sets:
        for head in heads:
            rest = tuple(other for other in heads if other != head)
            slow = screen(chat, mine, MARGIN, units=[heads, rest]).necessity["margin"][:, 0]
            np.testing.assert_allclose(lost[:, at], slow[:, 0] - slow[:, 1], atol=1e-5)
            at += 1
    assert (lost[:, :2].mean(axis=0) > 3).all()


@pytest.mark.parametrize("way", ["held", "window"])
def test_heads_that_stand_in_for_each_other_are_found_once_the_other_is_held(way):
    organism, chat, _, mine = planted("backup", redundancy=2)
    units = all_heads(chat.anatomy.n_layers, chat.anatomy.n_heads)
    window = tuple((layer, head) for layer in (3, 4) for head in range(8))
    table = conditional(
        chat,
        mine,
        MARGIN["margin"],
        [(GATE,)] if way == "held" else [],
        [window] if way == "window" else [],
        screen(chat, mine, MARGIN, units=[(GATE,)]).gap("margin"),
        units=units,
        n_flips=1_000,
    )
    passing = {(row.layer, row.head): row for row in table[table["passes"]].itertuples()}
    assert passing[BACKUP].necessity > 0.7
    # What comes before gate and backup does nothing more once both are out, and was found alone anyway.
    others = {head for head in passing if head not in organism.truth.circuit}
    assert others == set()
    if way == "window":
        assert set(passing) >= {GATE, BACKUP}
        assert passing[GATE].necessity > 0.7
    else:
        assert GATE not in {(row.layer, row.head) for row in table.itertuples()}


def test_nothing_to_hold_gives_an_empty_table():
    _, chat, _, mine = planted()
    table = conditional(chat, mine, MARGIN["margin"], [], [], 7.0, units=[])
    assert len(table) == 0
    assert {"layer", "head", "necessity", "p", "passes", "window"} <= set(table.columns)


def test_the_planted_circuit_is_what_passes():
    _, chat, _, mine = planted()
    table = significance(screen(chat, mine, MARGIN), "margin", n_flips=1_000)
    passing = {(int(r.layer), int(r.head)) for r in table[table["passes"]].itertuples()}
    assert passing == {(1, 2), (3, 1), (5, 0), (5, 3), (6, 2), (7, 0), (4, 7)}
