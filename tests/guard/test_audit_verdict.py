"""What decides whether a score is told from a cue, on scores whose AUROC is set by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from guard.stub import prompts
from refusalscope.guard.audit.changes import Remarked
from refusalscope.guard.audit.verdict import Cues, judge_cues, verdict_table

APART, LEANS, CANNOT = "told apart", "told apart, but leans on it", "cannot be told from it"
NAMES = ("as_is", "stripped", "period", "question")


def scores(area: float, n: int) -> np.ndarray:
    """Scores of n harmful, then n harmless prompts with this AUROC: normal quantiles, moved apart."""
    quantiles = norm.ppf((np.arange(n) + 0.5) / n)
    return np.concatenate([quantiles + np.sqrt(2) * norm.ppf(area), quantiles[::-1]])


def remarked(areas: tuple[float, ...], n: int, one_token: tuple[str, ...] = ()) -> Remarked:
    side = prompts("harmless", 2 * n, ("",), 0)
    texts = {name: [prompt.text for prompt in side] for name in NAMES}
    tokens = {
        name: ["."] * 2 * n if name in one_token else list(map(str, range(2 * n))) for name in NAMES
    }
    values = {name: scores(area, n) for name, area in zip(NAMES, areas, strict=True)}
    return Remarked(side, np.repeat([True, False], n), texts, values, tokens, {})


def told(found: Remarked, cue: float, name: str, stripped: float | None = None) -> str:
    n = len(found.prompts) // 2
    cues = Cues({name: scores(cue, n)}, {} if stripped is None else {name: scores(stripped, n)})
    if name != "final punctuation":
        cues.as_is["final punctuation"] = scores(0.5, n)
    by_name = {each.name: each.verdict for each in judge_cues(found, cues, seed=0)}
    return by_name[name]


MARKS = {
    "stands at every mark": ((0.9, 0.9, 0.9, 0.9), 100, APART),
    "loses a little": ((0.9, 0.89, 0.9, 0.9), 100, APART),
    "is shown to lose more than 0.02": ((0.9, 0.8, 0.85, 0.9), 100, LEANS),
    "keeps less than half": ((0.95, 0.66, 0.9, 0.9), 100, CANNOT),
    "is at chance at one mark only": ((0.9, 0.9, 0.9, 0.5), 100, CANNOT),
    "keeps more than half and is not shown to be above chance": (
        (0.75, 0.65, 0.75, 0.75),
        25,
        CANNOT,
    ),
    "is not above chance itself": ((0.52, 0.9, 0.9, 0.9), 50, "nothing to tell apart"),
}


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("cue", [0.5, 1.0])
def test_equal_marks_decide_on_the_mark_whatever_it_does_as_prompts_are(name, cue):
    areas, n, expected = MARKS[name]
    cue = min(cue, 0.999)
    assert told(remarked(areas, n), cue, "final punctuation") == expected


@pytest.mark.parametrize(
    ("own", "cue", "n", "expected"),
    [
        (0.9, 0.7, 100, APART),
        (0.9, 0.89, 100, CANNOT),
        (0.8, 0.95, 100, CANNOT),
        (0.97, 0.955, 200, CANNOT),
    ],
    ids=["better", "not shown better", "worse", "better by less than 0.02"],
)
def test_a_text_cue_has_to_be_beaten(own, cue, n, expected):
    assert told(remarked((own,) * 4, n), cue, "words") == expected


def test_beating_a_text_cue_without_marks_is_enough():
    found = remarked((0.99, 0.9, 0.9, 0.9), 100)
    assert told(found, 0.99, "words") == CANNOT
    assert told(found, 0.99, "words", stripped=0.6) == APART
    assert told(found, 0.99, "words", stripped=0.9) == CANNOT


def test_the_last_token_is_held_equal_where_all_prompts_share_one():
    areas = (0.95, 0.5, 0.9, 0.9)
    assert told(remarked(areas, 100, ("period", "question")), 0.95, "last token") == LEANS
    assert told(remarked(areas, 100, ("stripped",)), 0.5, "last token") == CANNOT
    merged = remarked(areas, 100, ("stripped",))
    merged.tokens["stripped"][:10] = ["merged."] * 10
    assert told(merged, 0.5, "last token") == CANNOT
    merged.tokens["stripped"][:11] = ["merged."] * 11
    assert told(merged, 0.5, "last token") == APART
    assert told(remarked(areas, 100), 0.6, "last token") == APART
    assert told(remarked(areas, 100), 0.95, "last token") == CANNOT


def test_the_first_row_is_the_verdict_over_all_cues():
    found = remarked((0.9,) * 4, 100)
    cues = Cues({"words": scores(0.9, 100), "final punctuation": scores(0.9, 100)}, {})
    table = verdict_table(found, judge_cues(found, cues, seed=0), seed=0)
    assert table["name"].tolist() == ["overall", "final punctuation", "words"]
    assert table["verdict"].tolist() == ["cannot be told from the words", APART, CANNOT]
    assert table["reason"][0].startswith("words: AUROC +0.00 (")
    assert table["difference"][1] == pytest.approx(0.4, abs=0.01)
