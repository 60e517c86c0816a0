"""Edits of latents are exact: every plan equals a naive hooked loop, and an edit of nothing is nothing."""

from __future__ import annotations

import pytest
import torch

from dictionary import oracle, synthetic
from dictionary.oracle import edit, steps
from dictionary.synthetic import LAYERS, WIDTH
from dictionary.synthetic import ON_MODEL as D_SAE
from refusalscope.dictionary import EditLatents, activations, load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import (
    Add,
    LogitDifference,
    Plan,
    ReplyNLL,
    Scale,
    Site,
    measure,
)
from refusalscope.model.generate import generate

PLANS = {
    "full": Plan(),
    "no prefix": Plan(prefix=False),
    "no restart": Plan(restart=False),
    "one row at a time": Plan(batch=False),
    "tiny budget": Plan(max_bytes=60_000),
}
ALONE = Plan(prefix=False, restart=False, batch=False)
LD = {"ld": LogitDifference(7, 11)}


def variants(pool):
    means = tuple(0.1 * i for i in range(5))
    return [
        (),
        tuple(edit(pool, layer, tuple(range(0, D_SAE, 2))) for layer in range(LAYERS)),
        (edit(pool, 0, (1, 2, 3), "no_bos"), edit(pool, 2, (5,), "last", "scale", -3.0)),
        (edit(pool, 1, (4, 9, 11), "instruction", "set", 2.0),),
        (edit(pool, 3, (0, 6, 7, 8, 20), "template", "mean", means),),
        (edit(pool, 1, (4,), (2, 3)), edit(pool, 1, (4, 10), (3, -1), "set", 1.0)),
        (edit(pool, 2, tuple(range(D_SAE)), "all"),),
    ]


def test_the_oracle_has_something_to_edit(chat, prompts, made):
    """Most variants would be no-ops on a stream that the latents do not read."""
    acts = activations(chat, prompts, {k: d for k, (d, _) in made.items()})
    for layer in range(LAYERS):
        share = float(torch.cat([a[layer] for a in acts]).gt(0).float().mean())
        assert 0.1 < share < 0.7


@pytest.mark.parametrize("name", PLANS)
def test_live_edits_over_layers_equal_the_naive_loop(chat, prompts, made, pool, name):
    found = measure(chat.anatomy, prompts, variants(pool), LD, plan=PLANS[name]).scores["ld"]
    for p, prompt in enumerate(prompts):
        for v, variant in enumerate(variants(pool)):
            row = oracle.logits(chat.model, prompt, steps(made, prompt, variant))[-1]
            assert found[p, v] == pytest.approx(float(row[7] - row[11]), abs=2e-5)
    assert abs(found - found[:, :1])[:, 1:].min() > 1e-4


def test_activations_are_those_of_the_definition(chat, prompts, made):
    from model import oracle as model_oracle

    acts = activations(chat, prompts, {2: made[2][0], 3: made[3][0].slice([5, 1])})
    for prompt, found in zip(prompts, acts, strict=True):
        for layer, latents in ((2, slice(None)), (3, [5, 1])):
            state = model_oracle.read(chat.model, prompt, Site("resid_post", layer))
            want = oracle.acts(made[layer][1], state)[:, latents]
            torch.testing.assert_close(found[layer], want, atol=1e-5, rtol=1e-5)


def test_activations_under_a_variant_are_those_of_the_edited_run(chat, prompts, made, pool):
    variant = (edit(pool, 0, (0, 2, 4), "all"),)
    clean = activations(chat, prompts, {1: pool[1]})
    edited = activations(chat, prompts, {1: pool[1]}, [variant, (), variant])
    assert torch.equal(clean[1][1], edited[1][1])
    for p in (0, 2):
        kept = []
        change = steps(made, prompts[p], variant)
        oracle.logits(
            chat.model,
            prompts[p],
            [
                *change,
                (1, range(len(prompts[p])), lambda x, n, k=kept: (k.append(x.clone()), x)[1]),
            ],
        )
        want = oracle.acts(made[1][1], torch.stack(kept))
        torch.testing.assert_close(edited[p][1], want, atol=1e-5, rtol=1e-5)
        assert abs(edited[p][1] - clean[p][1]).max() > 1e-3


def test_an_edit_of_no_latents_is_the_plain_model_bit_for_bit(chat, prompts, pool):
    for prompt in prompts:
        with torch.no_grad():
            plain = chat.model(torch.tensor([prompt.ids]), logits_to_keep=1).logits[0, -1].float()
        nothing = [
            tuple(edit(pool, layer, ()) for layer in range(LAYERS)),
            tuple(edit(pool, k, tuple(range(D_SAE)), "all", "scale", 1.0) for k in range(LAYERS)),
        ]
        found = measure(chat.anatomy, [prompt], nothing, LD, plan=ALONE).scores["ld"]
        assert (found == float(plain[7] - plain[11])).all()


