"""The exact effects of heads at the closing tokens against plain forwards, and their roles on organisms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model import oracle as plain
from model import tiny
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference, Plan, Replace, Scale, Site
from refusalscope.studies.cliff import Probe
from refusalscope.studies.cliff.contributions import contributions
from refusalscope.studies.cliff.effects import (
    Effects,
    head_effects,
    head_table,
    mean_states,
    role,
)
from refusalscope.studies.heads import WHOLE, site_of, units_of
from studies.cliff.heads_case import (
    INTENT,
    MARGIN,
    PROMOTER,
    STATIC,
    SUPPRESSORS,
    case,
    random_traces,
)


def tiny_probe(site: Site, normed: bool) -> Probe:
    return Probe(torch.randn(32, generator=torch.Generator().manual_seed(5)), 0.7, site, normed)


@torch.no_grad()
def slow(chat, trace, probe, variant=()):
    """Probe logit and logit difference at the last token: one plain forward of the whole text."""
    kept = []
    site = probe.site.resolved(chat.anatomy.n_layers)
    module = chat.anatomy.final_norm if probe.normed else chat.anatomy.layers[site.layer]
    handle = (
        module.register_forward_hook(lambda m, a, out: kept.append(out))
        if probe.normed
        else module.register_forward_pre_hook(lambda m, a: kept.append(a[0]))
    )
    logits = plain.logits(chat.model, trace.rendered, variant)[-1]
    handle.remove()
    return float(kept[0][0, -1] @ probe.weight) + probe.bias, float(logits[7] - logits[11])


@pytest.mark.parametrize("fill", ["zero", "mean"])
@pytest.mark.parametrize(
    ("name", "probe"),
    [
        ("llama", tiny_probe(Site("final"), True)),
        ("gemma2", tiny_probe(Site("final"), True)),
        ("glm4", tiny_probe(Site("resid_pre", 3), False)),
        ("qwen3_5", tiny_probe(Site("final"), True)),
    ],
)
def test_effects_equal_one_plain_forward_a_unit(name, probe, fill):
    chat, traces = ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name), random_traces()
    means = mean_states(chat, traces[1:]) if fill == "mean" else None
    found = head_effects(chat, traces, probe, margin=LogitDifference(7, 11), stand_in=means)
    assert found.units == units_of(chat.anatomy)
    width = chat.anatomy.head_dim
    for i, trace in enumerate(traces):
        clean = slow(chat, trace, probe)
        assert found.clean["probe"][i] == pytest.approx(clean[0], abs=1e-4)
        assert found.clean["margin"][i] == pytest.approx(clean[1], abs=1e-4)
        for column, ((layer, head),) in enumerate(found.units):
            site, slot = site_of((layer, head)), None if head == WHOLE else head
            if fill == "zero":
                edit = Scale(site, trace.closing, slot, factor=0.0)
            else:
                states = [plain.read(chat.model, t.rendered, site)[-3:] for t in traces[1:]]
                values = torch.stack(states).mean(0)
                if slot is not None:
                    values = values[:, slot * width : (slot + 1) * width]
                edit = Replace(site, trace.closing, slot, values=values)
            edited = slow(chat, trace, probe, (edit,))
            for k, metric in enumerate(("probe", "margin")):
                got = found.effect[metric][i, column]
                assert got == pytest.approx(clean[k] - edited[k], abs=2e-4)
    assert np.abs(found.effect["margin"]).min(0).max() > 1e-3


def test_a_row_costs_the_closing_tokens_alone():
    mine = case()
    traces, n_layers, n_heads = mine.groups["suppressed"][:4], 8, 8
    length = len(traces[0])
    spent = {}
    for name, plan in {"plan": Plan(), "full": Plan(prefix=False, restart=False)}.items():
        chat = replace(mine.chat, plan=plan, cost=type(mine.chat.cost)())
        spent[name] = (head_effects(chat, traces, mine.probe), chat.cost)
    fast, whole = (spent[name][1].token_layers for name in ("plan", "full"))
    clean = 4 * length * n_layers
    # One row a head from its layer up, three tokens each; and one to start from.
    rows = 4 * 3 * (sum(n_heads * (n_layers - layer) for layer in range(n_layers)) + n_layers)
    assert fast == clean + rows
    # Every prompt's own row runs along in the full passes too.
    assert whole >= 4 * length * n_layers * (1 + n_layers * n_heads)
    assert whole > 15 * fast
    for metric, table in spent["plan"][0].effect.items():
        np.testing.assert_allclose(table, spent["full"][0].effect[metric], atol=2e-5)


def table_of(variant, seed=0, pairs=24, group="suppressed", benign="benign"):
    mine = case(variant, seed, pairs)
    traces = mine.groups[group]
    found = head_effects(mine.chat, traces, mine.probe, margin=MARGIN)
    harmful, other = (
        contributions(mine.chat, mine.groups[name], mine.probe) for name in (group, benign)
    )
    categories = [trace.prompt.category for trace in traces]
    return head_table(found, harmful, other, categories=categories, n_flips=1_000)


def with_role(table, name):
    rows = table[table["role"] == name]
    return set(zip(rows["layer"], rows["head"], strict=True))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("variant", ["base", "graded"])
def test_the_planted_suppressors_are_found_and_nothing_else(variant, seed):
    table = table_of(variant, seed)
    assert with_role(table, "suppressor") == SUPPRESSORS
    assert with_role(table, "static") == {STATIC}
    assert with_role(table, "promoter") == {PROMOTER, INTENT}
    heads = table.set_index(["layer", "head"])
    assert set(heads["contrast"].nsmallest(3).index) == SUPPRESSORS
    passing = heads[heads["passes"] & (heads["contrast"] < -0.1)]
    assert set(passing["effect"].nsmallest(3).index) == SUPPRESSORS
    assert STATIC not in passing.index


def test_effects_have_the_page_s_size_the_contribution_s_sign_and_intervals():
    heads = table_of("base").set_index(["layer", "head"])
    for head in SUPPRESSORS:
        row = heads.loc[head]
        assert row["effect"] == pytest.approx(-4.4, abs=0.15)
        assert row["effect"] == pytest.approx(row["direct"], rel=0.05)
        assert row["effect_low"] <= row["effect"] <= row["effect_high"] < -4
        assert row["share"] == pytest.approx(row["effect"] / row["gap"])
        assert row["p_familywise"] < 0.01
        assert row["p_categories"] < 0.05
        assert row["effect_margin_low"] <= row["effect_margin"] <= row["effect_margin_high"] < -2
        assert row["p_margin"] < 0.01
    assert heads.loc[PROMOTER, "effect"] == pytest.approx(0.94, abs=0.1)
    rest = heads.drop([*SUPPRESSORS, STATIC, PROMOTER, INTENT])
    assert not rest["passes"].any()
    # Consistent in every trace, and next to nothing: significance alone would have found them.
    assert (rest["p_familywise"] < 0.05).sum() > 10


@pytest.mark.parametrize(
    ("variant", "group", "benign"),
    [("template_shift", "unsuppressed", "benign"), ("base", "suppressed", "benign_persuaded")],
)
def test_what_benign_traces_show_too_is_no_cliff_to_explain(variant, group, benign):
    with pytest.raises(InputError, match="no cliff for heads to explain"):
        table_of(variant, group=group, benign=benign)


def test_suppressors_are_found_where_half_of_the_benign_traces_show_them():
    mine = case()
    traces = mine.groups["suppressed"]
    found = head_effects(mine.chat, traces, mine.probe)
    half = [*mine.groups["benign"], *mine.groups["benign_persuaded"]]
    both = (contributions(mine.chat, group, mine.probe) for group in (traces, half))
    table = head_table(found, *both, n_flips=1_000)
    assert with_role(table, "suppressor") == SUPPRESSORS
    assert with_role(table, "static") == {STATIC}
    assert "effect_margin" not in table
    assert table["p_categories"].isna().all()


ROW = {
    "passes": True,
    "direct": -4.0,
    "effect": -4.0,
    **{"cliff": -4.0, "cliff_low": -4.1, "cliff_high": -3.9},
    **{"contrast": -4.0, "contrast_low": -4.1, "contrast_high": -3.9},
}
NONE = {
    **{"cliff": 0.0, "cliff_low": -0.1, "cliff_high": 0.1},
    **{"contrast": 0.0, "contrast_low": -0.1, "contrast_high": 0.1},
}
UP = {
    **{"direct": 2.0, "effect": 1.5},
    **{"cliff": 1.0, "cliff_low": 0.9, "cliff_high": 1.1},
    **{"contrast": 1.0, "contrast_low": 0.9, "contrast_high": 1.1},
}


@pytest.mark.parametrize(
    ("change", "presence", "want"),
    [
        ({}, (-4, -4.1, -3.9), "suppressor"),
        ({"passes": False}, (-4, -4.1, -3.9), ""),
        # Removing it does not restore: it works through others.
        ({"effect": 1.0}, (-4, -4.1, -3.9), ""),
        # It writes nothing against refusal itself.
        ({"direct": 1.0}, (1, 0.9, 1.1), ""),
        # The same on the plateau: no cliff.
        ({"cliff": 0.0, "cliff_low": -0.1, "cliff_high": 0.1}, (-4, -4.1, -3.9), ""),
        # An interval that holds 0.
        ({"contrast_high": 0.1}, (-4, -4.1, -3.9), ""),
        (NONE, (0, -0.1, 0.1), "static"),
        (NONE, (-0.7, -0.8, -0.6), "static"),
        (NONE, (-0.9, -1, -0.8), ""),
        (UP, (1, 0.9, 1.1), "promoter"),
        (NONE | {"direct": 2.0, "effect": 1.5}, (2, 1.9, 2.1), "promoter"),
        (NONE | {"direct": 2.0, "effect": 1.5}, (0, -0.1, 0.1), "static"),
    ],
)
def test_roles_are_by_rule(change, presence, want):
    assert role(ROW | change, presence, 0.1) == want


def test_bad_input_is_refused_in_one_sentence():
    mine = case()
    chat, traces = mine.chat, mine.groups["suppressed"]
    with pytest.raises(InputError, match="no trace to screen"):
        head_effects(chat, [], mine.probe)
    shorter = replace(traces[0], closing=traces[0].closing[1:])
    with pytest.raises(InputError, match="equally many closing tokens"):
        mean_states(chat, [traces[0], shorter])
    with pytest.raises(InputError, match="3 closing tokens and a trace has 2"):
        head_effects(chat, [shorter], mine.probe, stand_in=mean_states(chat, traces))
    found = contributions(chat, traces, mine.probe)
    empty = Effects(found.units, {"probe": np.ones(7)}, {"probe": np.ones((7, 64))})
    with pytest.raises(InputError, match="7 traces are too few"):
        head_table(empty, found, found)
    other = Effects(found.units, {"probe": np.ones(9)}, {"probe": np.ones((9, 64))})
    with pytest.raises(InputError, match="the same traces"):
        head_table(other, found, found)
