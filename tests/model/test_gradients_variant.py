"""Gradients of an edited run against finite differences of exact edited runs."""

from __future__ import annotations

import pytest
import torch

from dictionary import synthetic
from model import tiny
from refusalscope.dictionary import latent_variant
from refusalscope.errors import InputError
from refusalscope.model import (
    KL,
    Add,
    ChatModel,
    LogitDifference,
    Plan,
    ProjectOut,
    Scale,
    Site,
    measure,
)
from refusalscope.prompts import Prompt

METRIC = LogitDifference(7, 11)
SITES = [Site("resid_pre", 1), Site("attn_out", 1), Site("resid_post", 2), Site("final")]
STEP = 5e-3


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def chat(request):
    net = tiny.model(request.param)
    return ChatModel.wrap(net, tiny.tokenizer(), id=request.param)


@pytest.fixture(scope="module")
def prompt(chat):
    return chat.render([Prompt(id="0", text="Tell me how to bake bread.")])[0]


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """Edits before, at and after the sites that are read, of a live kind and of plain kinds."""
    made = synthetic.on_model(tmp_path_factory.mktemp("saes"), 4, synthetic.WIDTH)
    slices = {layer: dictionary.slice() for layer, (dictionary, _) in made.items()}
    direction = _direction(synthetic.WIDTH, 1)
    return (
        *latent_variant(slices, {0: (1, 5, 8), 2: (2, 4, 9), 3: (0, 7)}),
        ProjectOut(Site("resid_pre", 2), "all", direction=direction),
        Scale(Site("attn_out", 1), "last", factor=0.5),
    )


def _direction(width, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(width, generator=draw)


def score(chat, prompt, variant):
    alone = Plan(prefix=False, restart=False, batch=False)
    found = measure(chat.anatomy, [prompt], [variant], {"x": METRIC}, plan=alone)
    return float(found.scores["x"][0, 0])


def test_the_gradient_under_a_variant_is_the_slope_of_the_edited_run(chat, prompt, variant):
    found = chat.first_order(prompt, METRIC, SITES, variant=variant)
    clean = chat.first_order(prompt, METRIC, SITES)
    assert found.value == pytest.approx(score(chat, prompt, variant), abs=1e-5)
    for number, site in enumerate(SITES):
        direction = _direction(found.gradients[site].shape[-1], number)
        plus, minus = (
            score(chat, prompt, (*variant, Add(site, "last", vector=direction, scale=step)))
            for step in (STEP, -STEP)
        )
        slope = (plus - minus) / (2 * STEP)
        assert float(found.gradients[site][-1] @ direction) == pytest.approx(
            slope, rel=5e-3, abs=1e-3
        )
        assert abs(slope - float(clean.gradients[site][-1] @ direction)) > 1e-2


def test_sites_are_read_after_their_edits(chat, prompt, variant):
    found = chat.first_order(prompt, METRIC, SITES, variant=variant)
    for site in SITES:
        edited = chat.capture([prompt], [site], [(t,) for t in range(len(prompt))], variant=variant)
        assert torch.allclose(found.activations[site].float(), edited[site][0], atol=1e-5)


def test_without_edits_it_is_the_clean_gradient_bit_for_bit(chat, prompt):
    clean = chat.first_order(prompt, METRIC, SITES)
    nothing = chat.first_order(prompt, METRIC, SITES, variant=())
    untouched = (Scale(Site("attn_out", 1), "all", factor=1.0),)
    one = chat.first_order(prompt, METRIC, SITES, variant=untouched)
    assert clean.value == nothing.value == one.value
    for site in SITES:
        assert torch.equal(clean.gradients[site], nothing.gradients[site])
        assert torch.equal(clean.gradients[site], one.gradients[site])


def test_a_metric_that_needs_the_clean_run_is_refused_under_a_variant(chat, prompt, variant):
    with pytest.raises(InputError, match="compares with the clean run"):
        chat.first_order(prompt, KL(), SITES, variant=variant)
    assert chat.first_order(prompt, KL(), SITES).value == 0
