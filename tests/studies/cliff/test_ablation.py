"""Heads removed together: the three rescales against plain hooks, arms, decode policies, outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from model import oracle as plain
from model import tiny
from organisms import cliff_oracle
from refusalscope.errors import InputError
from refusalscope.judge import Judge, Judgement
from refusalscope.model import ChatModel, LogitDifference, Plan, Site
from refusalscope.model.generate import generate
from refusalscope.studies.cliff.ablation import ablate, measured, replies_under
from refusalscope.studies.cliff.arms import NEAREST, arms_of, matched
from refusalscope.studies.cliff.contributions import contribution_table, contributions
from refusalscope.studies.cliff.reading import probe_metric
from refusalscope.studies.cliff.removal import (
    KeepHeads,
    KeepHeadsOfBatch,
    KeepHeadsPerToken,
    removal,
)
from studies.cliff.heads_case import MARGIN, STATIC, SUPPRESSORS, case, random_traces

RENORMS = ("none", "per_token", "official_batch")
HEADS = tuple(sorted(SUPPRESSORS))


def logits_under(mine, traces, heads, renorm, *, where="all", batch=4):
    """The probe's logit of each trace with heads removed."""
    variants = [[removal(mine.chat.anatomy, heads, t, where=where, renorm=renorm)] for t in traces]
    metrics = {"logit": probe_metric(mine.chat.anatomy, mine.probe)}
    return measured(mine.chat, traces, variants, metrics, renorm, batch)["logit"][:, 0]


def by_oracle(mine, traces, heads, renorm):
    """The same by plain hooks: all of the traces in one forward."""
    rows = [list(trace.rendered.ids) for trace in traces]
    states = cliff_oracle.states(mine.planted.model, rows, heads, renorm)
    return mine.oracle.probes["closing"].logits(states[:, -1])


@pytest.mark.parametrize("heads", [HEADS, ((4, 0), (4, 1), (4, 5), (6, 3))])
@pytest.mark.parametrize("renorm", RENORMS)
def test_every_rescale_equals_plain_hooks(renorm, heads):
    mine = case()
    traces = [*mine.groups["suppressed"][:2], *mine.groups["benign"][:2]]
    found = logits_under(mine, traces, heads, renorm)
    np.testing.assert_allclose(found, by_oracle(mine, traces, heads, renorm), atol=1e-3)


def test_only_the_published_rescale_depends_on_company():
    # The page: alone 5.738, with suppressed ones 5.744, with benign ones 6.060; 5.808 and 5.403 always.
    mine = case(pairs=100)
    suppressed, benign = mine.groups["suppressed"], mine.groups["benign"]
    persuaded = mine.groups["benign_persuaded"]
    companies = ([], suppressed[-3:], [persuaded[0], benign[0], persuaded[1]])
    found = {
        renorm: np.array(
            [
                [logits_under(mine, [one, *others], HEADS, renorm)[0] for others in companies]
                for one in suppressed[:10]
            ]
        )
        for renorm in RENORMS
    }
    for renorm in RENORMS:
        for column, others in enumerate(companies):
            want = by_oracle(mine, [suppressed[0], *others], HEADS, renorm)[0]
            assert found[renorm][0, column] == pytest.approx(want, abs=1e-3)
        if renorm != "official_batch":
            assert np.ptp(found[renorm], axis=1).max() < 1e-4
    assert found["none"].mean() == pytest.approx(5.403, abs=0.1)
    assert found["per_token"].mean() == pytest.approx(5.808, abs=0.1)
    official = found["official_batch"].mean(0)
    np.testing.assert_allclose(official, [5.738, 5.744, 6.060], atol=0.1)
    assert official[1] - official[0] == pytest.approx(0.006, abs=0.02)
    assert official[2] - official[0] == pytest.approx(0.322, abs=0.05)


def test_the_batch_given_is_the_company():
    mine = case()
    traces = [*mine.groups["suppressed"][:3], *mine.groups["benign"][:3]]
    found = logits_under(mine, traces, HEADS, "official_batch", batch=3)
    halves = [by_oracle(mine, part, HEADS, "official_batch") for part in (traces[:3], traces[3:])]
    np.testing.assert_allclose(found, np.concatenate(halves), atol=1e-3)
    whole = by_oracle(mine, traces, HEADS, "official_batch")
    assert np.abs(found - whole).max() > 0.02


@pytest.mark.parametrize("renorm", RENORMS)
def test_company_holds_for_traces_of_unequal_length(renorm):
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="llama")
    traces, heads = random_traces((14, 9, 12)), ((1, 0), (1, 2), (3, 1))
    variants = [[removal(chat.anatomy, heads, t, renorm=renorm)] for t in traces]
    metric = {"d": LogitDifference(7, 11)}
    found = measured(chat, traces, variants, metric, renorm, 3)["d"][:, 0]
    want = slow_closing(chat, traces, heads, renorm)
    np.testing.assert_allclose(found, want, atol=1e-4)


