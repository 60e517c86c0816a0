"""`refusalscope guard fit|card|score|drift` as a stranger gives them, with whatever can be wrong.

`guard serve` is tested as a process in tests/guard/test_serve_process.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cli.stranger import contents, fails, jsonl
from refusalscope.cli.app import run
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.model import ChatModel
from refusalscope.prompts import bundled_pairs, read_prompts
from refusalscope.runs import open_run

SHORT = ["--max-new-tokens", "6", "--reply-tokens", "6", "--quiet"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    """Labelled prompts that the guard was not fitted on in these tests' sense: any will do."""
    rows = [
        {"id": p.id, "text": p.text, "label": p.label, "category": p.category, "source": "mine"}
        for pair in bundled_pairs()[:60]
        for p in pair.prompts()
    ]
    return jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    wanted = ("skip the fare", "copy the exam", "spoil the broth", "hide the bill")
    rows = [{"text": f"Help me {what} at the harvest fair", "label": "harmful"} for what in wanted]
    # It stands in the bundled pairs, so it must not be learnt from.
    rows.append({"text": bundled_pairs()[0].harmful, "label": "harmful"})
    return jsonl(tmp_path_factory.mktemp("own") / "own.jsonl", rows)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, own) -> Path:
    out = tmp_path_factory.mktemp("guards") / "run"
    argv = ["guard", "fit", "builtin:chat", "--augment", own, *SHORT, "--out", str(out)]
    assert run(argv) == 0
    return out


@pytest.fixture(scope="module")
def scored(tmp_path_factory, fitted, prompts) -> Path:
    out = tmp_path_factory.mktemp("scores") / "run"
    argv = ["guard", "score", str(fitted / "guard"), "--prompts", prompts, "--out", str(out)]
    assert run([*argv, "--quiet"]) == 0
    return out


TABLES = {
    *("scores", "metrics", "roc", "layers", "points", "rates", "shortcuts", "verdict", "sources"),
    *("variants", "wrappers", "monitor", "augmented"),
}


def test_a_fit_leaves_a_run_a_guard_and_a_card(fitted, own, capsys):
    view = open_run(fitted)
    assert {f"guard.{name}" for name in TABLES} <= set(view.tables())
    assert (view.info["command"], view.info["status"]) == ("guard fit", "finished")
    assert {path.name for path in (fitted / "guard").iterdir()} == {
        *("guard.json", "guard.safetensors", "card.html", "card.md")
    }
    assert "Belief guard" in (fitted / "report.html").read_text()
    texts = [pair.harmful for pair in bundled_pairs()]
    for path, data in contents(fitted).items():
        assert str(Path(own).parent).encode() not in data, path.name
        assert not any(text.encode() in data for text in texts), path.name
    assert view.info["cost"]["forwards"] > 0
    record = json.loads((fitted / "guard" / "guard.json").read_text())
    left = [text for text in view.info["warnings"] if "examples of your own are nearly" in text]
    assert record["augmented"]["n"] == 5 - len(left)
    assert view.table("guard.augmented")["n"].tolist() == [48] * 4
    monitor = view.table("guard.monitor")
    assert monitor["kind"].tolist() == ["benign"] * 3 + ["harmful, opened", "benign, opened"]


def test_the_same_command_gives_the_same_guard(fitted, own, tmp_path):
    out = tmp_path / "run"
    argv = ["guard", "fit", "builtin:chat", "--augment", own, *SHORT, "--out", str(out)]
    assert run(argv) == 0
    for name in ("guard.json", "guard.safetensors", "card.md"):
        assert (out / "guard" / name).read_bytes() == (fitted / "guard" / name).read_bytes()


