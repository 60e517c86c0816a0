"""The cliff scoreboard: its truth, what methods see, its scores against slow ones, how its bars are judged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest

from organisms import cliff_oracle
from refusalscope.cli.app import run
from refusalscope.cliff import FRACTIONS
from refusalscope.errors import InputError, RunError
from refusalscope.organisms import scoreboard
from refusalscope.organisms.planted import build
from refusalscope.organisms.scoreboard import (
    CLIFF,
    cliff,
    cliff_bench,
    cliff_methods,
    score_cliff,
    score_features,
)
from refusalscope.organisms.scoreboard.bars import CLAIMED, NAMED_SHIFT, judge_bars
from refusalscope.organisms.scoreboard.cliff_bench import set_up
from refusalscope.organisms.scoreboard.cliff_methods import HEADS, RANKINGS, ranked

SUPPRESSORS, STATIC = {(4, 1), (5, 6), (6, 3)}, (3, 0)
BOTH = ["base", "template_shift"]
small = partial(build, pairs=60)


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        settings = cliff_bench.SETTINGS.model_copy(update={"draws": 3, "n_heads": 24})
        patch.setattr(cliff_bench, "SETTINGS", settings)
        yield


@cache
def bench(variant="base"):
    return set_up(small("planted-cliff", variant, seed=0))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """One seed of a cliff and of the template shift, by every method."""
    out = tmp_path_factory.mktemp("score") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cliff, "build", small)
        return score_cliff(out, seeds=[0], only=BOTH)


def with_truth(made, **changes):
    truth = made.planted.truth.model_copy(update=changes)
    return replace(made, planted=replace(made.planted, truth=truth))


def rows_of(scored, case):
    table = scored.table("organisms.scores")
    return table[table["case"] == case].set_index("method")


# Truth


def test_the_truth_is_the_suppressors_and_the_requests_that_they_turn():
    made = bench()
    assert made.acting == SUPPRESSORS
    said = dict(zip((p.id for p in made.subject.prompts), made.work.refused, strict=True))
    assert made.lost == {t.prompt.id for t in made.requests if not said[t.prompt.id]}
    assert len(made.requests) > 40
    assert {trace.prompt.id for trace in made.cases} <= made.lost
    graded = bench("graded")
    weak = {t.id for t in graded.planted.truth.thinking if 0 < t.intensity < 0.5}
    assert weak
    assert not graded.lost & weak
    # Nobody is persuaded here, so that no head has anything to suppress and all requests are looked at.
    shift = bench("template_shift")
    assert not shift.lost
    assert not shift.acting
    assert len(shift.cases) == len(shift.requests)


def test_the_end_token_is_no_answer_and_the_likelier_word_counts():
    """Noise of this seed puts the end token first in many prompts, which leaves replies empty."""
    made = set_up(build("planted-cliff", "two_stage", seed=9, pairs=24))
    replies = made.chat.generate(list(made.subject.rendered), max_new_tokens=1)
    assert not all(made.chat.decode(reply) for reply in replies)
    due = {t.id: t.refused for t in made.planted.truth.thinking}
    said = zip(made.subject.prompts, made.work.refused, strict=True)
    assert all(due[prompt.id] == refused for prompt, refused in said)


def test_the_splits_are_those_of_the_cliff_command():
    assert cliff_bench.FRACTIONS == FRACTIONS


# Methods


def test_the_cliff_is_told_by_contrast_and_by_the_roles_and_the_others_name_more(scored):
    rows = rows_of(scored, "base")
    good = rows.loc[["recommended", "contrast score"]]
    assert (good[["precision", "recall"]] == 1).all(axis=None)
    assert good["auprc"].tolist() == pytest.approx([1, 1])
    assert rows.loc["exact effect", "recall"] == 1
    assert rows.loc["exact effect", "precision"] < 0.8
    # The static head is the next that the uncorrected scores would name; that of the published probe is first.
    assert (rows.loc[["folded score", "published score"], "static_rank"] == 4).all()
    assert rows.loc["as published", "static_rank"] <= 3
    assert rows.loc["as published", "precision"] < 1
    assert (rows.loc[list(HEADS), ["forwards", "token_layers", "seconds"]] > 0).all(axis=None)
    assert rows.loc["recommended", "forwards"] > 10 * rows.loc["contrast score", "forwards"]


def test_a_ranking_takes_the_turned_requests_first_and_random_takes_their_share(scored):
    rows = rows_of(scored, "base")
    k = rows.loc["ranking by final", "positives"]
    assert k > 10
    for by in ("ms_p90", "ms", "final"):
        row = rows.loc[f"ranking by {by}"]
        assert row[["precision", "recall"]].tolist() == [1, 1]
        assert row["auprc"] == pytest.approx(1)
        assert row["claimed"] == k
    assert 0.1 < rows.loc["ranking by random", "precision"] < 0.7
    assert rows.loc["ranking by random", "forwards"] == 0


def test_on_a_template_shift_only_the_corrected_methods_name_nothing(scored):
    claimed = rows_of(scored, "template_shift")["claimed"]
    none = ["recommended", "contrast score", "ranking by ms_p90", "ranking by ms"]
    assert (claimed[none] == 0).all()
    assert (claimed.drop(none) > 0).all()


@pytest.mark.parametrize(
    ("method", "name"), [("published score", "published"), ("folded score", "folded")]
)
def test_the_scores_are_those_of_the_slow_oracle(method, name):
    made = bench()
    rows = [list(trace.rendered.ids) for trace in made.cases]
    probe = cliff_oracle.Probe(made.probe.weight.double().numpy(), made.probe.bias)
    slow = cliff_oracle.head_scores(made.planted.model, rows, probe)[name]
    claim = HEADS[method](made)
    np.testing.assert_allclose(-claim.score, slow, atol=1e-4)
    lowest = np.argsort(slow.ravel())[:3]
    assert claim.heads == {divmod(int(i), 8) for i in lowest}


def test_a_ranking_of_the_parts_is_that_of_the_whole_study():
    made = bench("graded")
    table = made.tables["cliff.prompts"]
    harmful = table[table["label"] == "harmful"]
    for by in ("ms_p90", "final"):
        first = harmful.nsmallest(len(made.lost), f"rank_{by}")["id"]
        assert ranked(made, by).taken == set(first) == made.lost


def test_a_ranking_by_turned_scores_takes_the_others_first(monkeypatch):
    real = cliff_methods.score_probes
    monkeypatch.setattr(
        cliff_methods, "score_probes", lambda *args: [-each for each in real(*args)]
    )
    made = bench()
    k, n = len(made.lost), len(made.requests)
    taken = ranked(made, "final").taken
    assert len(taken) == k
    assert len(taken & made.lost) == max(0, 2 * k - n)


def test_no_method_sees_the_truth():
    made = bench()
    ids = [trace.prompt.id for trace in made.requests]
    other = dict(zip(ids, reversed(ids), strict=True))
    truth = made.planted.truth
    moved = with_truth(
        made,
        heads=tuple(h.model_copy(update={"layer": 7 - h.layer}) for h in truth.heads),
        thinking=tuple(t.model_copy(update={"id": other.get(t.id, t.id)}) for t in truth.thinking),
    )
    assert moved.lost != made.lost
    assert moved.acting != made.acting
    for method in HEADS:
        assert HEADS[method](moved).heads == HEADS[method](made).heads
    for by in RANKINGS.values():
        assert ranked(moved, by).selected == ranked(made, by).selected
        assert ranked(moved, by).taken == ranked(made, by).taken


# Scores


def test_precision_recall_and_the_static_head_are_of_the_planted_places():
    made = bench()
    heads = made.planted.truth.heads
    row, static = cliff._named(made, "published score")
    assert (row["precision"], row["recall"], row["static_rank"], static) == (1, 1, 4, 0)
    # A suppressor is said to be static and the static head a suppressor.
    swap = {STATIC: "suppressor", (4, 1): "static"}
    roles = [swap.get((h.layer, h.head), h.role) for h in heads]
    named = tuple(h.model_copy(update={"role": r}) for h, r in zip(heads, roles, strict=True))
    row, static = cliff._named(with_truth(made, heads=named), "published score")
    assert row["precision"] == row["recall"] == pytest.approx(2 / 3)
    assert row["auprc"] < 1
    assert row["static_rank"] <= 3
    assert static == 1


def test_the_checks_say_what_the_study_says(scored):
    table = scored.table("organisms.checks").set_index(["case", "check"])["value"]
    assert table["base", CLAIMED] == 1
    assert table["base", NAMED_SHIFT] == 0
    assert table["base", "restored without top heads"] == 1
    assert table["base", "restored without random heads"] < 0.3
    assert table["base", "share of cases that drop"] == 1
    assert table["template_shift", CLAIMED] == 0
    assert table["template_shift", NAMED_SHIFT] == 1
    # What fools a probe that is not calibrated by position.
    assert table["template_shift", "MS of benign traces, uncalibrated"] > 0.8
    assert table["template_shift", "MS_p90 of benign traces"] < 0.2
    assert ("template_shift", "restored without top heads") not in table


# Bars and command


def test_one_seed_meets_every_bar_and_the_bars_are_these(scored):
    judged = judge_bars(scored.table("organisms.scores"), scored.table("organisms.checks"), "cliff")
    assert judged["met"].all()
    measures = (
        "precision",
        "recall",
        "precision of contrast score",
        "recall of contrast score",
        "precision of ranking by ms_p90",
        "precision of ranking by final",
    )
    assert set(judged["bar"]) == {
        *(f"{measure}, {of}" for measure in measures for of in ("all barred organisms", "base")),
        *(f"{CLAIMED}, {variant}" for variant in BOTH),
        f"{NAMED_SHIFT}, template_shift",
        "static head named, recommended, base",
        "static head named, contrast score, base",
    }


def test_a_claim_on_the_template_shift_and_a_request_ranked_wrongly_break_their_bars(scored):
    scores, checks = scored.table("organisms.scores"), scored.table("organisms.checks")
    worse = checks.copy()
    shift = worse["case"] == "template_shift"
    worse.loc[shift & (worse["check"] == CLAIMED), "value"] = 0.1
    worse.loc[worse["check"] == "static head named, contrast score", "value"] = 0.1
    lower = scores.copy()
    lower.loc[lower["method"] == "ranking by final", "precision"] = 0.99
    lower.loc[lower["method"] == "contrast score", "recall"] = 0.9
    judged = judge_bars(lower, worse, "cliff")
    assert set(judged.loc[~judged["met"], "bar"]) == {
        "recall of contrast score, all barred organisms",
        "recall of contrast score, base",
        "precision of ranking by final, all barred organisms",
        "precision of ranking by final, base",
        "cliff claimed, template_shift",
        "static head named, contrast score, base",
    }


def test_the_command_prints_one_table_and_one_line_a_bar(scored, capsys, monkeypatch):
    monkeypatch.setattr(scoreboard, "score_cliff", lambda *args, **kwargs: scored)
    assert run(["organism", "score", "cliff"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for word in ("case", "method", "precision", "static rank", "as selected", "forwards"):
        assert word in lines[1]
    assert lines[2].split()[:6] == ["base", "recommended", "1", "1.000", "1.000", "1.000"]
    assert "cliff claimed, template_shift: 0.000, needed at most 0: met" in lines
    assert lines[-1].startswith("run: ")


def test_a_stopped_scoreboard_goes_on_where_it_stopped_and_another_suite_may_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cliff, "cliff_checks", lambda bench: {"heads": bench.chat.anatomy.n_heads})
    what = {
        "seeds": [0],
        "only": ["template_shift", "within_thinking"],
        "methods": ("published score", "ranking by ms"),
    }
    monkeypatch.setattr(cliff, "build", small)
    whole = score_cliff(tmp_path / "whole", **what)
    built = []

    def cut(kind, variant, **options):
        built.append(variant)
        if len(built) == 2:
            raise KeyboardInterrupt
        return small(kind, variant, **options)

    monkeypatch.setattr(cliff, "build", cut)
    with pytest.raises(KeyboardInterrupt):
        score_cliff(tmp_path / "cut", **what)
    with pytest.raises(RunError):
        score_features(tmp_path / "cut", seeds=[0], only=["base"], resume=True)
    again = score_cliff(tmp_path / "cut", **what, resume=True)
    assert built == ["template_shift", "within_thinking", "within_thinking"]
    for name in whole.tables():
        one, other = (each.table(name) for each in (whole, again))
        assert len(one)
        pd.testing.assert_frame_equal(
            one.drop(columns="seconds", errors="ignore"),
            other.drop(columns="seconds", errors="ignore"),
        )


def test_names_that_are_not_there_leave_no_folder(tmp_path, capsys):
    assert [case.name for case in CLIFF][:2] == ["base", "graded"]
    with pytest.raises(InputError, match=r"no organism 'O1'.*base, graded"):
        score_cliff(tmp_path / "r", only=["O1"])
    with pytest.raises(InputError, match=r"no method 'guessing'.*ranking by final"):
        score_cliff(tmp_path / "r", methods=["guessing"])
    assert not (tmp_path / "r").exists()
    assert run(["organism", "score", "nope"]) == 1
    assert "there is one for routing, features, cliff" in capsys.readouterr().err
