"""A dictionary of principal components against scikit-learn, and its L0 as the self-check counts it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dictionary.synthetic import WIDTH
from model import tiny
from refusalscope.dictionary import activations, check, latent_variant
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference, Site
from refusalscope.prompts import Prompt
from refusalscope.studies.features import pca as module
from refusalscope.studies.features.pca import pca_dictionary

SITE = Site("resid_post", 1)
TEXTS = [
    *("Tell me how to bake bread.", "Why?", "Write a short poem about the sea"),
    *("What is the capital of that country?", "How do I open a locked door?"),
]


@pytest.fixture(scope="module")
def chat():
    return ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")


@pytest.fixture(scope="module")
def prompts(chat):
    return chat.render([Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)])


def tokens(chat, prompts):
    """States of all tokens but BOS."""
    rows = []
    for prompt in prompts:
        at = [(t,) for t in range(1, len(prompt))]
        rows.append(chat.capture([prompt], [SITE], at)[SITE][0])
    return torch.cat(rows)


def test_components_mean_and_decoding_are_those_of_scikit_learn(chat, prompts):
    x = tokens(chat, prompts)
    found = pca_dictionary(chat, prompts, SITE, 12, 3.0, seed=0)
    wanted = PCA(6, svd_solver="full").fit(x.double().numpy())
    rows = found.decoder.take(slice(None))
    assert torch.equal(rows[::2], -rows[1::2])
    along = rows[::2].double().numpy() @ wanted.components_.T
    np.testing.assert_allclose(np.abs(along), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(found.b_dec, wanted.mean_, atol=1e-5)
    # Each side of a component takes part of the projection that is above the threshold.
    acts = found.encode(x)
    scores = (x - found.b_dec) @ rows[::2].T
    high = scores.abs() > found.activation.threshold[0]
    torch.testing.assert_close(acts[:, ::2] - acts[:, 1::2], scores * high, atol=1e-4, rtol=1e-4)
    assert not ((acts[:, ::2] > 0) & (acts[:, 1::2] > 0)).any()
    assert (acts >= 0).all()
    torch.testing.assert_close(
        found.decode(acts), found.b_dec + (scores * high) @ rows[::2], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("l0", [0.5, 2.0, 4.3])
def test_its_l0_is_the_one_asked_for(chat, prompts, l0):
    found = pca_dictionary(chat, prompts, SITE, 20, l0, seed=0)
    fit = check(found, chat, prompts)
    assert fit.l0.value == pytest.approx(l0, abs=0.6 / fit.n_tokens)
    assert found.activation.threshold.unique().numel() == 1


def test_special_tokens_do_not_count_for_its_l0(chat, prompts, monkeypatch):
    template = [prompts[0].ids[place] for place in (0, 1, -1, -2)]
    before = pca_dictionary(chat, prompts, SITE, 20, 3.0, seed=0)
    monkeypatch.setattr(type(chat.tokenizer), "all_special_ids", property(lambda self: template))
    found = pca_dictionary(chat, prompts, SITE, 20, 3.0, seed=0)
    fit = check(found, chat, prompts)
    assert fit.l0.value == pytest.approx(3.0, abs=0.6 / fit.n_tokens)
    assert check(before, chat, prompts).l0.value != pytest.approx(3.0, abs=0.05)
    # They have their part in the components.
    assert torch.equal(found.decoder.take([0, 2]), before.decoder.take([0, 2]))


def test_more_latents_active_explain_more(chat, prompts):
    shares = [
        check(pca_dictionary(chat, prompts, SITE, 60, l0, seed=0), chat, prompts)
        for l0 in (2.0, 8.0, 24.0)
    ]
    explained = [fit.explained_variance.value for fit in shares]
    assert explained == sorted(explained)
    assert explained[-1] > 0.9
    assert not any("layer number" in said for fit in shares for said in fit.warnings)


def test_it_is_a_dictionary_for_edits_and_slices(chat, prompts):
    found = pca_dictionary(chat, prompts, SITE, 2 * WIDTH, 4.0, seed=0)
    assert (found.d_sae, found.d_in, found.site) == (2 * WIDTH, WIDTH, SITE)
    metric = LogitDifference(7, 11)
    active = [int(i) for i in activations(chat, prompts[:1], {1: found})[0][1].sum(0).topk(4)[1]]
    variant = latent_variant({1: found.slice(active)}, {1: active})
    scores = chat.measure(prompts[:1], [(), variant], {"m": metric}).scores["m"][0]
    assert abs(scores[0] - scores[1]) > 1e-3
    held = found.hold()
    x = torch.randn(3, WIDTH)
    assert torch.equal(held.encode(x), found.encode(x))
    part = found.slice([5, 2])
    torch.testing.assert_close(part.encode(x), found.encode(x)[:, [5, 2]])
    double = found.decoder.scaled(torch.tensor(2.0))
    assert torch.equal(double.take([3, 1]), 2 * found.decoder.take([3, 1]))
    found.close()


def test_the_seed_draws_prompts_where_there_are_too_many_tokens(chat, prompts, monkeypatch):
    def basis(seed):
        return pca_dictionary(chat, prompts, SITE, 4, 1.0, seed=seed).decoder.take([0, 2])

    assert torch.allclose(basis(0).abs(), basis(1).abs(), atol=1e-4)
    monkeypatch.setattr(module, "TOKENS", 30)
    assert torch.equal(basis(0), basis(0))
    assert any(not torch.allclose(basis(0).abs(), basis(k).abs(), atol=1e-2) for k in (1, 2, 3))


def test_what_cannot_be_made_is_said(chat, prompts, monkeypatch):
    for n_latents, l0, text in (
        (7, 1.0, "even number"),
        (0, 1.0, "even number"),
        (2 * WIDTH + 2, 1.0, "at most 64 latents"),
        (8, 4.0, "cannot be reached"),
        (8, 0.0, "cannot be reached"),
    ):
        with pytest.raises(InputError, match=text):
            pca_dictionary(chat, prompts, SITE, n_latents, l0, seed=0)
    with pytest.raises(InputError, match="at most 10 latents"):
        pca_dictionary(chat, prompts[1:2], SITE, 60, 1.0, seed=0)
    with pytest.raises(InputError, match="output of a block"):
        pca_dictionary(chat, prompts, Site("attn_out", 1), 8, 1.0, seed=0)
    with pytest.raises(InputError, match="need prompts with text"):
        pca_dictionary(chat, [], SITE, 8, 1.0, seed=0)
    with pytest.raises(InputError, match="outside the model"):
        pca_dictionary(chat, prompts, Site("resid_post", 99), 8, 1.0, seed=0)
    monkeypatch.setattr(module, "TOKENS", 3)
    with pytest.raises(InputError, match="of at most 3 tokens"):
        pca_dictionary(chat, prompts, SITE, 8, 1.0, seed=0)
