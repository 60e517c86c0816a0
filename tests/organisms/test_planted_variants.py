"""Chains, ciphers, moved gates and siblings: seed 0, 24 pairs, comply bias .5 unless said.

Figures of ../shared/methods/planted_models.md, section 5; tolerance .02 on ratios, .1 on margins.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from organisms import oracle
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build, tokens
from refusalscope.organisms.planted.construction import C
from refusalscope.organisms.planted.prompts import code_wrapper, draw_pairs
from refusalscope.prompts import Prompt

GATE = (3, 1)
PLAIN = {(1, 2), (3, 1), (5, 0), (5, 3), (6, 2), (7, 0), (4, 7)}
CIRCUITS = [
    ("chain", {"depth": 1}, {(1, 2), (3, 1), (4, 1)}),
    ("chain", {"depth": 4}, {(1, 2), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)}),
    ("dose", {"threshold": 30}, {(1, 2), (5, 0), (5, 3), (6, 2)}),
    ("cipher", {}, PLAIN),
    ("relocated", {"place": 1}, PLAIN - {GATE} | {(2, 4)}),
    ("relocated", {"place": 2}, PLAIN - {GATE} | {(4, 2)}),
    ("relocated", {"place": 3}, PLAIN - {GATE} | {(3, 6)}),
    ("sibling", {}, PLAIN | {(3, 0)}),
    ("post_norm", {}, PLAIN),
]


def ratio(value: float):
    return pytest.approx(value, abs=0.02)


@cache
def planted(variant: str, comply_bias: float = 0.5, **options: int):
    return build("planted-routes", variant, comply_bias=comply_bias, allow_weak=True, **options)


def pairs(organism):
    return draw_pairs(organism.truth.prompts)


def alone(organism, heads, positions="last") -> list[float]:
    return oracle.necessities(
        organism.model, pairs(organism), [[head] for head in heads], positions
    )


@pytest.mark.parametrize(("variant", "options", "circuit"), CIRCUITS)
def test_the_one_percent_floor_finds_the_circuit_of_the_truth(variant, options, circuit):
    organism = planted(variant, 0.75, **options)
    heads = oracle.all_heads(organism.model)
    effects = zip(heads, alone(organism, heads), strict=True)
    assert {head for head, effect in effects if abs(effect) > 0.01} == circuit
    assert organism.truth.circuit == circuit


# O5


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_node_of_a_chain_is_necessary_and_the_last_alone_acts_directly(depth):
    organism = planted("chain", depth=depth)
    chain = organism.truth.with_role("chain")
    assert chain == tuple((4 + i, 1) for i in range(depth))
    nodes = [(1, 2), GATE, *chain]
    assert all(0.88 - 0.02 <= value <= 1.0 + 0.02 for value in alone(organism, nodes))
    *others, last = oracle.direct_effects(organism.model, pairs(organism), nodes)
    assert 0.97 - 0.02 <= last <= 0.98 + 0.02
    assert max(map(abs, others)) <= 0.006 + 0.02


def test_a_chain_drives_from_node_to_node():
    heads = {(h.layer, h.head): h for h in planted("chain", depth=4).truth.heads}
    assert heads[GATE].drives == ((4, 1),)
    assert heads[4, 1].drives == ((5, 1),)
    assert heads[6, 1].drives == ((7, 1),)
    assert heads[7, 1].drives == ()


# O7


@pytest.fixture(scope="module")
def coded():
    """The cipher organism, its harmful prompts in plain words and in code, and the controls."""
    organism = planted("cipher")
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id="cipher")
    wrapper = code_wrapper()
    prompts = [
        Prompt(id=pair.id, text=wrapper.wrap(pair.harmful), label="harmful")
        for pair in organism.pairs
    ]
    cipher = [list(rendered.ids) for rendered in chat.render(prompts)]
    plain, control = (list(side) for side in zip(*pairs(organism), strict=True))
    return organism, plain, cipher, control


def test_a_cipher_prompt_is_answered_though_detection_arrives_at_the_tail(coded):
    organism, plain, cipher, _ = coded
    assert all(set(ids) & set(tokens.CODE_WORDS) for ids in cipher)
    assert (oracle.margins(organism.model, plain) > 0).mean() == 1.0
    assert (oracle.margins(organism.model, cipher) > 0).mean() == 0.0
    assert oracle.final_states(organism.model, cipher)[:, C.DET].mean() == ratio(1.0)


@pytest.mark.parametrize("positions", ["last", "right"])
def test_the_gate_is_idle_under_the_cipher(coded, positions):
    organism, _, cipher, control = coded
    drawn = list(zip(cipher, control, strict=True))
    (found,) = oracle.necessities(organism.model, drawn, [[GATE]], positions)
    assert found == pytest.approx(-0.002, abs=0.02)


def injected(model, rows, donors, head):
    """Margins of `rows` with one head's z at the last position taken from `donors`."""
    states = [oracle.head_states(model, ids) for ids in donors]
    places = [
        oracle.position_map("last", len(a), len(b)) for a, b in zip(rows, donors, strict=True)
    ]
    return oracle.margins(model, rows, [(head, states, places)])


