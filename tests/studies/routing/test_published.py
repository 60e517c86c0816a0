"""The procedure as published: its artefacts on planted circuits, its numbers and its cost by plain hooks."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial

import numpy as np
import pytest
import torch

from model import tiny
from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, ProjectOut, RefusalMargin, ReplyNLL, Site
from refusalscope.model.edits import frozen
from refusalscope.studies.routing import Pair, screen
from refusalscope.studies.routing.published import (
    Overshoot,
    as_coded,
    change_percent,
    dla_ranks,
    interchange,
    published,
    rank_p,
    shares,
)
from studies.routing.test_interchange import MARGIN, planted, row

REFUSAL = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
NLL = ReplyNLL(5)
GATE, AMPLIFIER = (3, 1), (5, 0)
N = 6


@cache
def routed(variant="base"):
    """A planted model, a few of its pairs and the replies of their controls, which are one token long."""
    _, chat, _, mine = planted(variant)
    said = chat.generate([pair.control for pair in mine[:N]], max_new_tokens=5)
    return chat, mine[:N], [tuple(ids) for ids in said]


def lengthened(mine, replies):
    """Replies of seven tokens, of which five are scored."""
    return [(*reply, *pair.harmful.ids[1:7]) for pair, reply in zip(mine, replies, strict=True)]


@cache
def result():
    chat, mine, replies = routed()
    return published(chat, mine, REFUSAL, replies, n_candidates=8, n_interchange=6)


def _o_proj(model, head):
    return model.model.layers[head[0]].self_attn.o_proj


@torch.no_grad()
def slow_states(model, ids, head, width):
    """z of one head at all positions, by a hook."""
    kept = []
    hook = _o_proj(model, head).register_forward_pre_hook(lambda m, args: kept.append(args[0][0]))
    model(torch.tensor([ids]))
    hook.remove()
    return kept[0][:, head[1] * width : (head[1] + 1) * width]


@torch.no_grad()
def slow_nll(model, ids, reply, head=None, states=None):
    """NLL of the reply behind the prompt, with states copied in from the left as far as both reach."""
    with ExitStack() as stack:
        if head is not None:

            def copy(module, args):
                z = args[0].clone()
                n, width = min(z.shape[1], len(states)), states.shape[1]
                z[0, :n, head[1] * width : (head[1] + 1) * width] = states[:n]
                return (z,)

            stack.callback(_o_proj(model, head).register_forward_pre_hook(copy).remove)
        logits = model(torch.tensor([[*ids, *reply]])).logits[0, len(ids) - 1 : -1]
    return float(-logits.log_softmax(-1)[range(len(reply)), list(reply)].mean())


@torch.no_grad()
def slow_direct(chat, ids, answer, refuse, zeroed=None):
    """Contributions [layers, heads] as the authors compute them, from the library's own hidden states."""
    model, anatomy = chat.model, chat.anatomy
    width, n_heads = anatomy.head_dim, anatomy.n_heads
    kept = []
    with ExitStack() as stack:
        if zeroed is not None:

            def zero(module, args):
                z = args[0].clone()
                z[..., zeroed[1] * width : (zeroed[1] + 1) * width] = 0
                return (z,)

            stack.callback(_o_proj(model, zeroed).register_forward_pre_hook(zero).remove)
        for layer in range(anatomy.n_layers):
            keep = lambda m, args: kept.append(args[0][0, -1])  # noqa: E731
            stack.callback(_o_proj(model, (layer, 0)).register_forward_pre_hook(keep).remove)
        last = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    unembed = model.lm_head.weight
    direction = unembed[list(refuse)].mean(0) - unembed[answer]
    gain = model.model.norm.weight / torch.sqrt(last.pow(2).mean() + model.config.rms_norm_eps)
    out = np.zeros((anatomy.n_layers, n_heads))
    for layer, z in enumerate(kept):
        weight = _o_proj(model, (layer, 0)).weight
        for head in range(n_heads):
            part = slice(head * width, (head + 1) * width)
            out[layer, head] = float(((weight[:, part] @ z[part]) * gain) @ direction)
    return out


def test_a_prefix_hides_the_gate_from_the_left_aligned_swap():
    share = {}
    for variant in ("base", "long_prefix"):
        chat, mine, replies = routed(variant)
        for positions in ("compat_left", "last"):
            swaps = interchange(chat, mine, [GATE], NLL, positions=positions, replies=replies)
            gap = (swaps.harmful - swaps.control).mean()
            share[variant, positions] = float(swaps.necessity.mean() / gap)
    assert share["base", "compat_left"] > 0.5
    assert abs(share["long_prefix", "compat_left"]) < 0.01
    assert share["long_prefix", "last"] == pytest.approx(share["base", "last"], abs=0.05)
    assert share["base", "last"] > 0.2


