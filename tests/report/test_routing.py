"""The page of a routing run: every figure from its tables, nothing hidden, nothing fatal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report import write_report
from refusalscope.report.palette import light_to_dark
from refusalscope.report.routing_tables import HEADS
from refusalscope.runs import open_run
from report.fake_routing import (
    fake_routing_tables,
    write_fake_routing,
)
from report.fake_run import write_fake_run
from report.test_page import EVIL, Page, colours

FIGURES = {
    "figure-routing-map": "routing.heads",
    "figure-routing-circuit": "routing.heads",
    "figure-routing-cascade": "routing.cascade",
    "figure-routing-dose": "routing.dose",
    "figure-routing-cipher": "routing.cipher",
    "figure-routing-rescue": "routing.rescue",
}


@pytest.fixture(scope="module")
def page(routing_report: Path) -> Page:
    return Page(routing_report)


def test_the_page_names_the_study_and_holds_every_figure(page: Page):
    assert "Refusal routing of organisms/routed-chat" in " ".join(page.text.split())
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures == list(FIGURES)
    assert page.text.count("How to read it.") == len(FIGURES)
    alts = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    assert len(alts) == len(page.figures()) == 13
    assert all(len(alt) > 30 for alt in alts)
    links = [a["href"][1:] for t, a in page.elements if t == "a"]
    assert set(links) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))


def test_the_pages_own_limits_and_rules_are_those_of_routing(page: Page):
    text = " ".join(page.text.split())
    assert "Roles are names for patterns of numbers" in text
    assert "A head in the last layer has nothing behind it to drive" in text
    assert "One direction carries the refusal" not in text


def test_every_colour_of_every_figure_has_a_dark_twin(page: Page):
    for name, figure in page.figures().items():
        assert not colours(figure) - set(light_to_dark()), name


def test_an_audit_has_no_routing_section(report: Path):
    assert not any(name.startswith(("routing", "figure-routing")) for name in Page(report).ids())


@pytest.mark.parametrize("missing", sorted(fake_routing_tables()))
def test_a_run_without_a_table_still_has_a_page_that_says_so(tmp_path: Path, missing: str):
    tables = {n: f for n, f in fake_routing_tables().items() if n != missing}
    found_page = Page(write_report(write_fake_routing(tmp_path / "run", tables=tables)))
    lost = {figure for figure, table in FIGURES.items() if table == missing}
    assert set(FIGURES) - set(found_page.ids()) == lost
    said = {
        "routing.gap": "holds no table routing.gap",
        "routing.heads": "holds no table routing.heads",
        "routing.groups": "holds no table routing.groups",
        "routing.cascade": "holds no table routing.cascade",
        "routing.coverage": "which heads and positions were covered (no record)",
        "routing.stability": "holds no table routing.stability",
        "routing.drive": "holds no table routing.drive",
        "routing.dose": "Not looked at: all positions for 36 of 48 heads (only layers 6-7 were); dose",
    }
    assert said.get(missing, "") in " ".join(found_page.text.split())


def damaged(frame: pd.DataFrame, damage: str) -> pd.DataFrame:
    numbers = list(frame.select_dtypes("number").columns)
    texts = list(frame.select_dtypes(["object", "string"]).columns)
    floats = list(frame.select_dtypes("floating").columns)
    if damage == "empty":
        return frame.iloc[:0]
    if damage == "narrow":
        return frame.iloc[:, :1]
    if damage == "unknown":
        return frame.assign(**dict.fromkeys(floats, np.nan))
    if damage == "infinite":
        return frame.assign(**dict.fromkeys(floats, np.inf))
    if damage == "zero":
        return frame.assign(**dict.fromkeys(floats, 0.0))
    if damage == "one row":
        return frame.iloc[:1]
    if damage == "nowhere":
        return frame.astype(dict.fromkeys(numbers, float)).assign(**dict.fromkeys(numbers, np.nan))
    return frame.astype(dict.fromkeys(texts, object)).assign(**dict.fromkeys(texts))


DAMAGES = ("empty", "narrow", "unknown", "infinite", "zero", "one row", "nowhere", "no texts")


@pytest.mark.parametrize("name", [*sorted(fake_routing_tables()), "all"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_table_does_not_break_the_page(tmp_path: Path, name: str, damage: str):
    tables = fake_routing_tables()
    if name != "all":
        # Every table is read beside the heads; without the others the page is quick to draw.
        tables = {each: tables[each] for each in (HEADS, name)}
    for each in tables if name == "all" else [name]:
        tables[each] = damaged(tables[each], damage)
    seen = Page(write_report(write_fake_routing(tmp_path / "run", tables=tables)))
    assert "Refusal routing of" in seen.text
    words = set(re.split(r"[^a-z]+", seen.text.lower()))
    assert not words & {"nan", "inf", "infinity"}
    for figure in seen.figures().values():
        assert not re.search("nan|Infinity", json.dumps(figure["layout"]))


def test_an_empty_run_has_a_page_that_says_what_is_not_there(tmp_path: Path):
    run = write_fake_routing(tmp_path / "run", tables={}, finish=False)
    seen = Page(write_report(run))
    assert not seen.figures()
    assert "This run measured too little for a verdict" in seen.text
    assert "holds no table routing.heads" in seen.text


def test_what_stands_in_the_data_is_text_and_never_markup(tmp_path: Path, page: Page):
    tables = fake_routing_tables()
    for name, frame in tables.items():
        for column in frame.select_dtypes(["object", "string"]):
            # Names that the page looks up stay; whatever else a table says is free text.
            if column not in ("gate", "role", "kind", "map", "category", "language"):
                keep = {"arm": {"plain", "cipher", "attenuate"}}.get(column, set())
                frame[column] = [v if v in keep else f"{v}{EVIL}" for v in frame[column]]
        tables[name] = frame
    tables["routing.heads"]["role"] = tables["routing.heads"]["role"].replace("chain", EVIL)
    tables["routing.drive"]["gate"] = tables["routing.drive"]["gate"].replace("L4.H4", EVIL)
    tables["routing.cascade"]["gate"] = EVIL
    evil = Page(write_report(write_fake_routing(tmp_path / "run", tables=tables)))
    assert [tag for tag, _ in evil.elements].count("img") == 0
    assert "onerror" not in {name for _, attributes in evil.elements for name in attributes}
    running = [text for attributes, text in evil.scripts if "type" not in attributes]
    assert len(running) == 3
    text = json.dumps(evil.figures())
    assert "&lt;" in text
    assert "<img" not in text
    assert "<script" not in text


def test_the_page_is_the_same_each_time(routing_run: Path, routing_report: Path):
    assert write_report(routing_run).read_bytes() == routing_report.read_bytes()


def test_windows_that_hide_nothing_are_cut_and_counted(tmp_path: Path):
    run = write_fake_routing(tmp_path / "run", size=(24, 4))
    text = " ".join(Page(write_report(run)).text.split())
    assert text.count("redundancy found") >= 2
    assert "15 smaller windows, which hide nothing, stand in routing.groups" in text


def test_what_was_not_looked_at_stands_on_the_page(page: Page):
    text = " ".join(page.text.split())
    assert "Not looked at in this run" in text
    assert "All positions for 36 of 48 heads (only layers 6-7 were)." in text


def test_the_published_map_earns_a_warning_beside_the_map(tmp_path: Path):
    tables = fake_routing_tables()
    tables[HEADS]["map"] = "compat_left"
    text = " ".join(
        Page(write_report(write_fake_routing(tmp_path / "run", tables=tables))).text.split()
    )
    assert "Heads were swapped from the start of the prompts, as published" in text
    assert "Swapped at tokens from the start (as published)" in text


def test_an_audit_with_routing_tables_shows_both(tmp_path: Path):
    from report.fake_run import fake_tables

    run = write_fake_run(tmp_path / "run", tables={**fake_tables(), **fake_routing_tables()})
    seen = Page(write_report(run))
    assert {"figure-behaviour-rates", "figure-routing-map"} <= set(seen.ids())
    assert "Refusal audit of" in seen.text
    assert open_run(run).info["command"] == "audit"