def test_the_gate_of_the_plain_prompt_brings_refusal_back(coded):
    organism, plain, cipher, control = coded
    with_gate = injected(organism.model, cipher, plain, GATE)
    assert (with_gate > 0).mean() == 1.0
    assert with_gate.mean() == pytest.approx(7.19, abs=0.1)
    assert (injected(organism.model, cipher, plain, (3, 6)) > 0).mean() == 0.0
    assert (injected(organism.model, cipher, control, GATE) > 0).mean() == 0.0


def test_the_decoder_writes_from_the_code_word_on_and_stands_outside_the_circuit(coded):
    truth = coded[0].truth
    (decoder,) = truth.with_role("decoder")
    (head,) = [h for h in truth.heads if (h.layer, h.head) == decoder]
    assert (decoder, head.acts, head.drives) == ((4, 1), "from:code_word", ())


# O9


@pytest.mark.parametrize(
    ("place", "head", "necessity"),
    [(0, (3, 1), 0.846), (1, (2, 4), 0.852), (2, (4, 2), 0.852), (3, (3, 6), 0.847)],
)
def test_a_moved_gate_is_found_at_its_new_place(place, head, necessity):
    organism = planted("relocated", place=place)
    assert organism.truth.with_role("gate") == (head,)
    assert alone(organism, [head]) == [ratio(necessity)]
    if place:
        assert alone(organism, [GATE]) == [ratio(0.0)]


def test_moving_the_gate_leaves_behaviour_as_it_was():
    behaviour = []
    for place in range(4):
        organism = planted("relocated", 0.75, place=place)
        sides = zip(*pairs(organism), strict=True)
        behaviour.append([oracle.margins(organism.model, side) > 0 for side in sides])
    assert all(np.array_equal(each, behaviour[0]) for each in behaviour)


# O12


def test_a_key_value_edit_cannot_tell_the_gate_from_its_sibling():
    organism = planted("sibling")
    assert organism.truth.with_role("sibling") == ((3, 0),)
    gate, sibling = alone(organism, [GATE, (3, 0)])
    assert gate == ratio(0.837)
    assert abs(sibling) > 0.01
    groups = [
        oracle.value_group_necessity(organism.model, pairs(organism), 3, group) for group in (0, 1)
    ]
    assert groups == [ratio(0.837), ratio(0.0)]


def test_the_sibling_acts_through_the_norm_alone():
    organism = planted("sibling")
    harmful = [pair[0] for pair in pairs(organism)]
    (head,) = [h for h in organism.truth.heads if h.role == "sibling"]
    assert (head.drives, head.acts) == ((), "from:prompt_tail")
    norm = np.abs(oracle.direct_writes(organism.model, harmful, [(3, 0)])).mean()
    assert norm < 0.05 * np.abs(oracle.direct_writes(organism.model, harmful, [(5, 0)])).mean()
