"""The figures and tables of a features run show what stands in its tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from refusalscope.report.content import Figure
from refusalscope.report.features_pool import read_pool
from refusalscope.report.features_tables import (
    BASELINES,
    DORMANT,
    SETS,
    dormant_rows,
    main_set,
    of_set,
    set_arm,
)
from refusalscope.report.sections.features import features_waking
from refusalscope.report.sections.features_arms import arms_table, published_table
from refusalscope.report.sections.features_baselines import GROUPS, LEAST_KL, baselines_figure
from refusalscope.report.sections.features_contrast import MAX_PLACES, machine_table
from refusalscope.report.sections.features_layers import set_figure, shown_writes
from refusalscope.report.sections.features_ledger import ledger_figure
from refusalscope.report.sections.features_members import (
    MAX_MEMBERS,
    MAX_RESERVES,
    members_table,
    searches_table,
    sets_table,
)
from refusalscope.report.sections.features_pairs import MAX_LATENTS, pairs_figure, pairs_table
from refusalscope.report.sections.features_path import path_figure
from refusalscope.report.sections.features_values import values_table
from refusalscope.report.sections.features_waking import MAX_POINTS, rounds_table, woken_figure
from refusalscope.stats import wilson
from report.fake_features import MEMBERS, RESERVES, SIZE, N, Tables, places


def marks(figure) -> dict[str, tuple[float, float]]:
    """Drawn latents by name: where each stands."""
    found = {}
    for trace in figure.data:
        if trace.mode == "markers":
            for x, y, text in zip(trace.x, trace.y, trace.text, strict=True):
                found[text.split("</b>")[0].removeprefix("<b>")] = (x, y)
    return found


def cells(table) -> list[list[str]]:
    """The text of every cell, a second line behind a stroke."""

    def text(cell) -> str:
        below = getattr(cell, "below", "")
        return getattr(cell, "text", cell) + (f" / {below}" if below else "")

    return [[text(cell).replace("\u00a0", " ") for cell in row] for row in table.rows]


# The path and the set.


def test_the_path_counts_latents_at_each_step():
    run = Tables()
    members, pool = main_set(run), read_pool(run, set())
    drawn = path_figure(pool, 96, members, dormant_rows(run), both=False)
    figure, table = drawn.panels[0].figure, run.held["features.pool"]
    kept = table[table["kept"]]
    harm = int((kept["part"] == "recognition").sum())
    counts = [SIZE[0] * SIZE[1], len(kept), harm, 96, 5, 2, 2]
    assert [trace.x[1] for trace in figure.data] == counts
    assert [note.text for note in figure.layout.annotations][-2:] == ["<b>2</b>", "<b>2</b>"]
    assert f"Of the {len(kept)} latents kept, {harm} recognise harm" in drawn.read
    assert "they were not searched" in drawn.read
    assert "searched too" in path_figure(pool, 96, members, None, both=True).read
    alone = path_figure(None, math.nan, members, None, both=False).panels[0].figure
    assert list(alone.layout.yaxis.ticktext) == ["in the set"]


def test_a_step_without_latents_is_a_label_without_a_bar():
    run = Tables()
    dormant = dormant_rows(run).assign(reserve=False)
    figure = path_figure(None, 96, main_set(run), dormant, both=False).panels[0].figure
    assert figure.layout.annotations[-1].text == "<b>0</b>"
    assert len(figure.data) == len(figure.layout.annotations) - 1


def test_each_member_and_reserve_stands_at_its_layer_and_effect():
    run = Tables()
    figure = set_figure(main_set(run), dormant_rows(run), None, SIZE[0])
    drawn = marks(figure.panels[0].figure)
    members, reserves = places(SIZE)
    expected = {
        f"L{layer}/{latent}": (layer, effect)
        for (layer, latent), effect in [
            *zip(members, (m[3] for m in MEMBERS), strict=True),
            *zip(reserves, (r[2] for r in RESERVES), strict=True),
        ]
    }
    assert set(drawn) == set(expected)
    for name, (layer, effect) in expected.items():
        assert drawn[name][0] == pytest.approx(layer, abs=0.36)
        assert drawn[name][1] == effect
    assert len({x for x, _ in drawn.values()}) == len(drawn)


def test_dormant_members_are_open_and_reserves_are_diamonds():
    run = Tables()
    figure = set_figure(main_set(run), dormant_rows(run), None, SIZE[0]).panels[0].figure
    by_state = {trace.text[0].split(", ")[1].split("<")[0]: trace for trace in figure.data}
    assert by_state["dormant"].marker.color == "#ffffff"
    assert len(by_state["dormant"].x) == 2
    assert by_state["reserve"].marker.symbol == "diamond"
    assert len(by_state["active"].x) == 3


def test_without_effects_the_cosine_is_the_height_and_without_both_nothing_is_drawn():
    run = Tables()
    members = main_set(run)
    pool = read_pool(run, set(zip(members["layer"], members["latent"], strict=True)))
    figure = set_figure(members, None, pool, None)
    drawn = marks(figure.panels[0].figure)
    for row in members.to_dict("records"):
        held = run.held["features.pool"]
        same = held[(held["layer"] == row["layer"]) & (held["latent"] == row["latent"])]
        assert drawn[row["at"]][1] == same["cosine"].iloc[0]
    assert "decoder row points along the refusal direction" in figure.read
    assert set_figure(members, None, None, None) is None


def test_the_pool_gives_only_the_rows_asked_for():
    run = Tables()
    pool = read_pool(run, {(3, 17), (5, 31), (99, 1)})
    assert set(pool.of) == {"L3/17", "L5/31"}
    assert pool.n == SIZE[0] * SIZE[1]
    run.held["features.pool"] = run.held["features.pool"].drop(columns="part")
    assert read_pool(run, set()).recognising is None
    run.held["features.pool"] = run.held["features.pool"].drop(columns="kept")
    assert read_pool(run, set()).kept is None


def test_the_table_of_members_holds_all_measures_and_cuts_long_sets():
    run = Tables()
    latents = shown_writes(main_set(run), dormant_rows(run), read_pool(run, {(5, 88)}))
    table = members_table(
        latents, run.clean("features.members"), of_set(run.clean("features.overshoot"), None)
    )
    rows = {row[0]: row for row in cells(table)}
    held = run.held["features.pool"]
    cosine = held.loc[(held["layer"] == 5) & (held["latent"] == 88), "cosine"].iloc[0]
    assert rows["L5/88"][1:4] == ["dormant", "0 %", "0.60 / 0.45 to 0.75"]
    assert rows["L5/88"][4] == f"{cosine:.2f} (0.02)"
    assert rows["L5/88"][5:] == ["66 % / 56 to 76 %", "0.44", "0.43 / 0.38 to 0.48"]
    assert rows["L6/311"][1] == "reserve"
    many = pd.concat([latents] * 9, ignore_index=True)
    long = members_table(many, None, None)
    assert len(long.rows) == MAX_MEMBERS + MAX_RESERVES
    assert "27 further ones" in long.note


def test_searches_and_sets_of_single_prompts_are_one_row():
    run = Tables()
    searches = cells(searches_table(run.clean("features.searches")))
    assert [row[0] for row in searches] == ["pool", "half/0", "half/1", "each prompt alone"]
    assert searches[-1][1] == "48"
    assert searches[-1][-1] == "not refused without an edit (2)"
    sets = cells(sets_table(run.clean(SETS)))
    assert [row[0] for row in sets] == ["pool/0", "pool/1", "46 prompts, one by one"]
    assert sets[2][1] == "4 (3 to 5)"
    assert sets_table(run.clean(SETS)).columns[1:3] == ("latents", "layers")


# What wakes.


def test_woken_latents_stand_at_chance_and_share_members_left_out():
    run = Tables()
    figure = woken_figure(of_set(run.clean(DORMANT), main_set(run)), N)
    assert [panel.title for panel in figure.panels] == [
        "BOS left out of edit and read",
        "BOS edited and read too",
        "What those beyond chance hold up",
    ]
    drawn = marks(figure.panels[0].figure)
    assert drawn["L6/311"] == (0.12, 0.85)
    assert len(drawn) == 63
    assert not set(drawn) & set(main_set(run)["at"])
    rows = list(figure.panels[2].figure.layout.yaxis.ticktext)
    assert rows == ["L6/311", "L8/52", "L9/301"]
    assert "n = 48 prompts; 63 latents woken, 3 beyond chance" in figure.basis


def test_thousands_of_woken_latents_are_thinned_and_said_to_be():
    dormant = Tables().clean(DORMANT)
    chance = dormant[dormant["q"] == 0.9]
    many = pd.concat(
        [dormant, *[chance.assign(latent=chance["latent"] + 500 * i) for i in range(20)]]
    )
    figure = woken_figure(many.reset_index(drop=True), math.nan)
    assert sum(len(t.x) for t in figure.panels[0].figure.data if t.mode == "markers") == 403
    assert f"the {MAX_POINTS} most frequent are drawn" in figure.basis
    assert "n =" not in figure.basis


def test_latents_that_were_not_compared_with_chance_are_not_drawn():
    assert woken_figure(Tables().clean(DORMANT).assign(null=np.nan), N) is None


def test_the_values_stand_by_kind_and_the_rank_of_latents_counts_no_prompts():
    run = Tables()
    values = run.clean("features.values")
    mixed = values.sample(frac=1, random_state=3)
    odd = values.head(1).assign(name="a value of tomorrow")
    rows = cells(values_table(pd.concat([odd, mixed])))
    assert [row[0].split(" ")[0] for row in rows][:3] == ["margin", "with", "what"]
    assert [row[0] for row in rows][-1] == "a value of tomorrow"
    assert "probability that the reply opens as a refusal" in rows[-3][0]
    assert rows[-2][3] == "\u2013"
    section = features_waking(run)
    bases = [block.basis for block in section.blocks if isinstance(block, Figure)]
    assert all(f"n = {N} prompts" in basis for basis in bases)


def test_the_ledger_draws_every_amount_and_the_null_of_what_is_written_back():
    run = Tables()
    ledger = run.clean("features.ledger")
    figure = ledger_figure(ledger, run.clean("features.compensation"), N)
    assert len(figure.panels) == 3
    last = ledger[ledger["position"] == "last"]
    bars = [trace for trace in figure.panels[0].figure.data if trace.type == "bar"]
    for trace, part in zip(bars, ("removed", "heads", "mlp"), strict=True):
        own = last[last["part"] == part].sort_values("layer")
        assert list(trace.y) == own["amount"].tolist()
    (line,) = (t for t in figure.panels[0].figure.data if t.type == "scatter")
    assert list(line.y) == pytest.approx([0.0] * 4 + [0.05] * 6)
    put_back = figure.panels[2].figure.data[-1]
    assert list(put_back.y) == run.clean("features.compensation")["amount"].tolist()
    assert ledger_figure(ledger.assign(amount=np.nan), None, N) is None


def test_rounds_are_one_row_each_with_their_strongest():
    rows = cells(rounds_table(Tables().clean("features.rounds")))
    assert rows[0] == ["0", "−1.10", "71 %", "1", "L6/311 (1.20 nats)"]


# Interactions.


def test_the_map_is_symmetric_and_leaves_what_was_not_measured_blank():
    run = Tables()
    table, members = run.clean("features.interactions"), set(main_set(run)["at"])
    figure = pairs_figure(table, members)
    shown = figure.panels[0].figure.data[0]
    names = list(figure.panels[0].figure.layout.xaxis.ticktext)
    assert names[-2:] == ["L6/311", "L8/52"]
    for row in table.to_dict("records"):
        i, j = names.index(row["first"]), names.index(row["second"])
        if row["held"] == "the rest of the set":
            continue
        for a, b in ((i, j), (j, i)):
            if math.isnan(row["effect"]):
                assert math.isnan(shown.z[a][b])
            else:
                assert shown.z[a][b] == pytest.approx(row["effect"], abs=1e-5)
    assert all(math.isnan(shown.z[i][i]) for i in range(len(names)))
    assert shown.zmin == -shown.zmax
    assert shown.text[names.index("L3/17")][names.index("L6/311")] == "OR"


def test_a_large_map_keeps_the_largest_interactions():
    pairs = Tables().clean("features.interactions")
    many = [pairs]
    for i in range(1, 20):
        shift = pairs.assign(effect=pairs["effect"] / 10, moment=pairs["moment"] / 10)
        for side in ("a", "b"):
            shift[f"latent_{side}"] += 1000 * i
        shift["first"] = [f"L{r.layer_a}/{r.latent_a}" for r in shift.itertuples()]
        shift["second"] = [f"L{r.layer_b}/{r.latent_b}" for r in shift.itertuples()]
        many.append(shift)
    figure = pairs_figure(pd.concat(many, ignore_index=True), set())
    names = figure.panels[0].figure.layout.xaxis.ticktext
    assert len(names) == MAX_LATENTS
    assert {"L3/17", "L6/311"} <= set(names)
    assert f"the {MAX_LATENTS} of 140 latents" in figure.basis


def test_the_table_of_pairs_starts_with_the_largest():
    table = pairs_table(Tables().clean("features.interactions"))
    rows = cells(table)
    alone = "OR: either alone is enough to refuse"
    assert rows[0][:6] == ["L3/17", "L6/311", "nothing", alone, "−2.30", "−2.50 to −2.10"]
    assert "Of 8 pairs, each judged by its first row: 1 OR, 1 redundant, 6 additive." in table.note
    assert len(rows) == 14
    both = [row[2:5] for row in rows if row[:2] == ["L3/17", "L5/31"]]
    assert both == [
        ["the rest of the set", "additive: add up", "0.01"],
        ["nothing", "synergistic: need each other", "0.70"],
    ]


def test_a_cell_of_the_map_says_both_of_a_pair_that_was_run_twice():
    run = Tables()
    figure = pairs_figure(run.clean("features.interactions"), set(main_set(run)["at"]))
    exact, moments = (panel.figure for panel in figure.panels)
    names = list(exact.layout.xaxis.ticktext)
    i, j = names.index("L3/17"), names.index("L5/31")
    said = exact.data[0].hovertext[i][j]
    assert "need each other<br>interaction 0.70 nats" in said
    assert "with the rest of the set out:<br>0.01 nats (−0.02 to 0.04)<br>add up" in said
    once = exact.data[0].hovertext[i][names.index("L6/311")]
    assert "out:" not in once
    assert "out:" not in moments.data[0].hovertext[i][j]
    assert exact.data[0].text[i][j] == "S"
    assert "8 pairs measured exactly" in figure.basis
    assert "(6 of them also with the rest of the set out" in figure.basis


def test_the_machine_and_the_probe_stand_beside_each_other():
    machine = Tables().clean("features.machine")
    rows = cells(machine_table(machine))
    assert [row[2:] for row in rows[:2]] == [
        ["1", "1.000", "7", "0.071"],
        ["2", "0.500", "6", "0.083"],
    ]
    later = machine.assign(place=machine["place"] + MAX_PLACES - 2)
    later.loc[later["place"] > MAX_PLACES, "probe_place"] = np.nan
    assert len(machine_table(later).rows) == 6
    nowhere = machine.assign(place=np.nan, probe_place=np.nan)
    assert len(machine_table(nowhere).rows) == MAX_PLACES


# Baselines.


def large_marks(figure) -> dict[str, object]:
    return {
        trace.text[0].split("</b>")[0].removeprefix("<b>"): trace
        for trace in figure.data
        if trace.mode == "markers"
    }


def test_every_arm_stands_at_its_cost_and_fall_with_intervals_and_its_strengths():
    run = Tables()
    arms = run.clean(BASELINES)
    figure = baselines_figure(arms, set_arm(run)).panels[0].figure
    drawn = large_marks(figure)
    full = arms[arms["strength"] == 1].set_index("arm")
    assert len(drawn) == len(full) == 11
    for arm, row in full.iterrows():
        # A label is cut where it is long.
        name = "the set (pool/0)" if row["group"] == "set" else arm
        trace = drawn[name if len(name) <= 24 else f"{name[:23]}\u2026"]
        assert (trace.x[0], trace.y[0]) == (row["kl"], row["change"])
        assert trace.error_y.array[0] == pytest.approx(row["change_high"] - row["change"])
        assert trace.error_x.arrayminus[0] == pytest.approx(row["kl"] - row["kl_low"])
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert all(len(trace.x) == 3 for trace in lines)
    looks = [(trace.marker.color, trace.marker.symbol) for trace in drawn.values()]
    assert len(set(looks)) == len(looks)
    assert [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1] == [0.031]


def test_an_arm_that_costs_nothing_stands_at_the_edge():
    run = Tables()
    arms = run.clean(BASELINES)
    arms.loc[arms["group"] == "random", ["kl", "kl_low", "kl_high"]] = 0.0
    figure = baselines_figure(arms, set_arm(run)).panels[0].figure
    (trace,) = (t for name, t in large_marks(figure).items() if name == "random matched")
    assert trace.x[0] == 10 ** math.floor(math.log10(arms.loc[arms["kl"] > LEAST_KL, "kl"].min()))
    assert figure.layout.xaxis.ticktext[0].startswith("\u2264")
    every = baselines_figure(arms.assign(kl=0.0), None).panels[0].figure
    assert {trace.x[0] for trace in large_marks(every).values()} == {LEAST_KL}


def test_the_groups_of_the_contract_have_colours_of_their_own():
    assert len({look.colour for look in GROUPS.values()}) == len(GROUPS) == 6


def test_the_table_of_arms_is_at_full_strength():
    from refusalscope.report.features_tables import arms_at_full

    table = cells(arms_table(arms_at_full(Tables())))
    assert len(table) == 11
    assert table[0][:4] == ["set pool/0", "5", "6.30 / 5.75 to 6.85", "6.25 / 5.63 to 6.87"]
    assert table[0][4:7] == ["0.048", "6.30", "0.0310"]


def test_the_published_sweep_counts_prompts_searched_and_flips():
    table = cells(published_table(Tables().clean("features.published")))
    assert [row[:2] for row in table] == [
        [reading, tau] for reading in ("delta", "restore") for tau in ("0.10", "0.50", "0.80")
    ]
    rate = wilson(2, 7)
    assert table[3][2] == "7 of 8"
    assert table[3][5] == "2 of 7"
    assert table[3][6] == f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"
