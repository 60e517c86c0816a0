"""Routing organisms show what the page measured: seed 0, 24 pairs, comply bias .5 unless said.

Figures of ../shared/methods/planted_models.md, sections 2 and 5; tolerance .02 on ratios, .1 on
margins, as the page gives it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from organisms import oracle
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.prompts import draw_pairs
from refusalscope.organisms.planted.routes import HARM2_SIGN, HARM_INTENSITY

DETECTOR, GATE, BACKUP, DIRECT, TOPIC = (1, 2), (3, 1), (4, 2), (7, 0), (4, 7)
AMPLIFIERS = ((5, 0), (5, 3), (6, 2))
STATIC = ((2, 6), (4, 5))


def ratio(value: float):
    return pytest.approx(value, abs=0.02)


def margin(value: float):
    return pytest.approx(value, abs=0.1)


@cache
def planted(variant: str, comply_bias: float = 0.5, noise: float = 0.01, **options: int):
    return build(
        "planted-routes", variant, comply_bias=comply_bias, noise=noise, allow_weak=True, **options
    )


@cache
def pairs(variant: str, **changes: int):
    return draw_pairs(planted(variant).truth.prompts.model_copy(update=changes))


def mean_margins(organism) -> tuple[float, float]:
    harmful, control = zip(*draw_pairs(organism.truth.prompts), strict=True)
    model = organism.model
    return oracle.margins(model, harmful).mean(), oracle.margins(model, control).mean()


def alone(organism, heads, positions="last") -> list[float]:
    """Necessity of each head by itself."""
    drawn = draw_pairs(organism.truth.prompts)
    return oracle.necessities(organism.model, drawn, [[head] for head in heads], positions)


def together(organism, *sets) -> list[float]:
    """Necessity of each set of heads, swapped together."""
    return oracle.necessities(organism.model, draw_pairs(organism.truth.prompts), sets)


# O1


def test_base_margins_and_policy():
    base = planted("base")
    assert mean_margins(base) == (margin(6.93), margin(-0.64))
    assert oracle.policy_accuracy(base.model, pairs("base")) == 1.0


def test_base_margins_at_the_default_bias():
    assert mean_margins(planted("base", 0.75)) == (margin(5.53), margin(-2.56))


@pytest.mark.parametrize(
    ("comply_bias", "values"),
    [
        (0.5, (0.856, 0.846, 0.24, 0.24, 0.224, 0.058, -0.084)),
        (0.75, (0.84, 0.83, 0.24, 0.24, 0.22, 0.06, -0.07)),
    ],
)
def test_base_necessity(comply_bias, values):
    found = alone(planted("base", comply_bias), (DETECTOR, GATE, *AMPLIFIERS, DIRECT, TOPIC))
    assert found == [ratio(value) for value in values]


def test_base_sufficiency():
    heads = (GATE, DETECTOR, *AMPLIFIERS, DIRECT)
    found = oracle.sufficiencies(planted("base").model, pairs("base"), [[head] for head in heads])
    assert found == [ratio(value) for value in (1.03, 1.03, 0.41, 0.42, 0.36, 0.11)]


def test_base_zero_ablation():
    heads = (DETECTOR, GATE, *AMPLIFIERS, *STATIC, TOPIC)
    found = [oracle.zero_ablation(planted("base").model, pairs("base"), [head]) for head in heads]
    expected = (0.89, 0.82, 0.24, 0.23, 0.22, 0.12, 0.13, -0.09)
    assert found == [ratio(value) for value in expected]


def test_the_one_percent_floor_finds_the_base_circuit_and_nothing_else():
    base = planted("base")
    heads = oracle.all_heads(base.model)
    effects = zip(heads, alone(base, heads), strict=True)
    found = {head for head, effect in effects if abs(effect) > 0.01}
    assert found == set(base.truth.circuit)
    assert len(found) == 7


@pytest.mark.parametrize(
    ("longer", "left", "right", "last"),
    [(-3, 0.0, 0.846, 0.846), (0, 0.845, 0.845, 0.845), (3, 0.813, 0.846, 0.846)],
)
def test_position_maps_with_controls_of_another_length(longer, left, right, last):
    model, drawn = planted("base").model, pairs("base", control_longer=longer)
    read = [oracle.necessities(model, drawn, [[GATE]], kind) for kind in ("left", "right", "last")]
    assert read == [[ratio(left)], [ratio(right)], [ratio(last)]]


# O7'


def test_a_long_prefix_leaves_the_gate_and_blinds_the_left_aligned_swap():
    behind = planted("long_prefix")
    assert alone(behind, [GATE]) == [ratio(0.844)]
    assert alone(behind, [GATE], "right") == [ratio(0.844)]
    assert alone(behind, [GATE], "left") == [pytest.approx(0.0, abs=5e-4)]


# O2


def test_a_backup_hides_the_gate_from_single_swaps():
    twin = planted("backup", redundancy=2)
    assert mean_margins(twin) == (margin(7.04), margin(-0.38))
    assert alone(twin, (GATE, BACKUP)) == [ratio(0.019), ratio(0.001)]
    assert together(twin, (GATE, BACKUP)) == [ratio(0.854)]
    assert oracle.sufficiencies(twin.model, pairs("backup"), [[GATE], [DETECTOR]]) == [
        ratio(0.05),
        ratio(1.03),
    ]
    others = alone(twin, (DETECTOR, *AMPLIFIERS, DIRECT, TOPIC))
    assert others == [ratio(value) for value in (0.86, 0.24, 0.24, 0.22, 0.06, -0.09)]


def test_two_backups_hide_the_gate_from_pairs_too():
    triple = planted("backup", redundancy=3)
    gates = first, second, third = (2, 1), (3, 1), (4, 2)
    assert alone(triple, gates) == [ratio(0.003), ratio(0.001), ratio(-0.012)]
    two = together(triple, (first, second), (first, third), (second, third))
    assert two == [ratio(0.023), ratio(0.009), ratio(0.016)]
    assert together(triple, gates) == [ratio(0.859)]


# O3


@pytest.mark.parametrize(
    ("parts", "low", "high", "total", "band"),
    [
        (1, 0.846, 0.846, 0.85, 0.846),
        (2, 0.35, 0.36, 0.71, 0.845),
        (4, 0.14, 0.18, 0.66, 0.846),
        (8, 0.05, 0.09, 0.62, 0.856),
    ],
)
def test_a_split_gate_reads_small_alone_and_whole_together(parts, low, high, total, band):
    organism = planted("split", parts=parts)
    gates = organism.truth.with_role("gate")
    singles = alone(organism, gates)
    assert len(singles) == parts
    assert (min(singles), max(singles)) == (ratio(low), ratio(high))
    assert sum(singles) == ratio(total)
    assert together(organism, gates) == [ratio(band)]


# O4


def test_coalitions_pull_apart():
    organism = planted("coalitions")
    pro, counter = (organism.truth.with_role(role) for role in ("amplifier", "counter"))
    assert alone(organism, pro) == [ratio(0.33), ratio(0.33), ratio(0.29)]
    assert alone(organism, counter) == [ratio(-0.10), ratio(-0.09)]
    sets = together(organism, pro, counter, (*pro, *counter))
    assert sets == [ratio(1.21), ratio(-0.18), ratio(0.86)]


def test_the_shared_denominator_correlates_heads_that_have_nothing_in_common():
    organism = planted("coalitions")
    harmful = [pair[0] for pair in draw_pairs(organism.truth.prompts)]
    model = organism.model
    rms = np.sqrt((oracle.final_states(model, harmful) ** 2).mean(axis=1))
    pro, counter, static = (
        oracle.direct_writes(model, harmful, organism.truth.with_role(role))
        for role in ("amplifier", "counter", "static")
    )
    first, second = (oracle.direct_writes(model, harmful, [head]) for head in STATIC)

    def correlation(a, b):
        return np.corrcoef(a, b)[0, 1]

    # The design: over the eight words, what counters read against what amplifiers read.
    harm, harm2 = np.array(HARM_INTENSITY), 0.2 * np.array(HARM2_SIGN)
    assert correlation(harm, -(harm + 0.555 * harm2)) == ratio(-0.86)
    assert correlation(harm, harm2) == pytest.approx(0.0, abs=1e-9)
    assert correlation(pro / rms, counter / rms) == ratio(-0.71)
    assert correlation(pro, counter) == ratio(-0.80)
    assert correlation(first / rms, second / rms) == ratio(1.0)
    assert correlation(static / rms, pro / rms) == ratio(-0.98)
    # The page reads .39 once the denominator is removed. Here static writes are then constant to
    # rounding, so that correlation has nothing to read.
    assert np.ptp(static) < 1e-5 * abs(static.mean())


# O14


def test_a_rotated_basis_is_the_same_model_with_nothing_on_an_axis():
    plain, turned = planted("base"), planted("rotated")
    harmful = [pair[0] for pair in pairs("base")]
    difference = oracle.margins(plain.model, harmful) - oracle.margins(turned.model, harmful)
    assert np.abs(difference).max() < 2e-5
    circuit = sorted(plain.truth.circuit)
    assert alone(turned, circuit) == pytest.approx(alone(plain, circuit), abs=5e-5)
    gate_write = turned.model.model.layers[3].self_attn.o_proj.weight[:, 16]
    assert gate_write.norm() == pytest.approx(1.0, abs=0.1)
    assert gate_write.abs().max() < 0.5


# O10


def test_without_a_circuit_no_head_matters():
    organism = planted("no_circuit")
    effects = alone(organism, oracle.all_heads(organism.model))
    assert len(effects) == 64
    assert max(map(abs, effects)) < 0.0005
    assert oracle.policy_accuracy(organism.model, pairs("no_circuit")) == 1.0
    assert organism.truth.circuit == frozenset()


def test_without_a_circuit_the_planted_unit_decides():
    organism = build("planted-routes", "no_circuit")
    assert [(u.layer, u.unit) for u in organism.truth.units] == [(3, 0)]
    organism.model.model.layers[3].mlp.down_proj.weight[:, 0] = 0.0
    assert abs(oracle.gap(organism.model, pairs("no_circuit"))) < 0.1
