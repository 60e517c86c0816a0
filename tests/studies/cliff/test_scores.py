"""Scores of tokens against one slow forward a trace, and what is held on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model import tiny
from organisms import cliff_oracle as oracle
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered, Scale, Site
from refusalscope.prompts import Prompt
from refusalscope.studies.cliff import Probe, Trace, score_probes, score_tokens
from studies.cliff.planted_case import SUPPRESSORS, subject

LENGTHS = (14, 9, 12, 21)


def trace(length: int, seed: int = 0) -> Trace:
    generator = torch.Generator().manual_seed(seed + length)
    ids = torch.randint(10, 300, (length,), generator=generator).tolist()
    rendered = Rendered("x", "", tuple(ids), length, (1, 2), {"prompt_last": length - 1})
    thinking = range(4, length - 3)
    return Trace(Prompt("x", "a request"), rendered, thinking, tuple(range(length - 3, length)))


def tiny_chat(name: str = "llama") -> ChatModel:
    return ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name)


def probe(site: Site, normed: bool = False, seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    return Probe(torch.randn(32, generator=generator), 0.3, site, normed)


def slow(chat: ChatModel, one: Trace, probe: Probe) -> np.ndarray:
    """One trace alone, all its hidden states, the norm by its formula."""
    with torch.no_grad():
        out = chat.model(torch.tensor([one.rendered.ids]), output_hidden_states=True)
    if probe.normed:
        states = out.hidden_states[-1][0]
    else:
        states = out.hidden_states[probe.site.layer][0]
    return (states.double() @ probe.weight.double() + probe.bias).numpy()


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_scores_are_those_of_one_forward_a_trace(name):
    chat, traces = tiny_chat(name), [trace(n) for n in LENGTHS]
    probes = [
        probe(Site("final"), True),
        probe(Site("resid_pre", 2)),
        probe(Site("final"), True, 1),
    ]
    found = score_probes(chat, traces, probes)
    for one, scores in zip(traces, found, strict=True):
        assert scores.shape == (3, len(one))
        for row, each in enumerate(probes):
            assert scores[row] == pytest.approx(slow(chat, one, each), abs=1e-4)


def test_scores_on_an_organism_are_the_oracles():
    it = subject()
    traces = it.of("suppressed")[:6]
    states = oracle.states(it.chat.model, [list(one.rendered.ids) for one in traces])
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    one = Probe(weight, -0.2, Site("final"), True)
    found = score_tokens(it.chat, traces, one)
    assert np.array(found) == pytest.approx(states @ weight.double().numpy() - 0.2, abs=1e-4)


def test_a_variant_is_scored_as_edited():
    it = subject()
    traces = it.of("suppressed")[:6]
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    one = Probe(weight, 0.0, Site("final"), True)
    variant = tuple(Scale(Site("z", layer), "all", head, factor=0.0) for layer, head in SUPPRESSORS)
    found = score_tokens(it.chat, traces, one, variant)
    states = oracle.states(it.chat.model, [list(t.rendered.ids) for t in traces], SUPPRESSORS)
    assert np.array(found) == pytest.approx(states @ weight.double().numpy(), abs=1e-4)


def test_company_changes_no_score():
    chat, traces, one = tiny_chat(), [trace(n) for n in LENGTHS], probe(Site("final"), True)
    together = score_tokens(chat, traces, one)
    for each, scores in zip(traces, together, strict=True):
        (alone,) = score_tokens(chat, [each], one)
        assert scores == pytest.approx(alone, abs=1e-5)


class Counting:
    """Stands before `capture` and counts the states that each call gives back."""

    def __init__(self, chat: ChatModel, monkeypatch):
        self.held: list[int] = []
        capture = chat.capture

        def counted(prompts, sites, positions, **options):
            self.held.append(len(prompts) * len(positions))
            return capture(prompts, sites, positions, **options)

        monkeypatch.setattr(chat, "capture", counted)


@pytest.mark.parametrize("held", [8, 32, 64])
def test_states_held_do_not_grow_with_traces_or_their_length(held, monkeypatch):
    chat, one = tiny_chat(), probe(Site("resid_pre", 2))
    few, many, long = [trace(9)], [trace(9, i) for i in range(40)], [trace(200), trace(9)]
    whole = [score_tokens(chat, traces, one) for traces in (few, many, long)]
    counting = Counting(chat, monkeypatch)
    for traces, expected in zip((few, many, long), whole, strict=True):
        found = score_probes(chat, traces, [one], held=held)
        for scores, right in zip(found, expected, strict=True):
            assert scores[0] == pytest.approx(right, abs=1e-5)
    assert max(counting.held) <= held
    assert sum(counting.held) >= 9 + 40 * 9 + 200 + 9


def test_all_probes_share_one_pass():
    chat, traces = tiny_chat(), [trace(n) for n in LENGTHS]
    costs = []
    for n in (1, 12):
        before = chat.cost.tokens
        score_probes(chat, traces, [probe(Site("final"), True, seed) for seed in range(n)])
        costs.append(chat.cost.tokens - before)
    assert costs[0] == costs[1]


def test_calibration_is_by_the_class_of_each_token():
    chat, one = tiny_chat(), trace(12)
    raw = probe(Site("final"), True)
    scales = {"prompt": (1.0, 0.0), "thinking": (2.0, -1.0), "closing[0]": (0.0, 0.5)}
    scales |= {"closing[1]": (3.0, 0.0), "closing[2]": (1.0, 4.0)}
    (plain,) = score_tokens(chat, [one], raw)
    (found,) = score_tokens(chat, [one], replace(raw, calibration=scales))
    for at, name in enumerate(one.classes):
        slope, intercept = scales[name]
        assert found[at] == pytest.approx(slope * plain[at] + intercept)


def test_a_class_without_calibration_is_refused():
    with pytest.raises(
        InputError, match=r"no calibration for closing\[0\], closing\[1\], closing\[2\]"
    ):
        score_tokens(
            tiny_chat(),
            [trace(12)],
            replace(probe(Site("final"), True), calibration={"prompt": (1, 0), "thinking": (1, 0)}),
        )