def test_a_shorter_donor_never_reaches_the_last_token():
    chat, mine, replies = routed()
    cut = [Pair(p.harmful, row([p.control.ids[0], *p.control.ids[2:]])) for p in mine]
    whole = interchange(chat, mine, [GATE], NLL, replies=replies)
    short = interchange(chat, cut, [GATE], NLL, replies=replies)
    gaps = [(swaps.harmful - swaps.control).mean() for swaps in (whole, short)]
    assert whole.necessity.mean() / gaps[0] > 0.5
    assert whole.necessity.mean() / gaps[0] > 3 * abs(short.necessity.mean()) / gaps[1]


def test_the_swap_is_the_authors_copy_with_its_overrun_into_the_reply():
    chat, mine, replies = routed()
    replies = lengthened(mine, replies)
    filler = mine[0].control.ids[1]
    longer = [
        Pair(p.harmful, row([p.control.ids[0], filler, filler, *p.control.ids[1:]])) for p in mine
    ]
    found = interchange(chat, longer[:3], [GATE, AMPLIFIER], NLL, replies=replies[:3])
    width = chat.anatomy.head_dim
    for i, pair in enumerate(longer[:3]):
        reply, harmful, control = replies[i][:5], pair.harmful.ids, pair.control.ids
        assert len(control) > len(harmful)
        clean = [slow_nll(chat.model, ids, reply) for ids in (harmful, control)]
        assert (found.harmful[i], found.control[i]) == pytest.approx(tuple(clean), abs=1e-5)
        for j, head in enumerate((GATE, AMPLIFIER)):
            lent = [slow_states(chat.model, ids, head, width) for ids in (harmful, control)]
            lost = clean[0] - slow_nll(chat.model, harmful, reply, head, lent[1])
            won = slow_nll(chat.model, control, reply, head, lent[0]) - clean[1]
            assert found.necessity[i, j] == pytest.approx(lost, abs=1e-5)
            assert found.sufficiency[i, j] == pytest.approx(won, abs=1e-5)
            inside = clean[0] - slow_nll(chat.model, harmful, reply, head, lent[1][: len(harmful)])
            # The reply's first token is written from the prompt's last; the others show the overrun.
            assert abs(inside - lost) > 1e-4


def test_what_the_plan_saves_does_not_change_a_number():
    chat, mine, _ = routed()
    heads = [GATE, AMPLIFIER, (4, 7)]
    plain = interchange(as_coded(chat), mine, heads, MARGIN["margin"], positions="last")
    exact = screen(chat, mine, MARGIN, units=[(head,) for head in heads])
    np.testing.assert_allclose(plain.harmful, exact.harmful["margin"], atol=1e-5)
    for name in ("necessity", "sufficiency"):
        fast = getattr(exact, name)["margin"][:, 0]
        np.testing.assert_allclose(getattr(plain, name), fast, atol=1e-5)


def test_alpha_5_inverts_what_projecting_out_removes():
    chat, mine, _ = routed()
    site, width = Site("z", 4), chat.anatomy.head_dim
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    unit = direction / direction.norm()
    vector = frozen(direction)

    def component(*variant):
        z = chat.capture([mine[0].harmful], [site], ["last"], variant=variant)[site][0, 0]
        return float(z[7 * width : 8 * width] @ unit)

    before = component()
    assert abs(before) > 1e-3
    assert component(ProjectOut(site, "all", head=7, direction=vector)) == pytest.approx(
        0, abs=1e-6
    )
    over = component(Overshoot(site, "all", head=7, direction=vector))
    assert over == pytest.approx(-4 * before, rel=1e-4)
    half = component(Overshoot(site, "all", head=7, direction=vector, alpha=0.5))
    assert half == pytest.approx(before / 2, rel=1e-4)


