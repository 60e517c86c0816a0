"""The page of a features run: every figure from its tables, nothing hidden, nothing fatal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from refusalscope.report import page as page_module
from refusalscope.report import write_report
from refusalscope.report.page import render
from refusalscope.report.palette import light_to_dark
from report.fake_features import Tables, fake_features_tables, write_fake_features
from report.fake_run import fake_tables, write_fake_run
from report.fake_writes import fake_writes
from report.test_page import EVIL, Page, colours
from report.test_routing import DAMAGES, damaged

FIGURES = {
    "figure-features-path": "features.sets",
    "figure-features-set": "features.sets",
    "figure-features-woken": "features.dormant",
    "figure-features-ledger": "features.ledger",
    "figure-features-pairs": "features.interactions",
    "figure-features-baselines": "features.baselines",
}
TABLES = sorted(fake_features_tables())


@pytest.fixture(scope="module")
def page(features_report: Path) -> Page:
    return Page(features_report)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page of tables without the library that draws them, which says nothing about a run."""
    monkeypatch.setattr(page_module, "_plotly", lambda: "")

    def make(tables: dict[str, pd.DataFrame]) -> Page:
        path = tmp_path / "page.html"
        path.write_text(render(Tables(tables)), "utf-8")
        return Page(path)

    return make


def plain(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_page_names_the_study_and_holds_every_figure(page: Page):
    assert "Refusal latents of organisms/hydra-chat" in plain(page)
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures == list(FIGURES)
    assert page.text.count("How to read it.") == len(FIGURES)
    alts = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    assert len(alts) == len(page.figures()) == 11
    assert all(len(alt) > 30 for alt in alts)
    links = [a["href"][1:] for t, a in page.elements if t == "a"]
    assert set(links) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))


def test_every_caption_says_n_and_interval_or_that_there_is_none(features_report: Path):
    text = features_report.read_text("utf-8")
    for basis in re.findall(r'<p class="basis">(.*?)</p>', text):
        assert re.search(r"n = \d|\d+ members|exact counts", basis), basis
        assert "interval" in basis, basis


def test_the_pages_own_limits_and_rules_are_those_of_features(page: Page):
    text = plain(page)
    assert "A latent is a line in a dictionary, not a part of the model" in text
    assert "A reserve is a latent outside the set" in text
    assert "One direction carries the refusal" not in text


def test_every_colour_of_every_figure_has_a_dark_twin(page: Page):
    for name, figure in page.figures().items():
        assert not colours(figure) - set(light_to_dark()), name


def test_an_audit_has_no_features_section(report: Path):
    assert not any(name.startswith(("features", "figure-features")) for name in Page(report).ids())


@pytest.mark.parametrize("missing", TABLES)
def test_a_run_without_a_table_still_has_a_page_that_says_so(quick, missing: str):
    seen = quick({n: f for n, f in fake_features_tables().items() if n != missing})
    lost = {figure for figure, table in FIGURES.items() if table == missing}
    assert set(FIGURES) - set(seen.ids()) == lost
    said = {
        name: f"holds no table {name}"
        for name in (
            *("features.sets", "features.pool", "features.searches", "features.stability"),
            *("features.dictionaries", "features.dormant", "features.ledger"),
            *("features.interactions", "features.baselines"),
        )
    }
    assert said.get(missing, "") in plain(seen)
    unsaid = {
        "features.sets": "Not measured in this run: which latents carry refusal",
        "features.dormant": "Not measured in this run: dormant latents and what wakes",
        "features.interactions": "Not measured in this run: interactions of latents",
        "features.baselines": "Not measured in this run: matched random latents, the refusal direction",
    }
    assert unsaid.get(missing, "") in plain(seen)


SINGLE = ("empty", "narrow", "unknown", "nowhere", "no texts")
CASES = [(name, damage) for name in TABLES for damage in SINGLE]


@pytest.mark.parametrize(("name", "damage"), [*CASES, *(("all", each) for each in DAMAGES)])
def test_damage_to_a_table_does_not_break_the_page(quick, name: str, damage: str):
    tables = fake_features_tables()
    if name != "all":
        # Every table is read beside the sets; without the others the page is quick to draw.
        tables = {each: tables[each] for each in ("features.sets", name)}
    for each in tables if name == "all" else [name]:
        tables[each] = damaged(tables[each], damage)
    seen = quick(tables)
    assert "Refusal latents of" in seen.text
    words = set(re.split(r"[^a-z]+", seen.text.lower()))
    assert not words & {"nan", "inf", "infinity"}
    for figure in seen.figures().values():
        assert not re.search("NaN|Infinity", json.dumps(figure))


