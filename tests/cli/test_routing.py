"""`refusalscope routing` as a stranger gives it: on planted models, with whatever can be wrong about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
import transformers as hf

import refusalscope.front
from cli.stranger import contents, fails, jsonl
from model import tiny
from refusalscope.cli.app import run
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build, tokens
from refusalscope.runs import open_run

CIRCUIT = {(1, 2), (3, 1), (5, 0), (5, 3), (6, 2), (7, 0), (4, 7)}
CONTRACT = {
    "routing.heads": [
        *("layer", "head", "necessity", "necessity_low", "necessity_high", "sufficiency"),
        *("p_familywise", "dla", "role"),
    ],
    "routing.cascade": ["gate", "layer", "head", "change", "low", "high", "p"],
    "routing.dose": ["alpha", "category", "margin", "refused", "low", "high"],
}
# Few flips, doses and null heads: seconds instead of minutes. A tuple is given value by value.
FEW = ["--n-flips", "200", "--window", "1", "--null-heads", "4", "--metrics", "kl"]
FEW += ["--alphas", "0", "--alphas", "1", "--judged-alphas", "0", "--max-new-tokens", "2"]
FULL = [*FEW, "--held", "1", "--n-gates", "1", "--quiet"]
QUICK = [*FEW, "--held", "0", "--n-gates", "0", "--quiet"]


@pytest.fixture(scope="module")
def rows():
    """The 24 prompt pairs of the planted model, as lines of a file."""
    pairs = build("planted-routes", "base", pairs=24).pairs
    return [
        {"id": p.id, "harmful": p.harmful, "harmless": p.harmless, "category": p.category}
        for p in pairs
    ]


@pytest.fixture(autouse=True, scope="module")
def few_pairs():
    """A planted model by name comes with 32 pairs of its own, not 160."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusalscope.front, "PLANTED_PAIRS", 32)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "planted"
    assert run(["routing", "builtin:planted-routes", *FULL, "--out", str(out)]) == 0
    return out


def test_the_planted_circuit_and_nothing_else_is_found(finished):
    heads = open_run(finished).table("routing.heads")
    found = heads[heads["passes"]]
    assert set(zip(found["layer"], found["head"], strict=True)) == CIRCUIT
    roles = found.set_index(["layer", "head"])["role"]
    assert roles[3, 1] == "gate"
    assert roles[4, 7] == "norm-only"


def test_the_tables_of_the_contract_are_there(finished):
    view = open_run(finished)
    for name, columns in CONTRACT.items():
        assert set(columns) <= set(view.table(name).columns), name
    assert (finished / "report.html").is_file()
    assert view.info["command"] == "routing"
    assert view.info["settings"]["alphas"] == [0, 1]
    assert view.info["settings"]["metrics"] == ["kl"]


def test_the_end_of_a_run_says_what_was_found_and_where(finished, capsys):
    loud = [word for word in FULL if word != "--quiet"]
    argv = ["routing", "builtin:planted-routes", *loud, "--out", str(finished), "--resume"]
    before = contents(finished)
    assert run(argv) == 0
    said = capsys.readouterr().out
    assert "L3.H1" in said
    assert said.rstrip().endswith("report.html")
    assert contents(finished) == before


def test_a_full_disk_loses_nothing_and_the_run_resumes(finished, capsys, tmp_path, monkeypatch):
    cut = tmp_path / "cut"
    argv = ["routing", "builtin:planted-routes", *FULL, "--out", str(cut)]
    real = os.replace

    def full(source, target):
        if "routing.drive" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    fails(capsys, argv, "the disk is full", "--resume")
    monkeypatch.undo()
    assert "routing.tests" in open_run(cut).tables()
    assert run([*argv, "--resume"]) == 0
    whole, again = open_run(finished), open_run(cut)
    assert whole.tables() == again.tables()
    for name in whole.tables():
        assert whole.table(name).equals(again.table(name)), name
    assert whole.info["cost"]["token_layers"] == again.info["cost"]["token_layers"]


def test_help_shows_an_example_of_this_command(capsys):
    assert run(["routing", "--help"]) == 0
    said = capsys.readouterr().out
    assert "refusalscope routing " in said.partition("Example")[2]
    for option in ("--against", "--preset", "--resume", "--positions", "--wrappers"):
        assert option in said


def test_the_published_procedure_runs_end_to_end(tmp_path):
    out = tmp_path / "r"
    argv = ["routing", "builtin:planted-routes", "--preset", "frank2026", "--n-flips", "200"]
    argv += ["--candidates", "6", "--interchanged", "4", "--max-new-tokens", "2", "--quiet"]
    assert run([*argv, "--out", str(out)]) == 0
    view = open_run(out)
    assert view.info["settings"]["procedure"] == "published"
    assert view.info["settings"]["positions"] == "compat_left"
    assert (out / "report.html").is_file()


def test_against_another_checkpoint_says_which_heads_moved(tmp_path, rows):
    pairs, out = jsonl(tmp_path / "p.jsonl", rows), tmp_path / "r"
    argv = ["routing", "builtin:planted-routes", "--pairs", pairs]
    argv += ["--against", "builtin:planted-routes:relocated", *QUICK, "--out", str(out)]
    assert run(argv) == 0
    view = open_run(out)
    heads = view.table("routing.moved")
    moved = heads[heads["moved"]]
    (gate,) = build("planted-routes", "relocated").truth.with_role("gate")
    assert set(zip(moved["layer"], moved["head"], strict=True)) == {(3, 1), gate}
    assert view.table("routing.drift")["p"].item() < 0.05
    assert view.info["against"]["id"] == "builtin:planted-routes:relocated"


