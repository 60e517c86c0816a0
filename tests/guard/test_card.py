"""The card of a guard: everything of the record, text that stays text, no model, whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from guard.fitted import calibrated
from refusalscope.errors import GuardError
from refusalscope.guard.card import ADVERSARIES, fenced, inert, write_card
from refusalscope.guard.folder import JSON, read_record

EVIL = '</style><script>window.hacked=1</script><img src=x onerror="window.hacked=1"> `x` | [a](b:c) {{ 7*7 }}'
SHORTCUTS = [
    {
        "name": "belief",
        "auroc": 0.97,
        "auroc_low": 0.95,
        "auroc_high": 0.99,
        "verdict": "the score under test",
    },
    {
        "name": "words",
        "auroc": 0.9,
        "auroc_low": 0.86,
        "auroc_high": 0.93,
        "verdict": "carries some of it",
    },
]
MONITOR = {
    "threshold": {
        **{"tau": 0.031, "alpha": 0.05, "rule": "learn_then_test", "confidence": 0.95, "n": 210},
        **{"flagged": 4, "fpr": {"value": 0.019, "low": 0.005, "high": 0.048, "n": 210}},
    },
    "smoothing": 0.75,
    "hold_back": 4,
    "by_length": [
        {"shortest": 3, "longest": 48, "n": 210, "flagged": 4, "low": 0.005, "high": 0.048}
    ],
    "tokens": 256,
    "harmful": {"n": 60, "flagged": 50, "low": 0.71, "high": 0.92},
    "opened": {"n": 60, "flagged": 3, "low": 0.01, "high": 0.14},
}
RATES = [
    {
        "label": "harmless",
        "point": "fpr=0.05",
        "when": when,
        "n": 60,
        "flagged": 0.02,
        "low": 0.0,
        "high": 0.1,
    }
    for when in ("before", "after")
]


class Text(HTMLParser):
    """Visible text, tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.names = "", [], set()
        self.hrefs: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.hrefs += [value for name, value in attrs if name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated().save(tmp_path_factory.mktemp("guard") / "guard")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A calibrated guard's folder without its tensors, which a card does not need."""
    made = tmp_path / "guard"
    made.mkdir()
    shutil.copy(saved / JSON, made / JSON)
    return made


def change(folder: Path, **fields: Any) -> Path:
    record = json.loads((folder / JSON).read_text("utf-8"))
    (folder / JSON).write_text(json.dumps(record | fields), "utf-8")
    return folder


def cards(folder: Path) -> tuple[Text, str]:
    html, markdown = write_card(folder)
    assert (html.name, markdown.name) == ("card.html", "card.md")
    return Text(html.read_text("utf-8")), markdown.read_text("utf-8")


def plain(markdown: str) -> str:
    """Markdown as it reads: without the backslashes that keep it text."""
    return re.sub(r"\\(.)", r"\1", markdown)


def test_both_cards_say_everything_of_the_record(folder: Path):
    record = read_record(
        change(folder, shortcuts=SHORTCUTS, monitor=MONITOR, known_failures=["It fails so."])
    )
    page, markdown = cards(folder)
    point = record.calibration.points[0]
    said = [
        *(record.model.id, record.model.weights_sha256, record.model.template_sha256),
        *(record.tensors_sha256, "arXiv 2507.11878", "instruction_last", "prompt_last", "centroid"),
        *(
            f"{record.rows[0]} to {record.rows[-1]}",
            point.name,
            f"{point.tau:.4f}",
            str(point.n),
        ),
        *("FPR ≤ 0.05 at confidence 0.95", "platt curve", "It abstains on prompts"),
        *("words", "0.860 to 0.930", "carries some of it", "It fails so."),
        *(
            "4 tokens are held back",
            "at most 256 tokens",
            "83.3\u00a0% (71\u00a0% to 92\u00a0%) of 60",
        ),
        *(source["name"] for source in record.fitted_on["harmful"]["sources"]),
        *(source["sha256"] for source in record.fitted_on["harmful"]["sources"]),
        *record.fitted_on["harmful"]["final_marks"],
        *(rate.source for rate in point.rates),
        *(ADVERSARIES[0], "BeliefGuard.load('guard', ChatModel.load('builtin:chat'))"),
        "refusalscope guard serve guard",
    ]
    for text in (page.text, plain(markdown)):
        flat = " ".join(text.split(" "))
        for part in said:
            assert str(part) in flat, part


def test_rates_of_each_source_are_those_of_the_record(folder: Path):
    page, _ = cards(folder)
    for rate in read_record(folder).calibration.points[0].rates:
        assert f"{rate.flagged} of {rate.n}" in page.text


def test_the_page_loads_nothing_runs_nothing_and_its_links_arrive(folder: Path):
    page, _ = cards(folder)
    assert not {"script", "img", "iframe", "object"} & set(page.tags)
    assert {href[1:] for href in page.hrefs if href.startswith("#")} <= set(page.ids)
    assert {href for href in page.hrefs if not href.startswith("#")} == {"data:,"}
    assert len(page.ids) == len(set(page.ids))
    html = (folder / "card.html").read_text("utf-8")
    assert "default-src 'none'" in html
    assert "url(" not in html


def test_a_guard_that_is_not_calibrated_says_so_first(folder: Path):
    page, markdown = cards(change(folder, calibration=None))
    for text in (page.text, plain(markdown)):
        assert "This guard is not calibrated: it gives scores, but flags nothing" in text
        assert "No rate is on record." in text
    assert page.text.index("not calibrated") < page.text.index("What it is")


def test_what_is_not_on_record_is_said_and_not_left_out(folder: Path):
    record = read_record(folder)
    heads = {"harm": record.heads["harm"].model_dump()}
    page, _ = cards(change(folder, heads=heads))
    for part in (
        "Not audited",
        "It has no monitor of replies",
        "None were added.",
        "None is on record, which is not proof that there is none.",
        "has no second axis for refusal",
        "not read",
    ):
        assert part in page.text


def test_shortcuts_that_equal_the_score_are_a_warning(folder: Path):
    as_good = [
        SHORTCUTS[0],
        SHORTCUTS[1] | {"verdict": "as good as belief: AUROC +0.00 over the cue"},
    ]
    page, _ = cards(change(folder, shortcuts=as_good))
    assert "the score cannot be told from its shortcuts: words." in page.text
    leaning = [SHORTCUTS[0], SHORTCUTS[1] | {"verdict": "told apart, but leans on it: AUROC falls"}]
    page, _ = cards(change(folder, shortcuts=leaning))
    assert "The score leans on its shortcuts: words." in page.text
    page, _ = cards(change(folder, shortcuts=SHORTCUTS))
    assert "No cue that is not harm did as well as the score" in page.text


def test_own_examples_stand_before_and_after(folder: Path):
    page, _ = cards(change(folder, augmented={"n": 7, "rates": RATES}))
    assert "7 harmful examples of a user were added" in page.text
    assert "before" in page.text
    page, _ = cards(change(folder, augmented={"n": 7}))
    assert "What they changed is not on record" in page.text


def evil(value: Any) -> Any:
    """The record with every text that a user or a file can set made hostile."""
    if isinstance(value, str):
        return f"{value}{EVIL}"
    if isinstance(value, list):
        return [evil(each) for each in value]
    if isinstance(value, dict):
        return {key: evil(each) for key, each in value.items()}
    return value


def test_what_stands_in_the_record_is_text_and_never_markup(folder: Path):
    clean, _ = cards(folder)
    record = json.loads((folder / JSON).read_text("utf-8"))
    hostile = {name: evil(record[name]) for name in ("model", "settings", "fitted_on")}
    # A rule is one of two, or the record is refused.
    rules = [{"rule": point["rule"]} for point in record["calibration"]["points"]]
    hostile["calibration"] = evil(record["calibration"])
    for point, rule in zip(hostile["calibration"]["points"], rules, strict=True):
        point |= rule
    page, markdown = cards(
        change(folder, **hostile, shortcuts=evil(SHORTCUTS), known_failures=[EVIL], matched=EVIL)
    )
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == clean.tags.count("style") == 1
    assert "onerror" not in page.names
    assert "{{ 7*7 }}" in page.text
    for line in markdown.split("\n"):
        text = re.sub(r"\\.", "", line)
        if line.startswith(("guard =", "# refusalscope", "from", "```")):
            continue
        assert not re.search(r"[<`\[\]]", text), line
    tables = [line for line in markdown.split("\n") if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths <= {3, 4, 5, 6, 7}


def test_the_fence_of_code_cannot_be_closed_from_within():
    assert fenced("plain") == "```"
    assert fenced("a ```` b") == "`````"


@pytest.mark.parametrize(
    "text", ["# a", "- a", "a\n\n# b", "*a*", "[a](b)", "a|b", "<b>", "http://x"]
)
def test_markdown_stays_text(text: str):
    made = inert(text)
    assert "\n" not in made
    assert plain(made) == " ".join(text.split())
    assert not re.search(r"(?<!\\)[*\[\]|<>#`]|^[-=]|(?<!\\)://", made)


def test_the_cards_are_the_same_each_time_and_written_over(folder: Path):
    first = [path.read_bytes() for path in write_card(folder)]
    (folder / "card.md").write_text("old")
    assert [path.read_bytes() for path in write_card(folder)] == first
    assert sorted(path.name for path in folder.iterdir()) == ["card.html", "card.md", JSON]


def test_a_folder_that_is_no_guard_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(GuardError, match=r"holds no guard\.json"):
        write_card(tmp_path)


def test_a_foreign_record_is_refused_and_leaves_no_card(folder: Path):
    change(folder, model={"id": "x"})
    with pytest.raises(GuardError, match="fit the guard again"):
        write_card(folder)
    assert [path.name for path in folder.iterdir()] == [JSON]
