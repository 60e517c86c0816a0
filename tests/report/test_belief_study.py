"""The page of a belief study: every figure from its tables, its words by rule, nothing fatal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report import page as page_module
from refusalscope.report import write_report
from refusalscope.report.belief_rules import (
    answered,
    apart,
    belief_worries,
    steered,
    tuned,
)
from refusalscope.report.belief_tables import CLUSTER_NAMES, DIRECTIONS, FULL, PUBLISHED
from refusalscope.report.numbers import NBSP
from refusalscope.report.page import render
from refusalscope.report.palette import light_to_dark
from refusalscope.report.verdict import headline, verdict
from refusalscope.studies.directions import clusters, pushes
from report.fake_belief import BeliefTables, fake_belief_tables, write_fake_belief
from report.test_cliff import assert_sound, cells, figures, plain
from report.test_page import EVIL, Page, colours
from report.test_routing import DAMAGES, damaged

FIGURES = {
    "figure-belief-clusters": "belief.clusters",
    "figure-belief-positions": "belief.positions",
    "figure-belief-steering": "belief.steering",
    "figure-belief-inversion": "belief.inversion",
    "figure-belief-jailbreaks": "belief.jailbreaks",
    "figure-belief-categories": "belief.category_cosines",
}
TABLES = sorted(fake_belief_tables())


@pytest.fixture(scope="module")
def page(belief_report: Path) -> Page:
    return Page(belief_report)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page of tables without the library that draws them, which says nothing about a run."""
    monkeypatch.setattr(page_module, "_plotly", lambda: "")

    def make(tables: dict[str, pd.DataFrame]) -> Page:
        path = tmp_path / "page.html"
        path.write_text(render(BeliefTables(tables)), "utf-8")
        return Page(path)

    return make


def changed(name: str, where: str, **values: object) -> BeliefTables:
    table = fake_belief_tables()[f"belief.{name}"]
    rows = table.query(where).index
    assert len(rows)
    for column, value in values.items():
        table[column] = table[column].astype(object)
        table.loc[rows, column] = value
    return BeliefTables(**{name: table})


def words(text: str) -> str:
    return text.replace(NBSP, " ")


def test_the_page_holds_every_figure_and_its_links_arrive(page: Page):
    assert "What it believes and what it does: organisms/planted-chat-6l" in plain(page)
    assert figures(page) == list(FIGURES)
    assert len(page.figures()) == 12
    links = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert set(links) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))
    for name, figure in page.figures().items():
        assert not colours(figure) - set(light_to_dark()), name


def test_every_caption_says_n_and_interval(belief_report: Path):
    for basis in re.findall(r'<p class="basis">(.*?)</p>', belief_report.read_text("utf-8")):
        assert re.search(r"n = (\d|harmful refused \d)", basis), basis
        assert "interval" in basis, basis


def test_the_names_are_those_of_the_study():
    assert CLUSTER_NAMES == clusters.CLUSTERS
    assert (FULL, PUBLISHED) == (clusters.FULL, clusters.CUT)
    assert tuple(DIRECTIONS) == pushes.DIRECTIONS


def test_the_verdict_says_belief_steering_answers_and_tuning():
    statements = verdict(BeliefTables())
    text = words(" ".join(statement.text for statement in statements))
    for part in (
        "Belief of harm is apart from refusal: at the last token of the request harmful prompts that were "
        "accepted score 0.100 (0.080 to 0.120; n = 14)",
        "harmfulness at layer 3 moves the margin by 4.00 (3.60 to 4.40) beyond random",
        "harmfulness on tokens before the question changes the share of No by",
        "fine-tuning moves refused by",
        "it was not shown to move delta_harmful (",
        "it moves delta_refuse by",
    ):
        assert part in text
    assert "belief is apart from refusal" in headline(statements).lower()


@pytest.mark.parametrize(
    ("separates", "n", "said"),
    [
        ("by mean", 14, "leans apart"),
        ("no", 14, "was not shown to be apart"),
        ("yes", 7, "Too few prompts behave against their label"),
    ],
)
def test_the_word_on_belief_is_that_of_the_position_and_none_of_few_prompts(separates, n, said):
    run = changed("positions", "position == 0", separates=separates, n=n)
    assert said in apart(run).text


def test_a_direction_within_its_rotations_earns_no_short_word():
    run = changed("steering", "direction == 'harm'", over_random_low=-1.0)
    assert steered(run).short == "refusal steers refusal"
    run = changed("inversion", "direction == 'harm'", change_low=-0.1, change_high=0.1)
    assert answered(run).short == "refusal changes the answer on harm"


