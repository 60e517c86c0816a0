"""The pages of a cliff run and of a repair: every figure from its tables, nothing hidden, nothing fatal."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report import page as page_module
from refusalscope.report import write_report
from refusalscope.report.cliff_tables import COMPLIED, cliff_table
from refusalscope.report.cliff_traces import LEAST, MOST, POINTS, shown_traces
from refusalscope.report.page import render
from refusalscope.report.palette import light_to_dark
from report.fake_cliff import CliffTables, fake_cliff_tables, write_fake_cliff
from report.fake_repair import SETTINGS, fake_repair_tables, write_fake_repair
from report.fake_run import fake_tables
from report.test_page import EVIL, Page, colours
from report.test_routing import DAMAGES, damaged

FIGURES = {
    "figure-cliff-curve": "cliff.curve",
    "figure-cliff-heads": "cliff.heads",
    "figure-cliff-ablation": "cliff.ablation",
}
REPAIRS = {"figure-repair-effects": "repair.effects", "figure-repair-losses": "repair.losses"}
ALL = {"cliff": fake_cliff_tables(), "repair": fake_repair_tables()}
TABLES = [(study, name) for study, tables in ALL.items() for name in sorted(tables)]


@pytest.fixture(scope="module")
def page(cliff_report: Path) -> Page:
    return Page(cliff_report)


@pytest.fixture(scope="module")
def repaired(repair_report: Path) -> Page:
    return Page(repair_report)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page of tables without the library that draws them, which says nothing about a run."""
    monkeypatch.setattr(page_module, "_plotly", lambda: "")

    def make(tables: dict[str, pd.DataFrame], study: str = "cliff") -> Page:
        settings = SETTINGS if study == "repair" else {}
        path = tmp_path / "page.html"
        path.write_text(render(CliffTables(tables, study, **settings)), "utf-8")
        return Page(path)

    return make


def plain(page: Page) -> str:
    return " ".join(page.text.split())


def figures(page: Page) -> list[str]:
    return [attributes["id"] for tag, attributes in page.elements if tag == "figure"]


def cells(packed: dict[str, str]) -> np.ndarray:
    """An array as Plotly packs it."""
    shape = [int(each) for each in packed["shape"].split(",")]
    return np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"]).reshape(shape)


def assert_sound(page: Page) -> None:
    """No number that is none is written or drawn."""
    words = set(re.split(r"[^a-z]+", page.text.lower()))
    assert not words & {"nan", "inf", "infinity"}
    for figure in page.figures().values():
        assert not re.search("NaN|Infinity", json.dumps(figure))


def test_the_page_names_the_study_and_holds_every_figure(page: Page):
    assert "Refusal cliff of organisms/cliff-chat" in plain(page)
    assert figures(page) == list(FIGURES)
    assert page.text.count("How to read it.") == len(FIGURES) + 1
    alts = [a["aria-label"] for tag, a in page.elements if a.get("role") == "img" and tag == "div"]
    assert len(alts) == len(page.figures()) == 5
    assert all(len(alt) > 30 for alt in alts)
    links = [a["href"][1:] for t, a in page.elements if t == "a"]
    assert set(links) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))


def test_the_page_of_a_repair_holds_its_figures(repaired: Page):
    assert "Repair of organisms/planted-chat-6l" in plain(repaired)
    assert figures(repaired) == list(REPAIRS)
    assert len(repaired.figures()) == 8
    links = [a["href"][1:] for t, a in repaired.elements if t == "a"]
    assert set(links) <= set(repaired.ids())
    assert "Repaired: after the fine-tune" in plain(repaired)
    assert "Attacks on the repaired model were not tried" in plain(repaired)


def test_every_caption_says_n_and_interval_or_that_there_is_none(page: Page, cliff_report: Path):
    for basis in re.findall(r'<p class="basis">(.*?)</p>', cliff_report.read_text("utf-8")):
        assert re.search(r"n = \d|\d+ heads measured", basis), basis
        assert "interval" in basis, basis
    assert "A probe reads what goes along with refusal" in plain(page)


def test_every_colour_of_every_figure_has_a_dark_twin(page: Page, repaired: Page):
    for name, figure in {**page.figures(), **repaired.figures()}.items():
        assert not colours(figure) - set(light_to_dark()), name


def test_an_audit_has_neither_section(report: Path):
    assert not {"cliff", "cliff-heads", "repair"} & set(Page(report).ids())


def test_the_curve_is_drawn_from_its_table_and_the_closing_tokens_are_shaded(page: Page):
    spec = page.figures()["figure-cliff-curve-1"]
    curve = cliff_table(CliffTables(), "cliff.curve")
    mine = curve[curve["group"] == COMPLIED].sort_values("position")
    line = next(t for t in spec["data"] if any(COMPLIED in text for text in t.get("text", ())))
    assert line["x"] == mine["position"].tolist()
    assert line["y"] == mine["mean"].round(4).tolist()
    assert "closing[1]" in line["text"][-2]
    assert "thinking" in line["text"][-4]
    (shape,) = spec["layout"]["shapes"]
    assert shape["x0"] == -3.5


