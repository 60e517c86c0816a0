"""What the page of a belief study says of pushes: claims, figures by layer, tables."""

from __future__ import annotations

import numpy as np
import pytest

from refusalscope.report.belief_push_rules import answered, steered
from refusalscope.report.belief_tables import (
    belief_table,
)
from refusalscope.report.sections.belief_push_tables import (
    inversion_table,
    margins_table,
    steering_table,
)
from refusalscope.report.sections.belief_pushes import steering_figure
from report.fake_belief import BeliefTables, changed, fake_belief_tables, words
from report.test_page import Page


@pytest.mark.parametrize(
    ("name", "say", "ending"),
    [
        ("steering", steered, "steers refusal"),
        ("inversion", answered, "changes the answer on harm"),
    ],
)
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"p_random": 0.1}, "was not shown to move the margin"),
        ({"margin_change_low": -0.1}, "was not shown to move the margin"),
        ({"margin_change_low": -4.0, "margin_change_high": -3.0}, "was not shown to move"),
        ({"n_random": 5}, "beside 5 rotations, too few for a claim (19 are needed)"),
        ({"n_random": np.nan, "p_random": np.nan}, "beside 0 rotations, too few for a claim"),
        ({"n_margin": 19}, "on 19 prompts, too few for a claim"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_direction_is_claimed_only_beyond_its_rotations_the_way_it_was_pushed(
    name, say, ending, broken, why
):
    assert say(BeliefTables()).short.startswith("harmfulness and refusal ")
    run = changed(name, "direction == 'harm' and label == 'harmless'", **broken)
    assert say(run).short == f"refusal {ending}"
    assert why in say(run).text


def test_without_a_margin_replies_are_told_and_nothing_is_claimed():
    lost = dict.fromkeys(("margin", "margin_change", "p_random"), np.nan)
    run = changed("steering", "layer == layer", **lost)
    assert steered(run).short == ""
    assert "harmfulness at layer 3 was added, no margin could be read, 90 %" in words(
        steered(run).text
    )
    run = changed("inversion", "layer == layer", **lost)
    assert answered(run).short == ""
    assert "changed the share of No by 50 % (95 % interval 40 to 60 %); no margin" in words(
        answered(run).text
    )


def test_steering_stands_beside_every_rotation_and_rings_the_chosen_layer(belief_report):
    spec = Page(belief_report).figures()["figure-belief-steering-1"]
    table = fake_belief_tables()["belief.steering"].query("label == 'harmless'")
    random = table[table["control"] == "random"]
    assert sorted(spec["data"][0]["y"]) == sorted(random["margin_change"].round(5))
    lines = [t for t in spec["data"] if t.get("text")]
    assert len(lines) == 2
    for line in lines:
        assert line["marker"]["size"][line["x"].index(3)] > line["marker"]["size"][0]


def test_few_layers_have_bars_and_whole_ticks():
    table = fake_belief_tables()["belief.steering"].query("layer in (-1, 3)")
    (panel, _) = steering_figure(
        belief_table(BeliefTables(steering=table), "belief.steering")
    ).panels
    drawn = [trace for trace in panel.figure.data if trace.text]
    assert all(trace.error_y.array for trace in drawn)
    assert not [trace for trace in panel.figure.data if trace.fill == "toself"]
    assert panel.figure.layout.xaxis.tickvals == (3,)
    assert len({trace.x[0] for trace in drawn}) == len(drawn) == 2
    (many, _) = steering_figure(belief_table(BeliefTables(), "belief.steering")).panels
    assert not any(trace.error_y.array for trace in many.figure.data)
    assert many.figure.layout.xaxis.tickvals == (1, 2, 3, 4, 5)


def test_the_margin_of_the_answers_is_drawn_and_told(belief_report):
    spec = Page(belief_report).figures()["figure-belief-answers-1"]
    mine = fake_belief_tables()["belief.inversion"].query(
        "label == 'harmless' and positions == 'before_question'"
    )
    line = next(t for t in spec["data"] if t.get("text") and "harmfulness" in t["text"][0])
    own = mine.query("direction == 'harm' and control == 'direction'")
    assert line["y"] == own["margin_change"].round(5).tolist()
    assert "p = 0.050 among 19 rotations" in line["text"][0]


def test_nothing_added_has_no_change_from_itself():
    tables = {n: belief_table(BeliefTables(), f"belief.{n}") for n in ("steering", "inversion")}
    for table in (
        steering_table(tables["steering"]),
        margins_table(tables["inversion"]),
        inversion_table(tables["inversion"]),
    ):
        at = [n for n, name in enumerate(table.columns) if "change" in name or name == "p"]
        bare = [row for row in table.rows if row[0].text == "nothing added"]
        assert len(bare) == 2
        assert {row[n].text for row in bare for n in at} == {""}
        rest = [row for row in table.rows if row[0].text != "nothing added" and not row[0].below]
        assert all(row[n].text for row in rest for n in at)
