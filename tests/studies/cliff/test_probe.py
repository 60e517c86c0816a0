"""Probes against slow fits, on crossed data, and what a probe of the topic cannot do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from organisms import cliff_oracle as oracle
from refusalscope.errors import InputError
from refusalscope.model import Site
from refusalscope.studies.cliff import (
    bag_of_words,
    fit_published,
    fit_recommended,
    separation_table,
    unreadable,
)
from refusalscope.studies.cliff.fits import adam, cell_weights, logistic, spread_of
from refusalscope.studies.cliff.separation import KNOWN, WITHIN
from studies.cliff.planted_case import reading, subject


def blobs(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2 == 0
    features = rng.normal(size=(n, 5)) * [1, 3, 0.2, 1, 1] + label[:, None] * [1.0, 0, 0.3, 0, 0]
    return features, label


def test_the_logistic_fit_is_the_oracles():
    features, label = blobs()
    weight, bias = logistic(features, label, np.ones(len(label)), 1e-2)
    slow = oracle.fit_probe(features[label], features[~label], l2=1e-2)
    assert weight == pytest.approx(slow.weights, abs=1e-3)
    assert bias == pytest.approx(slow.bias, abs=1e-3)


def test_features_are_scaled_by_their_spread():
    features, label = blobs()
    spread = spread_of(features)
    usual = np.sqrt(features.var(0).mean())
    assert spread == pytest.approx([max(s, usual) for s in features.std(0)])
    weight, bias = logistic(features, label, np.ones(len(label)), 1e-2, spread)
    scaled = features / spread
    slow = oracle.fit_probe(scaled[label], scaled[~label], l2=1e-2)
    assert weight * spread == pytest.approx(slow.weights, abs=1e-3)
    assert bias == pytest.approx(slow.bias, abs=1e-3)


def test_weights_repeat_rows():
    features, label = blobs(20)
    twice = np.concatenate([np.arange(20), np.arange(10)])
    weights = np.where(np.arange(20) < 10, 2.0, 1.0)
    found = logistic(features, label, weights, 1e-2)
    slow = logistic(features[twice], label[twice], np.ones(30), 1e-2)
    # Centring by rows is no part of the model.
    assert found[0] == pytest.approx(slow[0], abs=1e-3)
    assert found[1] == pytest.approx(slow[1], abs=1e-3)


def test_every_cell_weighs_the_same_within_its_behaviour():
    harmful = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    refused = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    weights = cell_weights(harmful, refused)
    assert weights == pytest.approx([1 / 12] * 3 + [0.25] + [0.25] + [1 / 16] * 4)
    # Nothing harmless was refused: the other cell carries its side.
    weights = cell_weights(harmful[[0, 1, 4, 5]], refused[[0, 1, 4, 5]])
    assert weights == pytest.approx([0.25] * 4)


def test_the_published_run_of_adam_is_that_of_a_linear_layer():
    features, label = blobs(100)
    weight, bias = adam(features, label, 80, seed=3)
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(5, 1)
    start = (torch.rand(6, generator=generator) * 2 - 1) * 5**-0.5
    with torch.no_grad():
        layer.weight.copy_(start[:5][None])
        layer.bias.copy_(start[5:])
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    x, y = torch.tensor(features).float(), torch.tensor(label).float()
    kept = []
    for _ in range(5):
        order = torch.randperm(80, generator=generator)
        for at in range(0, 80, 64):
            rows = order[at : at + 64]
            optimiser.zero_grad()
            loss = torch.nn.BCEWithLogitsLoss()(layer(x[rows])[:, 0], y[rows])
            loss.backward()
            optimiser.step()
        right = ((layer(x[80:])[:, 0] > 0) == y[80:].bool()).float().mean()
        kept.append((float(right), layer.weight.detach().clone(), layer.bias.detach().clone()))
    best = max(kept, key=lambda one: one[0])
    assert weight == pytest.approx(best[1][0].numpy(), abs=1e-5)
    assert bias == pytest.approx(float(best[2]), abs=1e-5)


def test_the_published_probe_takes_refused_harmful_against_all_harmless():
    it = subject()
    found = fit_published(it.chat, it.traces, it.refused, solver="logistic", n_nulls=3)
    # 60 of each side, four fifths of them fitted on; complied harmful traces are not among them.
    cells = found.cells
    assert cells[True, True] + cells[False, False] == 96
    assert cells[True, False] == cells[False, True] == 0
    assert (found.probe.site, found.probe.normed) == (Site("final"), True)
    assert found.probe.calibration == {}
    assert len(found.shuffled) == len(found.random) == 3
    norm = found.probe.weight.norm()
    assert all(float(null.weight.norm() / norm) == pytest.approx(1) for null in found.random)


def test_the_recommended_probe_tells_refusal_within_harmful_traces():
    found = reading("base")
    area = found.separation.set_index(["position", "contrast"])["auroc"]
    assert area["closing[2]", WITHIN] == area["closing[2]", KNOWN] == 1
    assert area["thinking", KNOWN] == 1
    assert unreadable(found.separation) == ""
    assert found.fitted.cells[True, False] > 5


def test_a_probe_of_the_topic_is_at_chance_within_harmful_traces_and_decides_nothing():
    """In the middle of the model no suppressor has acted: all that can be read is the harmful word."""
    found = reading("base", site=Site("resid_pre", 4))
    row = found.separation.set_index(["position", "contrast"]).loc["closing[2]"]
    assert row["auroc"][KNOWN] == 1
    assert row["auroc_low"][WITHIN] < 0.5 < row["auroc_high"][WITHIN]
    assert found.verdict.verdict == "undecided"
    assert "does not tell refused from complied harmful traces" in found.verdict.reason


def test_nulls_know_nothing_and_the_probe_is_beyond_them():
    found = reading("base")
    assert len(found.nulls) == 40
    assert max(np.abs(found.nulls)) < 0.7
    assert abs(np.mean(found.nulls)) < 0.15
    assert found.verdict.p_null == pytest.approx(1 / 41)


def test_words_are_scored_beside_the_probe():
    it = subject()
    found = bag_of_words(it.traces, it.refused, it.splits, seed=0)
    assert found.n == (it.splits == "report").sum()
    assert 0.5 < found.low < found.value < 1
    # Words that say nothing are at chance.
    blank = [replace(t, prompt=replace(t.prompt, text="w", thinking="w")) for t in it.traces]
    assert bag_of_words(blank, it.refused, it.splits, seed=0).value == 0.5


def test_separation_is_that_of_mean_logits():
    it = subject()
    traces = [*it.of("unsuppressed")[:5], *it.of("suppressed")[:5], *it.of("benign")[:4]]
    refused = [True] * 5 + [False] * 9
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=len(one)) for one in traces]
    table = separation_table(traces, refused, logits, seed=0)
    assert list(dict.fromkeys(table["position"])) == ["prompt", "thinking", *traces[0].classes[-3:]]
    mean = [values[list(t.thinking)].mean() for t, values in zip(traces, logits, strict=True)]
    wins = [a > b for a in mean[:5] for b in mean[5:10]]
    row = table[(table["position"] == "thinking") & (table["contrast"] == WITHIN)].iloc[0]
    assert (row["auroc"], row["n"]) == (pytest.approx(np.mean(wins)), 10)


def test_data_that_cannot_carry_a_probe_is_refused():
    it = subject()
    few = [*it.of("unsuppressed")[:6], *it.of("benign")[:6]]
    refused = [True] * 6 + [False] * 6
    with pytest.raises(InputError, match="got 0 and 6; give at least two of each"):
        fit_published(it.chat, few, [False] * 12)
    with pytest.raises(InputError, match="need refused and complied ones"):
        fit_recommended(it.chat, few, [True] * 12, ["fit"] * 12)
    with pytest.raises(InputError, match="got 0 and 3; give more prompts to the split 'select'"):
        fit_recommended(it.chat, few, refused, ["fit"] * 9 + ["select"] * 3)
    blank = [replace(few[0], prompt=replace(few[0].prompt, label=None)), *few[1:]]
    with pytest.raises(InputError, match="neither harmful nor harmless"):
        fit_published(it.chat, blank, refused)
    with pytest.raises(InputError, match="needs refused and complied traces to learn from"):
        bag_of_words(few, refused, ["report"] * 12, seed=0)
