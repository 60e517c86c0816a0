"""Integrated gradients against a slow loop with activations as leaves, exact runs, and what was planted."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from dictionary import synthetic
from dictionary.synthetic import LAYERS, WIDTH
from model import tiny
from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt
from refusalscope.studies.features.integrated import Attributions
from refusalscope.studies.features.yeo2025 import one_layer_at_a_time, yeo2025
from studies.features.hydra_chat import hydra

REFUSAL = 11
TEXTS = ["Tell me how to bake bread.", "Why?"]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def chat(request):
    return ChatModel.wrap(tiny.model(request.param), tiny.tokenizer(), id=request.param)


@pytest.fixture(scope="module")
def prompts(chat):
    return chat.render([Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)])


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory):
    made = synthetic.on_model(tmp_path_factory.mktemp("saes"), LAYERS, WIDTH)
    return {layer: dictionary for layer, (dictionary, _) in made.items()}


@pytest.fixture(scope="module")
def direction():
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))


class Untouched(torch.autograd.Function):
    """Gives back `after`; the gradient goes to both as it comes."""

    @staticmethod
    def forward(ctx, before, after):
        return after.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0], gradients[0]


def run(chat, prompt, change):
    """Logits at the end and the stream after each block, which `change(layer, x)` replaces."""
    streams = {}

    def block(layer):
        def hook(module, args, output):
            whole = isinstance(output, tuple)
            streams[layer] = change(layer, output[0] if whole else output)
            return (streams[layer], *output[1:]) if whole else streams[layer]

        return hook

    with ExitStack() as stack:
        for k, layer in enumerate(chat.anatomy.layers):
            stack.callback(layer.register_forward_hook(block(k)).remove)
        logits = chat.model(torch.tensor([prompt.ids])).logits[0, -1]
    return logits, streams


def without(chat, prompt, direction):
    """The run with the direction out of every block input and every write."""
    unit = direction / direction.norm()

    def out(x):
        return x - (x @ unit)[..., None] * unit

    def after(module, args, output):
        return (out(output[0]), *output[1:]) if isinstance(output, tuple) else out(output)

    with ExitStack() as stack, torch.no_grad():
        for k, layer in enumerate(chat.anatomy.layers):
            pre = layer.register_forward_pre_hook(lambda m, args: (out(args[0]), *args[1:]))
            stack.callback(pre.remove)
            for module in (chat.anatomy.attn_write(k), chat.anatomy.mlp_write(k)):
                stack.callback(module.register_forward_hook(after).remove)
        return run(chat, prompt, lambda k, x: x)


def slow(chat, prompt, direction, dictionaries, steps, skip):
    """The published loop: activations are leaves, what is decoded from them stands in the stream."""
    with torch.no_grad():
        _, clean = run(chat, prompt, lambda k, x: x)
    logits, patch = without(chat, prompt, direction)
    opening = int(logits.argmax())
    total = {}
    for step in range(steps):
        a, leaves = step / steps, {}

        def change(layer, x, a=a, leaves=leaves):
            each = dictionaries[layer]
            live, rest = x.detach(), patch[layer]
            f = (1 - a) * each.encode(live) + a * each.encode(rest)
            error = (1 - a) * (live - each.decode(each.encode(live)))
            error = error + a * (rest - each.decode(each.encode(rest)))
            leaves[layer] = f.requires_grad_()
            return Untouched.apply(x, each.decode(f) + error)

        embed = chat.model.get_input_embeddings()
        start = embed.register_forward_hook(lambda m, args, out: out.detach().requires_grad_())
        found, _ = run(chat, prompt, change)
        start.remove()
        (found[opening] - found[REFUSAL]).backward()
        for layer, leaf in leaves.items():
            total[layer] = total.get(layer, 0) + leaf.grad[0] / steps
    moved = {k: each.encode(patch[k]) - each.encode(clean[k]) for k, each in dictionaries.items()}
    return opening, {k: (moved[k][0] * total[k])[skip:].mean(0) for k in dictionaries}


@pytest.mark.parametrize("skip", [1, 3])
def test_published_attributions_equal_the_slow_loop(chat, prompts, direction, dictionaries, skip):
    found = yeo2025(chat, prompts, direction, dictionaries, refusal=REFUSAL, skip=skip, steps=4)
    assert found.values.shape == (2, len(found.latents))
    for row, prompt in enumerate(prompts):
        opening, want = slow(chat, prompt, direction, dictionaries, 4, skip)
        assert found.openings[row] == opening
        mine = {k: torch.zeros(each.d_sae) for k, each in dictionaries.items()}
        for (layer, latent), value in zip(found.latents, found.values[row], strict=True):
            mine[layer][latent] = value
        for layer in dictionaries:
            assert want[layer].abs().max() > 1e-3
            torch.testing.assert_close(mine[layer], want[layer], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("positions", ["no_bos", "all", "instruction"])
def test_corrected_attributions_add_up_to_the_exact_change(
    chat, prompts, direction, dictionaries, positions, normalisation
):
    used = {k: replace(each, normalisation=normalisation) for k, each in dictionaries.items()}
    found = one_layer_at_a_time(
        chat, prompts, direction, used, refusal=REFUSAL, positions=positions
    )
    table = found.layers
    assert len(table) == len(prompts) * LAYERS
    np.testing.assert_allclose(table["latents"] + table["error"], table["exact"], atol=2e-4)
    assert (table[["latents", "error", "exact"]].abs().max() > 0.01).all()
    layers = np.array([layer for layer, _ in found.attributions.latents])
    for row, prompt in enumerate(prompts):
        mine = table[table["prompt_id"] == prompt.id].set_index("layer")
        for layer in used:
            summed = found.attributions.values[row, layers == layer].sum()
            assert summed == pytest.approx(mine.loc[layer, "latents"], abs=1e-4)


def test_error_and_exact_follow_their_definitions(chat, prompts, direction, dictionaries):
    prompt = prompts[0]
    table = one_layer_at_a_time(
        chat, [prompt], direction, dictionaries, refusal=REFUSAL, positions="all"
    ).layers.set_index("layer")
    _, clean = run(chat, prompt, lambda k, x: x)
    logits, patch = without(chat, prompt, direction)
    opening = int(logits.argmax())

    def metric(layer, x):
        found, _ = run(chat, prompt, lambda k, out: x if k == layer else out)
        return found[opening] - found[REFUSAL]

    for layer, each in dictionaries.items():
        before, after = clean[layer].detach(), patch[layer]
        exact = (metric(layer, after) - metric(layer, before)).item()
        assert table.loc[layer, "exact"] == pytest.approx(exact, abs=1e-4)
        missed = [x - each.decode(each.encode(x)) for x in (before, after)]
        share = 0.0
        for a in (np.arange(50) + 0.5) / 50:
            x = torch.lerp(before, after, a).requires_grad_()
            (slope,) = torch.autograd.grad(metric(layer, x), x)
            share += float((slope * (missed[1] - missed[0])).sum()) / 50
        assert table.loc[layer, "error"] == pytest.approx(share, abs=2e-4)


def test_moving_all_layers_at_once_adds_up_to_nothing(chat, prompts, direction, dictionaries):
    prompt = prompts[0]
    summed = yeo2025(chat, [prompt], direction, dictionaries, refusal=REFUSAL, skip=0, steps=20)
    table = one_layer_at_a_time(
        chat, [prompt], direction, dictionaries, refusal=REFUSAL, positions="all"
    ).layers
    total = summed.values.sum() * len(prompt)
    assert abs(total - table["latents"].sum()) > 0.05 * abs(table["latents"].sum())
    assert abs(total - table["exact"].iloc[-1]) > 0.05 * abs(table["exact"].iloc[-1])


def test_candidates_are_the_columns_and_change_no_number(chat, prompts, direction, dictionaries):
    candidates = {2: [7, 3, 0], 1: [5]}
    for method in (yeo2025, one_layer_at_a_time):
        each = [
            method(
                *(chat, prompts, direction, dictionaries),
                refusal=REFUSAL,
                candidates=some,
                steps=2,
            )
            for some in (None, candidates)
        ]
        whole, part = (one if isinstance(one, Attributions) else one.attributions for one in each)
        assert part.latents == ((1, 5), (2, 7), (2, 3), (2, 0))
        known = dict(zip(whole.latents, whole.values.T, strict=True))
        for latent, values in zip(part.latents, part.values.T, strict=True):
            np.testing.assert_allclose(values, known.get(latent, 0.0), atol=1e-7)


def test_local_and_global_tops():
    values = np.array([[3.0, -1.0, 0.0, 1.0], [-2.0, 5.0, 0.0, 2.0]])
    found = Attributions(("a", "b"), (7, 7), ((0, 4), (0, 9), (1, 0), (2, 2)), values)
    assert found.top_local(2) == [((0, 4), (2, 2)), ((0, 9), (2, 2))]
    assert found.top_local() == found.top_local(2)
    assert found.top_global() == ((0, 9), (2, 2), (0, 4))
    assert found.top_global(1) == ((0, 9),)
    assert found.frame()["attribution"].tolist() == [0.5, 2.0, 0.0, 1.5]


def test_a_run_that_still_opens_with_the_refusal_has_no_attribution(
    chat, prompts, direction, dictionaries
):
    opening = yeo2025(chat, prompts[:1], direction, dictionaries, refusal=REFUSAL, steps=1).openings
    found = yeo2025(chat, prompts[:1], direction, dictionaries, refusal=opening[0])
    assert not found.values.any()
    assert found.top_global() == ()


def test_on_the_hydra_the_primaries_are_found():
    made = hydra("base")
    ends = [
        oracle.tail_streams(made.organism.model, rows, 3).mean(0)
        for rows in (made.harmful, made.harmless)
    ]
    direction = torch.tensor(ends[0] - ends[1], dtype=torch.float32)
    names = made.latents("P1 P2 P3 B1 B2 C")
    some = {k: made.dictionaries[k] for k in (1, 2, 4)}
    candidates = dict.fromkeys(some, names)
    found = yeo2025(
        *(made.chat, made.prompts[:3], direction, some),
        refusal=oracle.REFUSE,
        candidates=candidates,
    )
    assert set(found.openings) == {oracle.COMPLY}
    primaries = {(k, i) for k in (2, 4) for i in made.latents("P1 P2 P3")}
    assert set(found.top_global(6)) == primaries
    for best in found.top_local(6):
        assert set(best) == primaries


def test_the_model_is_as_before_and_forwards_are_counted(chat, prompts, direction, dictionaries):
    before = chat.cost.forwards
    yeo2025(chat, prompts, direction, dictionaries, refusal=REFUSAL, steps=5)
    assert chat.cost.forwards - before == len(prompts) * (3 + 5)
    assert not any(module._forward_hooks for module in chat.model.modules())


def test_what_cannot_be_used_is_said(chat, prompts, direction, dictionaries):
    def call(**wrong):
        given = {"prompts": prompts, "direction": direction, "dictionaries": dictionaries, **wrong}
        return yeo2025(chat, refusal=REFUSAL, **given)

    for wrong, text in (
        ({"prompts": []}, "need prompts"),
        ({"steps": 0}, "1 or more steps"),
        ({"direction": direction[:5]}, "a direction of 32 numbers"),
        ({"direction": direction * 0}, "must not be zero"),
        ({"dictionaries": {}}, "need dictionaries"),
        ({"candidates": {0: [999]}}, "no dictionary of that layer holds it"),
        ({"candidates": {9: [0]}}, "no dictionary of that layer holds it"),
        ({"skip": 99}, "leaves no token"),
    ):
        with pytest.raises(InputError, match=text):
            call(**wrong)
    with pytest.raises(InputError, match="no token at the positions"):
        one_layer_at_a_time(
            *(chat, prompts, direction, dictionaries), refusal=REFUSAL, positions="reply"
        )
