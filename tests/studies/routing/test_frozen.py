"""Necessity with all norms frozen: against hooks set by hand, one prompt at a time, and on planted heads."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from model import oracle as plain
from model import tiny
from organisms import oracle
from refusalscope.model import Add, ChatModel, ProjectOut, RefusalMargin, Replace, Scale, Site
from refusalscope.model.edits import frozen
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.prompts import draw_pairs
from refusalscope.studies.frozen_norms import measure_frozen
from refusalscope.studies.heads import WHOLE
from refusalscope.studies.routing import Pair
from refusalscope.studies.routing.interchange import swaps
from studies.routing.test_interchange import planted, row

MARGIN = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
TOPIC, GATE = (4, 7), (3, 1)
OTHERS = [(1, 2), GATE, (5, 0), (5, 3), (6, 2), (7, 0)]


def residual_norms(chat):
    """Every norm as wide as the residual stream, but those of queries and keys, which are so in OLMo-2."""
    return [
        module
        for name, module in chat.model.named_modules()
        if type(module).__name__.endswith("RMSNorm")
        and module.weight.shape == (chat.anatomy.d_model,)
        and not name.endswith(("q_norm", "k_norm"))
    ]


@contextmanager
def hooked(modules, hook):
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_hand(chat, prompt, variant, metric):
    """One prompt, one variant: the clean run's scale is kept a norm and token, then put in its place."""
    norms, scale = residual_norms(chat), {}

    def keep(module, args, output):
        eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
        scale[module] = torch.rsqrt(args[0].double().pow(2).mean(-1, keepdim=True) + eps)

    def put(module, args, output):
        gain = module.weight.double() + chat.anatomy.architecture.gain_offset
        return (args[0].double() * scale[module] * gain).to(output.dtype)

    with hooked(norms, keep):
        clean = plain.logits(chat.model, prompt, ())
    with hooked(norms, put):
        out = plain.logits(chat.model, prompt, variant)
    at = list(metric.reads(prompt))
    return float(metric(out[None, at], prompt, clean[at])[0])


def edits(chat, seed):
    """Variants that start in different layers, not in their order, at one place, some and all."""
    generator = torch.Generator().manual_seed(seed)
    anatomy, last = chat.anatomy, chat.anatomy.n_layers - 1

    def drawn(*shape):
        return frozen(torch.randn(*shape, generator=generator))

    heads = anatomy.softmax_layers
    return [
        (Replace(Site("z", heads[-1]), "last", head=0, values=drawn(anatomy.head_dim)),),
        (),
        (Add(Site("resid_pre", 0), "all", vector=drawn(anatomy.d_model), scale=0.01),),
        (
            Scale(Site("z", heads[0]), "all", head=1, factor=0.0),
            Replace(Site("attn_out", last), (2, 3), values=drawn(2, anatomy.d_model)),
        ),
        (ProjectOut(Site("resid_post", 1), "no_bos", direction=drawn(anatomy.d_model)),),
    ]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_norm_divides_by_the_clean_scale_as_by_hand(name):
    chat = ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name)
    per_layer = 4 if chat.anatomy.architecture.mlp_post_norm and name != "olmo2" else 2
    assert len(residual_norms(chat)) == per_layer * chat.anatomy.n_layers + 1
    prompts = [row([1, *range(20 + n, 25 + 2 * n), 6], str(n)) for n in (0, 3)]
    variants = [edits(chat, seed) for seed in (0, 1)]
    margin = RefusalMargin((30, 50, 80), (40, 90))
    found = measure_frozen(chat, prompts, variants, margin)
    want = [
        [by_hand(chat, prompt, variant, margin) for variant in mine]
        for prompt, mine in zip(prompts, variants, strict=True)
    ]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    # The scale is not what it would be live, and it matters.
    live = np.array(
        [
            [chat.measure([p], [variant], {"m": margin}).scores["m"][0, 0] for variant in mine]
            for p, mine in zip(prompts, variants, strict=True)
        ]
    )
    np.testing.assert_allclose(found[:, 1], live[:, 1], atol=1e-5)
    assert np.abs(np.delete(found - live, 1, axis=1)).max() > 0.01