def test_few_traces_are_drawn_each_folded_and_named(page: Page):
    trails = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    assert len(trails) == MOST + LEAST
    assert "those with the 12 largest cliffs and the 4 smallest of 120 traces" in plain(page)
    prompts = fake_cliff_tables()["cliff.prompts"].sort_values("cliff", ascending=False)
    assert f"{prompts['id'].iloc[0]}: cliff 0.9" in plain(page)
    assert prompts["id"].iloc[-1] in plain(page)
    assert prompts["id"].iloc[60] not in plain(page)


def test_the_largest_cliffs_come_first_and_the_smallest_last():
    ids = fake_cliff_tables()["cliff.prompts"].sort_values("cliff", ascending=False)["id"].tolist()
    shown = [trace.prompt["id"] for trace in shown_traces(CliffTables())]
    assert shown == [*ids[:MOST], *ids[-LEAST:]]


def test_a_single_trace_is_a_mean_of_its_tokens_and_keeps_its_closing_ones():
    tables = fake_cliff_tables(n_thinking=2_000)
    first = shown_traces(CliffTables(tables))[0]
    rows = tables["cliff.trace"].query("id == @first.prompt['id']").sort_values("position")
    thinking = rows.loc[rows["anchor"] == "thinking", "score"].to_numpy()
    assert first.n == len(thinking)
    assert first.step == -(-len(thinking) // POINTS)
    assert len(first.thinking) <= POINTS
    assert first.thinking[-1] == pytest.approx(thinking[-first.step :].mean())
    rest = len(thinking) % first.step or first.step
    assert first.thinking[0] == pytest.approx(thinking[:rest].mean())
    assert [name for name, _ in first.closing] == ["closing[0]", "closing[1]", "closing[2]"]
    assert first.closing[-1][1] == rows["score"].iloc[-1]


def test_a_table_of_a_million_tokens_is_cut_before_it_is_embedded(quick):
    tables = fake_cliff_tables(n_thinking=8_000)
    assert len(tables["cliff.trace"]) > 1_000_000
    seen = quick(tables)
    spec = json.dumps(seen.figures()["figure-cliff-curve-1"])
    assert len(spec) < 200_000
    longest = max(len(a["points"]) for tag, a in seen.elements if tag == "polyline")
    assert longest < 16 * (POINTS + 3)


def test_the_map_has_each_head_in_its_cell_and_rings_roles(page: Page):
    spec = page.figures()["figure-cliff-heads-1"]
    heads = fake_cliff_tables()["cliff.heads"].set_index(["layer", "head"])
    grid = cells(spec["data"][0]["z"])
    assert grid.shape == (8, 6)
    for place, row in heads.iterrows():
        assert grid[place] == pytest.approx(row["effect"], abs=1e-5)
    hover = spec["data"][0]["text"][4][1]
    assert "L4.H1, suppressor" in hover
    assert "\u22121.400 logits" in hover
    dashes = [t["line"]["dash"] for t in spec["data"][1:] if t["line"]["color"] != "#ffffff"]
    assert dashes == ["solid", "solid", "dot"]


def test_layers_without_heads_stand_in_a_column_of_their_own(quick):
    tables = fake_cliff_tables()
    heads = tables["cliff.heads"]
    mixer = heads[(heads["layer"] == 0) & (heads["head"] == 0)].assign(head=-1, effect=0.5, role="")
    tables["cliff.heads"] = pd.concat([heads[heads["layer"] > 0], mixer])
    seen = quick(tables)
    spec = seen.figures()["figure-cliff-heads-1"]
    assert spec["data"][0]["x"][0] == -1
    assert spec["layout"]["xaxis"]["ticktext"][0] == "mixer"
    assert cells(spec["data"][0]["z"])[0, 0] == 0.5
    assert "L0.mixer" in plain(seen)


def test_the_ablation_is_drawn_beside_its_random_draws(page: Page):
    spec = page.figures()["figure-cliff-ablation-1"]
    arms = fake_cliff_tables()["cliff.ablation"].query("group == @COMPLIED")
    tops = next(t for t in spec["data"] if len(t.get("text") or ()) == 4)
    assert tops["y"] == [0, *arms.loc[arms["arm"] == "top", "restored_rate"]]
    draws = [t for t in spec["data"] if len(t.get("text") or ()) == 20]
    assert len(draws) == 3
    assert spec["layout"]["xaxis"]["ticktext"][-1] == "static<br>1"


def test_before_and_after_stand_under_each_other_with_their_intervals(repaired: Page):
    spec = repaired.figures()["figure-repair-effects-1"]
    assert spec["layout"]["yaxis"]["ticktext"] == ["before", "ms_p90", "random"]
    assert [trace["x"][0] for trace in spec["data"]] == [0.0, 0.9, 0.5]
    effects = fake_repair_tables()["repair.effects"].iloc[0]
    error = spec["data"][1]["error_x"]
    assert error["array"][0] == pytest.approx(effects["high"] - effects["value"])
    assert spec["data"][0]["error_x"]["array"][0] > 0.05


def test_a_ranking_alone_shows_its_rows_and_says_that_nothing_was_trained(tmp_path: Path):
    tables = {"repair.selection": fake_repair_tables()["repair.selection"].query("rank < 41")}
    run = write_fake_repair(tmp_path / "run", tables=tables, command="cliff rank")
    seen = Page(write_report(run))
    text = plain(seen)
    assert "Rows to repair organisms/planted-chat-6l" in text
    assert "nothing was trained" in text
    assert "Not measured in this run" not in text
    assert "holds no table" not in text
    assert "pool-007" in text


@pytest.mark.parametrize(("study", "missing"), TABLES)
def test_a_run_without_a_table_still_has_a_page_that_says_so(quick, study: str, missing: str):
    seen = quick({n: f for n, f in ALL[study].items() if n != missing}, study)
    known = FIGURES if study == "cliff" else REPAIRS
    lost = {figure for figure, table in known.items() if table == missing}
    assert set(known) - set(figures(seen)) == lost
    unnamed = {"cliff.probes", "repair.prompts"}
    if missing not in unnamed:
        assert f"holds no table {missing}" in plain(seen)
    unsaid = {
        "cliff.verdict": "Not measured in this run: whether refusal falls where the thinking ends.",
        "cliff.heads": "Not measured in this run: which heads push it.",
        "cliff.ablation": "Not measured in this run: what removing heads restores.",
        "repair.effects": "Not measured in this run: whether refusal returns, what the repair costs",
        "repair.prompts": "before without an interval: repair.prompts is missing",
    }
    assert unsaid.get(missing, "") in plain(seen)
    assert_sound(seen)


CASES = [(study, name, damage) for study, name in TABLES for damage in DAMAGES]


@pytest.mark.parametrize(
    ("study", "name", "damage"),
    [*CASES, *((study, "all", damage) for study in ALL for damage in DAMAGES)],
)
def test_damage_to_a_table_does_not_break_the_page(quick, study: str, name: str, damage: str):
    tables = dict(ALL[study])
    for each in tables if name == "all" else [name]:
        tables[each] = damaged(tables[each], damage)
    seen = quick(tables, study)
    assert ("Refusal cliff of" if study == "cliff" else "Repair of") in seen.text
    assert_sound(seen)


def test_empty_unfinished_runs_have_pages_that_say_what_is_not_there(tmp_path: Path):
    seen = Page(write_report(write_fake_cliff(tmp_path / "run", tables={}, finish=False)))
    assert not seen.figures()
    assert "This run measured too little for a verdict" in seen.text
    assert "holds no table cliff.curve" in seen.text
    seen = Page(write_report(write_fake_repair(tmp_path / "other", tables={}, finish=False)))
    assert not seen.figures()
    assert "holds no table repair.effects" in seen.text


def test_what_stands_in_the_data_is_text_and_never_markup(tmp_path: Path):
    tables = {**fake_cliff_tables(), **fake_repair_tables()}
    looked_up = {"anchor", "group", "label", "quantity"}
    for name, frame in tables.items():
        frame = frame.copy()
        for column in frame.select_dtypes(["object", "string"]):
            if column not in looked_up:
                kept = ("top", "clean", "random", "share", "before")
                frame[column] = [
                    each if each in kept else f"{each}{EVIL}" for each in frame[column]
                ]
        tables[name] = frame
    for command in (write_fake_cliff, write_fake_repair):
        evil = Page(write_report(command(tmp_path / command.__name__, tables=tables)))
        assert {"figure-cliff-singles", *FIGURES, *REPAIRS} <= set(evil.ids())
        assert [tag for tag, _ in evil.elements].count("img") == 0
        assert "onerror" not in {name for _, attributes in evil.elements for name in attributes}
        assert len([text for attributes, text in evil.scripts if "type" not in attributes]) == 3
        text = json.dumps(evil.figures())
        assert "&lt;" in text
        assert "<img" not in text
        assert "<script" not in text


def test_the_pages_are_the_same_each_time(cliff_run: Path, cliff_report: Path):
    assert write_report(cliff_run).read_bytes() == cliff_report.read_bytes()


def test_a_cliff_run_also_shows_the_behaviour_it_measured(quick):
    seen = quick({**fake_tables(), **fake_cliff_tables()})
    assert {"figure-behaviour-rates", "figure-cliff-curve"} <= set(seen.ids())
