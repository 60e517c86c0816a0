"""The exact screen and the attribution against plain hooked forwards, and against planted circuits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from model import oracle as plain
from model import tiny
from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference, RefusalMargin, Rendered, Replace, Site
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.prompts import draw_pairs
from refusalscope.stats import max_t_signflip
from refusalscope.studies.heads import WHOLE, coverage, head_name, key_value_groups, units_of
from refusalscope.studies.routing import Pair, all_heads, attribute, position_map, screen

MARGIN = {"margin": LogitDifference(oracle.REFUSE, oracle.COMPLY)}


def row(ids, name="x"):
    n = len(ids)
    return Rendered(name, "", tuple(ids), n, (0, n - 1), {"prompt_last": n - 1})


@cache
def planted(variant="base", **options):
    organism = build("planted-routes", variant, comply_bias=0.5, allow_weak=True, **options)
    pairs = draw_pairs(organism.truth.prompts)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=variant)
    return (
        organism,
        chat,
        pairs,
        [Pair(row(h, f"h{i}"), row(c, f"c{i}")) for i, (h, c) in enumerate(pairs)],
    )


@pytest.mark.parametrize("positions", ["last", "right"])
def test_the_screen_equals_one_hooked_forward_a_head(positions):
    organism, chat, pairs, mine = planted()
    units = [((1, 2),), ((3, 1),), ((5, 0),), ((4, 7),), ((3, 1), (5, 0))]
    found = screen(chat, mine, MARGIN, units=units, positions=positions)
    gap = found.gap("margin")
    for name, slow in (("necessity", oracle.necessities), ("sufficiency", oracle.sufficiencies)):
        fast = getattr(found, name)["margin"][:, 0].mean(axis=0) / gap
        want = slow(organism.model, pairs, units, positions)
        np.testing.assert_allclose(fast, want, atol=1e-5)


def test_the_whole_circuit_is_found_and_nothing_else():
    _, chat, _, mine = planted()
    units = all_heads(chat.anatomy.n_layers, chat.anatomy.n_heads)
    found = screen(chat, mine, MARGIN)
    assert found.units == units
    table = found.necessity["margin"][:, 0]
    test = max_t_signflip(table, 2_000, seed=0)
    passed = (np.abs(test.mean) > 0.01 * found.gap("margin")) & (test.p_familywise < 0.05)
    heads = {unit[0] for unit, yes in zip(units, passed, strict=True) if yes}
    assert heads == {(1, 2), (3, 1), (5, 0), (5, 3), (6, 2), (7, 0), (4, 7)}


def test_a_backup_hides_the_gate_until_one_of_them_is_held():
    _, chat, _, mine = planted("backup", redundancy=2)
    gate, backup = ((3, 1),), ((4, 2),)
    alone = screen(chat, mine, MARGIN, units=[gate, backup, gate + backup])
    share = alone.necessity["margin"][:, 0].mean(axis=0) / alone.gap("margin")
    assert np.abs(share[:2]).max() < 0.05
    assert share[2] > 0.8
    held = screen(chat, mine, MARGIN, units=[backup, gate], held=gate[0:1])
    more = held.necessity["margin"][:, 0].mean(axis=0) / held.gap("margin")
    assert more[0] > 0.8
    assert more[1] == 0


def test_a_prefix_moves_nothing_unless_the_map_starts_at_the_left():
    _, chat, pairs, mine = planted()
    filler = pairs[0][1][1]
    longer = [
        Pair(row([p.harmful.ids[0], *[filler] * 20, *p.harmful.ids[1:]]), p.control) for p in mine
    ]
    gate = [((3, 1),)]
    share = {}
    for name, given in (("plain", mine), ("prefix", longer)):
        for positions in ("last", "suffix", "right", "compat_left"):
            found = screen(chat, given, MARGIN, units=gate, positions=positions)
            share[name, positions] = float(found.necessity["margin"].mean() / found.gap("margin"))
    for positions in ("last", "suffix", "right"):
        assert share["prefix", positions] == pytest.approx(share["plain", positions], abs=0.05)
    assert share["plain", "compat_left"] > 0.5
    assert abs(share["prefix", "compat_left"]) < 0.05


def test_several_donors_are_several_rows():
    _, chat, _, mine = planted()
    given = [
        Pair(p.harmful, p.control, (mine[i - 1].control,), (mine[i - 1].harmful,))
        for i, p in enumerate(mine)
    ]
    units = [((3, 1),), ((5, 0),)]
    found = screen(chat, given, MARGIN, units=units)
    plain = screen(chat, mine, MARGIN, units=units)
    assert found.necessity["margin"].shape == (len(mine), 2, 2)
    np.testing.assert_allclose(
        found.necessity["margin"][:, 0], plain.necessity["margin"][:, 0], atol=1e-5
    )


def test_the_last_position_costs_one_token_a_head_over_a_cached_prefix():
    _, chat, _, mine = planted()
    before = chat.cost.token_layers
    screen(chat, mine[:4], MARGIN)
    spent = chat.cost.token_layers - before
    n_layers, n_heads = chat.anatomy.n_layers, chat.anatomy.n_heads
    length = max(len(p.harmful) for p in mine)
    # Donors and patients once each, and one row a head from its layer up (and one token to start from).
    clean = 2 * 8 * length * n_layers
    rows = 8 * (n_layers + sum(n_heads * (n_layers - layer) for layer in range(n_layers)))
    assert spent <= clean + rows


def test_groups_are_the_query_heads_of_one_key_value_head():
    assert key_value_groups(1, 4, 2) == (((0, 0), (0, 1)), ((0, 2), (0, 3)))


@pytest.mark.parametrize("name", ["last", "suffix", "right", "compat_left"])
def test_maps_pair_positions_as_they_say(name):
    patient, donor = row([9, 1, 2, 3, 7, 8]), row([5, 7, 8])
    want = {
        "last": ((5, 2),),
        "suffix": ((4, 1), (5, 2)),
        "right": ((3, 0), (4, 1), (5, 2)),
        "compat_left": ((0, 0), (1, 1), (2, 2)),
    }
    assert position_map(patient, donor, name) == want[name]
    if name == "suffix":
        assert position_map(patient, donor, f"{name}+1") == want["right"]
        assert position_map(patient, donor, f"{name}+9") == want["right"]


def test_bad_input_is_refused_in_one_sentence():
    _, chat, _, mine = planted()
    same = Pair(mine[0].harmful, mine[0].harmful)
    with pytest.raises(InputError, match="same prompt"):
        screen(chat, [same], MARGIN)
    with pytest.raises(InputError, match="no pair"):
        screen(chat, [], MARGIN)
    with pytest.raises(InputError, match="no head L99"):
        screen(chat, mine[:1], MARGIN, units=[((99, 0),)])
    with pytest.raises(InputError, match="same number of donors"):
        screen(chat, [mine[0], Pair(mine[1].harmful, mine[1].control, (mine[0].control,))], MARGIN)
    with pytest.raises(InputError, match="no position map"):
        screen(chat, mine[:1], MARGIN, positions="middle")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_attribution_sums_to_the_difference_of_logits(name):
    chat = ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name)
    prompts = [row([1, *range(10, 10 + n)], str(n)) for n in (5, 9, 7)]
    margin = RefusalMargin((30, 50, 80), (40, 90))
    found = attribute(chat, prompts, margin)
    np.testing.assert_allclose(found.summed, found.total, atol=1e-4)
    for prompt, total in zip(prompts, found.total, strict=True):
        with torch.no_grad():
            states = chat.model(torch.tensor([prompt.ids]), output_hidden_states=True)
        # The last hidden state is already normed; the unembedding without its softcap is linear.
        logits = chat.anatomy.lm_head(states.hidden_states[-1][0, -1])
        want = logits[list(margin.refuse)].mean() - logits[list(margin.reply)].mean()
        assert total == pytest.approx(float(want), abs=1e-4)


def test_attribution_names_the_heads_that_write_the_refusal():
    _, chat, _, mine = planted()
    margin = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
    harmful = attribute(chat, [p.harmful for p in mine], margin).heads
    control = attribute(chat, [p.control for p in mine], margin).heads
    contrast = (harmful - control).mean(axis=0)
    order = np.argsort(-contrast.ravel())[:4]
    assert {tuple(map(int, np.unravel_index(i, contrast.shape))) for i in order} == {
        (5, 0),
        (5, 3),
        (6, 2),
        (7, 0),
    }
    assert abs(contrast[3, 1]) < 0.1 * contrast.max()


HYBRIDS = ("qwen3_next", "qwen3_5")


@cache
def hybrid(name):
    """A random model whose layers 0 and 2 have no heads, and pairs of unequal length with an equal tail."""
    chat = ChatModel.wrap(tiny.model(name), tiny.tokenizer(), id=name)
    ids = torch.randint(10, 300, (6, 14), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [row([1, *one[: 5 + i], 40, 41], str(i)) for i, one in enumerate(ids)]
    return chat, [Pair(texts[0], texts[3]), Pair(texts[4], texts[1]), Pair(texts[2], texts[5])]


def swapped(chat, patient, donor, unit, positions):
    """The patient's score with a unit from the donor: plain hooks, one forward."""
    places = position_map(patient, donor, positions)
    where = tuple(mine for mine, _ in places)
    width, edits = chat.anatomy.head_dim, []
    for layer, head in unit:
        site = Site("attn_out" if head == WHOLE else "z", layer)
        lent = plain.read(chat.model, donor, site)[[theirs for _, theirs in places]]
        if head == WHOLE:
            edits.append(Replace(site, where, values=lent))
        else:
            part = lent[:, head * width : (head + 1) * width]
            edits.append(Replace(site, where, head=head, values=part))
    last = plain.logits(chat.model, patient, tuple(edits))[-1]
    return float(last[7] - last[11])


