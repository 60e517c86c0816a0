"""The scoreboard: what it measures on planted circuits, how it resumes, and how its bars are judged."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from refusalscope.cli.app import run
from refusalscope.errors import InputError
from refusalscope.organisms import scoreboard
from refusalscope.organisms.scoreboard import BARS, checks, routing, score_routing
from refusalscope.organisms.scoreboard.bars import judge_bars
from refusalscope.organisms.scoreboard.runner import summary
from refusalscope.runs import open_run

# ../shared/DESIGN.md
CONTRACT = ["organism", "method", "precision", "recall", "auprc", "forwards", "seconds"]
CHEAP = ("direct attribution", "single-head ablation")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """One seed of O1 and of both O2, by two methods; the type-I error from 40 shuffles."""
    out = tmp_path_factory.mktemp("score") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "SHUFFLES", 40)
        return score_routing(
            out, seeds=[0], only=["O1", "O2"], methods=("recommended", "direct attribution")
        )


def test_the_recommended_method_finds_the_circuit_whole_and_direct_attribution_does_not(scored):
    table = scored.table("organisms.scores")
    assert set(CONTRACT) <= set(table.columns)
    assert list(table["case"].unique()) == ["O1", "O2 redundancy=2", "O2 redundancy=3"]
    assert list(table["positives"].unique()) == [7, 8, 9]
    by_method = dict(list(table.groupby("method")))
    ours = by_method["recommended"]
    assert (ours[["precision", "recall"]] == 1).all(axis=None)
    assert ours["auprc"].tolist() == pytest.approx([1, 1, 1])
    assert (ours["claimed"] == ours["positives"]).all()
    assert (ours["gate_rank"] <= 3).all()
    theirs = by_method["direct attribution"]
    assert (theirs["recall"] < 0.6).all()
    assert (theirs["gate_rank"] >= 8).all()
    # What it costs is counted, and more is paid for more.
    assert (ours["forwards"].to_numpy() > 10 * theirs["forwards"].to_numpy()).all()
    assert (table[["forwards", "token_layers", "seconds"]] > 0).all(axis=None)


def test_the_checks_say_whether_the_backups_were_found(scored):
    table = scored.table("organisms.checks").set_index(["case", "check"])["value"]
    for redundancy in (2, 3):
        assert table[f"O2 redundancy={redundancy}", "gate and backups found"] == 1
    assert table["all", "shuffles"] == 40


def test_shuffled_roles_are_claimed_about_as_often_as_alpha_says(scored):
    """Of 40 shuffles at most 7 are claimed falsely where the rate is 5 % (binomial, p > .998)."""
    table = scored.table("organisms.checks").set_index("check")["value"]
    assert 0 <= table["type-I error of the familywise test"] <= 7 / 40


def test_the_type_one_error_counts_every_claim(monkeypatch):
    """Where the shuffled signs are taken off again every effect is real, and every test finds a head."""
    real, seen = checks.max_t_signflip, []

    def unshuffled(table, *args, **kwargs):
        seen.append(table)
        return real(np.abs(table), *args, **kwargs)

    monkeypatch.setattr(checks, "SHUFFLES", 5)
    monkeypatch.setattr(checks, "max_t_signflip", unshuffled)
    found = checks.type_one_error([0, 1])
    assert found == {"type-I error of the familywise test": 1, "shuffles": 10}
    # One sign a pair, drawn anew for every shuffle.
    signs = [np.sign(table / seen[0]) for table in seen[:5]]
    assert all((sign == sign[:, :1]).all() for sign in signs)
    assert len({sign[:, 0].tobytes() for sign in signs}) == 5


def test_means_are_over_the_seeds_that_follow_their_policy(scored):
    table = scored.table("organisms.scores")
    twice = pd.concat([table, table.assign(seed=1, precision=0.5)])
    weak = pd.concat([twice, table.assign(seed=2, precision=0.0, policy=0.4)])
    means = summary(weak)
    assert list(means["case"].unique()) == list(table["case"].unique())
    assert (means["seeds"] == 2).all()
    ours = means[means["method"] == "recommended"]
    assert (ours["precision"] == 0.75).all()


def test_a_stopped_scoreboard_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """O5 has four cases; the second is cut off, and what was scored before is not scored again."""
    what = {"seeds": [0], "only": ["O5"], "methods": CHEAP}
    whole = score_routing(tmp_path / "whole", **what)
    real, built = routing.build, []

    def cut(*args, **options):
        built.append(options["depth"])
        if len(built) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(routing, "build", cut)
    with pytest.raises(KeyboardInterrupt):
        score_routing(tmp_path / "cut", **what)
    again = score_routing(tmp_path / "cut", **what, resume=True)
    assert built == [1, 2, 2, 3, 4]
    for name in whole.tables():
        one, two = whole.table(name), again.table(name)
        pd.testing.assert_frame_equal(
            one.drop(columns="seconds", errors="ignore"),
            two.drop(columns="seconds", errors="ignore"),
        )
    before = len(built)
    score_routing(tmp_path / "cut", **what, resume=True)
    assert len(built) == before


def test_names_that_are_not_there_leave_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"no organism 'O77'.*O1, O10"):
        score_routing(tmp_path / "r", only=["O77"])
    with pytest.raises(InputError, match=r"no method 'guessing'.*direct attribution"):
        score_routing(tmp_path / "r", methods=["guessing"])
    assert not (tmp_path / "r").exists()


def scores_of(**changes) -> pd.DataFrame:
    """Two organisms, two seeds each, all found; `changes` replace whole columns."""
    table = pd.DataFrame(
        {
            "organism": ["O1", "O1", "O2", "O2"],
            "case": ["O1", "O1", "O2 redundancy=2", "O2 redundancy=2"],
            "seed": [0, 1, 0, 1],
            "method": "recommended",
            "barred": True,
            "policy": 1.0,
            "precision": 1.0,
            "recall": 1.0,
        }
    )
    return table.assign(**changes)


def checks_of(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["organism", "case", "seed", "check", "value"])


def judged(scores: pd.DataFrame, *rows: tuple) -> dict[str, tuple[str, float, bool]]:
    table = judge_bars(scores, checks_of(*rows))
    assert list(table.columns) == ["bar", "needed", "measured", "met"]
    return {
        row["bar"]: (row["needed"], row["measured"], row["met"]) for row in table.to_dict("records")
    }


def test_precision_and_recall_are_judged_together_and_by_organism():
    found = judged(scores_of(recall=[1.0, 1.0, 1.0, 0.7]))
    assert found["precision, all barred organisms"] == ("at least 0.95", 1.0, True)
    assert found["recall, all barred organisms"] == ("at least 0.95", pytest.approx(0.925), False)
    assert found["recall, O1"] == ("at least 0.95", 1.0, True)
    assert found["recall, O2"] == ("at least 0.95", pytest.approx(0.85), False)


@pytest.mark.parametrize(
    "left_out", [{"method": "as published"}, {"barred": False}, {"policy": 0.9}], ids=str
)
def test_other_methods_unbarred_organisms_and_weak_models_are_not_judged(left_out):
    both = pd.concat([scores_of(), scores_of(precision=0.0, recall=0.0, **left_out)])
    assert judged(both) == judged(scores_of())
    assert judged(scores_of(**left_out)) == {}


@pytest.mark.parametrize(
    ("organism", "check", "bar", "good", "bad"),
    [
        ("O2", "gate and backups found", "gate and all backups found in O2", (1, 1), (1, 0)),
        ("O10", "no head claimed", "no head claimed in O10", (1, 1), (0, 1)),
        ("O7", "collapse found", "collapse found in O7", (1, 1), (1, 0)),
        ("O7", "rescued", "rescue rate in O7", (1.0, 0.9), (1.0, 0.8)),
        ("O7'", "collapse claimed", "collapse claimed in O7'", (0, 0), (0, 1)),
        (
            "O7'",
            "largest change of a necessity",
            "largest change of a necessity by the prefix of O7'",
            (0.049, 0.05),
            # The mean would pass: the largest is judged.
            (0.01, 0.06),
        ),
    ],
)
def test_each_check_has_its_bar(organism, check, bar, good, bad):
    for values, met in ((good, True), (bad, False)):
        rows = [(organism, organism, seed, check, value) for seed, value in enumerate(values)]
        found = judged(scores_of(method="as published"), *rows)
        assert list(found) == [bar]
        assert found[bar][2] is met


@pytest.mark.parametrize(
    ("rate", "met"), [(0.02, False), (0.03, True), (0.05, True), (0.07, True), (0.08, False)]
)
def test_the_type_one_error_must_be_neither_high_nor_low(rate, met):
    name = "type-I error of the familywise test"
    found = judged(scores_of(), ("all", "all", -1, name, rate))
    assert found[name] == (
        f"{BARS['type-I error, low']} to {BARS['type-I error, high']}",
        rate,
        met,
    )


def test_a_check_of_a_weak_model_counts_for_nothing_and_no_number_meets_no_bar():
    weak = scores_of(policy=[1.0, 1.0, 1.0, 0.5])
    name, bar = "gate and backups found", "gate and all backups found in O2"
    rows = [("O2", "O2 redundancy=2", seed, name, value) for seed, value in ((0, 1.0), (1, 0.0))]
    assert judged(weak, *rows)[bar][1:] == (1.0, True)
    assert judged(scores_of(), *rows)[bar][1:] == (0.5, False)
    missing = ("O2", "O2 redundancy=2", 0, name, float("nan"))
    assert judged(scores_of(), missing)[bar][2] is False


def test_the_command_prints_the_means_and_one_line_a_bar(scored, capsys, monkeypatch):
    monkeypatch.setattr(scoreboard, "score_routing", lambda *args, **kwargs: scored)
    assert run(["organism", "score", "routing", "--only", "O1", "--only", "O2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading, *rows = lines[1:8]
    for word in ("case", "method", "seeds", "precision", "AUPRC", "gate rank", "token-layers"):
        assert word in heading
    assert rows[0].split()[:5] == ["O1", "recommended", "1", "1.000", "1.000"]
    assert "recall, O2: 1.000, needed at least 0.95: met" in lines
    rate = scored.table("organisms.checks").set_index("check")["value"].iloc[-2]
    verdict = "met" if 0.03 <= rate <= 0.07 else "NOT met"
    bar = "type-I error of the familywise test"
    assert f"{bar}: {rate:.3f}, needed 0.03 to 0.07: {verdict}" in lines
    assert lines[-1].startswith("run: ")


def test_the_command_scores_what_it_is_told_and_resumes(tmp_path, capsys, monkeypatch):
    few = partial(score_routing, methods=CHEAP)
    monkeypatch.setattr(scoreboard, "score_routing", few)
    argv = ["organism", "score", "routing", "--seeds", "2", "--only", "O12", "--quiet"]
    argv += ["--out", str(tmp_path / "r")]
    assert run(argv) == 0
    said = capsys.readouterr().out
    table = open_run(tmp_path / "r").table("organisms.scores")
    assert list(table["seed"]) == [0, 0, 1, 1]
    assert set(table["organism"]) == {"O12"}
    assert run(argv) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert run([*argv, "--resume"]) == 0
    assert capsys.readouterr().out == said


def test_weak_models_are_said_to_be_in_no_mean(scored, capsys, monkeypatch):
    class Weak:
        def table(self, name):
            found = scored.table(name)
            return found if "policy" not in found else found.assign(policy=[0.5, 0.5, 1, 1, 1, 1])

    monkeypatch.setattr(scoreboard, "score_routing", lambda *args, **kwargs: Weak())
    assert run(["organism", "score"]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 organisms follow their policy on fewer than 95% of their pairs" in said
    assert "precision, O1:" not in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nope"], ["no suite 'nope'", "routing"]),
        (["routing", "--only", "O77"], ["no organism 'O77'", "O7'"]),
        (["routing", "--seeds", "0"], ["--seeds 0", "1 or more"]),
    ],
    ids=["suite", "organism", "seeds"],
)
def test_a_wrong_word_is_one_sentence(tmp_path, capsys, given, words):
    out = tmp_path / "r"
    assert run(["organism", "score", *given, "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert all(word in message for word in words)
    assert not out.exists()


def test_a_stopped_command_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoreboard, "score_routing", stopped)
    assert run(["organism", "score", "--out", str(tmp_path / "r")]) == 130
    assert "--resume" in capsys.readouterr().err
    assert run(["organism", "score", "--help"]) == 0
    assert "refusalscope organism score" in capsys.readouterr().out.partition("Example")[2]