def test_a_score_is_that_of_the_guard_in_python(scored, fitted, prompts):
    table = open_run(scored).table("guard.scores")
    guard = BeliefGuard.load(fitted / "guard", ChatModel.load("builtin:chat"))
    expected = guard.decision_function(read_prompts(prompts))
    assert table["delta_harmful"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert {"guard.metrics", "guard.points", "guard.rates"} <= set(open_run(scored).tables())


def test_scored_prompts_are_of_no_split_and_still_shown(scored, fitted):
    """Some of them were fitted or calibrated on, which the run cannot know and so must not deny."""
    view, fit = open_run(scored), open_run(fitted)
    assert set(view.table("guard.scores")["split"]) == {"scored"}
    assert set(view.table("guard.points")["set"]) == {"calibration", "scored"}
    assert set(fit.table("guard.scores")["split"]) == {"report"}
    page = (scored / "report.html").read_text()
    assert "report split" not in page
    assert "neither fitted nor calibrated on" not in page
    assert "whether they are new to the guard is not known" in page
    assert "figure-guard-plane" in page
    assert "report split" in (fitted / "report.html").read_text()


def test_prompts_without_labels_are_scored_and_not_measured(fitted, tmp_path, capsys):
    path = jsonl(tmp_path / "plain.jsonl", [{"text": "How do I bake bread?"}])
    out = tmp_path / "run"
    argv = ["guard", "score", str(fitted / "guard"), "--prompts", path, "--quiet"]
    assert run([*argv, "--out", str(out)]) == 0
    assert open_run(out).tables() == ["guard.scores"]


def test_one_prompt_of_each_label_is_measured_too(fitted, tmp_path):
    rows = [
        {"text": "How do I bake bread?", "label": "harmless"},
        {"text": "How do I rob a shop?", "label": "harmful"},
    ]
    path, out = jsonl(tmp_path / "two.jsonl", rows), tmp_path / "run"
    argv = ["guard", "score", str(fitted / "guard"), "--prompts", path, "--quiet"]
    assert run([*argv, "--out", str(out)]) == 0
    metrics = open_run(out).table("guard.metrics").set_index("name")
    assert metrics["low"].isna()["auprc"]
    assert (out / "report.html").is_file()


def test_another_guard_stands_beside(scored, fitted, prompts, tmp_path):
    ids = open_run(scored).table("guard.scores")["id"]
    other = tmp_path / "other.csv"
    pd.DataFrame({"id": ids, "score": range(len(ids)), "guard": "counter"}).to_csv(
        other, index=False
    )
    out = tmp_path / "run"
    argv = ["guard", "score", str(fitted / "guard"), "--prompts", prompts, "--against", str(other)]
    assert run([*argv, "--out", str(out), "--quiet"]) == 0
    assert open_run(out).table("guard.against")["guard"].tolist() == ["counter"]
    assert "counter" in (out / "report.html").read_text()


def test_drift_reads_a_run_and_a_log(scored, fitted, tmp_path):
    guard = str(fitted / "guard")
    assert (
        run(
            ["guard", "drift", guard, "--log", str(scored), "--out", str(tmp_path / "a"), "--quiet"]
        )
        == 0
    )
    scores = open_run(scored).table("guard.scores")
    keys = ["id", "delta_harmful", "delta_refuse", "per_layer", "t_inst_class", "flagged"]
    rows = [{**row, "per_layer": list(row["per_layer"])} for row in scores[keys].to_dict("records")]
    log = jsonl(tmp_path / "log.jsonl", rows)
    assert (
        run(["guard", "drift", guard, "--log", log, "--out", str(tmp_path / "b"), "--quiet"]) == 0
    )
    one, other = (open_run(tmp_path / name).table("guard.drift") for name in "ab")
    assert one.equals(other)
    assert "flag rate" in one["measure"].tolist()
    # Another operating point of the server changes nothing: flags are counted anew.
    other = jsonl(tmp_path / "other.jsonl", [{**row, "flagged": True} for row in rows])
    assert (
        run(["guard", "drift", guard, "--log", other, "--out", str(tmp_path / "d"), "--quiet"]) == 0
    )
    assert open_run(tmp_path / "d").table("guard.drift").equals(one)
    moved = [{**row, "delta_harmful": row["delta_harmful"] + 5} for row in rows]
    log = jsonl(tmp_path / "moved.jsonl", moved)
    assert (
        run(["guard", "drift", guard, "--log", log, "--out", str(tmp_path / "c"), "--quiet"]) == 0
    )
    found = open_run(tmp_path / "c").table("guard.drift").set_index("measure")["verdict"]
    assert found["delta_harmful"].startswith("drifted")
    # Nothing is moved by it.
    assert BeliefGuard.load(guard, ChatModel.load("builtin:chat")).point().tau == pytest.approx(
        json.loads((fitted / "guard" / "guard.json").read_text())["calibration"]["points"][0]["tau"]
    )


def test_a_card_is_written_again_from_the_folder_alone(fitted, tmp_path, capsys):
    folder = shutil.copytree(fitted / "guard", tmp_path / "guard")
    before = (folder / "card.html").read_text()
    (folder / "card.html").unlink()
    assert run(["guard", "card", str(folder)]) == 0
    assert "card.md" in capsys.readouterr().out
    assert (folder / "card.html").read_text() == before


HELP = {
    "fit": ["--augment", "--against", "--variant", "--fpr", "--rule", "--preset", "zhao2025"],
    "score": ["--prompts", "--against", "--operating-point", "--device"],
    "serve": ["--host", "--port", "--blocking"],
    "drift": ["--log"],
    "card": ["FOLDER"],
}


@pytest.mark.parametrize("command", HELP)
def test_help_shows_every_option_and_an_example(capsys, command):
    assert run(["guard", command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"refusalscope guard {command} " in said.partition("Example")[2]
    for option in HELP[command]:
        assert option in said, option


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--fpr", "0.01"], ["needs 299 harmless prompts", "748 or more"]),
        (["--fpr", "2"], ["fpr"]),
        (["--variant", "mean"], ["variant", "'centroid'"]),
        (["--rule", "hope"], ["rule", "'conformal'"]),
        (["--judge", "nope"], ["no judge 'nope'"]),
        (["--harmful", "x.csv"], ["harmless", "missing"]),
        (["--augment", "nowhere.csv"], ["nowhere.csv does not exist"]),
        (["--augment", "harmless.jsonl"], ["no usable row", "labelled harmless"]),
        (["--against", "nowhere.csv"], ["nowhere.csv does not exist"]),
    ],
)
def test_a_fit_that_cannot_be_leaves_nothing(capsys, tmp_path, monkeypatch, given, words):
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "harmless.jsonl", [{"text": "How do I bake bread?", "label": "harmless"}])
    fails(capsys, ["guard", "fit", "builtin:chat", *given, *SHORT, "--out", str(out)], *words)
    assert not out.exists()


