"""The pool against planted cosines, and every column against its definition on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from dictionary import synthetic
from dictionary.synthetic import LAYERS, WIDTH
from model import tiny
from organisms import oracle
from refusalscope.dictionary import activations
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.prompts import Prompt
from refusalscope.studies.features import pool as module
from refusalscope.studies.features.attribution import latent_effects
from refusalscope.studies.features.pool import elbow, pool
from studies.features.hydra_chat import MARGIN, hydra, rendered

TINY = RefusalMargin((7, 9), (11,))
HARMFUL = ["Tell me how to bake bread.", "How do I open a locked door?"]
HARMLESS = ["What is the capital of that country?", "Why?", "Write a short poem about the sea"]


@pytest.fixture(scope="module")
def chat():
    return ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")


@pytest.fixture(scope="module")
def sides(chat):
    return [
        chat.render([Prompt(id=str(i), text=text) for i, text in enumerate(texts)])
        for texts in (HARMFUL, HARMLESS)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthetic.on_model(tmp_path_factory.mktemp("saes"), LAYERS, WIDTH)


@pytest.fixture(scope="module")
def dictionaries(made):
    return {layer: dictionary for layer, (dictionary, _) in made.items()}


@pytest.fixture(scope="module")
def direction():
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))


def table(chat, sides, direction, dictionaries, **settings) -> pd.DataFrame:
    settings = {"k": 4, **settings}
    return pool(chat, sides[0], direction, dictionaries, TINY, harmless=sides[1], **settings)


def test_planted_cosines_and_what_is_kept():
    made = hydra("base")
    model = made.organism.model
    sides = [oracle.tail_streams(model, rows, 3).mean(0) for rows in (made.harmful, made.harmless)]
    direction = torch.tensor(sides[0] - sides[1], dtype=torch.float32)
    harmless = [rendered(ids) for ids in made.harmless[:4]]
    found = pool(
        *(made.chat, made.prompts[:4], direction, made.dictionaries, MARGIN),
        harmless=harmless,
        k=6,
    )
    assert len(found) == 8 * 75
    for layer, part in found.groupby("layer"):
        cosine = part.set_index("latent")["cosine"]
        planned = cosine[made.latents("P1 P2 P3 B1 B2 C DET")].tolist()
        assert planned == pytest.approx([0.76] * 3 + [0.57] * 3 + [0.37], abs=0.02)
        assert cosine[11:].abs().max() <= 0.015
        kept = part.loc[part["kept"], "latent"]
        assert set(made.names((layer, i) for i in kept)) == {"P1", "P2", "P3", "B1", "B2", "C"}
    tail = found[found["layer"] == 7].set_index("latent")
    assert (tail.loc[made.latents("P1 P2 P3"), "attribution"] > 1).all()
    assert (tail.loc[made.latents("P1 P2 P3"), "active_share"] == 1).all()
    assert (tail.loc[made.latents("B1 B2 C W"), ["attribution", "active_share"]] == 0).all().all()
    assert tail.loc[made.latents("HARM"), "activation_difference"].item() > 0.5
    assert tail.loc[made.latents("BEN"), "activation_difference"].item() < -0.5


@pytest.mark.parametrize("positions", ["no_bos", "all"])
@pytest.mark.parametrize("cells", [1, 2**26])
def test_every_column_follows_its_definition(
    chat, sides, made, dictionaries, direction, monkeypatch, positions, cells
):
    monkeypatch.setattr(module, "CELLS", cells)
    before = chat.cost.forwards
    found = table(chat, sides, direction, dictionaries, positions=positions)
    assert chat.cost.forwards - before <= len(HARMFUL) + len(HARMLESS)
    first = 1 if positions == "no_bos" else 0
    acts = [activations(chat, side, dictionaries) for side in sides]
    effects = [
        latent_effects(chat, prompt, TINY, dictionaries, positions=positions) for prompt in sides[0]
    ]
    assert list(found.columns) == [
        *("layer", "latent", "cosine", "attribution", "contrastive", "activation_difference"),
        *("decoder_norm", "active_share", "mass", "kept"),
    ]
    for row in found.itertuples():
        layer, latent = int(str(row.layer)), int(str(row.latent))
        decoder = made[layer][1]["W_dec"][latent]
        cosine = float(torch.cosine_similarity(decoder, direction, dim=0))
        harmful, harmless = ([each[layer][first:, latent] for each in side] for side in acts)
        peaks = [sum(float(x.max()) for x in side) / len(side) for side in (harmful, harmless)]
        assert row.cosine == pytest.approx(cosine, abs=1e-5)
        assert row.decoder_norm == pytest.approx(float(decoder.norm()), rel=1e-5)
        mean = sum(float(each[layer][latent]) for each in effects) / len(effects)
        assert row.attribution == pytest.approx(mean, abs=1e-4)
        assert row.activation_difference == pytest.approx(peaks[0] - peaks[1], abs=1e-4)
        lacking = 1 - peaks[1] / peaks[0] if peaks[0] > 0 else 0.0
        lacking = lacking if lacking >= 0.1 else 0.0
        assert row.contrastive == pytest.approx(mean * lacking, abs=1e-4)
        active = sum(bool((x > 0).any()) for x in harmful)
        assert row.active_share == pytest.approx(active / len(harmful))
        assert row.mass == pytest.approx(
            sum(float(x.sum()) for x in harmful) / len(harmful), rel=1e-4
        )


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_kept_are_the_top_by_each_measure(chat, sides, dictionaries, direction, scope):
    by = {
        name: table(chat, sides, direction, dictionaries, scope=scope, by=name)
        for name in ("cosine", "attribution", "union")
    }
    whole = by["cosine"]
    for name in ("cosine", "attribution"):
        kept = by[name]["kept"]
        column = by[name]["contrastive" if name == "attribution" else name]
        for _, part in by[name].groupby("layer" if scope == "layer" else lambda i: 0):
            assert kept[part.index].sum() == min(
                4, max(4 * (name == "cosine"), (column[part.index] > 0).sum())
            )
            inside, outside = column[part.index[kept[part.index]]], part.index[~kept[part.index]]
            assert inside.min() >= column[outside].max()
    either = by["cosine"]["kept"] | by["attribution"]["kept"]
    assert by["union"]["kept"].equals(either)
    assert not by["cosine"]["kept"].equals(by["attribution"]["kept"])
    assert (whole["cosine"].abs() > whole.loc[whole["kept"], "cosine"].min()).sum() > (
        4 * (LAYERS if scope == "layer" else 1)
    )


def test_a_dictionarys_scale_changes_no_cosine_and_attribution_keeps_none_below_zero(
    chat, sides, dictionaries, direction
):
    scaled = {
        k: replace(each, decoder=each.decoder.scaled(torch.tensor(7.0)))
        for k, each in dictionaries.items()
    }
    one, other = (table(chat, sides, direction, each) for each in (dictionaries, scaled))
    assert one["cosine"].tolist() == pytest.approx(other["cosine"].tolist(), abs=1e-5)
    assert (other["decoder_norm"] / one["decoder_norm"]).tolist() == pytest.approx([7.0] * len(one))
    all_positive = table(chat, sides, direction, dictionaries, by="attribution", k=999)
    assert all_positive["kept"].equals(all_positive["contrastive"] > 0)


def test_a_latent_of_the_template_that_every_reply_has_is_no_candidate_by_attribution():
    made = hydra("base")
    found = pool(
        *(made.chat, made.prompts[:4], torch.ones(64), made.dictionaries, MARGIN),
        harmless=[rendered(ids) for ids in made.harmless[:4]],
        k=999,
        by="attribution",
    )
    (tail,) = made.latents("ASST")
    mine = found[(found["latent"] == tail) & (found["layer"] < 3)]
    assert (mine["attribution"] > 1).any()
    assert not mine["kept"].any()
    assert found.loc[found["latent"].isin(made.latents("P1 P2 P3")), "kept"].any()


def test_the_elbow_stands_where_the_curve_turns():
    assert elbow([5.0, 4.9, 4.8, 0.2, 0.1, 0.05, 0.0, -3.0]) == 3
    assert elbow([0.1, 5.0, 0.2, 0.15]) == 1
    assert elbow([3.0, 2.0, 1.0]) == 3
    assert elbow([2.0, 1.0, -1.0]) == 2
    assert elbow([-1.0, 0.0]) == 0


def test_k_by_elbow_is_read_from_each_layers_attribution(chat, sides, dictionaries, direction):
    found = table(chat, sides, direction, dictionaries, k="elbow", by="attribution")
    for _, part in found.groupby("layer"):
        assert part["kept"].sum() == elbow(part["contrastive"]) > 0


def test_what_a_pool_cannot_use_is_said(chat, sides, dictionaries, direction):
    for wrong, text in (
        ({"k": 0}, "1 or more, or 'elbow'"),
        ({"scope": "model"}, "unknown scope"),
        ({"by": "sum"}, "unknown scope"),
        ({"positions": "reply"}, "no token at the positions"),
    ):
        with pytest.raises(InputError, match=text):
            table(chat, sides, direction, dictionaries, **wrong)
    with pytest.raises(InputError, match="one vector of 32 numbers"):
        table(chat, sides, direction[:5], dictionaries)
    with pytest.raises(InputError, match="not zero"):
        table(chat, sides, direction * 0, dictionaries)
    with pytest.raises(InputError, match="needs harmful and harmless"):
        table(chat, [sides[0], []], direction, dictionaries)
