"""The figures of a routing run show what stands in its tables."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from refusalscope.report.content import Figure, Note
from refusalscope.report.figures import DIVERGING
from refusalscope.report.palette import LIGHT
from refusalscope.report.routing_tables import HEADS, found
from refusalscope.report.sections.routing_cascade import cascade_figure
from refusalscope.report.sections.routing_cipher import cipher_figure
from refusalscope.report.sections.routing_circuit import LOOKS, circuit
from refusalscope.report.sections.routing_dose import dose_blocks, main_curve
from refusalscope.report.sections.routing_map import head_map
from refusalscope.report.sections.routing_rescue import rescue_blocks
from report.fake_routing import (
    SIZE,
    Tables,
    fake_routing_tables,
)

# The map.


def heatmap(figure: Figure, panel: int = 0):
    return figure.panels[panel].figure.data[0]


def test_the_map_shows_each_heads_necessity_at_its_place():
    run = Tables()
    heads = run.held[HEADS].sample(frac=1, random_state=1)
    run.held[HEADS] = heads
    shown = heatmap(head_map(run, run.clean(HEADS)))
    for row in heads.to_dict("records"):
        assert shown.z[row["layer"]][row["head"]] == pytest.approx(row["necessity"], abs=1e-5)
        assert f"L{row['layer']}.H{row['head']}" in shown.text[row["layer"]][row["head"]]
    assert shown.zmin == -shown.zmax
    assert [list(step) for step in shown.colorscale] == DIVERGING


def test_a_head_that_was_not_looked_at_is_blank_and_said_to_be():
    run = Tables()
    run.held[HEADS] = run.held[HEADS].iloc[1:]
    figure = head_map(run, run.clean(HEADS))
    assert np.isnan(heatmap(figure).z[0][0])
    assert "47 of 48 heads looked at" in figure.basis
    assert "not looked at" in [key.meaning for key in figure.keys]


def test_layers_above_the_heads_looked_at_are_drawn_as_not_looked_at():
    run = Tables()
    run.held[HEADS] = run.held[HEADS][run.held[HEADS]["layer"] < 5]
    assert heatmap(head_map(run, run.clean(HEADS))).z.shape == SIZE


def test_other_maps_get_a_panel_only_where_they_differ():
    run = Tables()
    titles = [panel.title for panel in head_map(run, run.clean(HEADS)).panels]
    assert titles == [
        "Swapped at the template's tail",
        "Swapped at the last token",
        "Swapped at all positions",
    ]
    heads = run.held[HEADS]
    run.held[HEADS] = heads.assign(necessity_last=heads["necessity"], necessity_all=np.nan)
    figure = head_map(run, run.clean(HEADS))
    assert len(figure.panels) == 1
    assert "the last token gives the same picture" in figure.read


@pytest.mark.parametrize("size", [(6, 8), (36, 32), (80, 64)])
def test_found_heads_stay_visible_in_a_model_of_any_size(size: tuple[int, int]):
    tables = fake_routing_tables(size)
    run = Tables(tables)
    heads = run.clean(HEADS)
    figure = head_map(run, heads).panels[0].figure
    assert figure.layout.height <= 800
    marks = figure.data[1:]
    n = len(found(heads))
    if max(size) <= 16:
        assert [sum(x is None for x in trace.x) for trace in marks] == [n, n]
    else:
        assert sum(len(trace.x) for trace in marks) == n
        assert all(trace.marker.size >= 10 for trace in marks)
        values = dict(zip(heads["at"], heads["necessity"], strict=True))
        for trace in marks:
            places = zip(trace.y, trace.x, trace.marker.color or (), strict=False)
            for layer, head, colour in places:
                assert colour == values[f"L{layer}.H{head}"]


def test_the_hover_of_a_head_holds_all_its_numbers():
    run = Tables()
    text = heatmap(head_map(run, run.clean(HEADS))).text[2][4].replace("\u00a0", " ")
    for part in (
        *("L2.H4, gate", "found", "necessity 61 % (58 to 64 %)", "sufficiency 37 %"),
        *(
            "p necessity < 0.001",
            "last token 61 %",
            "first half of pairs 62 %",
            "second half 60 %",
        ),
        *("direct 0.4 %", "norms frozen 59 %", "drives 3, driven by 0", "sd over donors 1.0 %"),
    ):
        assert part in text
    assert "in its window" not in text
    assert max(len(line) for line in text.replace("<b>", "").split("<br>")) <= 46


# The circuit.


def nodes(figure) -> dict[str, object]:
    return {
        re.match("<b>(.*?)</b>", trace.text[0]).group(1): trace
        for trace in figure.data
        if trace.mode == "markers"
    }


def edges(figure) -> dict[str, object]:
    return {
        re.match("<b>(.*?)</b>", trace.text[0]).group(1): trace
        for trace in figure.data
        if trace.mode == "lines"
    }


def test_the_circuit_holds_the_heads_found_and_no_others():
    run = Tables()
    figure = circuit(run.clean(HEADS), run.clean("routing.drive")).panels[0].figure
    heads = run.held[HEADS]
    expected = {f"L{r.layer}.H{r.head}": r.role for r in heads.itertuples() if r.role}
    drawn = nodes(figure)
    assert set(drawn) == set(expected)
    for name, trace in drawn.items():
        look = LOOKS[expected[name]]
        assert trace.marker.symbol == look.symbol.removesuffix("-open")
        colour = trace.marker.line if look.symbol.endswith("-open") else trace.marker
        assert colour.color == LIGHT[look.colour]
    heights = {name: trace.y[0] for name, trace in drawn.items()}
    layer = {name: int(re.match(r"L(\d+)", name).group(1)) for name in heights}
    for one in heights:
        for other in heights:
            assert (layer[one] < layer[other]) <= (heights[one] < heights[other])


def test_the_circuits_lines_are_the_drives_beyond_the_null_wider_for_larger_ones():
    run = Tables()
    figure = circuit(run.clean(HEADS), run.clean("routing.drive")).panels[0].figure
    drive = run.held["routing.drive"]
    expected = {
        f"{r.gate} drives L{r.layer}.H{r.head}": r.drive for r in drive.itertuples() if r.driven
    }
    drawn = {name: trace for name, trace in edges(figure).items() if "drives" in name}
    assert set(drawn) == set(expected)
    by_size = sorted(expected, key=lambda name: abs(expected[name]))
    widths = [drawn[name].line.width for name in by_size]
    assert widths == sorted(widths)
    for name, trace in drawn.items():
        assert trace.line.color == LIGHT["refuses_2" if expected[name] > 0 else "answers_2"]
    outputs = {name.split()[0] for name in edges(figure) if "output" in name}
    heads = run.held[HEADS]
    assert outputs == {f"L{r.layer}.H{r.head}" for r in heads.itertuples() if abs(r.direct) >= 0.01}


def test_a_circuit_without_drives_says_so_and_an_empty_one_too():
    run = Tables()
    assert "no table routing.drive" in circuit(run.clean(HEADS), None).basis
    run.held[HEADS] = run.held[HEADS].assign(passes=False, role="")
    note = circuit(run.clean(HEADS), None)
    assert isinstance(note, Note)
    assert "no circuit to draw" in note.text


def test_a_crowded_circuit_draws_the_strongest_and_says_so():
    run = Tables()
    run.held[HEADS] = run.held[HEADS].assign(passes=True)
    figure = circuit(run.clean(HEADS), None)
    assert len(nodes(figure.panels[0].figure)) == 40
    assert "40 heads of 48 found" in figure.basis
    columns = pd.Series([(t.x[0], t.y[0]) for t in nodes(figure.panels[0].figure).values()])
    assert not columns.duplicated().any()


# The cascade.


def test_only_heads_that_cannot_hear_the_gate_make_the_noise_floor():
    run = Tables()
    cascade = run.clean("routing.cascade")
    figure = cascade_figure(cascade, run.clean(HEADS), run.clean("routing.drive"))
    panel = figure.panels[0]
    assert panel.title == "L2.H4 swapped"
    floor = [trace for trace in panel.figure.data if len(trace.x) > 1]
    mine = cascade[(cascade["gate"] == "L2.H4") & (cascade["knockout"] == "swap")]
    largest = mine["contrast"].abs().max()
    expected = mine[
        ~mine["deeper"] & (mine["at"] != "L2.H4") & (mine["contrast"].abs() >= 0.05 * largest)
    ]
    assert sorted(floor[0].x) == sorted(expected["change"])
    (band,) = [shape for shape in panel.figure.layout.shapes if shape.type == "rect"]
    assert (band.x0, band.x1) == (expected["change"].min(), expected["change"].max())


def test_a_cascade_shows_the_route_and_holds_the_norm_beside_it():
    run = Tables()
    figure = cascade_figure(run.clean("routing.cascade"), run.clean(HEADS), None).panels[0].figure
    labels = [
        label.removeprefix("<b>").removesuffix("</b>") for label in figure.layout.yaxis.ticktext
    ]
    assert {"L5.H1", "L5.H4", "L6.H1"} <= set(labels)
    row = labels.index("L5.H1")
    free, held = [t for t in figure.data if len(t.x) == 1 and abs(t.y[0] - row) < 0.3]
    mine = run.held["routing.cascade"].query(
        "gate == 'L2.H4' and knockout == 'swap' and layer == 5 and head == 1"
    )
    assert free.x[0] == mine["change"].iloc[0]
    assert held.x[0] == mine["held"].iloc[0]
    assert held.marker.color == LIGHT["surface"]


def test_a_share_of_next_to_nothing_is_not_shown():
    run = Tables()
    cascade = run.held["routing.cascade"]
    tiny = (cascade["layer"] == 7) & (cascade["head"] == 0)
    cascade.loc[tiny, ["contrast", "change", "held"]] = [1e-6, 900.0, 900.0]
    figure = cascade_figure(run.clean("routing.cascade"), None, None).panels[0].figure
    assert not any("L7.H0" in label for label in figure.layout.yaxis.ticktext)


def test_cascades_beyond_the_panels_are_counted():
    run = Tables()
    one = run.clean("routing.cascade").query("gate == 'L2.H4' and knockout == 'swap'")
    many = pd.concat([one.assign(gate=f"L2.H{i}") for i in range(8)], ignore_index=True)
    figure = cascade_figure(many, None, None)
    assert len(figure.panels) == 6
    assert "2 further cascades" in figure.basis
    assert cascade_figure(one[~one["deeper"]], None, None) is None


# Doses.


def dose_figure(run: Tables) -> Figure:
    figure = dose_blocks(run.clean("routing.dose"), run.clean("routing.thresholds"))[0]
    assert isinstance(figure, Figure)
    return figure


def test_dose_curves_show_all_categories_and_the_threshold():
    run = Tables()
    figure = dose_figure(run)
    assert [panel.title for panel in figure.panels] == [
        "Taken out of harmful prompts",
        "Put into control prompts",
    ]
    fig = figure.panels[0].figure
    thin = [trace for trace in fig.data if trace.line.color == LIGHT["control"]]
    assert len(thin) == 8
    lines = [
        shape.x0 for shape in fig.layout.shapes if shape.type == "line" and shape.x0 == shape.x1
    ]
    assert lines == [0.43, 0.5]
    (band,) = [shape for shape in fig.layout.shapes if shape.type == "rect"]
    assert (band.x0, band.x1) == pytest.approx((0.38, 0.49))


def test_the_lower_dose_curve_is_the_share_of_judged_replies():
    run = Tables()
    fig = dose_figure(run).panels[0].figure
    (curve,) = [t for t in fig.data if t.yaxis == "y2" and t.mode == "lines+markers"]
    mine = run.held["routing.dose"].query("arm == 'attenuate' and category == 'all'")
    assert list(curve.y) == pytest.approx(list(mine["refused"]))
    run.held["routing.dose"] = run.held["routing.dose"].assign(n_judged=0, refused=np.nan)
    assert not any(t.yaxis == "y2" for t in dose_figure(run).panels[0].figure.data)


def test_the_main_curve_is_over_all_languages_or_the_only_one():
    rows = pd.DataFrame(
        {
            "category": ["all", "all", "all", "fraud"],
            "language": ["all", "de", "en", "all"],
            "alpha": [0.0, 0.0, 0.0, 0.0],
        }
    )
    assert list(main_curve(rows)["language"]) == ["all"]
    assert list(main_curve(rows.iloc[1:2])["language"]) == ["de"]
    assert main_curve(rows.iloc[1:3]).empty


# Ciphers.


def test_cipher_arms_are_told_apart_by_colour_and_filling():
    run = Tables()
    figure = cipher_figure(run.clean("routing.cipher"), run.clean(HEADS))
    assert [panel.title for panel in figure.panels] == ["letters", "base64"]
    assert [key.mark for key in figure.keys] == [
        "dot harmful",
        "dot open harmful",
        "dot open harmless",
    ]
    labels = list(figure.panels[0].figure.layout.yaxis.ticktext)
    assert set(labels) == set(found(run.clean(HEADS))["at"])


def test_rescue_parts_the_gate_from_its_controls():
    run = Tables()
    (figure,) = rescue_blocks(run.clean("routing.rescue"))
    dots = figure.panels[0].figure.data
    roles = [dot.marker.color for dot in dots]
    expected = ["harmful"] * 2 + ["direction"] * 2 + ["control"] * 3
    assert roles == [LIGHT[role] for role in expected]
    rates = run.held["routing.rescue"].query("wrapper == 'letters'")["rate"]
    assert [dot.x[0] for dot in dots] == list(rates)
