"""`refusalscope cliff`, `cliff rank` and `repair` as a stranger gives them, with whatever can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import refusalscope.front
from cli.stranger import contents, fails, jsonl
from refusalscope import repair as front
from refusalscope.cli.app import run
from refusalscope.front import default_traces
from refusalscope.organisms.planted import build, save
from refusalscope.organisms.reasoner import pool as reasoner
from refusalscope.organisms.reasoner.pool import reasoner_pool
from refusalscope.organisms.reasoner.traces import is_persuaded
from refusalscope.runs import open_run
from refusalscope.studies.cliff.training_file import read_rows

FEW = ["--n-flips", "200", "--n-heads", "16", "--draws", "2", "--shares", "0.05"]
FEW += ["--max-new-tokens", "2", "--quiet"]
RANK = ["--k", "4", "--max-new-tokens", "6", "--quiet"]


def rows(prompts) -> list[dict]:
    names = ("id", "text", "label", "category", "thinking")
    return [{name: getattr(prompt, name) for name in names} for prompt in prompts]


@pytest.fixture(autouse=True, scope="module")
def few_prompts():
    """A planted model by name comes with 160 prompts, not 640."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusalscope.front, "PLANTED_PAIRS", 40)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A planted model in a folder."""
    folder = tmp_path_factory.mktemp("planted") / "base"
    return save(build("planted-cliff", "base", pairs=40), folder)


@pytest.fixture(scope="module")
def traces() -> list[dict]:
    return rows(default_traces("builtin:planted-cliff"))


@pytest.fixture(scope="module")
def thoughts(tmp_path_factory) -> str:
    """A file of traces of the reasoner, eight of every kind."""
    kinds: dict[str, list] = {}
    for prompt in default_traces("builtin:reasoner"):
        kinds.setdefault(prompt.id.rpartition("-")[0], []).append(prompt)
    few = [prompt for mine in kinds.values() for prompt in mine[:8]]
    return jsonl(tmp_path_factory.mktemp("traces") / "traces.jsonl", rows(few))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, saved, traces) -> tuple[list[str], Path]:
    """A run on a model of a folder and a file of traces, and its command line."""
    folder = tmp_path_factory.mktemp("runs")
    given = ["--traces", jsonl(folder / "traces.jsonl", traces), "--judge", "phrases:planted"]
    argv = ["cliff", str(saved), *given, *FEW, "--out", str(folder / "run")]
    assert run(argv) == 0
    return argv, folder / "run"


def test_a_model_and_traces_of_files_give_a_run_with_its_report(finished, saved):
    _, out = finished
    view = open_run(out)
    assert view.info["status"] == "finished"
    assert view.info["command"] == "cliff"
    assert view.info["settings"]["draws"] == 2
    assert set(view.table("cliff.verdict")["verdict"]) == {"cliff"}
    assert (out / "report.html").is_file()
    for path, data in contents(out).items():
        assert str(saved.parent).encode() not in data, path.name


