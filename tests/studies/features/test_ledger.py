"""The compensation ledger of hydras, against plain hooks and the figures of the page."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import torch

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.organisms.planted.construction import C
from refusalscope.studies.features.ledger import PARTS, compensation, ledger
from studies.features.test_dormant import (
    BACKUPS,
    BOTH,
    LAYERS,
    PRIMARIES,
    everywhere,
    planted,
)

AXIS = torch.eye(64)[C.U]


@cache
def book(variant, latents=PRIMARIES, **settings):
    _, chat, _, prompts, pieces = planted(variant)
    found = ledger(
        chat, prompts, everywhere(latents), pieces, 3 * AXIS, set_id="s", seed=0, **settings
    )
    return found.set_index(["part", "layer"])


def amounts(found, part):
    return found.loc[part, "amount"].to_numpy()


def slow_writes(organism, prompt, latents, at):
    """Along the axis at one token: [3, layers], attention, MLP, and the stream after the edit."""
    out = np.zeros((3, len(LAYERS)))
    rows = organism.dictionary["W_dec"][list(latents)]
    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(organism.model.model.layers):

            def attention(module, args, output, layer=layer):
                out[0, layer] = output[0][0, at, C.U]

            def mlp(module, args, output, layer=layer):
                out[1, layer] = output[0, at, C.U]

            def edit(module, args, x, layer=layer):
                x = x - oracle.latents_of(organism.dictionary, x)[..., list(latents)] @ rows
                out[2, layer] = x[0, at, C.U]
                return x

            stack.callback(block.self_attn.register_forward_hook(attention).remove)
            stack.callback(block.mlp.register_forward_hook(mlp).remove)
            stack.callback(block.register_forward_hook(edit).remove)
        organism.model(torch.tensor([prompt]))
    return out


@pytest.mark.parametrize("at", [-1, -2])
@pytest.mark.parametrize("variant", ["base", "chain"])
def test_writes_and_axis_equal_plain_hooks(variant, at):
    organism, _, ids, _, _ = planted(variant)
    found = book(variant, BOTH, arm="all", at=((at,),))
    moved = np.mean(
        [
            slow_writes(organism, prompt, BOTH, at) - slow_writes(organism, prompt, (), at)
            for prompt in ids
        ],
        axis=0,
    )
    np.testing.assert_allclose(amounts(found, "heads"), moved[0], atol=1e-5)
    np.testing.assert_allclose(amounts(found, "mlp"), moved[1], atol=1e-5)
    axis = sum(amounts(found, part) for part in ("removed", "heads", "mlp")).cumsum()
    np.testing.assert_allclose(axis, moved[2], atol=1e-4)


def test_the_two_ways_to_part_what_is_written_back_agree():
    found = book("partial")
    left = amounts(found, "heads") + amounts(found, "mlp")
    right = amounts(found, "latents") + amounts(found, "rest")
    np.testing.assert_allclose(left, right, atol=1e-9)


@pytest.mark.parametrize(
    ("variant", "latents", "layer", "share"),
    [
        ("base", PRIMARIES, 4, 1.0),
        ("partial", PRIMARIES, 4, 0.4),
        ("chain", BOTH, 5, 0.5),
        ("control", PRIMARIES, 4, 0.0),
    ],
)
def test_backups_write_back_in_their_layer_by_their_mlp(variant, latents, layer, share):
    found = book(variant, latents)
    removed = -amounts(found, "removed").sum()
    back = amounts(found, "mlp")
    if variant == "chain":
        # The backups write 2.04, which is removed as well; then the second one writes 2.04.
        assert back[4] == pytest.approx(-found.loc[("removed", 4), "amount"], abs=0.02)
    assert back[layer] / removed == pytest.approx(share, abs=0.02)
    assert np.delete(back, [4, layer]) == pytest.approx(0, abs=0.03)
    assert amounts(found, "heads") == pytest.approx(0, abs=0.02)
    assert found.loc[("latents", layer), "amount"] == pytest.approx(back[layer], abs=0.03)
    assert amounts(found, "rest")[layer] == pytest.approx(0, abs=0.03)
    assert (found["low"] <= found["amount"]).all()
    assert (found["amount"] <= found["high"]).all()


def test_woken_latents_are_summed_as_a_loop_would():
    organism, chat, ids, prompts, pieces = planted("chain")
    # Off the axis, where latents that were active all along would count too.
    direction = torch.linspace(-1, 1, 64)
    claims = organism.dictionary["W_dec"] @ (direction / direction.norm())
    before, after = (
        oracle.ablate(organism.model, organism.dictionary, ids, named).acts for named in ((), BOTH)
    )
    due = np.zeros(len(LAYERS))
    for clean, edited in zip(before, after, strict=True):
        for layer in LAYERS:
            for latent, claim in enumerate(claims.tolist()):
                was, now = (float(acts[layer, -1, latent]) for acts in (clean, edited))
                if latent not in BOTH and was == 0 and now > 0:
                    due[layer] += now * claim / len(ids)
    assert abs(due[7]) > 0.05
    members = dict.fromkeys((2, 4), BOTH)
    for layers in (list(LAYERS), [2, 3, 4, 6]):
        some = {layer: pieces[layer] for layer in layers}
        found = ledger(chat, prompts, members, some, direction, arm="all", seed=0)
        own = amounts(found.set_index(["part", "layer"]), "latents")
        np.testing.assert_allclose(own.cumsum()[layers], due[layers], atol=2e-3)
        assert (np.delete(own, layers) == 0).all()


def test_noise_takes_nothing_off_the_axis_on_average():
    found = book("control")
    assert found.loc[("removed", 2), "amount"] == pytest.approx(-2.05, abs=0.05)
    assert found.loc[("removed", 2), "null"] == pytest.approx(0, abs=0.06)
    # Random directions open backups too, and by more than the edit does: why the null stands beside it.
    assert book("base").loc[("mlp", 4), "null"] > book("base").loc[("mlp", 4), "amount"]


def test_silent_latents_leave_an_empty_ledger():
    found = book("base", BACKUPS)
    assert set(found.index.get_level_values("part")) == set(PARTS)
    assert not found[["amount", "low", "high", "null"]].to_numpy().any()


@pytest.mark.parametrize("variant", ["base", "chain", "partial", "control"])
def test_compensation_equals_the_hooked_axis(variant):
    organism, chat, ids, prompts, pieces = planted(variant)
    page = {(0,): 0.57, (0, 1): 1.32, PRIMARIES: 2.04, BACKUPS: 0.0}
    for latents, value in page.items():
        found = compensation(
            chat, prompts, everywhere(latents), pieces, AXIS, arm="all", seed=0
        ).set_index("layer")
        live, held = (
            oracle.ablate(organism.model, organism.dictionary, ids, latents, mode).axis
            for mode in ("live", "no_wake")
        )
        last = found.loc[7]
        assert last["amount"] == pytest.approx((live - held).mean(), abs=1e-4)
        assert (last["live"], last["no_wake"]) == pytest.approx(
            (live.mean(), held.mean()), abs=1e-4
        )
        if variant == "base":
            assert last["amount"] == pytest.approx(value, abs=0.1)
        if variant == "control":
            assert last["amount"] == pytest.approx(0.0, abs=1e-5)
        assert (found.loc[:3, "amount"].abs() < 1e-5).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"direction": torch.zeros(64)}, "not zero"),
        ({"direction": torch.ones(63)}, "one vector of 64 numbers"),
        ({"members": {}}, "the set is empty"),
        ({"draws": 3}, "3 draws are too few"),
    ],
)
def test_what_cannot_be_run_is_refused(change, says):
    _, chat, _, prompts, pieces = planted()
    settings = {"members": {2: PRIMARIES}, "direction": AXIS, "seed": 0} | change
    members, direction = settings.pop("members"), settings.pop("direction")
    with pytest.raises(InputError, match=says):
        ledger(chat, prompts[:2], members, pieces, direction, **settings)
