"""The controls beside belief against loops that read one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from refusalscope.progress import Silent
from refusalscope.prompts import Prompt
from refusalscope.studies.directions.belief_shortcuts import (
    LAST_WORD,
    MARKS,
    OTHER,
    control_frame,
    marks_table,
    other_marks,
    shortcut_table,
)
from refusalscope.studies.directions.belief_work import fit_centroids
from studies.directions.belief_case import (
    cosine,
    fit_rows,
    slow_deltas,
    slow_means,
    states,
    work,
)

ENDS = {"no mark": "", "full stop": ".", "question mark": "?"}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return work(tmp_path_factory.mktemp("shortcuts"))


@pytest.fixture(scope="module")
def prompts(mine) -> pd.DataFrame:
    rows = mine.subject.table.iloc[mine.report][["id", "label", "category"]]
    deltas = [
        slow_deltas(mine.chat, each, mine.means, mine.rows)[0]
        for each in mine.subject.take(mine.report)
    ]
    return rows.reset_index(drop=True).assign(delta_harmful=deltas)


@pytest.fixture(scope="module")
def controls(mine, prompts) -> pd.DataFrame:
    return control_frame(mine, prompts, *fit_rows(mine.subject))


def test_every_prompt_gets_every_other_end():
    given = [Prompt("a", "Open the door?"), Prompt("b", "Bake bread")]
    found = [(each.id, each.text) for each in other_marks(given)]
    assert found == [
        (given[k].id, text + end)
        for end in ENDS.values()
        for k, text in enumerate(("Open the door", "Bake bread"))
    ]
    assert list(OTHER) == list(ENDS)


def test_other_ends_have_the_belief_of_a_loop(mine, controls):
    for i, (_, row) in zip(mine.report, controls.iterrows(), strict=True):
        assert row["id"] == mine.subject.prompts[i].id
        for mark, end in ENDS.items():
            (ended,) = mine.chat.render([Prompt("one", mine.subject.prompts[i].text + end)])
            slow, _ = slow_deltas(mine.chat, ended, mine.means, mine.rows)
            assert row[mark] == pytest.approx(slow, abs=1e-5)


def test_the_last_word_is_read_by_centroids_of_its_own(mine, prompts):
    asked = tuple(replace(prompt, text=f"{prompt.text}?") for prompt in mine.subject.prompts)
    rendered = tuple(mine.chat.render(asked))
    subject = replace(mine.subject, prompts=asked, rendered=rendered)
    fit = [subject.take(rows) for rows in fit_rows(subject)]
    other = replace(mine, subject=subject, means=fit_centroids(mine.chat, *fit, Silent()))
    controls = control_frame(other, prompts, *fit_rows(other.subject))
    towards, away = slow_means(other, "instruction_last_word")
    for i, (_, row) in zip(other.report, controls.iterrows(), strict=True):
        word = rendered[i].anchor("instruction_last_word")
        assert word < rendered[i].anchor("instruction_last")
        at = states(other.chat, rendered[i].ids)[:, word]
        s = [cosine(at[r], towards[r]) - cosine(at[r], away[r]) for r in other.rows]
        assert row[LAST_WORD] == pytest.approx(np.mean(s), abs=1e-5)


def test_the_table_holds_belief_its_controls_and_every_cue(mine, controls):
    table = shortcut_table(mine, controls).set_index("name")
    harmful = controls["label"] == "harmful"
    for name, column in (
        ("belief (delta_harmful)", "as is"),
        ("belief at the last word", LAST_WORD),
        ("belief, prompts ending in full stop", "full stop"),
    ):
        assert table.loc[name, "auroc"] == pytest.approx(roc_auc_score(harmful, controls[column]))
    cues = {"final punctuation", "last word", "length in words", "character n-grams", "words"}
    assert set(table.index[5:]) == cues


def test_a_score_that_is_the_mark_is_said_to_be_one(mine, controls):
    """Harmful prompts alone end in a word, and the score says no more than that."""

    def marked(prompt: Prompt) -> Prompt:
        return prompt if prompt.label == "harmful" else replace(prompt, text=prompt.text + ".")

    ended = tuple(marked(prompt) for prompt in mine.subject.prompts)
    other = replace(mine, subject=replace(mine.subject, prompts=ended))
    by_mark = controls.assign(**{"as is": (controls["label"] == "harmful").astype(float)})
    table = shortcut_table(other, by_mark).set_index("name")
    assert table.loc["final punctuation", "auroc"] == 1
    assert table.loc["final punctuation", "verdict"].startswith("as good as belief")


def test_marks_are_means_by_label_with_the_spread_of_one_prompt(mine, controls):
    table = marks_table(mine, controls)
    assert list(zip(table["label"], table["mark"], strict=True)) == [
        (label, mark) for label in ("harmful", "harmless") for mark in MARKS
    ]
    for _, row in table.iterrows():
        part = controls[controls["label"] == row["label"]]
        assert row["n"] == len(part)
        assert row["mean"] == pytest.approx(part[row["mark"]].mean())
        assert row["low"] <= row["mean"] <= row["high"]
        ranges = [
            max(row[m] for m in MARKS) - min(row[m] for m in MARKS) for _, row in part.iterrows()
        ]
        assert row["spread"] == pytest.approx(np.mean(ranges))
        assert 0 < row["spread_low"] <= row["spread"] <= row["spread_high"]
