"""The pages of a guard's runs: every figure from its tables, nothing hidden, nothing fatal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report import page as page_module
from refusalscope.report import write_report
from refusalscope.report.page import render
from refusalscope.report.palette import light_to_dark
from refusalscope.report.sections.guard_plane import DRAWN
from report.fake_guard import GuardTables, fake_guard_tables, write_fake_guard
from report.test_cliff import assert_sound, figures, plain
from report.test_page import EVIL, Page, colours
from report.test_routing import DAMAGES, damaged

FIGURES = {
    "figure-guard-roc": "guard.roc",
    "figure-guard-plane": "guard.scores",
    "figure-guard-reliability": "guard.scores",
    "figure-guard-layers": "guard.layers",
    "figure-guard-rates": "guard.rates",
    "figure-guard-against": "guard.against",
    "figure-guard-augmented": "guard.augmented",
}
ALL = {kind: fake_guard_tables(kind) for kind in ("fit", "score", "drift")}
TABLES = [(kind, name) for kind in ("fit", "drift") for name in sorted(ALL[kind])]
# Tables that a run is not asked for by itself.
UNASKED = {
    "guard.against": "No scores of another guard were given",
    "guard.augmented": "No own examples were added",
    "guard.monitor": "No monitor of streamed replies was fitted",
}


@pytest.fixture(scope="module")
def page(guard_report: Path) -> Page:
    return Page(guard_report)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page of tables without the library that draws them, which says nothing about a run."""
    monkeypatch.setattr(page_module, "_plotly", lambda: "")

    def make(tables: dict[str, pd.DataFrame], kind: str = "fit") -> Page:
        path = tmp_path / "page.html"
        path.write_text(render(GuardTables(tables, kind)), "utf-8")
        return Page(path)

    return make


def test_the_page_names_the_guard_and_holds_every_figure(page: Page):
    assert "Belief guard of organisms/planted-chat-6l" in plain(page)
    assert figures(page) == list(FIGURES)
    assert page.text.count("How to read it.") == len(FIGURES)
    alts = [a["aria-label"] for tag, a in page.elements if a.get("role") == "img"]
    assert len(alts) == len(page.figures()) == 9
    assert all(len(alt) > 30 for alt in alts)
    links = [a["href"][1:] for tag, a in page.elements if tag == "a"]
    assert set(links) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))


def test_every_caption_says_n_and_interval_or_that_there_is_none(guard_report: Path):
    for basis in re.findall(r'<p class="basis">(.*?)</p>', guard_report.read_text("utf-8")):
        assert re.search(r"n = (\d|as in the measures)", basis), basis
        assert "interval" in basis, basis


def test_the_pages_own_limits_and_rules_are_those_of_a_guard(page: Page):
    text = plain(page)
    assert "attacks that rewrite a prompt against the states of the model are known" in text
    assert "The promise is broken where the interval" in text
    assert "One direction carries the refusal" not in text


def test_every_colour_of_every_figure_has_a_dark_twin(page: Page):
    for name, figure in page.figures().items():
        assert not colours(figure) - set(light_to_dark()), name


def test_an_audit_has_no_section_of_a_guard(report: Path):
    assert not any(name.startswith(("guard", "figure-guard")) for name in Page(report).ids())


def test_the_curve_is_drawn_from_its_table_and_the_points_carry_both_intervals(page: Page):
    spec = page.figures()["figure-guard-roc-1"]
    roc = fake_guard_tables()["guard.roc"]
    line = spec["data"][1]
    assert line["line"]["shape"] == "hv"
    assert line["x"][:-1] == roc["fpr"].round(5).tolist()
    assert line["y"][:-1] == roc["tpr"].round(5).tolist()
    points = fake_guard_tables()["guard.points"].query("set == 'report'")
    marks = spec["data"][2]
    assert marks["x"] == points["fpr"].tolist()
    assert marks["y"] == points["tpr"].tolist()
    assert marks["error_x"]["array"] == pytest.approx(points["fpr_high"] - points["fpr"])
    assert marks["error_y"]["arrayminus"] == pytest.approx(points["tpr"] - points["tpr_low"])


def test_the_near_panel_ends_at_its_edge(page: Page):
    spec = page.figures()["figure-guard-roc-2"]
    roc = fake_guard_tables()["guard.roc"]
    line = spec["data"][1]
    assert max(line["x"]) == 0.2
    assert line["y"][-1] == roc.loc[roc["fpr"] <= 0.2, "tpr"].max()