@torch.no_grad()
def slow_closing(chat, traces, heads, renorm):
    """One right-padded forward of all traces; z of the closing tokens changed by hand, row by row."""
    width = max(len(t.rendered.ids) for t in traces)
    ids = torch.tensor([[*t.rendered.ids, *[0] * (width - len(t.rendered.ids))] for t in traces])
    handles = []
    for layer in {layer for layer, _ in heads}:

        def change(module, args, layer=layer):
            z = args[0].clone()
            places = [(row, t) for row, trace in enumerate(traces) for t in trace.closing]
            before = torch.stack([z[at] for at in places])
            after = before.clone()
            size = chat.anatomy.head_dim
            for other, head in heads:
                if other == layer:
                    after[:, head * size : (head + 1) * size] = 0
            if renorm == "per_token":
                after = after * (before.norm(dim=1) / after.norm(dim=1))[:, None]
            if renorm == "official_batch":
                after = after * before.norm() / after.norm()
            for at, new in zip(places, after, strict=True):
                z[at] = new
            return (z,)

        output = chat.model.model.layers[layer].self_attn.o_proj
        handles.append(output.register_forward_pre_hook(change))
    logits = chat.model(ids).logits
    for handle in handles:
        handle.remove()
    last = [logits[row, trace.closing[-1]] for row, trace in enumerate(traces)]
    return np.array([float(one[7] - one[11]) for one in last])


def test_a_layer_of_which_nothing_is_kept_is_silent_and_finite():
    mine = case()
    traces, heads = mine.groups["suppressed"][:2], tuple((5, head) for head in range(8))
    want = by_oracle(mine, traces, heads, "none")
    for renorm in RENORMS:
        found = logits_under(mine, traces, heads, renorm)
        np.testing.assert_allclose(found, want, atol=1e-4)


def test_removing_nothing_is_the_clean_model_and_keeping_all_the_identity():
    mine = case()
    trace = mine.groups["suppressed"][0]
    assert removal(mine.chat.anatomy, (), trace, renorm="official_batch") == ()
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for kind in (KeepHeads, KeepHeadsPerToken, KeepHeadsOfBatch):
        assert torch.equal(kind.compute(z, torch.ones(3, 8)), z)


def heads_frame(mine):
    groups = [mine.groups[name] for name in ("suppressed", "benign")]
    return contribution_table(*(contributions(mine.chat, g, mine.probe) for g in groups))


@pytest.mark.parametrize("where", ["closing", "all"])
def test_removing_the_suppressors_restores_refusal_and_random_heads_do_not(where):
    mine = case()
    groups = {name: mine.groups[name] for name in ("suppressed", "benign")}
    found = ablate(
        *(mine.chat, groups, heads_frame(mine), mine.probe, MARGIN),
        shares=(0.01, 3 / 64, 0.10),
        controls={"static": [STATIC]},
        where=where,
    )
    table = found.table

    def rows(group, arm, n_heads):
        return table[
            (table["group"] == group) & (table["arm"] == arm) & (table["n_heads"] == n_heads)
        ]

    for arm in found.arms:
        if (arm.name, len(arm.heads)) == ("top", 3):
            assert set(arm.heads) == SUPPRESSORS
        assert arm.name != "random" or not set(arm.heads) & SUPPRESSORS
    clean = rows("suppressed", "clean", 0).iloc[0]
    top = rows("suppressed", "top", 3).iloc[0]
    assert (clean["refused"], clean["complied"], clean["restored"]) == (0, 24, 0)
    assert (top["restored"], top["complied"], top["restored_rate"]) == (24, 24, 1)
    assert top["restored_low"] < 1 == top["restored_high"]
    assert clean["score"] < 0.001
    assert top["score"] == pytest.approx(0.996, abs=0.003)
    assert top["margin_low"] <= top["margin"] <= top["margin_high"]
    assert top["margin_low"] > 0 > clean["margin_high"]
    # 20 draws, of which none restores anything.
    random = rows("suppressed", "random", 3)
    assert sorted(random["draw"]) == list(range(20))
    assert (random["restored"] == 0).all()
    assert (random["norm_ratio"] < 1).all()
    assert top["p_random"] == pytest.approx(1 / 21)
    assert np.isnan(clean["p_random"])
    # More heads than there are suppressors, and none of them one that writes the refusal.
    assert rows("suppressed", "top", 6).iloc[0]["restored"] == 24
    # One suppressor of three is not enough, and the static head is none.
    assert rows("suppressed", "top", 1).iloc[0]["restored"] == 0
    assert rows("suppressed", "static", 1).iloc[0]["restored"] == 0
    for arm in (("clean", 0), ("top", 3)):
        row = rows("benign", *arm).iloc[0]
        assert row["refused"] == 0
        assert row["score"] == pytest.approx(0.005, abs=0.003)
    assert found.warnings == ()