def test_rows_with_sets_and_slices_of_their_own_are_batched_exactly(chat, prompts, made, pool):
    """One pass over many sets from one pool, and from slices that share nothing."""
    draw = torch.Generator().manual_seed(1)
    own = []
    for p in range(len(prompts)):
        sets = [tuple(torch.randperm(D_SAE, generator=draw)[: 1 + n].tolist()) for n in range(6)]
        shared = [tuple(edit(pool, k, s, "no_bos") for k in (0, 2)) for s in sets]
        apart = [
            (edit({1: made[1][0].slice([p, p + 5, n])}, 1, None, "all", "set", 1.0),)
            for n in range(9, 12)
        ]
        own.append([*shared, *apart])
    found = measure(chat.anatomy, prompts, own, LD).scores["ld"]
    for p, prompt in enumerate(prompts):
        for v, variant in enumerate(own[p]):
            named = tuple(
                e
                if e.latents is not None
                else edit(pool, 1, e.dictionary.latents, "all", "set", 1.0)
                for e in variant
            )
            row = oracle.logits(chat.model, prompt, steps(made, prompt, named))[-1]
            assert found[p, v] == pytest.approx(float(row[7] - row[11]), abs=2e-5)


def test_other_edits_and_latents_keep_their_order(chat, prompts, made, pool):
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)) * 3
    site = Site("resid_post", 1)
    ablate = edit(pool, 1, tuple(range(D_SAE)), "last")
    push = Add(site, "last", vector=vector)
    found = measure(chat.anatomy, prompts[:1], [(push, ablate), (ablate, push)], LD).scores["ld"]
    last = (len(prompts[0]) - 1,)
    weights = made[1][1]

    def zeroed(x):
        return oracle.changed(weights, x, range(D_SAE), lambda i, f: 0.0)

    for v, write in enumerate((lambda x, n: zeroed(x + vector), lambda x, n: zeroed(x) + vector)):
        row = oracle.logits(chat.model, prompts[0], [(1, last, write)])[-1]
        assert found[0, v] == pytest.approx(float(row[7] - row[11]), abs=2e-5)
    assert abs(found[0, 0] - found[0, 1]) > 1e-3


def test_teacher_forced_replies_under_both_policies(chat, prompts, made, pool):
    replies = [p.with_reply([20 + i, 30, 40]) for i, p in enumerate(prompts)]
    every = tuple(range(D_SAE))
    edits = [(edit(pool, 1, every, where),) for where in ("all", "last", "reply", "no_bos")]
    for policy in ("every_step", "prompt_only"):
        found = measure(chat.anatomy, replies, edits, {"nll": ReplyNLL(3)}, policy=policy)
        for p, prompt in enumerate(replies):
            for v, variant in enumerate(edits):
                log_p = oracle.logits(
                    chat.model, prompt, steps(made, prompt, variant, policy)
                ).log_softmax(-1)
                at = prompt.n_prompt
                nll = -sum(float(log_p[at - 1 + i, prompt.ids[at + i]]) for i in range(3)) / 3
                assert found.scores["nll"][p, v] == pytest.approx(nll, abs=2e-5)


@pytest.mark.parametrize("policy", ["every_step", "prompt_only"])
def test_decoding_with_a_cache_equals_decoding_without_and_the_naive_loop(
    chat, prompts, made, pool, policy
):
    edits = [
        tuple(edit(pool, layer, tuple(range(D_SAE)), "no_bos") for layer in range(LAYERS)),
        (edit(pool, 2, (1, 5, 9), "all", "set", 4.0),),
        (edit(pool, 1, (3, 4), "last", "scale", -6.0),),
    ]
    runs = [
        generate(
            chat.anatomy,
            chat.tokenizer,
            prompts,
            edits,
            max_new_tokens=5,
            policy=policy,
            use_cache=cached,
        )[0]
        for cached in (True, False)
    ]
    assert runs[0] == runs[1]
    for prompt, variant, reply in zip(prompts, edits, runs[0], strict=True):
        slow = []
        for _ in range(5):
            whole = prompt.with_reply(slow)
            row = oracle.logits(chat.model, whole, steps(made, whole, variant, policy))[-1]
            if int(row.argmax()) == 2:
                break
            slow.append(int(row.argmax()))
        assert reply == slow


def test_an_edit_costs_what_any_edit_at_its_place_costs(chat, prompts, pool):
    sites = [Site("resid_post", layer) for layer in (0, 2)]
    ours = [tuple(edit(pool, site.layer, (1, 2), "last") for site in sites), ()]
    other = [tuple(Scale(site, "last", factor=0.5) for site in sites), ()]
    for plan in PLANS.values():
        costs = [measure(chat.anatomy, prompts, v, LD, plan=plan).cost for v in (ours, other)]
        assert costs[0] == costs[1]


def _hook_count(net) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_hooks_are_gone_after_an_exception_and_the_reason_is_clear(chat, prompts, tmp_path):
    before = _hook_count(chat.model)
    narrow = load_dictionary(synthetic.saelens(tmp_path)).slice([1, 2])
    variant = (EditLatents(narrow.site, dictionary=narrow),)
    with pytest.raises(InputError, match=r"reads 12 dimensions .* has 32"):
        measure(chat.anatomy, prompts, [variant], LD)
    with pytest.raises(InputError, match="reads 12 dimensions"):
        generate(chat.anatomy, chat.tokenizer, prompts[:1], [variant])
    assert _hook_count(chat.model) == before