@pytest.mark.parametrize("positions", ["last", "suffix", "right"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_mixers_are_screened_as_one_unit_each(name, positions):
    chat, pairs = hybrid(name)
    found = screen(chat, pairs, {"m": LogitDifference(7, 11)}, positions=positions)
    assert found.units == units_of(chat.anatomy)
    for i, pair in enumerate(pairs):
        sides = (
            (found.necessity, pair.harmful, pair.control, -1),
            (found.sufficiency, pair.control, pair.harmful, 1),
        )
        for table, patient, donor, sign in sides:
            clean = swapped(chat, patient, donor, (), positions)
            want = [
                sign * (swapped(chat, patient, donor, unit, positions) - clean)
                for unit in found.units
            ]
            assert min(map(abs, want)) > 1e-4
            np.testing.assert_allclose(table["m"][i, 0], want, atol=2e-5)


@pytest.mark.parametrize("name", HYBRIDS)
def test_mixers_can_be_held_and_joined_with_heads(name):
    chat, pairs = hybrid(name)
    units, held = [((2, WHOLE), (3, 1)), ((1, 0),)], ((0, WHOLE),)
    metric = {"m": LogitDifference(7, 11)}
    found = screen(chat, pairs[:1], metric, units=units, held=held)
    patient, donor = pairs[0].harmful, pairs[0].control
    without = swapped(chat, patient, donor, held, "last")
    want = [without - swapped(chat, patient, donor, held + unit, "last") for unit in units]
    np.testing.assert_allclose(found.necessity["m"][0, 0], want, atol=2e-5)


def test_the_whole_mixer_of_a_layer_with_heads_is_all_its_heads():
    chat, pairs = hybrid("qwen3_5")
    heads = tuple((1, head) for head in range(4))
    found = screen(
        chat, pairs, {"m": LogitDifference(7, 11)}, units=[((1, WHOLE),), heads]
    ).necessity["m"]
    np.testing.assert_allclose(found[..., 0], found[..., 1], atol=2e-5)


def test_units_cover_every_layer_and_say_so():
    anatomy = hybrid("qwen3_next")[0].anatomy
    assert units_of(anatomy) == (
        ((0, WHOLE),),
        *(((1, head),) for head in range(4)),
        ((2, WHOLE),),
        *(((3, head),) for head in range(4)),
    )
    assert coverage(anatomy) == "8 heads of 2 layers; one unit each: L0, L2"
    assert [head_name(head) for head in ((3, 1), (2, WHOLE))] == ["L3.H1", "L2.mixer"]
    groups = key_value_groups(4, 4, 2, anatomy.softmax_layers)
    assert groups[0] == ((1, 0), (1, 1))
    assert {layer for group in groups for layer, _ in group} == {1, 3}
    ordinary = planted()[1].anatomy
    assert units_of(ordinary) == all_heads(ordinary.n_layers, ordinary.n_heads)
    assert coverage(ordinary) == "64 heads of 8 layers"


def test_a_head_of_a_layer_without_heads_is_refused():
    chat, pairs = hybrid("qwen3_next")
    metric = {"m": LogitDifference(7, 11)}
    for given in ({"units": [((2, 1),)]}, {"units": [((1, 1),)], "held": ((2, 1),)}):
        with pytest.raises(InputError, match=r"no head L2\.H1.*one unit, L2\.mixer.*\(2, -1\)"):
            screen(chat, pairs, metric, **given)
    with pytest.raises(InputError, match=r"no head L1\.H-2"):
        screen(chat, pairs, metric, units=[((1, -2),)])


@pytest.mark.parametrize("name", HYBRIDS)
def test_attribution_gives_each_layer_to_its_heads_or_to_its_mixer(name):
    chat, pairs = hybrid(name)
    margin = RefusalMargin((30, 50, 80), (40, 90))
    found = attribute(chat, [pair.harmful for pair in pairs], margin)
    assert found.heads.shape == (3, 4, 4)
    assert found.mixer.shape == (3, 4)
    assert not found.heads[:, [0, 2]].any()
    assert not found.bias[:, [0, 2]].any()
    assert not found.mixer[:, [1, 3]].any()
    weight = chat.model.lm_head.weight.detach()
    direction = weight[list(margin.refuse)].mean(0) - weight[list(margin.reply)].mean(0)
    reader = direction * (1 + chat.model.model.norm.weight.detach())
    for i, pair in enumerate(pairs):
        for layer in (0, 2):
            write = plain.read(chat.model, pair.harmful, Site("attn_out", layer))[-1]
            want = float(write @ reader) * found.scale[i]
            assert found.mixer[i, layer] == pytest.approx(want, abs=1e-5)