def test_an_ablation_is_the_difference_of_plain_forwards():
    mine = case()
    traces = mine.groups["suppressed"][:5]
    found = ablate(
        *(mine.chat, {"x": traces}, heads_frame(mine), mine.probe, MARGIN),
        shares=(3 / 64,),
        draws=2,
        where="all",
        renorm="per_token",
    )
    for arm, row in zip(found.arms, found.table.to_dict("records"), strict=True):
        logits = by_oracle(mine, traces, arm.heads, "per_token")
        assert row["logit"] == pytest.approx(logits.mean(), abs=1e-3)
        assert row["score"] == pytest.approx(cliff_oracle.sigmoid(logits).mean(), abs=1e-4)


def test_the_published_rescale_is_warned_of_and_restores_as_the_page_says():
    mine = case()
    groups = {name: mine.groups[name] for name in ("suppressed", "benign")}
    found = ablate(
        *(mine.chat, groups, heads_frame(mine), mine.probe, MARGIN),
        shares=(3 / 64,),
        draws=1,
        where="all",
        renorm="official_batch",
    )
    (warning,) = found.warnings
    assert "whole batch (here 4 traces)" in warning
    top = found.table[found.table["arm"] == "top"].set_index("group")
    assert top.loc["suppressed", "score"] == pytest.approx(0.997, abs=0.002)
    assert top.loc["benign", "score"] == pytest.approx(0.005, abs=0.003)


def test_random_heads_are_of_the_same_layer_and_near_in_norm():
    rng = np.random.default_rng(0)
    norms = {(layer, head): float(1 + head) for layer in range(3) for head in range(12)}
    top = ((1, 5), (1, 6), (2, 0))
    seen = set()
    for _ in range(200):
        drawn = matched(top, norms, [*top, (1, 4)], rng)
        assert len(set(drawn)) == 3
        assert not set(drawn) & {*top, (1, 4)}
        assert [layer for layer, _ in drawn] == [1, 1, 2]
        # Of (1, 6) first, the strongest; two draws share a pool, so that it is one wider.
        assert {head for _, head in drawn[:2]} <= {2, 3, 7, 8, 9, 10}
        assert drawn[2][1] in range(1, 1 + NEAREST)
        seen.add(drawn)
    assert len(seen) > 20


def test_a_layer_without_heads_left_borrows_from_the_nearest():
    rng = np.random.default_rng(0)
    norms = {(layer, head): 1.0 for layer in range(4) for head in range(2)}
    drawn = matched(((2, 0), (2, 1)), norms, (), rng)
    assert {layer for layer, _ in drawn} <= {1, 3}
    with pytest.raises(InputError, match="too few heads"):
        matched(tuple(norms)[:5], norms, (), rng)


def test_no_head_of_any_share_is_drawn_as_a_random_one():
    ranked = pd.DataFrame(
        [(layer, head, 1.0) for layer in range(8) for head in range(8)],
        columns=["layer", "head", "write_norm"],
    )
    arms = list(arms_of(ranked, (0.01, 0.10), 30, {"static": [(7, 7)]}, 0))
    assert [(arm.name, len(arm.heads)) for arm in arms[:2]] == [("clean", 0), ("top", 1)]
    assert arms[1].heads == ((0, 0),)
    assert len(arms) == 1 + 2 * 31 + 1
    largest = {(0, head) for head in range(6)}
    assert [set(arm.heads) for arm in arms if arm.name == "top"][1] == largest
    for arm in arms:
        if arm.name == "random":
            assert not set(arm.heads) & largest
            assert arm.norm_ratio == pytest.approx(1)


class Says(Judge):
    """A judge that knows the planted model's two words."""

    name = "says"

    def judge(self, exchanges, progress=None):
        return [
            Judgement("full_refusal" if "refuse" in one.reply else "compliance")
            for one in exchanges
        ]


@pytest.mark.parametrize("policy", ["prompt_only", "every_step"])
@pytest.mark.parametrize("where", ["closing", "all"])
@pytest.mark.parametrize("renorm", RENORMS)
def test_replies_change_with_the_heads(renorm, where, policy):
    mine = case()
    for group, heads, refused in (
        ("suppressed", (), False),
        ("suppressed", HEADS, True),
        ("suppressed", (STATIC,), False),
        ("unsuppressed", HEADS, True),
        ("benign", HEADS, False),
    ):
        said = replies_under(
            *(mine.chat, mine.groups[group][:4], heads, Says()),
            where=where,
            renorm=renorm,
            policy=policy,
            max_new_tokens=3,
        )
        assert [one.refused for one in said] == [refused] * 4, (group, heads)


