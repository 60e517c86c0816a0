"""The rescue of a planted gate under a code, and the controls that must stay silent."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.judge import Judge, Judgement
from refusalscope.model import ChatModel
from refusalscope.stats import wilson
from refusalscope.studies.routing.rescue import rescue
from studies.routing.test_cipher import GATE, MARGIN, ids_of, planted, sides

ARMS = ["rescued", "random_head", "benign", "noise"]


def others():
    organism, chat = planted()
    heads = [
        (layer, head)
        for layer in range(chat.anatomy.n_layers)
        for head in range(chat.anatomy.n_heads)
    ]
    return [head for head in heads if head not in organism.truth.circuit]


def run(gate=GATE, judge=None, **options):
    organism, chat = planted()
    given = {"wrapper": "code", "others": others(), "max_new_tokens": 4, **options}
    judge = judge or Judge.from_name("phrases:planted")
    return rescue(chat, organism.pairs, *sides(), gate, MARGIN, judge, **given)


@cache
def table():
    return run()


def test_the_gate_brings_the_refusal_back_and_no_other_head_does():
    found = table().set_index(["arm", "policy"])
    assert found.index.tolist() == [("plain", ""), ("cipher", "")] + [
        (arm, policy) for policy in ("prompt_only", "every_step") for arm in ARMS
    ]
    assert found.loc[("plain", ""), "rate"] == 1
    assert found.loc[("cipher", ""), "rate"] == 0
    for policy in ("prompt_only", "every_step"):
        rescued = found.loc[("rescued", policy)]
        assert rescued["rate"] == 1
        assert rescued["margin"] == pytest.approx(7.19, abs=0.1)
        assert found.loc[("random_head", policy), "rate"] == 0
        assert found.loc[("benign", policy), "rate"] == 0
        # Noise hits the one direction that the gate writes by chance, and is as often against it.
        assert found.loc[("noise", policy), "rate"] < 0.5
        assert found.loc[("noise", policy), "margin"] < 0
    assert (found["n"] == 24).all()
    want = wilson(24, 24)
    assert found.loc[("rescued", "prompt_only"), ["low", "high"]].tolist() == [want.low, want.high]


def test_the_margins_equal_one_hooked_forward_a_prompt():
    organism, _ = planted()
    plain, hidden = ([h for h, _ in ids_of(side)] for side in sides())
    benign = [c for _, c in ids_of(sides()[0])]
    found = table().set_index(["arm", "policy"])
    for arm, donors in (("rescued", plain), ("benign", benign)):
        states = [oracle.head_states(organism.model, ids) for ids in donors]
        ends = [[(len(a) - 1, len(b) - 1)] for a, b in zip(hidden, donors, strict=True)]
        slow = oracle.margins(organism.model, hidden, [(GATE, states, ends)])
        assert found.loc[(arm, "prompt_only"), "margin"] == pytest.approx(slow.mean(), abs=1e-4)
    clean = oracle.margins(organism.model, hidden).mean()
    assert found.loc[("cipher", ""), "margin"] == pytest.approx(clean, abs=1e-4)


def test_several_heads_are_put_in_place_together():
    organism, _ = planted()
    plain, hidden = ([h for h, _ in ids_of(side)] for side in sides())
    heads = ((5, 0), (5, 3))
    found = run(heads, policies=("prompt_only",)).set_index("arm")
    states = [oracle.head_states(organism.model, ids) for ids in plain]
    ends = [[(len(a) - 1, len(b) - 1)] for a, b in zip(hidden, plain, strict=True)]
    slow = oracle.margins(organism.model, hidden, [(head, states, ends) for head in heads])
    assert found.loc["rescued", "margin"] == pytest.approx(slow.mean(), abs=1e-4)


def edits_of(monkeypatch, **options):
    """By arm and policy, the variants that replies were generated under."""
    seen = []
    generate = ChatModel.generate

    def spy(self, prompts, variants=(), **given):
        seen.append((given["policy"], list(variants)))
        return generate(self, prompts, variants, **given)

    monkeypatch.setattr(ChatModel, "generate", spy)
    rows = run(**options)
    return {
        (arm, policy): (under, variants)
        for (arm, policy), (under, variants) in zip(
            rows[["arm", "policy"]].itertuples(index=False), seen, strict=True
        )
    }


def test_noise_is_of_the_norm_of_the_change_and_random_heads_are_near_and_outside(monkeypatch):
    organism, _ = planted()
    jobs = edits_of(monkeypatch)
    (plain, hidden), width = sides(), 16
    part = slice(GATE[1] * width, (GATE[1] + 1) * width)
    heads = set()
    for i, (a, b) in enumerate(zip(plain, hidden, strict=True)):
        own = oracle.head_states(organism.model, list(a.harmful.ids))[GATE[0], -1, part]
        here = oracle.head_states(organism.model, list(b.harmful.ids))[GATE[0], -1, part]
        (noise,) = jobs["noise", "prompt_only"][1][i]
        got = float((noise.values.tensor - here).norm())
        assert got == pytest.approx(float((own - here).norm()), rel=1e-4)
        assert not np.allclose(noise.values.tensor, own, atol=1e-2)
        (other,) = jobs["random_head", "prompt_only"][1][i]
        heads.add((other.site.layer, other.head))
        layer = oracle.head_states(organism.model, list(a.harmful.ids))[other.site.layer, -1]
        want = layer[other.head * width : (other.head + 1) * width]
        np.testing.assert_allclose(other.values.tensor, want, atol=1e-5)
    assert len(heads) > 5
    assert all(abs(layer - GATE[0]) <= 1 for layer, _ in heads)
    assert not heads & (organism.truth.circuit | {GATE})


def test_each_policy_is_generated_under_and_the_clean_arms_have_no_edit(monkeypatch):
    jobs = edits_of(monkeypatch)
    for (arm, policy), (under, variants) in jobs.items():
        if policy:
            assert under == policy
            assert all(edit.positions == "last" for variant in variants for edit in variant)
        else:
            assert not any(variants), arm
    first, second = (jobs["rescued", policy][1] for policy in ("prompt_only", "every_step"))
    assert first == second


def test_the_same_seed_draws_the_same_controls():
    again = run(policies=("prompt_only",))
    first = table()[table()["policy"] != "every_step"].reset_index(drop=True)
    assert again.equals(first)
    moved = run(policies=("prompt_only",), seed=1).set_index("arm")["margin"]
    assert moved["noise"] != pytest.approx(float(again.set_index("arm")["margin"]["noise"]))


class Recorder(Judge):
    name = "recorder"

    def __init__(self, label):
        self.label = label
        self.seen = []

    def judge(self, exchanges, progress=None):
        self.seen.append(list(exchanges))
        return [Judgement(self.label) for _ in exchanges]


def test_the_judge_reads_the_plain_request_and_no_text_comes_back():
    organism, _ = planted()
    judge, steps = Recorder("partial_refusal"), []
    found = run(judge=judge, policies=(), progress=lambda *step: steps.append(step))
    assert found["arm"].tolist() == ["plain", "cipher"]
    assert steps == [(1, 2), (2, 2)]
    for exchanges in judge.seen:
        assert [e.request for e in exchanges] == [pair.harmful for pair in organism.pairs]
    assert [e.reply for e in judge.seen[0]] == ["refuse"] * 24
    assert (found["refused"] == 24).all()
    assert not any(word in found.to_json() for word in ("refuse ", "comply", "harm0"))
    assert (run(judge=Recorder(None), policies=())["refused"] == 0).all()


def test_bad_input_is_refused_in_one_sentence():
    organism, chat = planted()
    plain, hidden = sides()
    judge = Judge.from_name("phrases:planted")
    rest = {"wrapper": "code", "others": others()}
    with pytest.raises(InputError, match=r"no head L9\.H1; it has 8 layers"):
        run((9, 1))
    with pytest.raises(InputError, match=r"no head L3\.H-1"):
        run(others=[(3, -1)])
    with pytest.raises(InputError, match=r"0 of the other heads lie within 1 layer of L3\.H1"):
        run(others=[(7, 1), GATE])
    with pytest.raises(InputError, match="24 plain pairs and 23 wrapped"):
        rescue(chat, organism.pairs, plain, hidden[:-1], GATE, MARGIN, judge, **rest)
    with pytest.raises(InputError, match="in one order"):
        rescue(chat, organism.pairs, plain, hidden[::-1], GATE, MARGIN, judge, **rest)
    with pytest.raises(InputError, match="differ in number or order"):
        rescue(chat, organism.pairs[1:], plain, hidden, GATE, MARGIN, judge, **rest)
    with pytest.raises(InputError, match="unknown decode policy"):
        run(policies=("sometimes",))