def test_equal_members_and_unequal_lengths_are_said_and_the_rest_is_studied(capsys, tmp_path, rows):
    changed = [dict(row) for row in rows]
    changed[0]["harmless"] = changed[0]["harmful"]
    for row in changed[1:]:
        row["harmful"] += " w1" * 30
    pairs, out = jsonl(tmp_path / "p.jsonl", changed), tmp_path / "r"
    argv = ["routing", "builtin:planted-routes", "--pairs", pairs, *QUICK, "--out", str(out)]
    assert run(argv) == 0
    warnings = open_run(out).info["warnings"]
    assert (
        "Row 1 of a prompt file was not used: harmful and harmless are the same text." in warnings
    )
    assert any("very unequal length" in text and "match the lengths" in text for text in warnings)


def test_pairs_that_cannot_be_used(capsys, tmp_path, rows):
    out = tmp_path / "r"

    def refused(changed: list[dict], *words: str) -> None:
        pairs = jsonl(tmp_path / "p.jsonl", changed)
        argv = ["routing", "builtin:planted-routes", "--pairs", pairs, *QUICK, "--out", str(out)]
        fails(capsys, argv, *words)
        assert not out.exists()

    refused(rows[:10], "10 pairs leave 7", "give 12 pairs or more")
    refused(rows[:6], "harmful side has 6", "at least 8")
    long = rows[0]["harmful"] + " w1" * 2000
    refused([{**rows[0], "harmful": long}, *rows[1:]], rows[0]["id"], "nothing is truncated")
    # Words that the model does not know are one token, so the two members are one prompt to it.
    words = [{"harmful": f"what is thing{i}", "harmless": f"what is stuff{i}"} for i in range(24)]
    alike = [{**row, **word} for row, word in zip(rows, words, strict=True)]
    refused([*alike[:12], *rows[12:]], "are the same tokens", "take the pair out")
    missing = str(tmp_path / "none.jsonl")
    fails(capsys, ["routing", "builtin:planted-routes", "--pairs", missing], "does not exist")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--positions", "middle"], ["no position map 'middle'", "suffix"]),
        (["--wrappers", "nope"], ["no wrapper is called 'nope'", "letter_cipher"]),
        (["--preset", "nope"], ["preset", "'frank2026'"]),
        (["--judge", "nope"], ["no judge 'nope'", "phrases"]),
        (["--alphas", "0.5", "--alphas", "1"], ["alphas", "start at 0 and rise"]),
        (["--n-flips", "3"], ["n_flips", "100"]),
        (["--metrics", "nope"], ["metrics", "'nll'"]),
        (["--against", "builtin:planted-nope"], ["no model 'builtin:planted-nope'"]),
    ],
    ids=lambda value: value[0].lstrip("-") if value[0].startswith("--") else "",
)
def test_settings_that_cannot_be(capsys, tmp_path, given, words):
    argv = ["routing", "builtin:planted-routes", *given, "--out", str(tmp_path / "r")]
    sentence = fails(capsys, argv, *words)
    assert "pydantic" not in sentence
    assert not (tmp_path / "r").exists()


def test_a_checkpoint_of_another_shape(capsys, tmp_path):
    argv = ["routing", "builtin:planted-routes", "--against", "builtin:chat", *QUICK]
    fails(
        capsys,
        [*argv, "--out", str(tmp_path / "r")],
        "do not have the same layers and heads",
        "one architecture",
    )
    assert not (tmp_path / "r").exists()


def test_a_folder_that_holds_another_run_is_left_alone(finished, capsys, tmp_path):
    before = contents(finished)
    argv = ["routing", "builtin:planted-routes", *FULL, "--out", str(finished)]
    fails(capsys, argv, "already holds a run", "--resume")
    fails(capsys, [*argv, "--floor", "0.3", "--resume"], "cannot be resumed", "floor")
    assert contents(finished) == before
    (tmp_path / "notes.txt").write_text("mine")
    fails(capsys, [*argv[:-1], str(tmp_path)], "not")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def hybrid(folder: Path) -> Path:
    """A small model taught to refuse the planted words; two of its four layers have no softmax heads."""
    planted = build("planted-routes", "base", pairs=48)
    words = {"vocab_size": planted.model.config.vocab_size, "eos_token_id": tokens.EOS}
    torch.manual_seed(0)
    config = hf.Qwen3_5TextConfig(**{**tiny.COMMON, **words}, **tiny.HYBRID)
    net = hf.AutoModelForCausalLM.from_config(config)
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id="planted")
    prompts = chat.render(list(planted.pairs.prompts()))
    width = max(prompt.n_prompt for prompt in prompts)
    ids = torch.tensor([[0] * (width - p.n_prompt) + list(p.ids) for p in prompts])
    wanted = torch.tensor([tokens.REFUSE, tokens.COMPLY] * 48)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(25):
        logits = net(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        optimiser.step()
        optimiser.zero_grad()
    net.eval().save_pretrained(folder)
    planted.tokenizer.save_pretrained(folder)
    return folder


def test_layers_without_softmax_heads_are_one_unit_each_and_said_to_be(tmp_path, rows):
    folder, out = hybrid(tmp_path / "m"), tmp_path / "r"
    argv = ["routing", str(folder), "--pairs", jsonl(tmp_path / "p.jsonl", rows), *QUICK]
    argv += ["--judge", "phrases:planted", "--wrappers", "polite", "--out", str(out)]
    assert run(argv) == 0
    view = open_run(out)
    looked = view.table("routing.coverage").set_index("map")
    assert looked.loc["suffix", "note"] == "8 heads of 2 layers; one unit each: L0, L2"
    units = view.table("routing.heads")[["layer", "head"]].itertuples(index=False, name=None)
    assert set(units) == {(0, -1), (2, -1)} | {(layer, h) for layer in (1, 3) for h in range(4)}