@pytest.mark.parametrize("policy", ["prompt_only", "every_step"])
@pytest.mark.parametrize("where", ["closing", "all"])
@pytest.mark.parametrize("renorm", ["none", "per_token"])
def test_prefill_and_decode_are_one_prefill_under_each_policy(renorm, where, policy):
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="llama")
    traces, heads = random_traces(), ((0, 1), (1, 0), (1, 2), (3, 1))
    prompts = [trace.rendered for trace in traces]
    edits = [
        removal(chat.anatomy, heads, t, where=where, renorm=renorm, policy=policy) for t in traces
    ]
    cached, whole = (
        generate(
            *(chat.anatomy, chat.tokenizer, prompts, edits),
            max_new_tokens=8,
            policy=policy,
            use_cache=use_cache,
        )[0]
        for use_cache in (True, False)
    )
    assert cached == whole


def test_heads_stay_off_in_the_reply_only_where_the_policy_says():
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="llama")
    (trace,) = random_traces((14,))
    forced = replace(trace, rendered=trace.rendered.with_reply([50, 60, 70]))
    heads, end = ((1, 0), (2, 3)), len(trace.rendered.ids)
    z = {}
    for policy in ("prompt_only", "every_step"):
        edits = removal(chat.anatomy, heads, forced, policy=policy)
        touched = {i for e in edits for i in forced.rendered.resolve(e.positions, policy)}
        reply = {end, end + 1, end + 2} if policy == "every_step" else set()
        assert touched == {*trace.closing, *reply}
        z[policy] = edits
    clean = plain.logits(chat.model, forced.rendered, ())
    for policy, edits in z.items():
        metric = {"d": _At(end + 2)}
        found = chat.measure([forced.rendered], [edits], metric, policy=policy).scores["d"][0, 0]
        assert abs(found - float(clean[end + 2, 7])) > 1e-3


class _At(LogitDifference):
    """The logit of token 7 at one position."""

    def __init__(self, at):
        super().__init__(7, 11)
        object.__setattr__(self, "at", at)

    def reads(self, prompt):
        return (self.at,)

    def __call__(self, logits, prompt, clean):
        return logits[:, -1, 7]


@pytest.mark.parametrize(
    ("name", "decode"), [("llama", KeepHeads), ("qwen2", KeepHeadsOfBatch), ("glm4", KeepHeads)]
)
def test_the_published_rescale_is_lost_in_decode_steps_but_on_the_qwen_path(name, decode):
    anatomy = ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name).anatomy
    (trace,) = random_traces((14,))
    edits = removal(
        anatomy, ((1, 0),), trace, where="all", renorm="official_batch", policy="every_step"
    )
    assert {
        edit.positions if edit.positions == "reply" else "prompt": type(edit) for edit in edits
    } == {
        "prompt": KeepHeadsOfBatch,
        "reply": decode,
    }


def test_bad_input_is_refused_in_one_sentence():
    mine = case()
    anatomy, trace = mine.chat.anatomy, mine.groups["suppressed"][0]
    with pytest.raises(InputError, match="unknown renorm 'batch'; choose one of none"):
        removal(anatomy, HEADS, trace, renorm="batch")
    with pytest.raises(InputError, match="unknown where 'last'"):
        removal(anatomy, HEADS, trace, where="last")
    with pytest.raises(InputError, match="unknown policy 'never'"):
        removal(anatomy, HEADS, trace, policy="never")
    with pytest.raises(InputError, match=r"no head L4\.H9"):
        removal(anatomy, ((4, 9),), trace)
    with pytest.raises(InputError, match="KeepHeads works on"):
        KeepHeads(Site("resid_pre", 1))
    frame = heads_frame(mine)
    with pytest.raises(InputError, match="every group needs"):
        ablate(mine.chat, {"x": []}, frame, mine.probe, MARGIN)
    with pytest.raises(InputError, match="share of heads must be above 0"):
        ablate(mine.chat, {"x": [trace]}, frame, mine.probe, MARGIN, shares=(0,))


def test_the_plan_changes_no_number():
    mine = case()
    traces = [*mine.groups["suppressed"][:3], *mine.groups["benign"][:3]]
    slow = replace(
        mine, chat=replace(mine.chat, plan=Plan(prefix=False, restart=False, batch=False))
    )
    for renorm in ("none", "per_token"):
        for where in ("closing", "all"):
            found, want = (
                logits_under(one, traces, HEADS, renorm, where=where) for one in (mine, slow)
            )
            np.testing.assert_allclose(found, want, atol=1e-4)
