"""Pairs of latents on planted hydras: which are run, with what else ablated, and against all subsets."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from organisms import oracle
from refusalscope.progress import Silent
from refusalscope.studies.features import preset
from refusalscope.studies.features.together import NOTHING, REST, interactions, run_masks
from refusalscope.studies.features.writes import WriteTrial
from studies.features.hydra_chat import MARGIN, hydra

NAMES = ("P1", "P2", "P3", "B1", "B2")
ROWS = 8


def work(variant="base", **changes):
    found = hydra(variant)
    settings = preset("recommended", **{"n_masks": 160, "n_pairs": 12, **changes})
    return SimpleNamespace(
        chat=found.chat,
        settings=settings,
        progress=Silent(),
        refused=tuple(range(ROWS)),
        clusters=lambda rows: None,
    )


@cache
def trial(variant="base", names=NAMES):
    """Each latent as a write of its own, at the layer that writes it."""
    found = hydra(variant)
    writes = [(latent,) for latent in found.written(" ".join(names))]
    slices = {k: each.slice() for k, each in found.dictionaries.items()}
    return WriteTrial(found.chat, found.prompts[:ROWS], writes, slices, MARGIN)


@cache
def masked(variant="base"):
    return run_masks(work(variant), trial(variant))


@cache
def margin(names: frozenset[str], variant="base") -> float:
    """Mean margin by slow hooks, each latent zeroed at all layers."""
    found = hydra(variant)
    latents = found.latents(" ".join(sorted(names)))
    organism = found.organism
    ablated = oracle.ablate(organism.model, organism.dictionary, found.harmful[:ROWS], latents)
    return float(ablated.margin.mean())


def effect(pair, held=(), variant="base") -> float:
    a, b = pair
    rest = set(held)
    corners = (rest, rest | {a}, rest | {b}, rest | {a, b})
    m00, m10, m01, m11 = (margin(frozenset(each), variant) for each in corners)
    return m00 - m10 - m01 + m11


def named(table, variant="base"):
    """(names of the pair, what was held) of every row."""
    names = [
        tuple(
            hydra(variant).names([(row[f"layer_{side}"], row[f"latent_{side}"]) for side in "ab"])
        )
        for row in table.to_dict("records")
    ]
    return list(zip(names, table["held"], strict=True))


def test_the_pairs_of_the_set_are_run_alone_and_in_place_of_each_other():
    """Each with nothing else ablated, and with the other three members: both are exact."""
    table = interactions(work(n_pairs=10), "s", range(5), None, trial())
    pairs = list(combinations(NAMES, 2))
    assert named(table) == [(pair, NOTHING) for pair in pairs] + [(pair, REST) for pair in pairs]
    for row, (pair, held) in zip(table.to_dict("records"), named(table), strict=True):
        rest = set(NAMES) - set(pair) if held == REST else ()
        assert row["effect"] == pytest.approx(effect(pair, rest), abs=0.02)
        alone = margin(frozenset({*rest, pair[0]})) - margin(frozenset(rest))
        assert row["alone_a"] == pytest.approx(alone, abs=0.02)
    assert set(table["set_id"]) == {"s"}
    assert (table["n"] == ROWS).all()
    assert table[["moment", "moment_low", "moment_high"]].isna().all().all()


def test_two_backups_stand_in_for_each_other_once_the_primaries_are_gone():
    table = interactions(work(), "s", range(5), None, trial())
    rows = dict(zip(named(table), table.to_dict("records"), strict=True))
    assert rows[("B1", "B2"), NOTHING]["kind"] == "additive"
    assert rows[("B1", "B2"), NOTHING]["both"] == pytest.approx(0, abs=1e-5)
    assert rows[("P1", "B1"), REST]["kind"] == "redundant"
    assert rows[("P1", "B1"), REST]["effect"] < -0.1


def test_a_set_of_two_has_no_rest():
    table = interactions(work(), "s", [0, 1], None, trial())
    assert named(table) == [(("P1", "P2"), NOTHING)]


@pytest.mark.parametrize(("own", "most"), [([0], 12), (range(5), 0)])
def test_without_a_pair_the_table_is_empty_and_has_its_columns(own, most):
    table = interactions(work(n_pairs=most), "s", own, None, trial())
    assert table.empty
    assert {"layer_a", "latent_b", "held", "moment", "effect", "kind"} <= set(table.columns)


def test_pairs_of_the_masks_come_first_and_no_pair_twice():
    sure = masked().moments(0)
    first, second = np.triu_indices(5, 1)
    away = (sure.pair_low > 0) | (sure.pair_high < 0)
    order = sorted(
        ((a, b) for a, b in zip(first, second, strict=True) if away[a, b]),
        key=lambda pair: -abs(sure.pair[pair]),
    )
    assert len(order) > 2
    table = interactions(work(n_pairs=2), "s", [0, 1, 2], masked(), trial())
    alone = [pair for pair, held in named(table) if held == NOTHING]
    strongest = [(NAMES[a], NAMES[b]) for a, b in order[:2]]
    inside = [pair for pair in combinations(NAMES[:3], 2) if pair not in strongest]
    assert alone == strongest + inside[:2]
    # What else is ablated is the set's own alone, so a pair that reaches out of it has no rest.
    assert {pair for pair, held in named(table) if held == REST} == {
        pair for pair in alone if set(pair) <= set(NAMES[:3])
    }
    moments = table.set_index(["layer_a", "latent_a", "layer_b", "latent_b", "held"])["moment"]
    assert moments.iloc[0] == pytest.approx(sure.pair[order[0]])


def test_the_masks_are_spread_evenly_over_the_prompts_and_measured_from_the_clean_run():
    found = masked()
    assert found.masks.shape == (160, 5)
    assert np.bincount(found.prompts).tolist() == [20] * ROWS
    assert found.masks.mean() == pytest.approx(0.5, abs=0.05)
    rows = hydra("base").harmful[:ROWS]
    organism = hydra("base").organism
    for k in (0, 57, 159):
        latents = hydra("base").latents(" ".join(np.array(NAMES)[found.masks[k]]))
        ids = [rows[found.prompts[k]]]
        edited, clean = (
            oracle.ablate(organism.model, organism.dictionary, ids, each).margin[0]
            for each in (latents, ())
        )
        assert found.change[k] == pytest.approx(edited - clean, abs=1e-3)


def test_without_backups_no_pair_stands_in_for_another():
    table = interactions(work("control"), "s", range(3), None, trial("control", NAMES[:3]))
    assert set(table["kind"]) == {"additive"}
