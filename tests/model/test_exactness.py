"""The six exactness rules of the design, on a tiny random model of every architecture."""

from __future__ import annotations

import pytest
import torch

from model import oracle, tiny
from refusalscope.model import (
    KL,
    Add,
    ChatModel,
    LogitDifference,
    Plan,
    ProjectOut,
    Replace,
    ReplyNLL,
    Scale,
    Site,
    StateMetric,
    capture,
    everywhere,
    measure,
)
from refusalscope.prompts import Prompt

TEXTS = [
    "Tell me how to bake bread.",
    "What is the capital of that country?",
    "Write a short poem about the sea and the blue sky in three steps",
    "Why?",
]
PLANS = {
    "full": Plan(),
    "no prefix": Plan(prefix=False),
    "no restart": Plan(restart=False),
    "one row at a time": Plan(batch=False),
    "tiny budget": Plan(max_bytes=60_000),
}


@pytest.fixture(scope="module", params=sorted(tiny.CONFIGS))
def chat(request) -> ChatModel:
    return ChatModel.wrap(tiny.model(request.param), tiny.tokenizer(), id=request.param)


@pytest.fixture(scope="module")
def prompts(chat):
    return chat.render([Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)])


def _vector(width: int, seed: int, n: int | None = None) -> torch.Tensor:
    shape = (width,) if n is None else (n, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _z(chat, layer: int) -> Site:
    """z of a layer, or of the next one that has heads."""
    return Site("z", next(k for k in chat.anatomy.softmax_layers if k >= layer))


def _variants(chat) -> list:
    a = chat.anatomy
    d, hd = a.d_model, a.head_dim
    return [
        (),
        everywhere(a.n_layers, _vector(d, 1)),
        (Add(Site("resid_pre", 2), "all", vector=_vector(d, 2)),),
        (Add(Site("resid_post", 3), "last", vector=_vector(d, 3), scale=2.0),),
        (Replace(_z(chat, 1), "last", head=2, values=_vector(hd, 4)),),
        (Replace(_z(chat, 3), (-2, -1), head=0, values=_vector(hd, 5, 2)),),
        (
            Scale(Site("attn_out", 2), "template", factor=0.0),
            Scale(_z(chat, 3), head=1, factor=-1.0),
        ),
        (ProjectOut(Site("mlp_out", 1), "instruction_last", direction=_vector(d, 6)),),
        (Scale(_z(chat, 0), "instruction", head=3, factor=0.5),),
        (Add(Site("final"), "last", vector=_vector(d, 7)),),
        (
            Scale(Site("resid_pre", 1), "last", factor=0.5),
            Add(Site("resid_pre", 1), "last", vector=_vector(d, 8)),
            Scale(Site("resid_pre", 1), "last", factor=3.0),
        ),
    ]


# Rule 1 -----------------------------------------------------------------------------------------


def test_head_writes_sum_to_the_attention_write(chat, prompts):
    for layer in chat.anatomy.softmax_layers:
        z = oracle.read(chat.model, prompts[0], Site("z", layer))
        write = oracle.read(chat.model, prompts[0], Site("attn_out", layer))
        with torch.no_grad():
            heads, bias = chat.anatomy.head_writes(layer, z)
        assert heads.shape == (len(prompts[0]), chat.anatomy.n_heads, chat.anatomy.d_model)
        torch.testing.assert_close(heads.sum(-2) + bias, write, atol=2e-5, rtol=1e-5)


def test_embedding_plus_all_writes_is_the_final_state(chat, prompts):
    total = oracle.read(chat.model, prompts[1], Site("resid_pre", 0))
    for layer in range(chat.anatomy.n_layers):
        for kind in ("attn_out", "mlp_out"):
            total = total + oracle.read(chat.model, prompts[1], Site(kind, layer))
    final = oracle.read(chat.model, prompts[1], Site("final"))
    torch.testing.assert_close(total, final, atol=2e-5, rtol=1e-5)


def test_logits_are_the_models_own(chat, prompts):
    with torch.no_grad():
        expected = chat.model(torch.tensor([prompts[0].ids])).logits
        normed = chat.anatomy.decoder(torch.tensor([prompts[0].ids])).last_hidden_state
        torch.testing.assert_close(chat.anatomy.logits(normed), expected.float(), atol=0, rtol=0)


# Rule 2 -----------------------------------------------------------------------------------------


def test_empty_variant_unit_scale_and_self_swap_are_the_plain_model_bit_for_bit(chat, prompts):
    prompt = prompts[2]
    with torch.no_grad():
        plain = chat.model(torch.tensor([prompt.ids]), logits_to_keep=1).logits[0, -1].float()
    expected = float(plain[7] - plain[11])
    z = oracle.read(chat.model, prompt, _z(chat, 2))
    head = z.view(len(prompt), chat.anatomy.n_heads, -1)[:, 1]
    identities = [
        (),
        (Scale(Site("resid_pre", 1), factor=1.0), Scale(_z(chat, 2), factor=1.0)),
        (Replace(_z(chat, 2), "all", head=1, values=head),),
        (
            Replace(
                Site("resid_post", 1), values=oracle.read(chat.model, prompt, Site("resid_post", 1))
            ),
        ),
    ]
    alone = Plan(prefix=False, restart=False, batch=False)
    for variant in identities:
        found = measure(
            chat.anatomy, [prompt], [variant], {"ld": LogitDifference(7, 11)}, plan=alone
        )
        assert found.scores["ld"][0, 0] == expected


# Rule 3 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_equals_the_plain_loop(chat, prompts, name):
    variants = _variants(chat)
    n = chat.anatomy.n_layers
    probe = StateMetric(Site("resid_pre", 2), "last", _vector(chat.anatomy.d_model, 9), 0.5)
    deep = StateMetric(
        Site("resid_post", n - 1), "instruction_last", _vector(chat.anatomy.d_model, 10)
    )
    metrics = {"ld": LogitDifference(7, 11), "kl": KL(), "probe": probe, "deep": deep}
    found = measure(chat.anatomy, prompts, variants, metrics, plan=PLANS[name])
    for p, prompt in enumerate(prompts):
        clean = oracle.logits(chat.model, prompt, ())[-1]
        for v, variant in enumerate(variants):
            row = oracle.logits(chat.model, prompt, variant)[-1]
            assert found.scores["ld"][p, v] == pytest.approx(float(row[7] - row[11]), abs=1e-5)
            log_p, log_q = clean.log_softmax(-1), row.log_softmax(-1)
            kl = float((log_p.exp() * (log_p - log_q)).sum())
            assert found.scores["kl"][p, v] == pytest.approx(kl, abs=1e-5, rel=1e-5)
            state = _edited_state(chat, prompt, variant, Site("resid_pre", 2), len(prompt) - 1)
            assert found.scores["probe"][p, v] == pytest.approx(
                float(state @ probe.weight + 0.5), abs=1e-4, rel=1e-5
            )
            at = prompt.anchor("instruction_last")
            state = _edited_state(chat, prompt, variant, Site("final"), at)
            assert found.scores["deep"][p, v] == pytest.approx(
                float(state @ deep.weight), abs=1e-4, rel=1e-5
            )


def _edited_state(chat, prompt, variant, site, at):
    """State at a site in an edited run, by the oracle's hooks (a read registered last)."""
    kept = []
    original = oracle.logits
    handles = [
        oracle._site_hook(chat.model, e.site, oracle._change(e, prompt.resolve(e.positions), 4))
        for e in variant
    ]
    handles.append(
        oracle._site_hook(chat.model, site, lambda h: (kept.append(h[0, at].clone()), h)[1])
    )
    try:
        original(chat.model, prompt, ())
    finally:
        for handle in handles:
            handle.remove()
    return kept[0]


def test_variants_of_their_own_for_each_prompt_equal_the_plain_loop(chat, prompts):
    own = [
        [
            (
                Replace(
                    Site("z", layer), "last", head=h, values=_vector(chat.anatomy.head_dim, 100 + p)
                ),
            )
            for layer in chat.anatomy.softmax_layers
            for h in range(4)
        ]
        for p in range(len(prompts))
    ]
    found = measure(chat.anatomy, prompts, own, {"ld": LogitDifference(3, 5)})
    for p, prompt in enumerate(prompts):
        for v, variant in enumerate(own[p]):
            row = oracle.logits(chat.model, prompt, variant)[-1]
            assert found.scores["ld"][p, v] == pytest.approx(float(row[3] - row[5]), abs=1e-5)


def test_plan_in_bfloat16_stays_within_its_stated_tolerance(chat):
    net = tiny.model(chat.id, dtype=torch.bfloat16)
    half = ChatModel.wrap(net, tiny.tokenizer(), id=chat.id)
    prompts = half.render([Prompt(id=str(i), text=text) for i, text in enumerate(TEXTS)])
    variants = _variants(half)
    found = measure(half.anatomy, prompts, variants, {"ld": LogitDifference(7, 11)})
    for p, prompt in enumerate(prompts):
        for v, variant in enumerate(variants):
            row = oracle.logits(net, prompt, variant)[-1]
            size = max(1.0, float(row.abs().max()))
            assert abs(found.scores["ld"][p, v] - float(row[7] - row[11])) < 4e-2 * size


def test_company_and_padding_change_nothing(chat, prompts):
    variants = _variants(chat)[1:5]
    metric = {"ld": LogitDifference(7, 11)}
    together = measure(chat.anatomy, prompts, variants, metric).scores["ld"]
    reverse = measure(chat.anatomy, prompts[::-1], variants[::-1], metric).scores["ld"][::-1, ::-1]
    alone = [measure(chat.anatomy, [p], variants, metric).scores["ld"][0] for p in prompts]
    assert abs(together - reverse).max() < 1e-5
    for p, row in enumerate(alone):
        assert abs(together[p] - row).max() < 1e-5


def test_teacher_forced_replies_are_scored_under_both_policies(chat, prompts):
    replies = [p.with_reply([20 + i, 30, 40, 50 + i]) for i, p in enumerate(prompts)]
    variants = [
        (),
        (Add(Site("resid_pre", 1), "all", vector=_vector(chat.anatomy.d_model, 2)),),
        (Add(Site("resid_pre", 2), "last", vector=_vector(chat.anatomy.d_model, 3)),),
        (Scale(Site("mlp_out", 0), "reply", factor=0.0),),
    ]
    for policy in ("every_step", "prompt_only"):
        found = measure(chat.anatomy, replies, variants, {"nll": ReplyNLL(3)}, policy=policy)
        for p, prompt in enumerate(replies):
            for v, variant in enumerate(variants):
                log_p = oracle.logits(chat.model, prompt, variant, policy).log_softmax(-1)
                at = prompt.n_prompt
                nll = -sum(float(log_p[at - 1 + i, prompt.ids[at + i]]) for i in range(3)) / 3
                assert found.scores["nll"][p, v] == pytest.approx(nll, abs=1e-5)


def test_capture_reads_what_a_plain_hook_reads(chat, prompts):
    sites = [
        Site("resid_pre", 0),
        _z(chat, 2),
        Site("attn_out", 1),
        Site("mlp_out", 3),
        Site("resid_post", 3),
        Site("resid_post", 0),
    ]
    states, _ = capture(chat.anatomy, prompts, sites, ["instruction_last", "prompt_last"])
    for site in sites:
        for p, prompt in enumerate(prompts):
            full = oracle.read(chat.model, prompt, site)
            want = full[[prompt.anchor("instruction_last"), prompt.n_prompt - 1]]
            torch.testing.assert_close(states[site][p], want, atol=1e-5, rtol=1e-5)


def test_capture_under_a_variant_reads_the_edited_run(chat, prompts):
    variant = (Add(Site("resid_pre", 1), "instruction", vector=_vector(chat.anatomy.d_model, 2)),)
    sites = [Site("resid_pre", 1), Site("resid_pre", 3)]
    states, _ = capture(chat.anatomy, prompts, sites, ["prompt_last"], variant=variant)
    for site in sites:
        for p, prompt in enumerate(prompts):
            want = _edited_state(chat, prompt, variant, site, prompt.n_prompt - 1)
            torch.testing.assert_close(states[site][p, 0], want, atol=1e-5, rtol=1e-5)


# Rule 4 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["every_step", "prompt_only"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_edits_hold_in_prefill_and_decoding(chat, prompts, policy, use_cache):
    from refusalscope.model.generate import generate

    variants = [
        (),
        (Add(Site("resid_pre", 1), "all", vector=2 * _vector(chat.anatomy.d_model, 2)),),
        (Scale(_z(chat, 2), "last", head=1, factor=-2.0),),
        (Add(Site("resid_post", 2), "instruction_last", vector=_vector(chat.anatomy.d_model, 4)),),
    ]
    ends = [2]
    found, _ = generate(
        chat.anatomy,
        chat.tokenizer,
        prompts,
        variants,
        max_new_tokens=6,
        policy=policy,
        use_cache=use_cache,
    )
    for prompt, variant, reply in zip(prompts, variants, found, strict=True):
        assert reply == oracle.greedy(chat.model, prompt, variant, 6, ends, policy)


def test_policies_differ_where_they_should(chat, prompts):
    from refusalscope.model.generate import generate

    variants = [
        (Add(Site("resid_pre", 1), "all", vector=4 * _vector(chat.anatomy.d_model, seed)),)
        for seed in range(4)
    ]
    every, prompt_only = (
        generate(chat.anatomy, chat.tokenizer, prompts, variants, max_new_tokens=8, policy=policy)[
            0
        ]
        for policy in ("every_step", "prompt_only")
    )
    assert every != prompt_only


# Rule 5 -----------------------------------------------------------------------------------------


def _hook_count(net) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in net.modules()
    )