def test_the_plane_has_a_mark_a_prompt_filled_where_flagged_and_a_line_a_threshold(page: Page):
    spec = page.figures()["figure-guard-plane-1"]
    scores = fake_guard_tables()["guard.scores"]
    marks = {(t["marker"]["symbol"], t["marker"]["color"] == "#ffffff"): t for t in spec["data"]}
    assert len(marks) == 4
    for symbol, label in (("circle", "harmful"), ("square", "harmless")):
        for passed in (False, True):
            mine = scores[(scores["label"] == label) & (scores["flagged"] != passed)]
            drawn = marks[symbol, passed]
            assert sorted(drawn["x"]) == sorted(mine["delta_harmful"].round(5))
    taus = fake_guard_tables()["guard.points"]["tau"].unique()
    assert sorted(shape["x0"] for shape in spec["layout"]["shapes"]) == sorted(taus)
    corners = {each["text"] for each in spec["layout"]["annotations"]}
    assert "<b>suppressed<br>refusal</b>" in corners
    assert "fpr=0.05" in corners


def test_a_guard_without_a_refusal_axis_shows_a_strip_and_says_so(quick):
    tables = fake_guard_tables()
    tables["guard.scores"] = tables["guard.scores"].assign(delta_refuse=np.nan, quadrant=None)
    seen = quick(tables)
    assert "has no refusal axis" in plain(seen)
    spec = seen.figures()["figure-guard-plane-1"]
    assert spec["layout"]["yaxis"]["ticktext"] == ["harmless", "harmful"]
    assert_sound(seen)


def test_many_prompts_are_thinned_and_the_page_says_so(quick):
    tables = fake_guard_tables()
    tables["guard.scores"] = pd.concat([tables["guard.scores"]] * 40, ignore_index=True)
    seen = quick(tables)
    spec = seen.figures()["figure-guard-plane-1"]
    assert sum(len(trace["x"]) for trace in spec["data"]) == 2 * DRAWN
    assert "drawn are 1 500 of the prompts of harmless and harmful" in plain(seen)


def test_thinning_of_one_label_alone_is_said(quick):
    """Far fewer prompts in all than two full labels, and one of them is cut."""
    scores = fake_guard_tables()["guard.scores"]
    many = pd.concat([scores[scores["label"] == "harmless"]] * 10 + [scores], ignore_index=True)
    assert len(many) < 2 * DRAWN
    seen = quick({"guard.scores": many})
    assert "drawn are 1 500 of the prompts of harmless;" in plain(seen).replace(".", ";")
    assert "drawn are" not in plain(quick({"guard.scores": scores}))


def test_a_curve_over_rows_without_bands_ends_its_caption(quick):
    layers = fake_guard_tables()["guard.layers"].assign(low=np.nan, high=np.nan)
    text = plain(quick({"guard.layers": layers}))
    assert "as in the measures of the score; no interval was given." in text
    text = plain(quick({"guard.layers": fake_guard_tables()["guard.layers"]}))
    assert re.search(r"bootstrap intervals over prompts; the widest spans 0\.\d+\.", text)


def test_only_a_fit_speaks_of_the_report_split(quick):
    text = plain(quick(fake_guard_tables("score"), "score"))
    assert "report split" not in text
    unknown = "scored prompts (whether they are new to the guard is not known)"
    # The curve, the plane, the reliability, the rows of the model and the rates.
    assert text.count(unknown) == 5
    assert "whether these prompts are new to the guard is not known" in text
    assert "160 harmful, 160 harmless" in text
    text = plain(quick(fake_guard_tables(), "fit"))
    assert "report split" in text
    assert "scored prompts (whether" not in text


def test_a_table_of_a_scored_file_that_is_empty_is_missing(quick):
    tables = fake_guard_tables("score")
    tables["guard.scores"] = tables["guard.scores"].iloc[:0]
    assert "The table guard.scores of this run is empty" in plain(quick(tables, "score"))


def test_ties_of_another_guard_are_said_to_be_interpolated(quick):
    table = fake_guard_tables()["guard.against"]
    text = plain(quick({"guard.against": table}))
    assert "interpolated" not in text
    table.loc[0, "other_fpr"] = table.loc[0, "fpr"] / 2
    text = plain(quick({"guard.against": table}))
    assert text.count("ties were interpolated") == 2
    assert text.count("ties interpolated from") == 1


def test_the_reliability_is_the_share_of_harmful_prompts_in_a_bin(page: Page):
    spec = page.figures()["figure-guard-reliability-1"]
    scores = fake_guard_tables()["guard.scores"]
    mine = scores[(scores["p_harmful"] >= 0.9) & (scores["p_harmful"] <= 1)]
    bins = spec["data"][1]
    assert bins["x"][-1] == pytest.approx(mine["p_harmful"].mean())
    assert bins["y"][-1] == pytest.approx((mine["label"] == "harmful").mean())