def test_the_cost_is_the_published_one_and_every_forward_was_run():
    chat, mine, replies = routed()
    replies = lengthened(mine, replies)
    calls = []
    count = chat.anatomy.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    before = chat.cost.forwards
    told = []
    found = published(
        chat,
        mine,
        REFUSAL,
        replies,
        n_candidates=8,
        n_interchange=6,
        progress=lambda *done: told.append(done),
    )
    count.remove()
    assert told == [(stage, 6) for stage in range(7)]
    cost = found.cost.set_index("stage")
    n, c, k, m = N, 8, 6, 10
    want = {
        "attribution": 2 * n,
        "direction": 2 * n,
        "ablation": n * (2 + c),
        "interchange": n * (2 + 4 * k),
        "cascade": 4 * n,
        "null": 4 * n * (1 + m),
    }
    assert cost["forwards"].to_dict() == want
    assert {shape[0] for shape in calls} == {1}
    assert len(calls) == cost["forwards"].sum() == chat.cost.forwards - before
    assert sum(shape[1] for shape in calls) == cost["tokens"].sum()
    assert (cost["token_layers"] == cost["tokens"] * chat.anatomy.n_layers).all()
    bare = [len(side) for pair in mine for side in (pair.harmful, pair.control)]
    assert cost.loc["attribution", "tokens"] == sum(bare)
    scored = (2 + 2 * k) * (sum(bare) + 5 * 2 * n) // 2
    assert cost.loc["interchange", "tokens"] == scored + k * sum(bare)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_candidates_and_cascade_are_those_of_the_authors_arithmetic(name):
    """Gemma-2 has what the authors leave out: a post-norm, and a gain of 1 + weight."""
    chat = ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name)
    mine = [
        Pair(row([1, *range(10 + i, 18 + i)], f"h{i}"), row([1, *range(40 + i, 47 + i)], f"c{i}"))
        for i in range(2)
    ]
    refuse, answer = (30, 50), 60
    found = published(chat, mine, RefusalMargin(refuse, (40,)), [(answer, 41)] * 2, n_interchange=4)
    direct = partial(slow_direct, chat, answer=answer, refuse=refuse)

    def contrast(zeroed=None):
        sides = [
            direct(p.harmful.ids, zeroed=zeroed) - direct(p.control.ids, zeroed=zeroed)
            for p in mine
        ]
        return np.mean(sides, axis=0)

    normal = contrast()
    table = found.candidates
    # Of four layers the window holds 1 and 2, and all of their heads.
    assert set(table["layer"]) == {1, 2}
    assert len(table) == 2 * chat.anatomy.n_heads
    at = (table["layer"], table["head"])
    np.testing.assert_allclose(table["dla"], normal[at], rtol=1e-4, atol=1e-6)
    assert table["dla"].abs().is_monotonic_decreasing
    assert table["rank"].tolist() == (dla_ranks(normal)[0][at]).tolist()
    gate = found.interchange.iloc[0]
    knockout = contrast(zeroed=(int(gate["layer"]), int(gate["head"])))
    for line in found.cascade.itertuples():
        assert line.gate == f"L{int(gate['layer'])}.H{int(gate['head'])}"
        want = change_percent(normal[line.layer, line.head], knockout[line.layer, line.head])
        assert line.change == pytest.approx(float(want), abs=0.05)


def test_the_published_stages_find_a_plain_gate_and_lose_an_amplifier_on_the_way():
    found = result()
    best = found.interchange.iloc[0]
    assert (best["layer"], best["head"]) == GATE
    assert best["necessity_share"] == pytest.approx(100 * best["necessity"] / best["gap"])
    assert set(zip(found.interchange["layer"], found.interchange["head"], strict=True)) == set(
        zip(found.ablation["layer"][:6], found.ablation["head"][:6], strict=True)
    )
    driven = found.cascade.set_index(["layer", "head"])["change"]
    assert GATE not in driven.index
    assert {head for head, change in driven.items() if change < -90} == {(5, 3)}
    # One of the two strongest heads of all: the inverting ablation of it does not help the control's reply.
    lost = found.candidates[(found.candidates["layer"] == 5) & (found.candidates["head"] == 0)]
    assert lost["rank"].item() == 2
    assert AMPLIFIER not in zip(found.interchange["layer"], found.interchange["head"], strict=True)
    assert found.rank_p == pytest.approx(1 / 11)


def test_small_formulas():
    percent = shares([0.5, -1.0], 0.25, 2.0)
    assert percent[0].tolist() == [25.0, -50.0]
    assert float(percent[1]) == 12.5
    assert change_percent([2.0, -2.0, 1e-9], [1.0, -1.0, 5.0]).tolist() == [-50.0, 50.0, 0.0]
    assert rank_p(3.0, [1.0, 3.0, 4.0]) == 0.75
    assert rank_p(5.0, []) == 1.0
    ranks, share = dla_ranks(np.array([[1.0, -4.0], [3.0, 0.0]]))
    assert ranks.tolist() == [[3, 1], [2, 4]]
    assert share.tolist() == [[12.5, 50.0], [37.5, 0.0]]
    assert dla_ranks(np.zeros((1, 2)))[1].tolist() == [[0.0, 0.0]]


def test_bad_input_is_refused_in_one_sentence():
    chat, mine, replies = routed()
    with pytest.raises(InputError, match="one reply each"):
        published(chat, mine, REFUSAL, replies[1:])
    with pytest.raises(InputError, match="there are 5"):
        published(chat, mine, REFUSAL, [(), *replies[1:]])
    with pytest.raises(InputError, match="0 pairs"):
        published(chat, [], REFUSAL, [])
    with pytest.raises(InputError, match="n_interchange must be from 2"):
        published(chat, mine, REFUSAL, replies, n_interchange=1)
    with pytest.raises(InputError, match=r"n_candidates \(4\)"):
        published(chat, mine, REFUSAL, replies, n_candidates=4)
