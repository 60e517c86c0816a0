"""The page: complete, self-contained, safe against what stands in the data, and never a crash."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.errors import RunError
from refusalscope.report import write_report
from refusalscope.report.page import json_in_script
from refusalscope.report.palette import COLOURS, DARK, LIGHT, light_to_dark
from report.fake_run import SETTINGS, fake_info, fake_tables, write_fake_run

FIGURES = [
    "figure-behaviour-rates",
    "figure-margins",
    "figure-candidates",
    "figure-interventions",
    "figure-geometry",
    "figure-belief",
]
SCREENED = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")


class Page(HTMLParser):
    """What a test asks of a page: its elements, visible text, scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles = ""
        self._inside = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside == "style":
            self.styles += data
        else:
            self.text += data

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def figures(self) -> dict[str, dict]:
        return {
            attributes["id"]: json.loads(text)
            for attributes, text in self.scripts
            if attributes.get("id", "").startswith("figure-")
        }


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report)


def test_every_figure_is_there_with_heading_reading_n_and_split(page: Page):
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures == FIGURES
    assert page.text.count("How to read it.") == len(FIGURES)
    assert len(re.findall(r"report split|select split|fit split", page.text)) >= len(FIGURES)
    alts = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    assert len(alts) == len(page.figures()) == 10
    assert all(len(alt) > 30 for alt in alts)


def test_nothing_is_loaded_from_anywhere(page: Page):
    for tag, attributes in page.elements:
        for name in SCREENED:
            value = attributes.get(name) or ""
            assert not value or value.startswith("#") or value == "data:,", (tag, name, value)
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_the_security_policy_allows_the_pages_own_scripts_and_no_others(page: Page):
    (policy,) = (a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    allowed = re.search(r"script-src ([^;]*);", policy).group(1).split()
    running = [text for attributes, text in page.scripts if "type" not in attributes]
    digests = [hashlib.sha256(text.encode()).digest() for text in running]
    assert allowed == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]
    assert len(running) == 3


def test_plotly_is_inlined_once(report: Path):
    assert report.read_text("utf-8").count("* plotly.js v") == 1


def test_headings_descend_by_one_and_ids_are_unique_and_links_arrive(page: Page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for t, a in page.elements if t == "a"]
    assert links
    assert set(links) <= set(ids)


def test_tables_have_captions_and_scroll_in_a_box_that_the_keyboard_reaches(page: Page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") > 5
    boxes = [a for _, a in page.elements if a.get("class") == "scroll"]
    assert len(boxes) == tags.count("table")
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes)


def colours(value) -> set[str]:
    if isinstance(value, str):
        return {value} if re.fullmatch(r"#[0-9a-fA-F]{3,8}|rgba?\(.*\)", value) else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*(colours(part) for part in parts))


def test_every_colour_of_every_figure_has_a_dark_twin(page: Page):
    for name, figure in page.figures().items():
        unknown = colours(figure) - set(light_to_dark())
        assert not unknown, (name, unknown)


def test_a_light_colour_has_one_dark_twin():
    for role, (light, dark) in COLOURS.items():
        assert light_to_dark()[light] == dark, role


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_their_ground(theme: dict[str, str]):
    for role in ("ink", "muted", "link", "good", "watch", "bad"):
        for ground in ("page", "surface", "sunken"):
            assert contrast(theme[role], theme[ground]) >= 4.5, (role, ground)
    marks = [role for role in theme if role.startswith("role_")]
    for role in ("harmful", "harmless", "direction", "control", *marks):
        assert contrast(theme[role], theme["surface"]) >= 3, role


EVIL = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'


def evil_run(path: Path) -> Path:
    tables = fake_tables()
    for frame in tables.values():
        for column in ("category", "name", "verdict", "reason", "id"):
            if column in frame:
                frame[column] = frame[column].replace(
                    {v: f"{v}{EVIL}" for v in frame[column].dropna().unique() if v and v != "all"}
                )
    info = fake_info()
    info["model"] = dict.fromkeys(info["model"], EVIL)
    info["sources"] = [dict.fromkeys(info["sources"][0], EVIL)]
    info["seeds"] = {EVIL: EVIL}
    return write_fake_run(
        path, tables=tables, info=info, settings={**SETTINGS, EVIL: [EVIL]}, warnings=(EVIL,)
    )


def test_what_stands_in_the_data_is_text_and_never_markup(tmp_path: Path, page: Page):
    evil = Page(write_report(evil_run(tmp_path / "run")))
    assert [tag for tag, _ in evil.elements].count("img") == 0
    assert len(evil.scripts) == len(page.scripts)
    assert "onerror" not in {name for _, attributes in evil.elements for name in attributes}
    assert EVIL in evil.text


