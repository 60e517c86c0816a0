"""The self-check on the user's own activations: what it measures, and when it warns."""

from __future__ import annotations

import math

import pytest
import torch

from dictionary import synthetic
from model import oracle as model_oracle
from model import tiny
from refusalscope.dictionary import check, load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Site
from refusalscope.prompts import Prompt

WIDTH = 32
TEXTS = [
    "Tell me how to bake bread.",
    "What is the capital of that country?",
    "Write a short poem about the sea and the blue sky in three steps",
    "How do I open a locked door without the key?",
]


@pytest.fixture(scope="module")
def chat():
    return ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")


@pytest.fixture(scope="module")
def prompts(chat):
    return chat.render([Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)])


@pytest.fixture(scope="module")
def text_states(chat, prompts):
    """layer -> states [tokens, d_model] of tokens that are no special ones."""
    special = set(chat.tokenizer.all_special_ids)
    return {
        layer: torch.cat(
            [
                model_oracle.read(chat.model, p, Site("resid_post", layer))[
                    [t for t, token in enumerate(p.ids) if token not in special]
                ]
                for p in prompts
            ]
        )
        for layer in range(4)
    }


def mirrored(rows: int = 10) -> dict:
    """A dictionary that is the identity: each axis and its negative, beside latents that never act."""
    eye = torch.eye(WIDTH)
    idle = torch.zeros(WIDTH, rows * WIDTH)
    return {
        "W_enc": torch.cat([eye, -eye, idle], 1),
        "W_dec": torch.cat([eye, -eye, idle.T]),
        "b_enc": torch.cat([torch.zeros(2 * WIDTH), -torch.ones(rows * WIDTH)]),
        "b_dec": torch.zeros(WIDTH),
    }


def subspace(states: torch.Tensor, n: int) -> dict:
    """A dictionary of the first n principal axes of some states."""
    mean = states.mean(0)
    axes = torch.linalg.svd(states - mean, full_matrices=False).Vh[:n]
    idle = torch.zeros(WIDTH, 300)
    return {
        "W_enc": torch.cat([axes.T, -axes.T, idle], 1),
        "W_dec": torch.cat([axes, -axes, idle.T]),
        "b_enc": torch.cat([torch.zeros(2 * n), -torch.ones(300)]),
        "b_dec": mean,
    }


def made(tmp_path, weights, kind="standard", **settings):
    return load_dictionary(synthetic.saelens(tmp_path / "d", kind, weights=weights, **settings))


def test_a_dictionary_that_fits_is_measured_and_not_warned_of(chat, prompts, tmp_path):
    fit = check(made(tmp_path, mirrored()), chat, prompts)
    assert fit.warnings == ()
    assert fit.explained_variance.value == pytest.approx(1)
    assert fit.norm_ratio == pytest.approx(1)
    assert fit.l0.value == WIDTH
    assert fit.l0_special == WIDTH
    assert fit.dead_share == pytest.approx(10 / 12, abs=0.02)
    assert fit.n_prompts == len(TEXTS)
    special = set(chat.tokenizer.all_special_ids)
    assert fit.n_tokens == sum(t not in special for p in prompts for t in p.ids)
    assert set(fit.neighbours) == {0, 2}


def test_the_figures_equal_a_slow_count(chat, prompts, text_states, tmp_path):
    weights = synthetic.tensors(3, WIDTH, 60, spread=2.0)
    fit = check(made(tmp_path, weights, "jumprelu"), chat, prompts)
    x = text_states[1]
    acts = synthetic.jumprelu(weights, x)
    out = acts @ weights["W_dec"] + weights["b_dec"]
    explained = 1 - (x - out).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert fit.explained_variance.value == pytest.approx(float(explained), abs=1e-4)
    assert fit.explained_variance.low <= fit.explained_variance.value
    assert fit.l0.value == pytest.approx(float((acts > 0).sum(1).float().mean()))
    ratio = x.norm(dim=1).mean() / out.norm(dim=1).mean()
    assert fit.norm_ratio == pytest.approx(float(ratio), rel=1e-4)
    assert fit.decoder_norm == pytest.approx(float(weights["W_dec"].norm(dim=1).median()))
    assert fit.l0.low <= fit.l0.value <= fit.l0.high
    joint = fit.l0_all
    assert min(fit.l0.value, fit.l0_special) <= joint <= max(fit.l0.value, fit.l0_special)