def test_small_clusters_unread_answers_and_broken_replies_are_named():
    assert belief_worries(BeliefTables()) == []
    run = changed("clusters", "cluster == 'harmless refused'", n=3, mean=np.nan)
    assert "harmless refused 3" in belief_worries(run)[0].text
    run = changed("inversion", "direction == 'none' and label == 'harmful'", invalid=0.8)
    assert "80 % about harmful prompts" in words(belief_worries(run)[0].text)
    run = changed("steering", "direction == 'harm' and chosen", degenerate=20)
    assert "50 % of replies are degenerate" in words(belief_worries(run)[0].text)


def test_a_study_without_a_tuned_model_says_so(quick):
    tables = fake_belief_tables()
    del tables["belief.tuned"]
    assert "No fine-tuned model was given" in plain(quick(tables))
    assert tuned(BeliefTables(tables)) is None


def test_the_clusters_are_drawn_from_their_table_dotted_where_they_go_against_their_label(
    page: Page,
):
    spec = page.figures()["figure-belief-clusters-1"]
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
        assert line["line"]["dash"] == (
            "dot" if name in ("harmful accepted", "harmless refused") else "solid"
        )


def test_steering_stands_beside_every_rotation_and_rings_the_chosen_layer(page: Page):
    spec = page.figures()["figure-belief-steering-1"]
    table = fake_belief_tables()["belief.steering"].query("label == 'harmless'")
    random = table[table["control"] == "random"]
    assert sorted(spec["data"][0]["y"]) == sorted(random["margin_change"].round(5))
    lines = [t for t in spec["data"] if t.get("text")]
    assert len(lines) == 2
    for line in lines:
        assert line["marker"]["size"][line["x"].index(3)] > line["marker"]["size"][0]


def test_the_matrix_is_symmetric_with_each_cosine_in_both_cells(page: Page):
    spec = page.figures()["figure-belief-categories-1"]
    pairs = fake_belief_tables()["belief.category_cosines"].query("axis == 'harmfulness'")
    names = spec["layout"]["xaxis"]["ticktext"]
    grid = cells(spec["data"][0]["z"])
    assert np.allclose(grid, grid.T)
    for a, b, cosine in pairs[["a", "b", "cosine"]].itertuples(index=False):
        assert grid[names.index(a), names.index(b)] == pytest.approx(cosine)


def test_wrappers_stand_on_the_plane_at_their_means(page: Page):
    spec = page.figures()["figure-belief-jailbreaks-1"]
    assert spec["data"][0]["text"] == ["bare", "role play", "rot13"]
    assert spec["data"][0]["x"] == [0.1, 0.09, -0.02]
    assert spec["data"][0]["y"] == [0.08, -0.05, -0.06]


@pytest.mark.parametrize("missing", TABLES)
def test_a_run_without_a_table_still_has_a_page_that_says_so(quick, missing: str):
    seen = quick({n: f for n, f in fake_belief_tables().items() if n != missing})
    lost = {figure for figure, table in FIGURES.items() if table == missing}
    assert set(FIGURES) - set(figures(seen)) == lost
    if missing != "belief.tuned":
        assert f"holds no table {missing}" in plain(seen)
    assert_sound(seen)


@pytest.mark.parametrize("name", [*TABLES, "all"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_table_does_not_break_the_page(quick, name: str, damage: str):
    tables = fake_belief_tables()
    if name != "all":
        tables = {name: tables[name]}
    seen = quick({each: damaged(table, damage) for each, table in tables.items()})
    assert "What it believes" in seen.text
    assert_sound(seen)


def test_what_stands_in_the_data_is_text_and_never_markup(tmp_path: Path):
    tables = fake_belief_tables()
    for name, column in (
        ("positions", "token"),
        ("jailbreaks", "wrapper"),
        ("category_cosines", "a"),
        ("categories", "category"),
        ("categories", "reason"),
        ("tuned", "quantity"),
        ("inversion", "positions"),
    ):
        table = tables[f"belief.{name}"]
        table[column] = [each if each == "all" else f"{each}{EVIL}" for each in table[column]]
    evil = Page(write_report(write_fake_belief(tmp_path / "run", tables=tables)))
    assert [tag for tag, _ in evil.elements].count("img") == 0
    assert "onerror" not in {name for _, attributes in evil.elements for name in attributes}
    text = json.dumps(evil.figures())
    assert "&lt;" in text
    assert "<img" not in text
    assert "<script" not in text
