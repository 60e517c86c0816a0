"""Contributions of heads against plain hooks and whole writes, on every architecture and on organisms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import oracle as plain
from model import tiny
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Plan, Site
from refusalscope.studies.cliff import Probe
from refusalscope.studies.cliff.contributions import (
    contribution_table,
    contributions,
    difference,
)
from refusalscope.studies.heads import WHOLE, units_of
from studies.cliff.heads_case import (
    INTENT,
    PROMOTER,
    STATIC,
    SUPPRESSORS,
    case,
    random_traces,
    trace,
)


def tiny_chat(name: str, **plan) -> ChatModel:
    return ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name, plan=Plan(**plan))


def some_probe(chat: ChatModel, site: Site, normed: bool) -> Probe:
    weight = torch.randn(chat.anatomy.d_model, generator=torch.Generator().manual_seed(5))
    return Probe(weight, 0.7, site, normed)


def by_layer(chat: ChatModel, values: np.ndarray) -> np.ndarray:
    """[traces, units] summed over the units of a layer: [traces, layers]."""
    layers = np.array([unit[0][0] for unit in units_of(chat.anatomy)])
    return np.stack([values[:, layers == k].sum(1) for k in range(chat.anatomy.n_layers)], axis=1)


@torch.no_grad()
def scale_and_reader(chat: ChatModel, probe: Probe, stream: torch.Tensor):
    """What the final norm divides by at each token, from the module itself, and w * g."""
    norm = chat.anatomy.final_norm
    ones = torch.ones(chat.anatomy.d_model)
    gain = norm(ones * 1e3)
    return (norm(stream) / stream / gain).median(dim=-1).values, probe.weight * gain


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_heads_and_bias_sum_to_the_write_of_their_block(name):
    chat, traces = tiny_chat(name), random_traces()
    probe = some_probe(chat, Site("final"), normed=True)
    found = contributions(chat, traces, probe)
    assert found.units == units_of(chat.anatomy)
    final, plateau = by_layer(chat, found.final), by_layer(chat, found.plateau)
    for i, one in enumerate(traces):
        stream = plain.read(chat.model, one.rendered, Site("final"))
        scale, reader = scale_and_reader(chat, probe, stream)
        logits = (stream @ reader) * scale + probe.bias
        assert found.logit_final[i] == pytest.approx(float(logits[-1]), abs=1e-3)
        assert found.logit_plateau[i] == pytest.approx(
            float(logits[list(one.thinking)].mean()), abs=1e-3
        )
        for layer in range(chat.anatomy.n_layers):
            write = plain.read(chat.model, one.rendered, Site("attn_out", layer))
            if layer in chat.anatomy.softmax_layers:
                bias = chat.anatomy.attention_output(layer).bias
                # Of the tiny models with a bias none has a post-norm.
                write = write - (0 if bias is None else bias.detach())
            reads = (write @ reader) * scale
            assert final[i, layer] == pytest.approx(float(reads[-1]), abs=1e-3)
            want = float(reads[list(one.thinking)].mean())
            assert plateau[i, layer] == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "glm4"])
def test_every_head_is_its_slice_of_the_output_projection(name):
    chat, traces = tiny_chat(name), random_traces()
    probe = some_probe(chat, Site("final"), normed=True)
    found = contributions(chat, traces, probe)
    width, one = chat.anatomy.head_dim, traces[2]
    stream = plain.read(chat.model, one.rendered, Site("final"))
    scale, reader = scale_and_reader(chat, probe, stream)
    direction = probe.weight / probe.weight.norm()
    for column, ((layer, head),) in enumerate(found.units):
        z = plain.read(chat.model, one.rendered, Site("z", layer))[-1]
        weight = chat.anatomy.attention_output(layer).weight.detach()
        part = slice(head * width, (head + 1) * width)
        raw = weight[:, part] @ z[part]
        assert found.published[2, column] == pytest.approx(float(raw @ direction), abs=1e-4)
        folded = raw
        if name in ("gemma2", "glm4"):
            norm = chat.anatomy.attn_write(layer)
            total = weight @ z
            with torch.no_grad():
                folded = raw * norm(total) / total
        assert found.final[2, column] == pytest.approx(float(folded @ reader * scale[-1]), abs=2e-3)
        assert found.write_norm[2, column] == pytest.approx(float(folded.norm()), rel=1e-2)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_5"])
def test_a_probe_within_the_model_is_met_without_a_norm_and_from_below_alone(name):
    chat, traces = tiny_chat(name), random_traces()
    probe = some_probe(chat, Site("resid_pre", 2), normed=False)
    found = contributions(chat, traces, probe)
    final = by_layer(chat, found.final)
    for i, one in enumerate(traces):
        state = plain.read(chat.model, one.rendered, Site("resid_pre", 2))[-1]
        assert found.logit_final[i] == pytest.approx(float(state @ probe.weight) + 0.7, abs=1e-4)
        for layer in range(4):
            write = plain.read(chat.model, one.rendered, Site("attn_out", layer))[-1]
            if layer in chat.anatomy.softmax_layers:
                bias = chat.anatomy.attention_output(layer).bias
                write = write - (0 if bias is None else bias.detach())
            want = float(write @ probe.weight) if layer < 2 else 0
            assert final[i, layer] == pytest.approx(want, abs=1e-4)
    other = some_probe(chat, Site("resid_post", 1), normed=False)
    np.testing.assert_array_equal(contributions(chat, traces, other).final, found.final)


def test_company_and_padding_change_nothing():
    chat, traces = tiny_chat("gemma2"), random_traces()
    probe = some_probe(chat, Site("final"), normed=True)
    together = contributions(chat, traces, probe)
    alone = [contributions(chat, [one], probe) for one in traces]
    for name in ("published", "final", "plateau", "write_norm", "logit_final", "logit_plateau"):
        want = np.concatenate([getattr(one, name) for one in alone])
        np.testing.assert_allclose(getattr(together, name), want, atol=2e-5)


def test_all_units_come_out_of_one_forward_without_unembedding():
    chat, traces = tiny_chat("llama"), random_traces()
    probe = some_probe(chat, Site("final"), normed=True)

    def never(*_):
        raise AssertionError("the unembedding was run")

    handle = chat.anatomy.lm_head.register_forward_pre_hook(never)
    contributions(chat, traces[:3], probe)
    handle.remove()
    assert (chat.cost.forwards, chat.cost.tokens) == (1, 3 * 14)
    assert chat.cost.token_layers == 4 * 3 * 14


def test_hooks_are_removed_when_a_pass_fails():
    chat = tiny_chat("llama")
    broken = [trace([1, 10_000, 3, 4], range(1, 2))]
    with pytest.raises(IndexError):
        contributions(chat, broken, some_probe(chat, Site("final"), normed=True))
    for module in chat.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_the_plateau_can_be_the_end_of_the_thinking():
    chat, traces = tiny_chat("llama"), random_traces()
    probe = some_probe(chat, Site("final"), normed=True)
    cut = [trace(list(t.rendered.ids), range(t.thinking.stop - 2, t.thinking.stop)) for t in traces]
    found, want = contributions(chat, traces, probe, last=2), contributions(chat, cut, probe)
    np.testing.assert_array_equal(found.plateau, want.plateau)
    assert np.abs(found.plateau - contributions(chat, traces, probe).plateau).max() > 0.01


@pytest.mark.parametrize("variant", ["base", "graded"])
def test_scores_are_those_of_the_plain_forward(variant):
    mine = case(variant)
    found = contributions(mine.chat, mine.groups["suppressed"], mine.probe, last=None)
    want = mine.oracle.head_scores
    for name, values in (
        ("published", found.published),
        ("folded", found.final),
        ("contrast", found.cliff),
    ):
        np.testing.assert_allclose(values.mean(0).reshape(8, 8), want[name], atol=1e-4)


def test_only_a_contrast_takes_out_the_head_that_writes_against_refusal_everywhere():
    mine = case()
    groups = [mine.groups[name] for name in ("suppressed", "benign")]
    table = contribution_table(*(contributions(mine.chat, g, mine.probe) for g in groups))
    heads = table.set_index(["layer", "head"])
    order = {name: list(heads[name].sort_values().index) for name in ("published", "contrast")}
    for ranked in order.values():
        assert set(ranked[:3]) == SUPPRESSORS
    assert order["published"][3] == STATIC
    assert heads.loc[STATIC, "published"] == pytest.approx(-0.96, abs=0.02)
    assert abs(heads.loc[STATIC, "contrast"]) < 0.01
    # What acts on the plateau too is no cliff, and what acts in benign traces alike is no contrast.
    assert heads.loc[INTENT, "direct"] > 9
    assert abs(heads.loc[INTENT, "cliff"]) < 0.1
    assert heads.loc[PROMOTER, "contrast"] == pytest.approx(0.98, abs=0.05)
    for head in SUPPRESSORS:
        row = heads.loc[head]
        assert row["direct"] == pytest.approx(-4.47, abs=0.1)
        assert row["cliff_low"] <= row["cliff"] <= row["cliff_high"] < -4
        assert row["contrast_low"] <= row["contrast"] <= row["contrast_high"] < -4


def test_persuasion_in_benign_traces_is_contrasted_away():
    mine = case()
    persuaded = contributions(mine.chat, mine.groups["benign_persuaded"], mine.probe)
    found = contributions(mine.chat, mine.groups["suppressed"], mine.probe)
    table = contribution_table(found, persuaded).set_index(["layer", "head"])
    rows = table.loc[sorted(SUPPRESSORS)]
    # The same write; what is left is that the final norm divides the two by other scales.
    assert (rows["contrast"].abs() < 0.2 * rows["direct"].abs()).all()


def test_a_difference_of_two_means_has_an_interval_or_says_it_has_none():
    rng = np.random.default_rng(0)
    value, low, high = difference(rng.normal(1, 1, 200), rng.normal(0, 1, 300), 0)
    assert value == pytest.approx(1, abs=0.2)
    assert low < value < high
    # Of the standard error sqrt(1/200 + 1/300) = .091.
    assert high - low == pytest.approx(4 * 0.091, rel=0.15)
    assert difference(np.ones(3), np.zeros(3), 0) == (1, 1, 1)
    assert np.isnan(difference(np.ones(1), np.zeros(3), 0)[1:]).all()


def test_bad_input_is_refused_in_one_sentence():
    chat, traces = tiny_chat("llama"), random_traces()
    probe = some_probe(chat, Site("final"), normed=True)
    with pytest.raises(InputError, match="no trace to attribute"):
        contributions(chat, [], probe)
    with pytest.raises(InputError, match="a plateau of 0 tokens"):
        contributions(chat, traces, probe, last=0)
    with pytest.raises(InputError, match=r"shape \(7,\).*32 numbers"):
        contributions(chat, traces, Probe(torch.ones(7), 0, Site("final"), True))
    with pytest.raises(InputError, match=r"at resid_pre\[1\] after a norm"):
        contributions(chat, traces, some_probe(chat, Site("resid_pre", 1), normed=True))
    with pytest.raises(InputError, match=r"probe at z\[1\]"):
        contributions(chat, traces, some_probe(chat, Site("z", 1), normed=False))


def test_a_layer_without_heads_is_one_unit():
    chat = tiny_chat("qwen3_next")
    found = contributions(chat, random_traces(), some_probe(chat, Site("final"), normed=True))
    whole = [i for i, unit in enumerate(found.units) if unit[0][1] == WHOLE]
    assert len(whole) == 2
    assert np.abs(found.final[:, whole]).min() > 0
    assert (found.write_norm[:, whole] > 0).all()