def test_swaps_of_the_planted_heads_are_as_by_hand():
    _, chat, _, pairs = planted()
    mine = pairs[:3]
    heads = [TOPIC, GATE, (5, 0)]
    for positions in ("last", "right"):
        variants = [[(), *v] for v in swaps(chat, mine, [(head,) for head in heads], positions)]
        prompts = [pair.harmful for pair in mine]
        found = measure_frozen(chat, prompts, variants, MARGIN)
        want = [
            [by_hand(chat, prompt, variant, MARGIN) for variant in each]
            for prompt, each in zip(prompts, variants, strict=True)
        ]
        np.testing.assert_allclose(found, want, atol=1e-4)


def shares(organism, heads):
    """Frozen and live necessity of heads at the last token, as shares of the gap."""
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id="planted")
    drawn = draw_pairs(organism.truth.prompts)
    pairs = [Pair(row(h, f"h{i}"), row(c, f"c{i}")) for i, (h, c) in enumerate(drawn)]
    variants = [[(), *v] for v in swaps(chat, pairs, [(head,) for head in heads])]
    scores = measure_frozen(chat, [pair.harmful for pair in pairs], variants, MARGIN)
    lost = (scores[:, :1] - scores[:, 1:]).mean(axis=0) / oracle.gap(organism.model, drawn)
    live = oracle.necessities(organism.model, drawn, [[head] for head in heads])
    return dict(zip(heads, lost, strict=True)), dict(zip(heads, live, strict=True))


@pytest.mark.parametrize(("noise", "left", "within"), [(0.01, 0.028, 0.01), (0.0, 0.0, 1e-5)])
def test_the_topic_head_is_the_norm_alone_and_the_others_are_not(noise, left, within):
    """Organism O11: -.084 live, +.028 with all norms frozen at noise .01 and exactly 0.000 at noise 0."""
    organism = build(comply_bias=0.5, noise=noise, pairs=16, allow_weak=True)
    frozen_, live = shares(organism, [TOPIC, *OTHERS])
    assert live[TOPIC] < -0.07
    assert frozen_[TOPIC] == pytest.approx(left, abs=within)
    for head in OTHERS:
        assert 0.9 * live[head] < frozen_[head] < 1.5 * live[head]


def test_a_whole_mixer_can_be_swapped_under_frozen_norms():
    chat = ChatModel.wrap(tiny.model("qwen3_next"), tiny.tokenizer(), id="hybrid")
    margin = RefusalMargin((30, 50, 80), (40, 90))
    pair = Pair(row([1, 20, 21, 22, 6], "a"), row([1, 40, 41, 42, 43, 6], "b"))
    (mine,) = swaps(chat, [pair], [((2, WHOLE),), ((3, 1),)], "right")
    found = measure_frozen(chat, [pair.harmful], [[(), *mine]], margin)
    want = [by_hand(chat, pair.harmful, variant, margin) for variant in ((), *mine)]
    np.testing.assert_allclose(found[0], want, atol=1e-4)


def test_the_norms_are_free_again_afterwards_also_after_an_error():
    _, chat, _, pairs = planted()
    prompt = pairs[0].harmful
    before = plain.logits(chat.model, prompt, ())
    measure_frozen(chat, [prompt], [[()]], MARGIN)
    wrong = Replace(Site("z", 0), "last", head=0, values=frozen(torch.zeros(3)))
    with pytest.raises(Exception):  # noqa: B017
        measure_frozen(chat, [prompt], [[(wrong,)]], MARGIN)
    assert torch.equal(before, plain.logits(chat.model, prompt, ()))
    assert not any(module._forward_hooks for module in chat.model.modules())


def test_what_it_costs_is_counted():
    _, chat, _, pairs = planted()
    prompt, spent = pairs[0].harmful, chat.cost.token_layers
    layer = 5
    edit = Scale(Site("z", layer), "last", head=0, factor=0.0)
    measure_frozen(chat, [prompt], [[(edit,)]], MARGIN)
    # The clean row in all layers, the edited one from its layer up.
    n_layers = chat.anatomy.n_layers
    assert chat.cost.token_layers - spent == len(prompt) * (n_layers + n_layers - layer)