def test_hooks_are_gone_after_an_exception(chat, prompts):
    before = _hook_count(chat.model)
    wrong = (Add(Site("resid_pre", 1), vector=torch.ones(3)),)
    with pytest.raises(Exception):  # noqa: B017 - whatever torch raises for a wrong width
        measure(chat.anatomy, prompts, [wrong], {"ld": LogitDifference(1, 2)})
    from refusalscope.model.generate import generate

    with pytest.raises(Exception):  # noqa: B017
        generate(chat.anatomy, chat.tokenizer, prompts[:1], [wrong])
    measure(chat.anatomy, prompts, _variants(chat), {"ld": LogitDifference(1, 2)})
    assert _hook_count(chat.model) == before


# Gradients --------------------------------------------------------------------------------------


def test_gradients_equal_finite_differences_of_the_exact_effect(chat, prompts):
    prompt = prompts[0]
    metric = LogitDifference(7, 11)
    sites = [
        Site("resid_pre", 1),
        _z(chat, 2),
        Site("attn_out", 0),
        Site("mlp_out", 3),
        Site("final"),
    ]
    before = _hook_count(chat.model)
    result = chat.first_order(prompt, metric, sites)
    assert _hook_count(chat.model) == before
    for site in sites:
        direction = _vector(result.activations[site].shape[-1], 3)
        step = 1e-2
        at = len(prompt) - 1
        predicted = float(result.gradients[site][at] @ direction)
        plus, minus = (
            oracle.logits(chat.model, prompt, (Add(site, "last", vector=direction, scale=s),))[-1]
            for s in (step, -step)
        )
        slope = float((plus[7] - plus[11]) - (minus[7] - minus[11])) / (2 * step)
        assert predicted == pytest.approx(slope, rel=2e-2, abs=2e-3)
        swapped = result.activations[site] + direction
        assert float(result.effect(site, swapped)[at]) == pytest.approx(
            predicted, rel=1e-3, abs=1e-4
        )
