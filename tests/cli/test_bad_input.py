"""Whatever a user gets wrong ends in one clear sentence, a non-zero status, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

from children import hear_interrupts
from model import tiny
from refusalscope.cli.app import run
from refusalscope.runs import open_run

EIGHT = [
    f"Tell me about topic number {word}"
    for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]
]


def fails(capsys, argv: list[str], *words: str, status: int = 1) -> str:
    """Run a command line that must fail; return its one sentence."""
    capsys.readouterr()
    assert run(argv) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for word in words:
        assert word in message, message
    return message


def jsonl(path: Path, texts: list[str]) -> str:
    path.write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
    )
    return str(path)


def test_a_missing_model_folder(capsys, tmp_path):
    fails(
        capsys, ["audit", str(tmp_path / "no"), "--out", str(tmp_path / "r")], "there is no folder"
    )
    assert not (tmp_path / "r").exists()


def test_an_unreadable_model_folder(capsys, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{broken")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    fails(capsys, ["audit", str(tmp_path / "m"), "--out", str(tmp_path / "r")], "could not be read")


def test_an_architecture_that_is_not_registered(capsys, tmp_path):
    config = hf.GPT2Config(vocab_size=352, n_embd=32, n_layer=2, n_head=4)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    fails(
        capsys, ["audit", str(tmp_path / "m")], "GPT2LMHeadModel is not a registered architecture"
    )


def test_a_tokenizer_without_a_chat_template(capsys, tmp_path):
    tiny.model("llama").save_pretrained(tmp_path / "m")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "m")
    fails(capsys, ["audit", str(tmp_path / "m")], "no chat template")


def test_a_checkpoint_with_a_pickle(capsys, tmp_path, planted):
    shutil.copytree(planted, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(1)}, tmp_path / "m" / "pytorch_model.bin")
    fails(capsys, ["audit", str(tmp_path / "m")], "pickled weights", "convert them to safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"colour,size\nred,2\n", ["columns", "colour"]),
        (b"", ["empty"]),
        (b'{"id": "1", "text": "fine"}\n{"broken\n', ["line 2"]),
        (b"id,text\n1,\xff\xfe broken\n", ["UTF-8"]),
    ],
    ids=["wrong columns", "empty", "broken line", "not UTF-8"],
)
def test_a_prompt_file_that_cannot_be_used(capsys, tmp_path, planted, content, words):
    bad = tmp_path / ("bad.jsonl" if content.startswith(b"{") else "bad.csv")
    bad.write_bytes(content)
    good = jsonl(tmp_path / "good.jsonl", EIGHT)
    argv = [
        "audit",
        str(planted),
        "--harmful",
        str(bad),
        "--harmless",
        good,
        "--out",
        str(tmp_path / "r"),
    ]
    fails(capsys, argv, *words)
    assert not (tmp_path / "r").exists()


def test_harmful_and_harmless_sets_that_overlap(capsys, tmp_path, planted):
    bad = jsonl(tmp_path / "bad.jsonl", [*EIGHT[:7], "A shared request"])
    good = jsonl(
        tmp_path / "good.jsonl", [text + " and more" for text in EIGHT] + ["a shared request"]
    )
    fails(
        capsys,
        ["audit", str(planted), "--harmful", bad, "--harmless", good],
        "both",
        "take each out",
    )


def test_fewer_than_eight_prompts_on_a_side(capsys, tmp_path, planted):
    bad = jsonl(tmp_path / "bad.jsonl", EIGHT[:5])
    good = jsonl(tmp_path / "good.jsonl", [text + " please" for text in EIGHT])
    fails(
        capsys, ["audit", str(planted), "--harmful", bad, "--harmless", good], "harmful", "5", "8"
    )


def test_one_side_without_the_other(capsys, tmp_path, planted):
    bad = jsonl(tmp_path / "bad.jsonl", EIGHT)
    fails(capsys, ["audit", str(planted), "--harmful", bad], "--harmful and --harmless together")


def test_a_folder_that_holds_another_run_is_left_alone(capsys, quick, tmp_path):
    out = tmp_path / "r"
    assert run([*quick, "--out", str(out)]) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    fails(capsys, [*quick, "--out", str(out)], "already holds a run", "--resume")
    fails(
        capsys,
        [*quick, "--max-kl", "0.3", "--out", str(out), "--resume"],
        "cannot be resumed",
        "max_kl",
    )
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    fails(capsys, [*quick, "--out", str(other)], "not")
    assert (other / "notes.txt").read_text() == "mine"


def test_a_full_disk_loses_nothing_and_the_run_resumes(capsys, quick, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run([*quick, "--out", str(whole)]) == 0
    real, seen = os.replace, []

    def full(source, target):
        if "directions.interventions" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        seen.append(target)
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    fails(capsys, [*quick, "--out", str(cut)], "the disk is full", "--resume")
    monkeypatch.undo()
    assert seen
    assert "directions.candidates" in open_run(cut).tables()
    assert run([*quick, "--out", str(cut), "--resume"]) == 0
    same_tables(whole, cut)


SLOW = """
import os, sys
import refusalscope.studies.directions.study as study
real = study.score_candidates
def tell(*args, **kwargs):
    os.write(1, b"sweep\\n")
    return real(*args, **kwargs)
study.score_candidates = tell
from refusalscope.cli.app import main
main(sys.argv[1:])
"""


def test_ctrl_c_in_the_middle_keeps_what_was_finished(quick, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run([*quick, "--out", str(whole)]) == 0
    job = subprocess.Popen(
        [sys.executable, "-c", SLOW, *quick, "--out", str(cut)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "sweep\n"
    job.send_signal(signal.SIGINT)
    _, message = job.communicate()
    assert job.returncode == 130
    assert "--resume" in message
    assert "Traceback" not in message
    assert open_run(cut).info["status"] == "running"
    assert "prompts" in open_run(cut).tables()
    assert run([*quick, "--out", str(cut), "--resume"]) == 0
    same_tables(whole, cut)
    assert not list(cut.rglob("*.tmp*"))


def same_tables(one: Path, two: Path) -> None:
    a, b = open_run(one), open_run(two)
    assert a.tables() == b.tables()
    for name in a.tables():
        assert a.table(name).equals(b.table(name)), name
    assert a.info["cost"]["token_layers"] == b.info["cost"]["token_layers"]


def test_wrong_commands_and_options(capsys):
    fails(capsys, ["aduit"], "Unknown command", "audit")
    fails(capsys, ["audit", "--nope", "1"], "--nope")
    fails(capsys, ["audit", "--preset", "nope"], "preset")
    fails(capsys, ["directions", "--max-kl", "-1"], "max_kl")
    fails(capsys, ["organism", "train", "nope", "--out", "x"], "no recipe")
    fails(
        capsys,
        ["organism", "build", "planted-routes", "--variant", "nope", "--out", "x"],
        "no variant",
    )
    fails(
        capsys,
        ["organism", "build", "planted-routes", "--option", "redundancy", "--out", "x"],
        "NAME=NUMBER",
    )
    fails(capsys, ["show", "nowhere"], "not there")


def test_a_fault_of_ours_is_called_one(capsys, monkeypatch):
    import refusalscope.runs

    def broken(path):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(refusalscope.runs, "open_run", broken)
    fails(capsys, ["show", "x"], "a fault of refusalscope", "--debug", status=70)
    assert run(["show", "x", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err
