"""The plane of a belief study with its quadrants, the shortcuts beside it, and other final marks."""

from __future__ import annotations

import pandas as pd
import pytest

from refusalscope.report.belief_tables import belief_table
from refusalscope.report.content import Figure, Note, Table
from refusalscope.report.numbers import NBSP
from refusalscope.report.sections.belief_categories import categories_figure, categories_table
from refusalscope.report.sections.belief_plane import belief_plane
from refusalscope.report.worries import worries
from report.fake_belief import BeliefTables, fake_belief_tables
from report.fake_belief_plane import N, plane_tables
from report.fake_run import fake_info


def blocks(**changed: pd.DataFrame) -> list:
    section = belief_plane(BeliefTables(**changed))
    assert section is not None
    return list(section.blocks)


def text(cell) -> str:
    return (cell if isinstance(cell, str) else f"{cell.text} {cell.below}").replace(NBSP, " ")


def test_the_plane_and_the_counts_of_each_quadrant_are_there():
    plane, quadrants, *_ = blocks()
    assert isinstance(plane, Figure)
    assert sum(len(trace.x) for trace in plane.panels[0].figure.data) == 4 * N
    assert isinstance(quadrants, Table)
    counts = {
        text(row[0]).strip(): [text(cell).strip() for cell in row[2:]] for row in quadrants.rows
    }
    assert counts["suppressed refusal"] == [str(N), "0", "0", "0"]
    assert counts["over-refusal"] == ["0", "0", str(N), str(N)]


def test_the_area_of_belief_and_of_every_cue_is_told_with_its_interval():
    (table,) = [each for each in blocks() if getattr(each, "id", "") == "table-shortcuts"]
    rows = [[text(cell).strip() for cell in row] for row in table.rows]
    assert rows[0][:3] == ["belief (delta_harmful)", "0.950", "0.910 to 0.990"]
    assert len(rows) == 3
    assert not any(isinstance(each, Note) for each in blocks())


def test_a_cue_that_does_as_well_is_a_warning_and_a_worry():
    table = plane_tables()["belief.shortcuts"]
    table.loc[2, "verdict"] = "as good as belief: the score cannot be told from this cue here"
    (note,) = [each for each in blocks(shortcuts=table) if isinstance(each, Note)]
    assert note.kind == "warning"
    assert "final punctuation tells the two labels apart about as well" in note.text
    found = [each.text for each in worries(BeliefTables(shortcuts=table))]
    assert any("final punctuation tells" in each for each in found)


def test_other_marks_stand_with_their_spread():
    (table,) = [each for each in blocks() if getattr(each, "id", "") == "table-belief-marks"]
    assert [text(cell).strip() for cell in table.rows[1]] == [
        *("harmful", "no mark", str(2 * N)),
        *("0.110 0.100 to 0.120", "0.030 0.020 to 0.040"),
    ]


@pytest.mark.parametrize("missing", sorted(plane_tables()))
def test_what_is_missing_is_said_and_the_rest_is_shown(missing):
    tables = {name: frame for name, frame in fake_belief_tables().items() if name != missing}
    section = belief_plane(BeliefTables(tables))
    assert section is not None
    (note,) = [each for each in section.blocks if isinstance(each, Note)]
    assert missing in note.text
    assert len(section.blocks) > 1


def test_another_study_has_no_such_section():
    class Other(BeliefTables):
        def __init__(self):
            self.held, self.info = {}, {**fake_info(), "command": "audit"}

    assert belief_plane(Other()) is None


# Categories


def even_categories(frame: pd.DataFrame) -> pd.DataFrame:
    table = belief_table(BeliefTables(categories=frame), "belief.categories")
    assert table is not None
    return table


def test_categories_stand_beside_random_ones_and_unsteady_ones_stand_out():
    frame = fake_belief_tables()["belief.categories"]
    table = categories_table(even_categories(frame))
    first, total = ([text(cell).strip() for cell in table.rows[k]] for k in (0, 4))
    assert first[4] == "0.60 0.50 to 0.70, p 0.040"
    assert first[6] == "0.90"
    assert "random 80 % (75 % to 85 %, p 0.040)" in total[7]
    marked = frame.assign(unsteady=frame["category"] == "fraud")
    cell = categories_table(even_categories(marked)).rows[0][6]
    assert cell.strong
    assert cell.below == "less than to the others"


def test_a_category_called_all_is_no_total():
    frame = fake_belief_tables()["belief.categories"].replace({"category": {"fraud": "all"}})
    table = categories_table(even_categories(frame))
    assert [row[1].strong for row in table.rows[:5]] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("harmless", "said"),
    [("halves", "different halves of the harmless prompts"), ("shared", "whose noise lifts all")],
)
def test_the_figure_says_what_the_directions_start_from(harmless, said):
    pairs = fake_belief_tables()["belief.category_cosines"].assign(harmless=harmless)
    assert said in categories_figure(pairs).read
