"""The base circuit in a Gemma-2 (page, section 5, O13): seed 0, 24 pairs, comply bias .75."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM

from organisms import oracle
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build, construction, save
from refusalscope.organisms.planted.construction import C
from refusalscope.organisms.planted.prompts import draw_pairs

CIRCUIT = ((1, 2), (3, 1), (5, 0), (5, 3), (6, 2), (7, 0), (4, 7))
CONSTANT_COLUMNS = (6 * 16 + 1, 7 * 16 + 1)


@cache
def organism():
    return build("planted-routes", "post_norm")


def pairs():
    return draw_pairs(organism().truth.prompts)


@cache
def as_on_the_page():
    """The model with what the page leaves open: the column of head 7, and where head 6 looks."""
    built = build("planted-routes", "post_norm")
    noisy = Gemma2ForCausalLM(built.model.config).requires_grad_(False)
    construction.furnish(noisy, 0.01, 0.75, torch.Generator().manual_seed(0))
    for layer, (block, noise) in enumerate(
        zip(built.model.model.layers, noisy.model.layers, strict=True)
    ):
        column = noise.self_attn.o_proj.weight[:, CONSTANT_COLUMNS[1]].clone()
        column[C.CONST] = 0.0
        block.self_attn.o_proj.weight[:, CONSTANT_COLUMNS[1]] = column
        if layer not in (2, 4):
            block.self_attn.q_proj.weight[6 * 16 + 7, C.CONST] -= 1.5
            block.self_attn.k_proj.weight[3 * 16 + 7, C.BOSM] -= 8 + 3
    return built.model


def test_the_figures_of_the_page_hold_for_its_build():
    model, drawn = as_on_the_page(), pairs()
    harmful, control = zip(*drawn, strict=True)
    assert oracle.margins(model, harmful).mean() == pytest.approx(5.36, abs=0.1)
    assert oracle.margins(model, control).mean() == pytest.approx(-4.29, abs=0.1)
    found = oracle.necessities(model, drawn, [[head] for head in CIRCUIT])
    page = (0.839, 0.828, 0.250, 0.246, 0.235, 0.054, -0.021)
    assert found == pytest.approx(page, abs=0.02)


def parts(model, ids, split: bool) -> np.ndarray:
    """What each head writes along refuse minus comply at the last position, [64], with or without
    the gain and scale of the post-norm."""
    states = oracle.head_states(model, ids)[:, -1].double()
    final = oracle.final_states(model, [ids])[0]
    direction = (model.lm_head.weight[4] - model.lm_head.weight[5]).double()
    written = []
    for layer, block in enumerate(model.model.layers):
        output = block.self_attn.o_proj.weight.double().view(64, 8, 16)
        heads = torch.einsum("hk,dhk->hd", states[layer].view(8, 16), output)
        if split:
            norm = block.post_attention_layernorm
            scale = (heads.sum(0).pow(2).mean() + norm.eps).rsqrt()
            heads = heads * scale * (1 + norm.weight.double())
        written.append((heads @ direction).numpy() / np.sqrt((final**2).mean()))
    return np.concatenate(written)


def test_attribution_without_the_post_norm_names_the_constant_heads():
    model, heads = as_on_the_page(), oracle.all_heads(organism().model)
    ranked = {}
    for split in (True, False):
        contrast = np.mean([parts(model, h, split) - parts(model, c, split) for h, c in pairs()], 0)
        ranked[split] = [heads[i] for i in np.argsort(-np.abs(contrast))]
    assert ranked[False][3:6] == [(7, 6), (6, 6), (5, 6)]
    assert {head for _, head in ranked[True][:6]} & {6} == set()
    assert [ranked[split].index((3, 1)) + 1 for split in (True, False)] == [10, 17]


def test_the_head_split_sums_to_the_write_of_the_block():
    chat = ChatModel.wrap(organism().model, organism().tokenizer, id="post_norm")
    ids = pairs()[0][0]
    for layer, block in enumerate(organism().model.model.layers):
        kept = []
        handle = block.post_attention_layernorm.register_forward_hook(
            lambda m, a, out, kept=kept: kept.append(out[0, -1])
        )
        z = oracle.head_states(organism().model, ids)[layer, -1]
        handle.remove()
        writes, bias = chat.anatomy.head_writes(layer, z)
        assert (writes.sum(0) + bias - kept[0]).abs().max() < 5e-6


def test_the_constant_passes_the_norm_and_never_enters_the_stream():
    written, streams = [], []
    with torch.no_grad():
        handles = [
            *(
                block.self_attn.o_proj.register_forward_hook(
                    lambda m, a, out: written.append(out[0, -1, C.CONST].item())
                )
                for block in organism().model.model.layers
            ),
            *(
                block.register_forward_hook(
                    lambda m, a, out: streams.append(out[0, -1, C.CONST].item())
                )
                for block in organism().model.model.layers
            ),
        ]
        organism().model(torch.tensor([pairs()[0][0]]))
    for handle in handles:
        handle.remove()
    assert written == pytest.approx([8.0] * 8, abs=1.0)
    assert streams == pytest.approx([8.0] * 8, abs=1e-4)


def test_no_constant_head_matters_to_a_swap():
    constant = [(layer, 6) for layer in range(8)]
    assert set(constant) <= set(organism().truth.with_role("static"))
    effects = oracle.necessities(organism().model, pairs(), [[head] for head in constant])
    assert max(map(abs, effects)) < 0.005


def test_no_noise_carries_the_constant_into_another_channel():
    for block in organism().model.model.layers:
        first, second = (block.self_attn.o_proj.weight[:, i] for i in CONSTANT_COLUMNS)
        assert first.nonzero().flatten().tolist() == [C.CONST]
        assert not second.any()


def test_the_checkpoint_loads_as_a_gemma_and_says_the_same(tmp_path):
    folder = save(organism(), tmp_path / "gemma")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is Gemma2ForCausalLM
    harmful = [pair[0] for pair in pairs()]
    assert np.array_equal(
        oracle.margins(loaded, harmful), oracle.margins(organism().model, harmful)
    )
    assert ChatModel.load(str(folder), device="cpu").anatomy.architecture.attn_post_norm
