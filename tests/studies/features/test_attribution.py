"""Conditional attribution against slopes of exact runs, exact ablations, and what was planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

import refusalscope.dictionary.dictionary as whole
from dictionary import synthetic
from dictionary.synthetic import LAYERS, ON_MODEL, WIDTH
from model import tiny
from organisms import oracle
from refusalscope.dictionary import latent_variant, load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference
from refusalscope.prompts import Prompt
from refusalscope.studies.features.attribution import latent_effects
from studies.features.hydra_chat import MARGIN, hydra

METRIC = LogitDifference(7, 11)
ABLATED = {0: (1, 5, 8), 2: (2, 4, 9)}


@pytest.fixture(scope="module")
def chat():
    return ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")


@pytest.fixture(scope="module")
def prompt(chat):
    return chat.render([Prompt(id="0", text="Tell me how to bake bread.")])[0]


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory):
    """Random dictionaries whose writes are small beside the stream, on disk."""
    made = {}
    for layer in range(LAYERS):
        weights = synthetic.tensors(100 + layer, WIDTH, ON_MODEL, spread=3.0)
        weights["W_dec"] = weights["W_dec"] * 0.05
        folder = tmp_path_factory.mktemp("saes")
        synthetic.saelens(folder, weights=weights, hook=f"blocks.{layer}.hook_resid_post")
        made[layer] = load_dictionary(folder)
    return made


def margins(chat, prompt, variants):
    return chat.measure([prompt], variants, {"m": METRIC}).scores["m"][0]


@pytest.mark.parametrize("normalisation", ["none", "constant_norm_rescale"])
def test_an_effect_is_the_slope_of_turning_the_latent_up(chat, prompt, dictionaries, normalisation):
    used = {k: replace(each, normalisation=normalisation) for k, each in dictionaries.items()}
    slices = {k: each.slice() for k, each in used.items()}
    found = latent_effects(chat, prompt, METRIC, used, ablated=ABLATED)
    held = latent_variant(slices, ABLATED)
    seen = 0
    for layer in range(LAYERS):
        for latent in range(0, ON_MODEL, 3):
            plus, minus = (
                (*held, *latent_variant(slices, {layer: [latent]}, kind="scale", value=1 + step))
                for step in (0.1, -0.1)
            )
            up, down = margins(chat, prompt, [plus, minus])
            effect = float(found[layer][latent])
            assert effect == pytest.approx((up - down) / 0.2, rel=0.01, abs=2e-4)
            seen += abs(effect) > 1e-2
    assert seen >= 8


@pytest.mark.parametrize("ablated", [{}, ABLATED])
def test_effects_rank_latents_as_exact_ablation_does(chat, prompt, dictionaries, ablated):
    found = latent_effects(chat, prompt, METRIC, dictionaries, ablated=ablated)
    slices = {k: each.slice() for k, each in dictionaries.items()}
    held = latent_variant(slices, ablated)
    places = [
        (k, i)
        for k in range(LAYERS)
        for i in range(ON_MODEL)
        if found[k][i] != 0 and i not in ablated.get(k, ())
    ]
    variants = [(*held, *latent_variant(slices, {k: [i]})) for k, i in places]
    base, *cut = margins(chat, prompt, [held, *variants])
    exact = [base - value for value in cut]
    effects = [float(found[k][i]) for k, i in places]
    assert len(places) > 40
    assert spearmanr(effects, exact).statistic >= 0.9


def test_one_forward_and_the_bos_token_left_out(chat, prompt, dictionaries):
    before = chat.cost.forwards
    found = latent_effects(chat, prompt, METRIC, dictionaries)
    assert chat.cost.forwards == before + 1
    everywhere = latent_effects(chat, prompt, METRIC, dictionaries, positions="all")
    first = latent_effects(chat, prompt, METRIC, dictionaries, positions=(0,))
    for layer in range(LAYERS):
        assert (first[layer].abs().max() > 1e-3) == (layer < LAYERS - 1)
        assert torch.allclose(everywhere[layer] - first[layer], found[layer], atol=1e-5)


def test_decoder_rows_come_in_chunks_and_only_those_of_active_latents(
    chat, prompt, dictionaries, monkeypatch
):
    found = latent_effects(chat, prompt, METRIC, dictionaries)
    monkeypatch.setattr(whole, "CHUNK", 3 * WIDTH)
    rows = whole.Dictionary.decoder_rows
    asked = []

    def counted(self, latents=None):
        asked.append(len(latents))
        for places, part in rows(self, latents):
            assert len(part) <= 3
            yield places, part

    monkeypatch.setattr(whole.Dictionary, "decoder_rows", counted)
    again = latent_effects(chat, prompt, METRIC, dictionaries)
    assert len(asked) == LAYERS
    assert min(asked) > 0
    assert sum(asked) < LAYERS * ON_MODEL
    for layer in range(LAYERS):
        assert torch.allclose(found[layer], again[layer], atol=1e-5)


def test_on_the_hydra_it_tells_backups_from_what_merely_wakes():
    made = hydra("base")
    primaries = made.latents("P1 P2 P3")
    ablated = dict.fromkeys(made.dictionaries, primaries)
    each = [
        latent_effects(made.chat, p, MARGIN, made.dictionaries, ablated=ablated, positions="all")
        for p in made.prompts[:6]
    ]
    found = torch.stack([torch.stack([e[k] for k in range(8)]) for e in each]).mean(0)
    model, dictionary = made.organism.model, made.organism.dictionary
    slow = oracle.conditional_attribution(model, dictionary, made.harmful[:6], primaries)
    assert torch.allclose(found[4:], slow[4:], atol=1e-3)
    b1, b2, inert = found[4:].mean(0)[made.latents("B1 B2 W")].tolist()
    assert (b1, b2) == (pytest.approx(1.81, abs=0.1), pytest.approx(1.83, abs=0.1))
    assert inert == pytest.approx(-0.014, abs=0.02)
    assert found[4:, 11:].abs().max() < 0.05


def test_a_latent_without_its_dictionary_is_said(chat, prompt, dictionaries):
    one = {1: dictionaries[1]}
    with pytest.raises(InputError, match="no dictionary of that layer"):
        latent_effects(chat, prompt, METRIC, one, ablated={3: [0]})
    with pytest.raises(InputError, match="not in this slice"):
        latent_effects(
            chat, prompt, METRIC, one, ablated={1: [3]}, slices={1: one[1].slice([0, 1])}
        )
