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
    apart,
    belief_worries,
    tuned,
)
from refusalscope.report.belief_tables import (
    CLUSTER_NAMES,
    DIRECTIONS,
    FULL,
    PUBLISHED,
    belief_table,
)
from refusalscope.report.page import render
from refusalscope.report.palette import light_to_dark
from refusalscope.report.sections import belief_categories
from refusalscope.report.sections.belief_categories import categories_figure
from refusalscope.report.sections.belief_jailbreaks import jailbreaks_table
from refusalscope.report.verdict import headline, verdict
from refusalscope.studies.directions import clusters, pushes
from report.fake_belief import BeliefTables, changed, fake_belief_tables, words, write_fake_belief
from report.test_cliff import assert_sound, cells, figures, plain
from report.test_page import EVIL, Page, colours
from report.test_routing import DAMAGES, damaged

FIGURES = {
    "figure-belief": "belief.prompts",
    "figure-belief-clusters": "belief.clusters",
    "figure-belief-positions": "belief.positions",
    "figure-belief-steering": "belief.steering",
    "figure-belief-answers": "belief.inversion",
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


def test_the_page_holds_every_figure_and_its_links_arrive(page: Page):
    assert "What it believes and what it does: organisms/planted-chat-6l" in plain(page)
    assert figures(page) == list(FIGURES)
    assert len(page.figures()) == 17
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
        "Added on harmless prompts, harmfulness at layer 3 moves the margin of refusal by 4.00 (3.70 to 4.30), "
        "beyond random (p = 0.050 among 19 rotations), 90 % (77 to 96 %) refused, 40 % with nothing added; "
        "refusal at layer 3 moves it by",
        "Taken off harmful ones, harmfulness at layer 3 moves the margin of refusal by −4.00 (−4.30 to −3.70)",
        "Added while it is asked whether harmless prompts could harm, harmfulness on tokens before the "
        "question moves the margin of Certainly over No by 4.00",
        "Taken off while it is asked so of harmful ones, harmfulness on tokens before the question moves the "
        "margin of Certainly over No by −4.00",
        "fine-tuning moves the share refused by −80 % (95 % interval −82 to −78 %)",
        "it was not shown to move the belief of harm: −0.01 (",
        "it moves the readiness to refuse by",
    ):
        assert part in text
    assert "belief is apart from refusal" in headline(statements).lower()


@pytest.mark.parametrize(
    ("separates", "n", "said"),
    [
        ("by mean", 14, "leans apart"),
        ("no", 14, "was not shown to be apart from refusal"),
        ("yes", 7, "Too few prompts behave against their label"),
    ],
)
def test_the_word_on_belief_is_that_of_the_position_and_none_of_few_prompts(separates, n, said):
    run = changed("positions", "position == 0", separates=separates, n=n)
    assert said in apart(run).text


def test_belief_follows_refusal_only_where_both_intervals_say_so():
    """Not shown to be apart is not shown to be one."""
    here = "position == 0 and cluster == "
    run = changed("positions", f"{here}'harmful accepted'", separates="no", high=-0.01, low=-0.05)
    assert "was not shown to be apart" in apart(run).text
    assert apart(run).short == ""
    table = run.table("belief.positions")
    table.loc[table.query(f"{here}'harmless refused'").index, ["low", "high"]] = 0.02, 0.06
    found = apart(BeliefTables(positions=table))
    assert found.text.startswith("Belief of harm follows refusal")
    assert found.short == "belief follows refusal"


def test_fine_tuning_of_few_prompts_moves_nothing():
    text = tuned(changed("tuned", "label == 'harmful'", n=19)).text
    assert text.count("on 19 prompts, too few for a claim") == 3
    assert "moves" not in text


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


def test_what_a_table_or_a_figure_leaves_out_is_said(monkeypatch):
    tables = fake_belief_tables()
    whole = categories_figure(belief_table(BeliefTables(), "belief.category_cosines"))
    assert "are drawn" not in whole.read
    # Two axes of the same six pairs.
    assert whole.basis.startswith("n = 6 pairs of categories for each axis")
    monkeypatch.setattr(belief_categories, "MAX_CATEGORIES", 3)
    cut = categories_figure(belief_table(BeliefTables(), "belief.category_cosines"))
    assert "The first 3 of 4 categories by name are drawn." in cut.read
    many = pd.concat([tables["belief.jailbreaks"]] * 9, ignore_index=True)
    assert "The first 120 rows of 162" in jailbreaks_table(many).note
    assert "rows of" not in jailbreaks_table(tables["belief.jailbreaks"]).note


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
        ("prompts", "id"),
        ("prompts", "category"),
        ("shortcuts", "name"),
        ("marks", "mark"),
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