def test_a_finished_run_is_not_run_again_and_says_what_it_found(finished, capsys):
    argv, out = finished
    loud = [word for word in argv if word != "--quiet"]
    before = contents(out)
    capsys.readouterr()
    assert run([*loud, "--resume"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("report.html")
    assert contents(out) == before
    fails(capsys, argv, "already holds a run", "--resume")
    fails(capsys, [*argv, "--resume", "--floor", "0.1"], "cannot be resumed", "settings.floor")


# Help

HELP = {
    "cliff": ["--traces", "--preset", "yin2025", "--nulls", "--renorm", "--shares", "--resume"],
    "cliff rank": ["--pool", "--traces", "--rank-by", "--floor", "--quota", "--loss", "--device"],
    "repair": [
        "--pool",
        "--against",
        "--learning-rate",
        "--max-over-refusal",
        "--export",
        "--device",
    ],
}


@pytest.mark.parametrize("command", HELP)
def test_help_shows_every_setting_and_an_example(capsys, command):
    assert run([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"refusalscope {command} " in said.partition("Example")[2]
    for option in HELP[command]:
        assert option in said, option
    assert "oracle" not in said


# Traces


def broken(capsys, tmp_path, changed: list[dict], *words: str, command="cliff") -> None:
    """Traces that cannot be used: one sentence, and no folder of a run."""
    path, out = jsonl(tmp_path / "t.jsonl", changed), tmp_path / "run"
    pool = ["--pool", path] if command != "cliff" else []
    argv = [*command.split(), "builtin:planted-cliff", "--traces", path, *pool]
    fails(capsys, [*argv, "--quiet", "--out", str(out)], *words)
    assert not out.exists()


SPANS = {
    "unclosed": ("<think>{}", ["holds the mark <think>", "leave out traces that never close"]),
    "closed twice": ("{} </think> w1", ["holds the mark </think>", "only the text between"]),
    "other marks": ("[THINK]{}", ["holds the mark [THINK]"]),
    "too long": ("{0} " * 50, ["tokens long, the model takes 1024", "shorten it"]),
    "empty": ("", ["empty or missing (1 of 160 prompts)", "leave such prompts out"]),
    "blank": (" \n ", ["empty or missing (1 of 160 prompts)"]),
}


@pytest.mark.parametrize("command", ["cliff", "cliff rank", "repair"])
@pytest.mark.parametrize("kind", SPANS)
def test_a_span_of_thinking_that_cannot_be_used(capsys, tmp_path, traces, kind, command):
    thinking, words = SPANS[kind]
    changed = [{**traces[5], "thinking": thinking.format(traces[5]["thinking"])}]
    broken(
        capsys,
        tmp_path,
        [*traces[:5], *changed, *traces[6:]],
        traces[5]["id"],
        *words,
        command=command,
    )


@pytest.mark.parametrize("command", ["cliff", "cliff rank", "repair"])
def test_traces_without_labels(capsys, tmp_path, traces, command):
    one = [{**traces[0], "label": None}, *traces[1:]]
    broken(capsys, tmp_path, one, traces[0]["id"], "give every trace a label", command=command)
    none = [{k: v for k, v in row.items() if k != "label"} for row in traces]
    broken(capsys, tmp_path, none, "harmful side has 0", "at least 8", command=command)
    broken(capsys, tmp_path, traces[:6], "at least 8 are needed", command=command)


def test_a_model_that_closes_no_thinking(capsys, tmp_path, traces):
    """The planted model has 64 words, and begins no span on its own."""
    bare = [{k: v for k, v in row.items() if k != "thinking"} for row in traces]
    broken(capsys, tmp_path, bare, "none of 160 prompts has thinking that is closed")


@pytest.mark.parametrize("command", ["cliff", "cliff rank", "repair"])
def test_a_model_without_a_span_of_thinking(capsys, tmp_path, thoughts, command):
    out = tmp_path / "run"
    more = ["--pool", thoughts] if command != "cliff" else []
    argv = [*command.split(), "builtin:chat", *more, "--quiet", "--out", str(out)]
    fails(capsys, argv, "no traces were given", "--traces")
    fails(capsys, [*argv, "--traces", thoughts], "builtin:chat has no span of thinking", "<think>")
    assert not out.exists()


def test_traces_and_prompts_both_given(capsys, tmp_path, thoughts):
    argv = ["cliff", "builtin:planted-cliff", "--traces", thoughts, "--out", str(tmp_path / "run")]
    more = [["--pairs", "p.jsonl"], ["--harmful", "a.jsonl", "--harmless", "b.jsonl"]]
    for each in more:
        fails(capsys, [*argv, *each], "either traces, or prompts to think about, not both")
    fails(
        capsys, [*argv[:2], *argv[4:], "--harmful", "a.jsonl"], "--harmful and --harmless together"
    )
    missing = [*argv[:3], str(tmp_path / "none.jsonl"), *argv[4:]]
    fails(capsys, missing, "does not exist")
    assert not (tmp_path / "run").exists()


# Settings


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("cliff", ["--nulls", "19"], ["nulls", "20"]),
        ("cliff", ["--n-flips", "99"], ["n_flips", "100"]),
        ("cliff", ["--shares", "1.5"], ["shares"]),
        ("cliff", ["--renorm", "nope"], ["renorm", "'official_batch'"]),
        ("cliff", ["--preset", "nope"], ["preset", "'yin2025'"]),
        ("cliff", ["--seed", "-1"], ["seed"]),
        ("cliff", ["--judge", "nope"], ["no judge 'nope'", "phrases"]),
        ("cliff rank", ["--k", "0"], ["k:", "1"]),
        ("cliff rank", ["--rank-by", "oracle"], ["rank_by", "'ms_p90'"]),
        ("cliff rank", ["--dtype", "int3"], ["unknown dtype 'int3'", "bfloat16"]),
        ("repair", ["--device", "abacus"], ["no device 'abacus'", "cpu"]),
        ("repair", ["--against", "oracle"], ["against", "'random'"]),
        ("repair", ["--learning-rate", "0"], ["learning_rate"]),
        ("repair", ["--seed", "-1"], ["seed"]),
        ("repair", ["--quota", "2"], ["quota"]),
    ],
    ids=lambda value: "-".join(value).lstrip("-") if value and value[0].startswith("--") else "",
)
def test_settings_that_cannot_be(capsys, tmp_path, command, given, words):
    loaded = {"--dtype", "--device"} & set(given)
    model = "builtin:reasoner" if loaded else "builtin:planted-cliff"
    argv = [*command.split(), model, *given, "--out", str(tmp_path / "run")]
    sentence = fails(capsys, argv, *words)
    assert "pydantic" not in sentence
    assert not (tmp_path / "run").exists()


def test_a_model_that_there_is_not(capsys, tmp_path):
    argv = ["cliff", "builtin:planted-cliff:nope", "--out", str(tmp_path / "run")]
    fails(capsys, argv, "no model 'builtin:planted-cliff:nope'", "builtin:planted-cliff:graded")
    assert not (tmp_path / "run").exists()


# Pools


def test_a_pool_with_nothing_to_repair(capsys, tmp_path, thoughts):
    # All of them are refused: nobody persuades the model.
    safe = [prompt for prompt in reasoner_pool(40) if not is_persuaded(prompt.thinking)][:12]
    pool, out = jsonl(tmp_path / "pool.jsonl", rows(safe)), tmp_path / "run"
    argv = ["repair", "builtin:reasoner", "--traces", thoughts, "--pool", pool, *RANK]
    fails(capsys, [*argv, "--out", str(out)], "the pool has nothing to repair", "12 prompts")
    assert not out.exists()


@pytest.mark.parametrize("command", ["cliff rank", "repair"])
def test_a_pool_that_is_missing_or_that_the_model_is_measured_on(capsys, tmp_path, traces, command):
    argv = [*command.split(), "builtin:planted-cliff", "--quiet", "--out", str(tmp_path / "run")]
    fails(capsys, argv, "no pool was given", "--pool")
    pool = jsonl(tmp_path / "pool.jsonl", [row for row in traces if row["label"] == "harmful"])
    fails(capsys, [*argv, "--pool", pool], "every prompt of the pool is nearly one of the traces")
    assert not (tmp_path / "run").exists()


def test_a_ranking_says_where_its_training_file_is(capsys, tmp_path, thoughts, monkeypatch):
    monkeypatch.setattr(reasoner, "PERSUADED_SHARE", 0.5)
    pool = jsonl(tmp_path / "pool.jsonl", rows(reasoner_pool(20)))
    out = tmp_path / "run"
    argv = ["cliff", "rank", "builtin:reasoner", "--traces", thoughts, "--pool", pool, *RANK]
    capsys.readouterr()
    assert run([*argv, "--out", str(out)]) == 0
    assert f"training file: {out / 'train.jsonl'}" in capsys.readouterr().out
    taken = open_run(out).table("repair.selection")
    assert [row.prompt.id for row in read_rows(out / "train.jsonl")] == taken["id"].tolist()
    assert len(taken) >= 2


# Folders that hold something


@pytest.mark.parametrize("command", ["cliff", "cliff rank", "repair"])
def test_a_folder_that_holds_something_is_left_alone(capsys, tmp_path, finished, thoughts, command):
    held = contents(finished[1])
    more = ["--pool", jsonl(tmp_path / "pool.jsonl", rows(reasoner_pool(4)))]
    argv = [*command.split(), "builtin:reasoner", "--traces", thoughts, "--quiet"]
    argv += more if command != "cliff" else []
    said = fails(capsys, [*argv, "--out", str(finished[1])], "already holds a run of 'cliff'")
    assert ("--resume" in said) == (command == "cliff")
    assert contents(finished[1]) == held
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    fails(capsys, [*argv, "--out", str(other)], "not empty and is not a run")
    assert contents(other) == {other / "notes.txt": b"mine"}


def test_an_export_goes_into_a_new_folder_and_is_asked_for_before_any_work(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(front, "load_patient", lambda *_: pytest.fail("work was begun"))
    model, out = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    (model / "notes.txt").write_text("mine")
    argv = ["repair", "builtin:reasoner", "--out", str(out), "--export"]
    fails(capsys, [*argv, str(model)], "holds files already", "new folder")
    fails(capsys, [*argv, str(model / "notes.txt")], "holds files already")
    fails(capsys, [*argv, str(out)], "name another folder for the model")
    assert contents(tmp_path) == {model / "notes.txt": b"mine"}
    assert not out.exists()


# Stopping


def stop_at(monkeypatch, name: str) -> None:
    real = os.replace

    def stopped(source, target):
        if name in str(target):
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(os, "replace", stopped)


def test_a_run_that_is_stopped_tells_how_to_go_on(capsys, tmp_path, monkeypatch):
    out = tmp_path / "run"
    argv = ["cliff", "builtin:planted-cliff", *FEW, "--out", str(out)]
    with monkeypatch.context() as patch:
        stop_at(patch, "cliff.heads")
        fails(capsys, argv, "Stopped", "--resume", status=130)
    view = open_run(out)
    assert view.info["status"] == "running"
    assert view.has_table("cliff.verdict")
    assert not view.has_table("cliff.heads")
    fails(capsys, argv, "already holds a run", "--resume")
    assert run([*argv, "--resume"]) == 0
    assert open_run(out).info["status"] == "finished"


@pytest.mark.parametrize("command", ["cliff rank", "repair"])
def test_what_cannot_go_on_says_nothing_of_it_and_leaves_nothing(
    capsys, tmp_path, thoughts, monkeypatch, command
):
    out = tmp_path / "run"
    pool = jsonl(tmp_path / "pool.jsonl", rows(reasoner_pool(20)))
    argv = [*command.split(), "builtin:reasoner", "--traces", thoughts, "--pool", pool, *RANK]
    stop_at(monkeypatch, "prompts.parquet")
    sentence = fails(capsys, [*argv, "--out", str(out)], "Stopped.", status=130)
    assert "--resume" not in sentence
    assert not out.exists()
