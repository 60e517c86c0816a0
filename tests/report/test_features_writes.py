"""A set made of writes: what several latents share is said, drawn and counted once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report import write_report
from refusalscope.report.features_pool import read_pool
from refusalscope.report.features_rules import carriers, features_statements, sleepers
from refusalscope.report.features_tables import DORMANT, SETS, dormant_rows, main_set
from refusalscope.report.features_worries import bos_differs
from refusalscope.report.features_writes import followed, heads, layer_words, size_words, spread
from refusalscope.report.sections.features_cards import features_cards
from refusalscope.report.sections.features_layers import set_figure, shown_writes
from refusalscope.report.sections.features_members import members_table, sets_table
from refusalscope.report.sections.features_path import path_figure
from refusalscope.report.sections.features_rows import MAX_ROWS, rows_panels
from report.fake_features import (
    MEMBERS,
    RESERVES,
    SIZE,
    Tables,
    fake_features_tables,
    write_fake_features,
)
from report.fake_writes import fake_writes, written
from report.test_features_figures import cells
from report.test_page import Page


@pytest.fixture
def run() -> Tables:
    return Tables(fake_writes())


def names() -> list[list[str]]:
    return [[f"L{layer}/{latent}" for layer, latent in write] for write in written()]


def test_a_set_of_writes_is_measured_in_writes(run: Tables):
    members = main_set(run)
    assert list(heads(members)["at"]) == [write[0] for write in names()]
    assert size_words(members) == "5 writes (15 latents over 5 layers)"
    assert size_words(main_set(Tables())) == "5 latents in 3 layers"
    text = carriers(run).text
    assert text.startswith(
        "The smallest set found is 5 writes (15 latents over 5 layers), strongest at L3/17,"
    )
    assert carriers(run).short.startswith("5 writes (15 latents over 5 layers) carr")
    card = features_cards(run)[0]
    assert (card.name, card.figure) == ("Writes in the set", "5")
    assert card.interval == "15 latents over 5 layers"


def test_without_numbers_each_latent_is_a_write_of_its_own():
    tables = fake_features_tables()
    tables[SETS] = tables[SETS].drop(columns="write")
    members = main_set(Tables(tables))
    assert not spread(members)
    assert members["write"].nunique() == 5


def test_a_write_sleeps_only_where_all_its_latents_do(run: Tables):
    found = followed(dormant_rows(run), main_set(run))
    # The fourth wakes at one of its layers, the fifth at none.
    assert found["dormant"].sum() == 1
    by_effect = found.set_index("effect")
    for write, (_, _, _, effect) in zip(names(), MEMBERS, strict=True):
        own = dormant_rows(run).query("at in @write")
        assert len(own) == len(write)
        assert by_effect.loc[effect, "dormant"] == (own["active_clean"] == 0).all()
        assert by_effect.loc[effect, "active_clean"] == own["active_clean"].max()
    assert "1 of 5 members (20" in sleepers(run).text
    card = next(card for card in features_cards(run) if card.name == "Dormant members")
    assert card.figure == "1 of 5"


def test_members_that_the_set_does_not_list_are_each_their_own(run: Tables):
    assert len(followed(dormant_rows(run), None)) == 15


def test_bos_is_compared_by_writes(run: Tables):
    table = run.held[DORMANT]
    one = table["latent"].eq(written()[4][0][1]) & table["in_set"] & table["arm"].eq("all")
    run.held[DORMANT] = table.assign(active_clean=table["active_clean"].where(~one, 0.5))
    text = bos_differs(run).text
    assert (
        text == "with BOS edited and read too the run finds 0 dormant members against 1 without it"
    )


def test_the_path_counts_writes_from_the_search_on(run: Tables):
    drawn = path_figure(read_pool(run, set()), 96, main_set(run), dormant_rows(run), both=False)
    ticks = list(drawn.panels[0].figure.layout.yaxis.ticktext)
    assert ticks[3:] == [
        "writes searched",
        "writes in the set",
        "of them dormant",
        "reserves found",
    ]
    assert [trace.x[1] for trace in drawn.panels[0].figure.data][3:] == [96, 5, 1, 2]
    assert "The set has 15 latents" in drawn.read


def test_each_write_is_a_row_over_its_layers_and_its_worth_stands_level_with_it(run: Tables):
    figure = set_figure(main_set(run), dormant_rows(run), None, SIZE[0])
    layers, worth = (panel.figure for panel in figure.panels)
    rows = list(layers.layout.yaxis.ticktext)
    assert rows[:5] == [write[0] for write in names()]
    assert rows == list(worth.layout.yaxis.ticktext)
    assert layers.layout.height == worth.layout.height
    assert tuple(layers.layout.yaxis.range) == tuple(worth.layout.yaxis.range)
    marks = [trace for trace in layers.data if trace.mode == "markers"]
    for y, write in enumerate(written()):
        assert set(zip(marks[y].x, marks[y].y, strict=True)) == {(layer, y) for layer, _ in write}
        assert marks[y].marker.size[0] > max(marks[y].marker.size[1:], default=0)
    lines = [trace for trace in layers.data if trace.mode == "lines"]
    assert [tuple(line.x) for line in lines[:5]] == [
        (min(layer for layer, _ in write), max(layer for layer, _ in write)) for write in written()
    ]
    # Of the fourth write one latent is active: that mark is filled.
    filled = [colour != "#ffffff" for colour in marks[3].marker.color]
    assert filled == [False, False, True]
    effects = [m[3] for m in MEMBERS] + [r[2] for r in RESERVES]
    assert [trace.x[0] for trace in worth.data] == effects
    assert "5 members, each a write (15 latents over 5 layers), 2 reserves" in figure.basis


def test_many_rows_are_cut_and_the_cut_is_said(run: Tables):
    frame = shown_writes(main_set(run), dormant_rows(run), None)
    many = frame.loc[np.repeat(frame.index, 8)].reset_index(drop=True)
    first, second = rows_panels(many, "effect", "nats", 9)
    assert len(first.figure.layout.yaxis.ticktext) == MAX_ROWS
    assert len(second.figure.layout.yaxis.ticktext) == MAX_ROWS
    assert first.title == f"Layers, {MAX_ROWS} of 56"


def test_without_effects_the_rows_show_the_cosine_of_the_strongest(run: Tables):
    members = main_set(run)
    pool = read_pool(run, set(zip(members["layer"], members["latent"], strict=True)))
    worth = set_figure(members, None, pool, None).panels[1].figure
    assert [trace.x[0] for trace in worth.data] == [
        pool.of[write[0]]["cosine"] for write in names()
    ]


def test_the_table_of_members_has_one_row_a_write_with_its_layers(run: Tables):
    latents = shown_writes(main_set(run), dormant_rows(run), None)
    overshoot = run.clean("features.overshoot")
    overshoot.loc[0, ["slope", "slope_low", "slope_high"]] = np.nan
    later = overshoot.loc[[1]].assign(at=names()[0][1], claimed=0.9, slope=0.8)
    table = members_table(latents, None, pd.concat([overshoot, later]))
    rows = cells(table)
    assert table.columns[:2] == ("strongest latent", "layers")
    assert [row[:3] for row in rows] == [
        ["L3/17", "3 to 6", "active"],
        ["L3/204", "3 to 6", "active"],
        ["L5/31", "5 to 7", "active"],
        ["L5/88", "5 to 7", "active"],
        ["L7/9", "7", "dormant"],
        ["L6/311", "6", "reserve"],
        ["L8/52", "8", "reserve"],
    ]
    # What could not be regressed of the strongest is that of the next of its write.
    assert rows[0][7:] == ["0.90", "0.80 / 0.36 to 0.46"]


def test_the_sets_found_are_sized_in_writes_and_latents(run: Tables):
    table = sets_table(run.clean(SETS))
    assert table.columns[1:3] == ("writes", "latents")
    rows = cells(table)
    assert rows[0][:4] == ["pool/0", "5", "15", "5"]
    assert rows[1][:3] == ["pool/1", "6", "6"]
    assert rows[2][1:3] == ["4 (3 to 5)", "14 (11 to 15)"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([4], "4"),
        ([4, 5], "4, 5"),
        ([0, 1, 2, 3], "0 to 3"),
        ([0, 2, 5], "0, 2, 5"),
        (list(range(0, 20, 2)), "0, 2, 4, 6, 8, 10 and 4 more"),
    ],
)
def test_layers_are_listed_as_one_reads_them(layers: list[int], said: str):
    assert layer_words(layers) == said


def test_the_page_of_a_set_of_writes_holds_every_figure(tmp_path: Path):
    page = Page(write_report(write_fake_features(tmp_path / "run", tables=fake_writes())))
    assert "figure-features-set" in page.ids()
    assert "figure-features-set-2" in page.figures()
    assert "5 writes (15 latents over 5 layers) carry the refusal" in " ".join(page.text.split())
    assert len(features_statements(Tables(fake_writes()))[0]) == 5
