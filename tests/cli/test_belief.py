"""`refusalscope belief` as a stranger gives it, with whatever can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.stranger import contents, fails, jsonl
from refusalscope.cli.app import run
from refusalscope.organisms.planted import build, save
from refusalscope.prompts import bundled_pairs
from refusalscope.runs import open_run

FEW = ["--wrappers", "prefix", "--n-wrapped", "4", "--steer-rows", "2", "--n-steer", "4"]
FEW += ["--n-random", "0", "--n-invert", "4", "--max-new-tokens", "6", "--n-resamples", "100"]
FEW += ["--quiet"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    """A file of sixty bundled pairs of all categories."""
    rows = [
        {name: getattr(pair, name) for name in ("id", "harmful", "harmless", "category")}
        for k, pair in enumerate(bundled_pairs())
        if k % 16 < 6
    ]
    return jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "base"
    return save(build("planted-routes", "base", seed=1, pairs=64), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pairs) -> tuple[list[str], Path]:
    out = tmp_path_factory.mktemp("runs") / "run"
    argv = ["belief", "builtin:chat", "--pairs", pairs, *FEW, "--out", str(out)]
    assert run(argv) == 0
    return argv, out


def test_a_run_has_its_tables_and_its_report_and_no_path(finished, pairs):
    _, out = finished
    view = open_run(out)
    assert (view.info["status"], view.info["command"]) == ("finished", "belief")
    assert view.info["settings"]["n_wrapped"] == 4
    assert view.info["settings"]["wrappers"] == ["prefix"]
    assert "belief.jailbreaks" in view.tables()
    assert "belief.tuned" not in view.tables()
    for path, data in contents(out).items():
        assert str(Path(pairs).parent).encode() not in data, path.name


def test_a_finished_run_is_not_run_again(finished, capsys):
    argv, out = finished
    before = contents(out)
    capsys.readouterr()
    assert run([*argv, "--resume"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("report.html")
    assert contents(out) == before
    fails(capsys, argv, "already holds a run", "--resume")
    changed = [*argv, "--resume", "--min-category", "4"]
    fails(capsys, changed, "cannot be resumed", "settings.min_category")


def test_a_run_that_is_stopped_tells_how_to_go_on(capsys, tmp_path, pairs, monkeypatch):
    real = os.replace

    def stopped(source, target):
        if "belief.clusters" in str(target):
            raise KeyboardInterrupt
        return real(source, target)

    argv = ["belief", "builtin:chat", "--pairs", pairs, *FEW, "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        fails(capsys, argv, "Stopped", "--resume", status=130)
    assert open_run(tmp_path / "run").has_table("belief.prompts")


def test_help_shows_every_setting_and_an_example(capsys):
    assert run(["belief", "--help"]) == 0
    said = capsys.readouterr().out
    assert "refusalscope belief " in said.partition("Example")[2]
    for option in ("--pairs", "--tuned", "--preset", "zhao2025", "--rows", "--band", "--wrappers"):
        assert option in said, option
    for option in ("--steer-units", "--question", "--n-resamples", "--resume", "--keep-text"):
        assert option in said, option


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--preset", "nope"], ["preset", "'zhao2025'"]),
        (["--rows", "nope"], ["rows", "'with_final'"]),
        (["--wrappers", "nope"], ["no wrapper is called 'nope'"]),
        (["--wrappers", "prefix", "--wrappers", "prefix"], ["'prefix' is named twice"]),
        (["--band", "4", "2"], ["band", "not be after its last"]),
        (["--min-category", "1"], ["min_category"]),
        (["--n-resamples", "10"], ["n_resamples", "100"]),
        (["--steer-scale", "0"], ["steer_scale"]),
        (["--steer-rows", "9"], ["steer_rows names layer 9", "0 to 4"]),
        (["--question", "q9"], ["question", "'q4'"]),
        (["--judge", "nope"], ["no judge 'nope'", "phrases"]),
        (["--seed", "-1"], ["seed"]),
    ],
    ids=lambda value: "-".join(value).lstrip("-") if value and value[0].startswith("--") else "",
)
def test_settings_that_cannot_be(capsys, tmp_path, given, words):
    argv = ["belief", "builtin:chat", *given, "--quiet", "--out", str(tmp_path / "run")]
    sentence = fails(capsys, argv, *words)
    assert "pydantic" not in sentence
    assert not (tmp_path / "run").exists()


def test_prompts_that_cannot_be_used(capsys, tmp_path, pairs):
    out = ["--quiet", "--out", str(tmp_path / "run")]
    argv = ["belief", "builtin:chat", *out]
    fails(capsys, [*argv, "--pairs", str(tmp_path / "none.jsonl")], "does not exist")
    fails(capsys, [*argv, "--harmful", "a.jsonl"], "--harmful and --harmless together")
    more = ["--harmful", "a.jsonl", "--harmless", "b.jsonl"]
    fails(capsys, [*argv, "--pairs", pairs, *more], "either pairs, or harmful and harmless")
    few = [
        {"harmful": f"Take the thing {k}.", "harmless": f"Give the thing {k}."} for k in range(3)
    ]
    fails(capsys, [*argv, "--pairs", jsonl(tmp_path / "few.jsonl", few)], "at least 8")
    long = [
        {"harmful": f"{'a ' * 1100} {k} thing of {word}", "harmless": f"Give me {word} to {k}."}
        for k, word in enumerate(
            ["salt", "wood", "iron", "wool", "glass", "silk", "sand", "milk"] * 2
        )
    ]
    path = jsonl(tmp_path / "long.jsonl", long)
    fails(capsys, [*argv, "--pairs", path], "tokens long, the model takes 1024", "shorten it")
    assert not (tmp_path / "run").exists()


def test_a_tuned_model_that_is_none(capsys, tmp_path, pairs, planted):
    argv = ["belief", "builtin:chat", "--pairs", pairs, "--out", str(tmp_path / "run")]
    fails(capsys, [*argv, "--tuned", str(tmp_path / "none")], "there is no folder")
    words = ["tuned model", "another tokenizer", "fine-tuned from it"]
    fails(capsys, [*argv, "--tuned", str(planted)], *words)
    fails(capsys, [*argv, "--tuned", "builtin:nope"], "no builtin model 'nope'")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_left_alone(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    argv = ["belief", "builtin:chat", "--quiet", "--out", str(tmp_path)]
    fails(capsys, argv, "not empty and is not a run")
    assert contents(tmp_path) == {tmp_path / "notes.txt": b"mine"}


def test_a_planted_model_by_name_has_prompts_and_a_judge_of_its_own(tmp_path):
    out = tmp_path / "run"
    few = [word for word in FEW if word not in ("--wrappers", "prefix")]
    assert run(["belief", "builtin:planted-routes", *few, "--out", str(out)]) == 0
    view = open_run(out)
    assert view.info["settings"]["judge"] == "phrases:planted"
    assert view.info["settings"]["wrappers"] == []
    table = view.table("belief.prompts")
    assert table.groupby("label")["refused"].mean().to_dict() == {"harmful": 1.0, "harmless": 0.0}
