"""The screen benchmark on a tiny model: its ways give the same numbers, and none is left out silently."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def task():
    problems = importlib.import_module("rivals.problem")
    shape = problems.Shape(
        layers=3, heads=4, width=32, intermediate=48, vocab=64, prompts=4, positions=9
    )
    model = problems.make_model(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            # At its initialisation so small a model hardly reacts to a head.
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model, problems.make_problem(shape)


def _hook_screen(model, problem):
    return importlib.import_module("rivals.hook").hook_screen(model, problem)


@torch.no_grad()
def _by_hand(model, problem, prompt, layer, head):
    """One score, by rewriting the one layer's attention output instead of hooking its input."""
    width = model.config.head_dim
    part = slice(head * width, (head + 1) * width)
    attention = model.model.layers[layer].self_attn
    seen = []
    spy = attention.o_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, -1]))
    model(problem.ids[prompt][None])
    model(problem.ids[problem.donors[prompt]][None])
    spy.remove()
    own, donor = (z[part] for z in seen)
    moved = attention.o_proj.weight[:, part] @ (donor - own)

    def add(module, args, output):
        return output + torch.cat([torch.zeros(output.shape[1] - 1, len(moved)), moved[None]])

    hook = attention.o_proj.register_forward_hook(add)
    last = model(problem.ids[prompt][None]).logits[0, -1]
    hook.remove()
    plus, minus = problem.tokens.tolist()
    return float(last[plus] - last[minus])


def test_hook_loop_swaps_the_head_it_says(task):
    model, problem = task
    scores = _hook_screen(model, problem)
    assert scores.shape == (4, 12)
    assert float(scores.std(dim=1).min()) > 1e-2
    for prompt in range(4):
        for n, (layer, head) in enumerate(problem.heads.tolist()):
            want = _by_hand(model, problem, prompt, layer, head)
            assert float(scores[prompt, n]) == pytest.approx(want, abs=1e-5)


def test_hook_loop_with_the_prompt_as_its_own_donor_is_the_clean_run(task):
    model, problem = task
    scores = _hook_screen(model, replace(problem, donors=torch.arange(4)))
    with torch.no_grad():
        last = torch.stack([model(ids[None]).logits[0, -1] for ids in problem.ids])
    plus, minus = problem.tokens.tolist()
    clean = (last[:, plus] - last[:, minus])[:, None].expand(-1, 12)
    torch.testing.assert_close(scores, clean, atol=1e-6, rtol=0)


def test_plan_equals_the_hook_loop_and_counts_what_it_computes(task):
    model, problem = task
    worker = importlib.import_module("rivals.worker")
    way = importlib.import_module("plan_screen").load(model, problem)
    found = worker.count(way)
    np.testing.assert_allclose(found["scores"], _hook_screen(model, problem), atol=1e-5, rtol=0)
    hook = worker.count(importlib.import_module("rivals.hook").load(model, problem))
    assert found["token_layers"] < hook["token_layers"]
    assert found["own_count"] == {key: found[key] for key in found["own_count"]}


def test_counts_of_the_hook_loop_are_one_forward_a_head_and_one_a_donor(task):
    model, problem = task
    worker = importlib.import_module("rivals.worker")
    found = worker.count(importlib.import_module("rivals.hook").load(model, problem))
    assert found["forwards"] == 4 * 12 + 4
    assert found["token_layers"] == found["forwards"] * 9 * 3


def test_script_runs_the_hook_loop_and_names_an_absent_environment(tmp_path, monkeypatch, capsys):
    screen = importlib.import_module("screen")
    absent = replace(screen.SOURCES["nnsight"], python=tmp_path / ".venv-x" / "bin" / "python")
    monkeypatch.setitem(screen.SOURCES, "nnsight", absent)
    out = tmp_path / "screen.json"
    arguments = ["--only", "hook,nnsight", "--heads-subset", "1", "--repeats", "1"]
    monkeypatch.setattr(
        sys, "argv", ["screen.py", *arguments, "--threads", "1", "--json", str(out)]
    )
    assert screen.main() == 0
    ways = json.loads(out.read_text())["ways"]
    assert ways["hook"]["forwards"] == 16
    assert ways["hook"]["threads"] == 1
    assert ways["nnsight"]["state"] == "skipped"
    assert "no .venv-x: run bash benchmarks/setup_rivals.sh" in capsys.readouterr().out


def test_summary_tells_a_wrong_number_from_a_slow_one(task):
    summary = importlib.import_module("rivals.summary")
    shape = importlib.import_module("rivals.problem").Shape()
    right, wrong = np.zeros((2, 3)), np.full((2, 3), np.nan)

    def row(scores, seconds):
        return summary.Row(seconds=seconds, scores=[scores], token_layers=10, forwards=1)

    rows = {"hook": row(right, [4.0, 6.0, 8.0]), "plan": row(right, [2.0, 2.0, 2.0])}
    good = summary.summarise(rows, shape, None, 3, 2)
    assert good["ways"]["hook"]["ratio"] == 3.0
    assert good["ways"]["hook"]["ratio_range"] == [2.0, 4.0]
    assert [bar["met"] for bar in good["bars"]] == [False, False]
    assert good["broken"] == []
    rows["plan"] = row(wrong, [2.0, 2.0, 2.0])
    rows["plan"].scores.insert(0, right)
    assert len(summary.summarise(rows, shape, None, 3, 2)["broken"]) == 1
