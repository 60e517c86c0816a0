"""Dormant latents of hydras, against the planted truth and against slow hooked loops."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import torch

from organisms import oracle
from refusalscope.dictionary import DictionarySlice, activations, latent_variant
from refusalscope.dictionary.activation import Activation
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference, Rendered, Site
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.construction import C
from refusalscope.organisms.planted.prompts import draw_pairs
from refusalscope.studies.features.dormant import dormant, dormant_value, reserves, waking
from refusalscope.studies.features.ledger import change_norms, matched_noise

MARGIN = LogitDifference(oracle.REFUSE, oracle.COMPLY)
LAYERS = range(8)
P1, P2, P3, B1, B2, SECOND, INERT = range(7)
PRIMARIES, BACKUPS = (P1, P2, P3), (B1, B2)
BOTH = PRIMARIES + BACKUPS


def row(ids, name):
    n = len(ids)
    return Rendered(name, "", tuple(ids), n, (1, n - 2), {"prompt_last": n - 1, "bos": 0})


def slices(dictionary):
    activation = Activation("jumprelu", dictionary["b_enc"], dictionary["threshold"])
    parts = (dictionary["W_enc"], dictionary["W_dec"], None, activation)
    n = len(dictionary["W_dec"])
    return {
        layer: DictionarySlice("planted", Site("resid_post", layer), tuple(range(n)), n, *parts)
        for layer in LAYERS
    }


@cache
def planted(variant="base", seed=0, **options):
    """(organism, chat, ids of the harmful prompts, the prompts, slices by layer)"""
    organism = build("planted-hydra", variant, seed=seed, **options)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=variant)
    ids = [harmful for harmful, _ in draw_pairs(organism.truth.prompts)]
    prompts = [row(each, f"h{i}") for i, each in enumerate(ids)]
    return organism, chat, ids, prompts, slices(organism.dictionary)


def everywhere(latents):
    return dict.fromkeys(LAYERS, latents)


@cache
def table(variant, latents=PRIMARIES, seed=0, arm="no_bos"):
    _, chat, _, prompts, pieces = planted(variant, seed)
    return dormant(
        chat, prompts, everywhere(latents), pieces, MARGIN, set_id="s", arms=(arm,), seed=0
    )


def places(found):
    return set(zip(found["layer"], found["latent"], strict=True))


def since(layer, *latents):
    return {(at, latent) for at in range(layer, 8) for latent in latents}


# What the planted truth says


@pytest.mark.parametrize(
    ("variant", "latents", "due", "counted"),
    [
        ("base", PRIMARIES, since(4, B1, B2, INERT), since(4, B1, B2)),
        ("base", BOTH, since(4, INERT), set()),
        ("partial", PRIMARIES, since(4, B1, B2, INERT), since(4, B1, B2)),
        ("partial", BOTH, since(4, INERT), set()),
        ("chain", PRIMARIES, since(4, B1, B2, INERT), since(4, B1, B2)),
        ("chain", BOTH, since(4, INERT) | since(5, SECOND), since(5, SECOND)),
        ("control", PRIMARIES, set(), set()),
        ("control", BOTH, set(), set()),
    ],
)
def test_what_wakes_on_every_prompt_and_what_of_it_counts(variant, latents, due, counted):
    found = table(variant, latents)
    woke = found[~found["in_set"]]
    assert places(woke[woke["woken"] == 1.0]) == due
    assert places(woke[woke["q"] < 0.05]) == due
    assert places(reserves(found)) == counted


def test_the_arm_with_bos_finds_the_same():
    found = table("chain", PRIMARIES, arm="all")
    assert (found["arm"] == "all").all()
    assert places(reserves(found)) == since(4, B1, B2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_without_backup_gives_no_claim(seed):
    found = table("control", PRIMARIES, seed)
    outside = found[~found["in_set"]]
    # Of 75 latents at each of 8 layers.
    assert (outside["p"] < 0.05).sum() <= 0.05 * 600
    assert (outside["q"] < 0.05).sum() == 0
    assert reserves(found).empty


def test_the_backups_are_found_on_another_seed():
    assert places(reserves(table("base", PRIMARIES, 1))) == since(4, B1, B2)


def test_an_edit_of_the_backups_alone_changes_not_one_bit():
    found = table("base", BACKUPS)
    assert found["in_set"].all()
    assert (found["active_clean"] == 0).all()
    assert (found["effect"] == 0).all()
    assert found["q"].isna().all()
    _, chat, _, prompts, pieces = planted()
    norms = change_norms(chat, prompts, everywhere(BACKUPS), pieces, positions="no_bos")
    assert all(not size.any() for each in norms for size in each.values())


@pytest.mark.parametrize(
    ("latents", "value"), [(PRIMARIES, 0.0), ((P1, P2), 0.0), (BACKUPS, 0.0), (BOTH, 3.87)]
)
def test_what_the_dormant_members_are_worth(latents, value):
    organism, chat, ids, prompts, pieces = planted()
    found = dormant_value(chat, prompts, everywhere(latents), pieces, MARGIN, seed=0)
    masked, live = (
        oracle.ablate(organism.model, organism.dictionary, ids, latents, mode).margin
        for mode in ("clean_mask", "live")
    )
    assert found.value == pytest.approx((masked - live).mean(), abs=1e-4)
    assert found.value == pytest.approx(value, abs=0.1)
    assert found.low <= found.value <= found.high
    assert (found.p < 0.05) == (value > 0)


def test_random_directions_wake_more_than_the_edit_so_counts_alone_say_nothing():
    _, chat, _, prompts, pieces = planted()
    found = waking(chat, prompts, everywhere(PRIMARIES), pieces, seed=0)
    # The page's unit: latents a prompt, whatever the layer. 17.2 of a random direction, 3 planted of the edit.
    latents = found.nulls["directions"].reshape(20, len(prompts), 8, 75).any(axis=2).sum(axis=-1)
    assert latents.mean() == pytest.approx(17.2, abs=1.5)
    assert (found.woken.reshape(-1, 8, 75).any(axis=1).sum(axis=-1) == 3).all()
    counts = found.counts(seed=0).set_index("null")
    assert (counts["woken"] == 12).all()
    assert (counts["high"] < 0).all()
    assert (counts["p"] == 1).all()


def test_a_member_that_fires_on_bos_alone_is_out_of_the_arm_without_bos():
    organism, chat, _, prompts, _ = planted()
    junk = {name: tensor.clone() for name, tensor in organism.dictionary.items()}
    junk["W_enc"][:, -1] = 0
    junk["W_enc"][C.BOSM, -1] = 1.0
    junk["W_dec"][-1] = 0
    junk["W_dec"][-1, [C.BOSM, C.U]] = 0.5**0.5
    found = dormant(chat, prompts, {3: (74,)}, slices(junk), MARGIN, seed=0)
    found = found[found["in_set"]].set_index("arm")
    assert found["active_clean"].to_dict() == {"all": 1.0, "no_bos": 0.0}
    assert found.loc["all", "effect"] != 0
    assert found.loc["no_bos", "effect"] == 0


# Against slow loops


def test_waking_equals_a_loop_over_places():
    organism, chat, ids, prompts, pieces = planted("chain")
    found = waking(chat, prompts, everywhere(BOTH), pieces, arm="all", nulls=(), seed=0)
    before, after = (
        oracle.ablate(organism.model, organism.dictionary, ids, named).acts for named in ((), BOTH)
    )
    for k, (layer, latent) in enumerate(found.keys):
        for p in range(len(ids)):
            clean, edited = before[p][layer][:, latent], after[p][layer][:, latent]
            woke = any(c == 0 and e > 0 for c, e in zip(clean, edited, strict=True))
            assert found.woken[p, k] == (woke and latent not in BOTH)
            assert found.active[p, k] == bool((clean > 0).any())


@pytest.mark.parametrize(("layer", "latent"), [(4, B1), (7, B2), (4, INERT)])
def test_the_effect_is_the_margin_lost_with_the_latent_while_nothing_else_may_wake(layer, latent):
    organism, _, ids, _, _ = planted("chain")
    asleep = oracle.ablate(organism.model, organism.dictionary, ids, PRIMARIES)
    lost = []
    for p, prompt in enumerate(ids):
        with ExitStack() as stack, torch.no_grad():
            for at, block in enumerate(organism.model.model.layers):

                def edit(module, args, x, at=at, p=p):
                    values = oracle.latents_of(organism.dictionary, x)
                    out = (asleep.acts[p][at] == 0)[None].clone()
                    out[..., list(PRIMARIES)] = True
                    if at == layer:
                        out[..., latent] = True
                    return x - (values * out) @ organism.dictionary["W_dec"]

                stack.callback(block.register_forward_hook(edit).remove)
            logits = organism.model(torch.tensor([prompt])).logits[0, -1]
        lost.append(asleep.margin[p] - float(logits[oracle.REFUSE] - logits[oracle.COMPLY]))
    found = table("chain", PRIMARIES, arm="all").set_index(["layer", "latent"]).loc[(layer, latent)]
    assert found["effect"] == pytest.approx(np.mean(lost), abs=1e-4)
    assert found["effect_low"] <= found["effect"] <= found["effect_high"]


def test_a_member_holds_what_comes_back_when_it_alone_is_spared():
    organism, chat, ids, prompts, pieces = planted()
    members = {2: PRIMARIES, 4: BACKUPS}
    found = dormant(chat, prompts, members, pieces, MARGIN, arms=("no_bos",), seed=0)
    held = found[found["in_set"]].set_index("latent")
    whole = oracle.ablate(organism.model, organism.dictionary, ids, BOTH).margin
    for latent in BOTH:
        rest = [other for other in BOTH if other != latent]
        spared = oracle.ablate(organism.model, organism.dictionary, ids, rest).margin
        assert held.loc[latent, "effect"] == pytest.approx((spared - whole).mean(), abs=1e-3)
    assert (held["active_clean"] == [1, 1, 1, 0, 0]).all()


def test_noise_has_the_norm_of_the_edit_at_its_sites_and_places():
    organism, chat, ids, prompts, pieces = planted()
    members = {2: PRIMARIES, 5: (7, 8)}
    norms = change_norms(chat, prompts, members, pieces, positions="no_bos")
    rows = organism.dictionary["W_dec"]
    draw = torch.Generator().manual_seed(0)
    for p, ids_of in enumerate(ids[:4]):
        due = {}
        with ExitStack() as stack, torch.no_grad():
            for layer, latents in members.items():

                def edit(module, args, x, layer=layer, latents=latents, due=due):
                    values = oracle.latents_of(organism.dictionary, x)[..., list(latents)]
                    change = values @ rows[list(latents)]
                    change[:, 0] = 0
                    due[layer] = change[0].norm(dim=-1)
                    return x - change

                block = organism.model.model.layers[layer]
                stack.callback(block.register_forward_hook(edit).remove)
            organism.model(torch.tensor([ids_of]))
        assert due[2][-1] > 2
        variant = matched_noise(norms[p], pieces, prompts[p].resolve("no_bos"), draw)
        for (layer, size), edit_ in zip(due.items(), variant, strict=True):
            assert torch.allclose(norms[p][layer], size[1:], atol=1e-4)
            assert edit_.site == Site("resid_post", layer)
            assert torch.allclose(edit_.values.tensor.norm(dim=-1), size[1:], atol=1e-4)


def test_random_directions_are_run_and_read_as_a_loop_would():
    organism, chat, ids, prompts, pieces = planted()
    norms = change_norms(chat, prompts, {2: PRIMARIES}, pieces, positions="no_bos")
    draw = torch.Generator().manual_seed(0)
    found = waking(chat, prompts, {2: PRIMARIES}, pieces, nulls=("directions",), seed=0)
    clean = activations(chat, prompts, pieces)
    for p, prompt in enumerate(prompts):
        variant = matched_noise(norms[p], pieces, prompt.resolve("no_bos"), draw)
        streams = []
        with ExitStack() as stack, torch.no_grad():
            for layer, block in enumerate(organism.model.model.layers):

                def edit(module, args, x, layer=layer, variant=variant, streams=streams):
                    x = x.clone()
                    if layer == 2:
                        x[0, 1:] -= variant[0].values.tensor
                    streams.append(x[0, 1:])
                    return x

                stack.callback(block.register_forward_hook(edit).remove)
            organism.model(torch.tensor([ids[p]]))
        woke = [
            ((clean[p][k][1:] == 0) & (oracle.latents_of(organism.dictionary, x) > 0)).any(0)
            for k, x in enumerate(streams)
        ]
        assert (found.nulls["directions"][0, p] == torch.cat(woke).numpy()).mean() > 0.998


def test_only_the_latents_asked_for_are_run_and_parts_share_an_effect():
    _, chat, _, prompts, pieces = planted()
    given = {"arms": ("no_bos",), "seed": 0}
    members = everywhere(PRIMARIES)
    part = [(layer, PRIMARIES[0]) for layer in members]
    found = dormant(
        chat, prompts, members, pieces, MARGIN, exact={(4, B1)}, parts=[part], **given
    ).set_index(["layer", "latent"])
    outside = found[~found["in_set"] & found["effect"].notna()]
    assert list(outside.index) == [(4, B1)]
    rest = {layer: [i for i in chosen if i != PRIMARIES[0]] for layer, chosen in members.items()}
    margins = chat.measure(
        prompts,
        [latent_variant(pieces, rest), latent_variant(pieces, members)],
        {"m": MARGIN},
    ).scores["m"]
    assert found.loc[part, "effect"].tolist() == pytest.approx(
        [float((margins[:, 0] - margins[:, 1]).mean())] * len(part), abs=1e-6
    )


# Input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"members": {}}, "the set is empty"),
        ({"members": {9: (1,)}}, "no dictionary of that layer"),
        ({"members": {2: (75,)}}, "latent 75"),
        ({"arms": ("bos",)}, "no arm 'bos'"),
        ({"draws": 5}, "5 draws are too few"),
    ],
)
def test_what_cannot_be_run_is_refused(change, says):
    _, chat, _, prompts, pieces = planted()
    settings = {"members": {2: PRIMARIES}, "arms": ("no_bos",), "seed": 0} | change
    members = settings.pop("members")
    with pytest.raises(InputError, match=says):
        dormant(chat, prompts[:2], members, pieces, MARGIN, **settings)


def test_an_unknown_null_is_refused():
    _, chat, _, prompts, pieces = planted()
    with pytest.raises(InputError, match="no null 'zeros'"):
        waking(chat, prompts[:2], {2: PRIMARIES}, pieces, nulls=("zeros",), seed=0)