def test_labels_and_logs_that_lack_one_are_shown_apart(quick):
    scores = fake_guard_tables("score")["guard.scores"].assign(label=None)
    seen = quick({"guard.scores": scores}, "score")
    assert "320 prompts scored" in plain(seen)
    assert "without labels nobody knows how many rightly" in plain(seen)
    assert "no label, flagged" in plain(seen)
    assert_sound(seen)


def test_the_worst_wrapper_stands_first_and_strong(guard_report: Path):
    text = guard_report.read_text("utf-8")
    table = text[text.index('id="table-guard-wrappers"') :]
    assert table.index("<strong>cipher rot13</strong>") < table.index("bare")
    assert table.index("the lowest of 3") < table.index("role play")
    assert text.count("AUROC under wrappers, the lowest of 3: cipher rot13") == 1


def test_a_run_of_scores_has_no_word_on_what_was_not_asked(quick):
    text = plain(quick(fake_guard_tables("score"), "score"))
    assert "Prompts scored by the belief guard of" in text
    assert "own examples were added" not in text
    assert "What else could tell" not in text


def test_drift_shows_each_measure_and_its_verdict(quick):
    seen = quick(fake_guard_tables("drift"), "drift")
    assert "Drift of the belief guard of" in plain(seen)
    assert figures(seen) == ["figure-guard-drift"]
    drawn = seen.figures()["figure-guard-drift-1"]["layout"]["yaxis"]["ticktext"]
    table = fake_guard_tables("drift")["guard.drift"]
    assert set(drawn) == set(table.loc[table["effect"].notna(), "measure"]) - {"flag rate"}
    assert "How well it tells harm" not in plain(seen)


@pytest.mark.parametrize(("kind", "missing"), TABLES)
def test_a_run_without_a_table_still_has_a_page_that_says_so(quick, kind: str, missing: str):
    seen = quick({n: f for n, f in ALL[kind].items() if n != missing}, kind)
    if kind == "fit":
        lost = {figure for figure, table in FIGURES.items() if table == missing}
        assert set(FIGURES) - set(figures(seen)) == lost
    assert UNASKED.get(missing, f"holds no table {missing}") in plain(seen)
    assert_sound(seen)


CASES = [*TABLES, *((kind, "all") for kind in ALL)]


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_table_does_not_break_the_page(quick, kind: str, name: str, damage: str):
    tables = dict(ALL[kind])
    if name != "all":
        # Every table is read beside the points; without the others the page is quick to draw.
        tables = {each: tables[each] for each in {"guard.points", name} & tables.keys()}
    for each in tables if name == "all" else [name]:
        tables[each] = damaged(tables[each], damage)
    seen = quick(tables, kind)
    assert "belief guard of" in seen.text.lower()
    assert_sound(seen)


def test_an_empty_unfinished_run_has_a_page_that_says_what_is_not_there(tmp_path: Path):
    seen = Page(write_report(write_fake_guard(tmp_path / "run", tables={}, finish=False)))
    assert not seen.figures()
    assert "This run measured too little for a verdict" in seen.text
    assert "holds no table guard.roc" in seen.text


def test_what_stands_in_the_data_is_text_and_never_markup(tmp_path: Path):
    tables = {**fake_guard_tables(), **fake_guard_tables("drift")}
    looked_up = {"split", "label", "set", "kind", "when", "point"}
    for name, frame in tables.items():
        frame = frame.copy()
        for column in frame.select_dtypes(["object", "string"]):
            if column not in looked_up and column != "per_layer":
                frame[column] = [f"{each}{EVIL}" for each in frame[column]]
        tables[name] = frame
    evil = Page(write_report(write_fake_guard(tmp_path / "run", tables=tables)))
    assert {*FIGURES, "figure-guard-drift"} <= set(evil.ids())
    assert [tag for tag, _ in evil.elements].count("img") == 0
    assert "onerror" not in {name for _, attributes in evil.elements for name in attributes}
    assert len([text for attributes, text in evil.scripts if "type" not in attributes]) == 3
    text = json.dumps(evil.figures())
    assert "&lt;" in text
    assert "<img" not in text
    assert "<script" not in text


def test_the_pages_are_the_same_each_time(tmp_path: Path, guard_report: Path):
    again = write_report(write_fake_guard(tmp_path / "run"))
    ours = re.sub(r"run-\w+", "", guard_report.read_text("utf-8"))
    assert re.sub(r"run-\w+", "", again.read_text("utf-8")) == ours