def test_json_cannot_end_its_script_element():
    text = json_in_script({EVIL: "a & b\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {EVIL: "a & b\u2028"}


def test_labels_of_figures_hold_no_tags_from_the_data(tmp_path: Path):
    figures = Page(write_report(evil_run(tmp_path / "run"))).figures()
    text = json.dumps(figures)
    assert "&lt;/script" in text
    assert "<img" not in text
    assert "<script" not in text


def test_texts_of_prompts_and_replies_are_never_shown(tmp_path: Path):
    tables = fake_tables()
    tables["prompts"]["text"] = "a secret prompt"
    tables["directions.belief"]["prompt"] = "a secret prompt"
    tables["replies"] = pd.DataFrame({"id": ["x"], "reply": ["a secret reply"]})
    path = write_report(write_fake_run(tmp_path / "run", tables=tables, keep_text=True))
    assert "a secret" not in path.read_text("utf-8")


@pytest.mark.parametrize("missing", sorted(fake_tables()))
def test_a_run_without_a_table_still_has_a_page(tmp_path: Path, missing: str):
    tables = {name: frame for name, frame in fake_tables().items() if name != missing}
    found = Page(write_report(write_fake_run(tmp_path / "run", tables=tables)))
    lost = {
        "prompts": {"figure-margins"},
        "behaviour.rates": {"figure-behaviour-rates"},
        "directions.candidates": {"figure-candidates"},
        "directions.interventions": {"figure-interventions"},
        "directions.geometry": {"figure-geometry"},
        "directions.belief": {"figure-belief"},
        "directions.shortcuts": set(),
    }[missing]
    assert set(FIGURES) - set(found.ids()) == lost
    if lost:
        assert f"holds no table {missing}" in found.text


@pytest.mark.parametrize("name", sorted(fake_tables()))
@pytest.mark.parametrize("damage", ["empty", "narrow", "unknown"])
def test_a_table_without_rows_columns_or_values_does_not_break_the_page(
    tmp_path: Path, name: str, damage: str
):
    tables = fake_tables()
    frame = tables[name]
    if damage == "empty":
        tables[name] = frame.iloc[:0]
    elif damage == "narrow":
        tables[name] = frame.iloc[:, :1]
    else:
        numbers = frame.select_dtypes("floating").columns
        tables[name] = frame.assign(**dict.fromkeys(numbers, np.nan))
    found = Page(write_report(write_fake_run(tmp_path / "run", tables=tables)))
    assert "Refusal audit of" in found.text
    assert "nan" not in found.text.lower().split()


def test_an_empty_unfinished_run_has_a_page_that_says_so(tmp_path: Path):
    run = write_fake_run(tmp_path / "run", tables={}, info={}, settings={}, finish=False)
    found = Page(write_report(run))
    assert "not finished" in found.text
    assert "unnamed model" in found.text
    assert not found.figures()


def test_the_same_run_gives_the_same_page_and_leaves_nothing_beside_it(tmp_path: Path):
    run = write_fake_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    before = sorted(path.name for path in run.iterdir())
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_folder_that_is_no_run_gives_one_sentence(tmp_path: Path):
    with pytest.raises(RunError, match="is not a run"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="not there"):
        write_report(tmp_path / "absent")


def test_a_run_in_which_no_candidate_passed_shows_the_nearest(tmp_path: Path):
    tables = fake_tables()
    candidates = tables["directions.candidates"]
    candidates[["kept", "chosen", "tie"]] = False
    candidates["reason"] = "kl"
    found = Page(write_report(write_fake_run(tmp_path / "run", tables=tables)))
    assert "No candidate passed the filters; the nearest (select split)" in found.text
    assert "None of 30 candidate directions passed the filters." in found.text
    assert "dropped: changes harmless replies too much (KL)" in found.text


def test_a_direction_chosen_by_a_looser_rule_is_called_that(tmp_path: Path):
    tables = fake_tables()
    candidates = tables["directions.candidates"]
    candidates[["kept", "tie"]] = False
    candidates["reason"] = "kl"
    assert candidates["chosen"].sum() == 1
    found = Page(write_report(write_fake_run(tmp_path / "run", tables=tables)))
    assert "No candidate passed the filters; one was chosen by a looser rule" in found.text
    assert "chosen by a looser rule, else dropped: changes harmless replies too much" in found.text
