"""The figures of clusters of a belief study: how they are sorted, marked and named."""

from __future__ import annotations

import pytest

from refusalscope.report.belief_rules import apart
from refusalscope.report.belief_tables import (
    CLUSTER_NAMES,
    FULL,
    PUBLISHED,
    belief_table,
    sorted_by,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.belief_clusters import positions_figure
from report.fake_belief import changed, fake_belief_tables
from report.test_page import Page


def test_clusters_are_sorted_by_the_behaviour_that_fills_those_against_their_label():
    table = fake_belief_tables()["belief.clusters"]
    one = table[(table["position"] == "t_inst") & (table["layer"] == 2)].copy()
    published = one["behaviour"] == PUBLISHED
    one.loc[published & one["cluster"].isin(("harmful refused", "harmless accepted")), "n"] = 0
    assert sorted_by(one) == PUBLISHED
    one.loc[published & (one["cluster"] == "harmless refused"), "n"] = 7
    assert sorted_by(one) == FULL
    assert sorted_by(one[one["cluster"] != "harmless refused"]) == PUBLISHED


def test_figure_and_sentence_sort_by_the_same_behaviour():
    """At tokens before the request's end clusters may be smaller, which must not turn the figure."""
    run = changed("positions", f"position == -2 and behaviour == '{PUBLISHED}'", n=3)
    figure = positions_figure(belief_table(run, "belief.positions"))
    assert f"sorted by what the model does with the {PUBLISHED}" in apart(run).text
    assert f"({PUBLISHED})" in figure.basis.split(";")[0]


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("\n", "newline"),
        ("\n\n", "2 newlines"),
        (" ", "space"),
        ("\nassistant", "↵assistant"),
        ("</s>", "&lt;/s&gt;"),
    ],
)
def test_a_token_that_cannot_be_seen_is_called_by_its_name(token, said):
    table = belief_table(changed("positions", "position == 1", token=token), "belief.positions")
    (panel,) = positions_figure(table).panels
    labels = dict(
        zip(panel.figure.layout.xaxis.tickvals, panel.figure.layout.xaxis.ticktext, strict=True)
    )
    assert labels[1] == said
    assert labels[0] == "request end"


def test_the_clusters_are_drawn_from_their_table_dotted_where_they_go_against_their_label(
    belief_report,
):
    spec = Page(belief_report).figures()["figure-belief-clusters-1"]
    table = fake_belief_tables()["belief.clusters"]
    lines = {t["text"][0].split("</b>")[0][3:]: t for t in spec["data"] if t.get("text")}
    assert set(lines) == set(CLUSTER_NAMES)
    for name, line in lines.items():
        mine = table[
            (table["cluster"] == name)
            & (table["position"] == "t_inst")
            & (table["behaviour"] == PUBLISHED)
        ]
        assert line["y"] == mine["mean"].round(5).tolist()
        against = name in ("harmful accepted", "harmless refused")
        assert line["line"]["dash"] == ("dot" if against else "solid")
        assert (line["marker"].get("symbol") == "diamond") == against
        assert (line["marker"]["color"] == LIGHT["surface"]) == against
