"""Roles of heads: every rule at the numbers that make it so, and at those that just do not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from refusalscope.studies.routing.roles import RULES, Evidence, roles

HEAD, FIRST, SECOND, DEEPER, BEFORE = (3, 1), (5, 0), (5, 3), (6, 2), (1, 2)


def known(effect=0.5, **changes):
    """A head that is found by itself and writes nothing, but for the changes."""
    values = {
        "alone": True,
        "conditional": None,
        "after": False,
        "direct": 0.0,
        "frozen": None,
        "harmful": 0.0,
        "control": 0.0,
    }
    return Evidence(effect, **{**values, **changes})


def unfound(harmful, control, effect=0.002):
    return known(effect, alone=False, harmful=harmful, control=control)


def cast(evidence, drives=(), driven_by=(), others=()):
    """The row of one head among peers, with edges to those it drives and from those that drive it."""
    table = {head: known() for head in (BEFORE, FIRST, SECOND, DEEPER)}
    edges = {(HEAD, head) for head in drives} | {(head, HEAD) for head in driven_by} | set(others)
    frame = roles({HEAD: evidence, **table}, edges).set_index(["layer", "head"])
    return frame.loc[HEAD]


ALONE: list[tuple[str, Evidence, str]] = [
    ("writes 3 % in both conditions", unfound(0.03, 0.03), "static"),
    ("writes 3 % against refusal", unfound(-0.03, -0.03), "static"),
    ("writes a little less than 3 %", unfound(0.0299, 0.0299), ""),
    ("3 % is the mean of both sides", unfound(0.0315, 0.0286), "static"),
    ("differs by a tenth at most", unfound(0.104, 0.096), "static"),
    ("differs by more than a tenth", unfound(0.106, 0.094), ""),
    ("turns round", unfound(0.05, -0.05), ""),
    ("writes nothing", unfound(0.0, 0.0), ""),
    ("found, so not static", known(0.02, harmful=0.3, control=0.3), "mixed"),
    (
        "silent alone, behind another",
        known(0.001, alone=False, conditional=0.9, after=True),
        "backup",
    ),
    (
        "behind another, a writer",
        known(0, alone=False, conditional=0.9, after=True, direct=0.9),
        "backup",
    ),
    ("behind another, but found alone", known(0.2, conditional=0.9, after=True), "mixed"),
    ("gone once frozen", known(-0.072, direct=-0.003, frozen=0.026), "norm-only"),
    ("gone once frozen, unread", known(-0.072, direct=-0.003), "mixed"),
    ("just under half is left", known(0.1, frozen=0.0499), "norm-only"),
    ("half is left", known(0.1, frozen=0.05), "mixed"),
    ("gone once frozen, a writer", known(0.1, direct=0.06, frozen=0.01), "direct"),
    ("gone once frozen, some writing", known(0.1, direct=0.03, frozen=0.01), "norm-only"),
    ("writes against refusal", known(-0.1, direct=-0.09), "suppressor"),
    ("writes against what it carries", known(0.1, direct=-0.06), "suppressor"),
    ("writes less than half against it", known(-0.1, direct=-0.04), "mixed"),
    ("more than half is its own write", known(0.1, direct=0.051), "direct"),
    ("half is its own write", known(0.1, direct=0.05), "mixed"),
    ("writes more than it carries", known(0.23, direct=0.29), "direct"),
    ("writes for, carries against", known(-0.1, direct=0.09), "mixed"),
    ("writes nothing, drives nothing", known(0.5), "mixed"),
]


@pytest.mark.parametrize(
    ("evidence", "role"), [(e, r) for _, e, r in ALONE], ids=[n for n, *_ in ALONE]
)
def test_the_role_of_a_head_without_edges(evidence, role):
    assert cast(evidence)["role"] == role


QUIET, LOUD = known(0.5, direct=0.049), known(0.5, direct=0.05)
AMPLIFIES = known(0.5, direct=0.3)
LEADS = [(FIRST, DEEPER)]
WITH_EDGES: list[tuple[str, Evidence, dict, str]] = [
    ("a driven writer", AMPLIFIES, {"driven_by": [BEFORE]}, "amplifier"),
    ("a writer that drives", AMPLIFIES, {"drives": [FIRST, SECOND]}, "direct"),
    ("drives a head that drives", QUIET, {"drives": [FIRST], "others": LEADS}, "detector"),
    (
        "drives two, one of them drives",
        QUIET,
        {"drives": [FIRST, SECOND], "others": LEADS},
        "detector",
    ),
    (
        "driven, drives two, one of them drives",
        QUIET,
        {"drives": [FIRST, SECOND], "driven_by": [BEFORE], "others": LEADS},
        "gate",
    ),
    ("drives two, nothing before it", QUIET, {"drives": [FIRST, SECOND]}, "gate"),
    ("drives two, driven", QUIET, {"drives": [FIRST, SECOND], "driven_by": [BEFORE]}, "gate"),
    ("drives one, driven", QUIET, {"drives": [FIRST], "driven_by": [BEFORE]}, "chain"),
    (
        "drives one that leads, driven",
        QUIET,
        {"drives": [FIRST], "driven_by": [BEFORE], "others": LEADS},
        "chain",
    ),
    ("drives one, nothing before it", QUIET, {"drives": [FIRST]}, "mixed"),
    ("driven, drives nothing", QUIET, {"driven_by": [BEFORE]}, "mixed"),
    ("a tenth is its own write", LOUD, {"drives": [FIRST, SECOND], "driven_by": [BEFORE]}, "mixed"),
    ("a tenth against, drives two", known(0.5, direct=-0.049), {"drives": [FIRST, SECOND]}, "gate"),
    (
        "kept when frozen, drives two",
        known(0.5, frozen=0.48),
        {"drives": [FIRST, SECOND], "driven_by": [BEFORE]},
        "gate",
    ),
    (
        "gone when frozen, drives two",
        known(0.5, frozen=0.1),
        {"drives": [FIRST, SECOND]},
        "norm-only",
    ),
    (
        "a backup that drives",
        known(0.001, alone=False, conditional=0.9, after=True),
        {"drives": [FIRST, SECOND]},
        "backup",
    ),
]


@pytest.mark.parametrize(
    ("evidence", "edges", "role"),
    [row[1:] for row in WITH_EDGES],
    ids=[row[0] for row in WITH_EDGES],
)
def test_the_role_of_a_head_with_edges(evidence, edges, role):
    row = cast(evidence, **edges)
    assert row["role"] == role
    assert row["drives"] == len(edges.get("drives", ()))
    assert row["driven_by"] == len(edges.get("driven_by", ()))


def test_every_role_has_a_rule_and_every_rule_a_case_above():
    reached = {role for *_, role in (*ALONE, *WITH_EDGES)} - {""}
    assert reached == set(RULES)


def test_the_effect_with_others_held_counts_where_it_is_the_larger():
    hidden = known(0.06, direct=0.05, conditional=0.9)
    assert (hidden.total, known(0.06, direct=0.05).total) == (0.9, 0.06)
    edges = {"drives": [FIRST, SECOND], "driven_by": [BEFORE]}
    assert cast(hidden, **edges)["role"] == "gate"
    assert cast(known(0.06, direct=0.05), **edges)["role"] == "amplifier"
    assert known(-0.9, conditional=0.5).total == -0.9
    assert known(0.8, alone=False, conditional=0.5).total == 0.5
    assert not known(0.8, alone=False).found
    assert known(0.0, alone=False, conditional=0.5).found


def test_a_head_that_works_only_with_others_held_is_a_gate_when_nothing_stands_before_it():
    first = known(0.02, alone=False, conditional=0.9, frozen=0.03)
    assert cast(first, drives=[FIRST, SECOND], driven_by=[BEFORE])["role"] == "gate"


@pytest.mark.parametrize("alone", [False, True])
def test_a_head_hidden_by_its_backup_is_not_norm_only_for_the_noise_of_its_single_swap(alone):
    first = known(0.02, alone=alone, conditional=0.9, frozen=0.004)
    assert cast(first, drives=[FIRST, SECOND], driven_by=[BEFORE])["role"] == "gate"


def test_a_backup_whose_single_swap_just_passes_the_floor_is_a_backup():
    last = known(-0.012, conditional=0.947, after=True, frozen=-0.016)
    assert cast(last, driven_by=[BEFORE])["role"] == "backup"


def test_an_effect_that_turns_round_once_frozen_is_norm_only():
    assert cast(known(-0.072, direct=-0.003, frozen=0.05))["role"] == "norm-only"


def test_the_whole_planted_circuit_gets_its_roles_at_its_measured_figures():
    """The figures of organism O1 (planted_models, section 2) as the study measures them."""
    evidence = {
        (1, 2): known(0.841, direct=0.004, frozen=0.813),
        (2, 6): unfound(0.12, 0.13),
        (3, 1): known(0.830, direct=0.003, frozen=0.804),
        (4, 7): known(-0.072, direct=-0.003, frozen=0.026),
        (5, 0): known(0.236, direct=0.288, frozen=0.290),
        (5, 3): known(0.243, direct=0.293, frozen=0.295),
        (6, 2): known(0.223, direct=0.256, frozen=0.256),
        (7, 0): known(0.058, direct=0.072, frozen=0.072),
        (0, 0): unfound(0.0001, 0.0002),
    }
    edges = {((1, 2), (3, 1)), *(((3, 1), head) for head in ((5, 0), (5, 3), (6, 2)))}
    table = roles(evidence, edges)
    assert list(zip(table["layer"], table["head"], strict=True)) == list(evidence)
    assert dict(zip(evidence, table["role"], strict=True)) == {
        (1, 2): "detector",
        (2, 6): "static",
        (3, 1): "gate",
        (4, 7): "norm-only",
        (5, 0): "amplifier",
        (5, 3): "amplifier",
        (6, 2): "amplifier",
        (7, 0): "direct",
        (0, 0): "",
    }
    assert table["drives"].tolist() == [1, 0, 3, 0, 0, 0, 0, 0, 0]
    assert table["driven_by"].tolist() == [0, 0, 1, 0, 1, 1, 1, 0, 0]


def test_a_chain_is_a_gate_less_line_of_heads():
    """Organism O5: detector, gate and link each drive one head, the last one writes."""
    line = [(1, 2), (3, 1), (4, 1), (5, 1)]
    evidence = {head: known(0.9, direct=0.003) for head in line[:3]}
    evidence[line[3]] = known(0.97, direct=0.97)
    table = roles(evidence, set(pairwise(line)))
    assert table["role"].tolist() == ["detector", "chain", "chain", "amplifier"]


@pytest.mark.parametrize(
    ("evidence", "edges", "why"),
    [
        (known(0.8, direct=0.0), {}, "effect +0.800, own write +0.000, drives 0, driven by 0"),
        (
            known(-0.0716, direct=-0.0026, frozen=0.0263),
            {},
            "effect -0.072, own write -0.003, norms frozen +0.026, drives 0, driven by 0",
        ),
        (
            known(0.001, alone=False, conditional=0.945, after=True, frozen=0.002),
            {"driven_by": [BEFORE]},
            "effect +0.001, with others held +0.945, own write +0.000, norms frozen +0.002, "
            "drives 0, driven by 1",
        ),
        (unfound(0.12, 0.125), {}, "writes +0.120 on harmful prompts and +0.125 on controls"),
        (unfound(0.001, 0.0), {}, ""),
    ],
)
def test_why_says_the_numbers(evidence, edges, why):
    assert cast(evidence, **edges)["why"] == why


def test_no_head_gives_an_empty_table_with_its_columns():
    assert list(roles({}, set()).columns) == ["layer", "head", "role", "why", "drives", "driven_by"]
    assert len(roles({}, set())) == 0