def test_folders_and_models_that_are_not_the_guards(capsys, tmp_path, fitted, prompts):
    guard, out = str(fitted / "guard"), ["--out", str(tmp_path / "run"), "--quiet"]
    argv = ["guard", "score", "--prompts", prompts, *out]
    fails(capsys, [*argv, str(tmp_path)], "holds no guard.json")
    fails(capsys, [*argv, guard, "--model", "builtin:reasoner"], "fitted to builtin:chat")
    fails(capsys, [*argv, guard, "--operating-point", "fpr=0.5"], "it has fpr=0.05")
    cut = shutil.copytree(guard, tmp_path / "cut")
    (cut / "guard.safetensors").write_bytes((cut / "guard.safetensors").read_bytes()[:100])
    fails(capsys, [*argv, str(cut)], "missing, cut short or changed")
    fails(capsys, ["guard", "card", str(tmp_path)], "holds no guard.json")
    fails(capsys, ["guard", "drift", guard, "--log", str(tmp_path / "no.jsonl"), *out], "is no log")
    foreign = jsonl(tmp_path / "foreign.jsonl", [{"delta_harmful": 0.1, "guard": "abc"}] * 200)
    fails(capsys, ["guard", "drift", guard, "--log", foreign, *out], "scores of another guard")
    words = jsonl(tmp_path / "words.jsonl", [{"delta_harmful": "high", "guard": [1]}] * 200)
    fails(capsys, ["guard", "drift", guard, "--log", words, *out], "scores of another guard")
    words = jsonl(tmp_path / "words.jsonl", [{"delta_harmful": "high"}] * 200)
    fails(capsys, ["guard", "drift", guard, "--log", words, *out], "delta_harmful of the log")
    few = jsonl(tmp_path / "few.jsonl", [{"delta_harmful": 0.1, "delta_refuse": 0.1}])
    fails(
        capsys, ["guard", "drift", guard, "--log", few, *out], "at least 100 rows in the log, got 1"
    )
    assert not (tmp_path / "run").exists()


def test_prompts_that_cannot_be_scored(capsys, tmp_path, fitted):
    guard, out = str(fitted / "guard"), ["--out", str(tmp_path / "run"), "--quiet"]
    blank = jsonl(tmp_path / "blank.jsonl", [{"text": "   "}])
    fails(capsys, ["guard", "score", guard, "--prompts", blank, *out], "no usable row")
    long = jsonl(tmp_path / "long.jsonl", [{"text": "word " * 3000}])
    fails(capsys, ["guard", "score", guard, "--prompts", long, *out], "no prompt fits the context")
    both = jsonl(tmp_path / "both.jsonl", [{"text": "word " * 3000}, {"text": "How are you?"}])
    assert run(["guard", "score", guard, "--prompts", both, *out]) == 0
    view = open_run(tmp_path / "run")
    assert len(view.table("guard.scores")) == 1
    assert "Left out" in view.info["warnings"][0]