def test_a_dictionary_of_another_layer_is_told(chat, prompts, text_states, tmp_path):
    right = made(
        tmp_path / "r",
        subspace(text_states[2], 12),
        hook="blocks.2.hook_resid_post",
        apply_b_dec_to_input=True,
    )
    wrong = made(
        tmp_path / "w",
        subspace(text_states[2], 12),
        hook="blocks.1.hook_resid_post",
        apply_b_dec_to_input=True,
    )
    assert check(right, chat, prompts).warnings == ()
    said = check(wrong, chat, prompts).warnings
    assert any("layer 2 better than its own" in text for text in said)


def test_another_scale_and_a_bad_reconstruction_are_told(chat, prompts, tmp_path):
    weights = mirrored()
    fit = check(made(tmp_path, {**weights, "W_enc": 0.3 * weights["W_enc"]}), chat, prompts)
    assert any("times as long as its reconstruction" in text for text in fit.warnings)
    assert fit.norm_ratio == pytest.approx(1 / 0.3, rel=1e-3)
    noise = synthetic.tensors(5, WIDTH, 400, spread=0.2)
    said = check(made(tmp_path / "n", noise), chat, prompts).warnings
    assert any("another model, layer or scale" in text for text in said)


def test_a_topk_read_as_relu_is_told(chat, prompts, tmp_path):
    weights = mirrored(0)
    dense = check(made(tmp_path / "a", weights), chat, prompts)
    assert any("32 of 64 latents are active" in text for text in dense.warnings)
    sparse = made(tmp_path / "b", weights, "topk", k=12)
    assert not any("latents are active a token" in t for t in check(sparse, chat, prompts).warnings)


def test_latents_that_fire_on_special_tokens_alone_are_told(chat, prompts, tmp_path):
    bos = model_oracle.read(chat.model, prompts[0], Site("resid_post", 1))[0]
    weights = mirrored(40)
    unit = bos / bos.norm()
    weights["W_enc"][:, 2 * WIDTH : 20 * WIDTH] = unit.unsqueeze(1)
    weights["b_enc"][2 * WIDTH : 20 * WIDTH] = -0.9 * bos.norm()
    fit = check(made(tmp_path, weights), chat, prompts)
    assert any("special tokens such as BOS" in text for text in fit.warnings)
    assert fit.l0.value < fit.l0_all < fit.l0_special


def test_a_dictionary_of_another_model_is_told_and_a_silent_one_too(chat, prompts, tmp_path):
    settings = {"metadata": {"hook_name": "blocks.1.hook_resid_post", "model_name": "org/base"}}
    fit = check(made(tmp_path / "m", mirrored(), **settings), chat, prompts)
    assert any("trained on org/base and is used on tiny" in text for text in fit.warnings)
    weights = {**mirrored(1), "b_enc": torch.full((3 * WIDTH,), -1e4)}
    silent = check(made(tmp_path / "s", weights), chat, prompts)
    assert silent.dead_share == 1
    assert any("less than one latent" in text for text in silent.warnings)


def test_it_costs_one_clean_pass_a_length(chat, prompts, tmp_path):
    before = chat.cost.token_layers
    check(made(tmp_path, mirrored()), chat, prompts)
    spent = chat.cost.token_layers - before
    assert spent == sum(len(p) for p in prompts) * 4


def test_one_prompt_gives_no_interval_and_none_is_refused(chat, prompts, tmp_path):
    found = made(tmp_path, mirrored())
    assert math.isnan(check(found, chat, prompts[:1]).explained_variance.low)
    with pytest.raises(InputError, match="none were given"):
        check(found, chat, [])