@pytest.mark.parametrize("name", ["features.sets", "features.dormant", "features.pool"])
@pytest.mark.parametrize("damage", SINGLE)
def test_damage_to_a_set_of_writes_does_not_break_the_page(quick, name: str, damage: str):
    tables = {
        each: frame
        for each, frame in fake_writes().items()
        if each in ("features.sets", "features.dormant", "features.pool")
    }
    tables[name] = damaged(tables[name], damage)
    seen = quick(tables)
    words = set(re.split(r"[^a-z]+", seen.text.lower()))
    assert not words & {"nan", "inf", "infinity"}
    for figure in seen.figures().values():
        assert not re.search("NaN|Infinity", json.dumps(figure))


def test_an_empty_unfinished_run_has_a_page_that_says_what_is_not_there(tmp_path: Path):
    seen = Page(write_report(write_fake_features(tmp_path / "run", tables={}, finish=False)))
    assert not seen.figures()
    assert "This run measured too little for a verdict" in seen.text
    assert "holds no table features.sets" in seen.text


def test_a_run_that_found_no_set_says_why_and_keeps_the_rest(quick):
    tables = fake_features_tables()
    why = "no set flips it"
    tables["features.searches"] = (
        tables["features.searches"].head(1).assign(sets=0, why=why, complete=False)
    )
    for name in ("sets", "members", "dormant", "waking", "clusters", "ledger", "compensation"):
        tables[f"features.{name}"] = tables[f"features.{name}"].iloc[:0]
    for name in ("values", "overshoot", "interactions"):
        del tables[f"features.{name}"]
    arms = tables["features.baselines"]
    tables["features.baselines"] = arms[arms["group"] != "set"]
    seen = quick(tables)
    text = plain(seen)
    assert "No set of latents was found that flips the refusal, of 96 candidates" in text
    assert f"No set was found: {why}." in text
    assert "figure-features-baselines" in seen.ids()
    assert "table-features-dictionaries" in seen.ids()


def test_what_stands_in_the_data_is_text_and_never_markup(tmp_path: Path):
    tables = fake_features_tables()
    looked_up = {"set_id", "arm", "group", "part", "prompt_id", "search", "position"}
    for name, frame in tables.items():
        frame = frame.copy()
        for column in frame.select_dtypes(["object", "string"]):
            if column not in looked_up:
                frame[column] = [f"{value}{EVIL}" for value in frame[column]]
        tables[name] = frame
    for name in ("arm", "group"):
        tables["features.baselines"][name] = tables["features.baselines"][name].replace(
            {"yeo2025": EVIL, "pca": EVIL}
        )
    for name in ("ledger", "compensation"):
        tables[f"features.{name}"]["position"] = EVIL
    tables["features.dormant"]["arm"] = EVIL
    tables["features.waking"][["arm", "null"]] = EVIL
    tables["features.searches"].loc[0, "search"] = EVIL
    for name, frame in tables.items():
        if "set_id" in frame:
            tables[name] = frame.assign(set_id=frame["set_id"].replace("pool/0", EVIL))
    evil = Page(write_report(write_fake_features(tmp_path / "run", tables=tables)))
    assert [tag for tag, _ in evil.elements].count("img") == 0
    assert "onerror" not in {name for _, attributes in evil.elements for name in attributes}
    assert len([text for attributes, text in evil.scripts if "type" not in attributes]) == 3
    text = json.dumps(evil.figures())
    assert "&lt;" in text
    assert "<img" not in text
    assert "<script" not in text


def test_the_page_is_the_same_each_time(features_run: Path, features_report: Path):
    assert write_report(features_run).read_bytes() == features_report.read_bytes()


def test_a_big_pool_is_read_once_and_only_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_module, "_plotly", lambda: "")
    tables = fake_features_tables((32, 20_000))
    run = Tables(tables)
    text = render(run)
    assert run.reads["features.pool"] == 1
    assert len(tables["features.pool"]) == 640_000
    assert "in the dictionaries 640\u202f000; kept in the pool" in text
    assert len(text) < 900_000


def test_an_audit_with_features_tables_shows_both(tmp_path: Path):
    run = write_fake_run(tmp_path / "run", tables={**fake_tables(), **fake_features_tables()})
    seen = Page(write_report(run))
    assert {"figure-behaviour-rates", "figure-features-set"} <= set(seen.ids())
    assert "Refusal audit of" in seen.text


def test_a_features_run_also_shows_the_directions_it_used(quick):
    seen = quick({**fake_tables(), **fake_features_tables()})
    assert {"figure-candidates", "figure-features-set"} <= set(seen.ids())
    assert "Refusal latents of" in seen.text
