"""Organisms with words of unequal intensity: dose and families (page, section 5, O6 and O8)."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from organisms import oracle
from refusalscope.errors import ModelError
from refusalscope.organisms.planted import build, tokens
from refusalscope.organisms.planted.construction import C
from refusalscope.organisms.planted.prompts import draw_pairs

DOSES = [round(0.02 * step, 2) for step in range(90)]


@cache
def planted(variant: str, comply_bias: float = 0.75, **options: int):
    return build("planted-routes", variant, comply_bias=comply_bias, allow_weak=True, **options)


def rows_by_word(organism, count: int = 64) -> dict[str, list[list[int]]]:
    rows = defaultdict(list)
    recipe = organism.truth.prompts.model_copy(update={"count": count})
    for harmful, _ in draw_pairs(recipe):
        rows[tokens.WORDS[harmful[3]]].append(harmful)
    return rows


# O6


@pytest.mark.parametrize(
    ("threshold", "table"),
    [
        (30, (0.08, 0.28, 0.46, 0.60, 0.80, 0.98, 1.16, 1.32)),
        (60, (None, None, 0.16, 0.32, 0.52, 0.68, 0.88, 1.04)),
    ],
)
def test_the_half_dose_is_linear_in_the_intensity_of_the_word(threshold, table):
    organism = planted("dose", 0.5, threshold=threshold)
    rows = rows_by_word(organism)
    found = [
        oracle.half_dose(organism.model, rows[word.word], C.DET, DOSES)
        for word in organism.truth.words
    ]
    assert [value is None for value in found] == [value is None for value in table]
    assert [word.refused for word in organism.truth.words] == [v is not None for v in table]
    kept = [i for i, value in enumerate(table) if value is not None]
    # A step of the dose either way.
    assert [found[i] for i in kept] == pytest.approx([table[i] for i in kept], abs=0.0201)
    strengths = [organism.truth.words[i].intensity for i in kept]
    slope, offset = np.polyfit(strengths, [found[i] for i in kept], 1)
    assert slope == pytest.approx(0.83, abs=0.02)
    assert slope * np.array(strengths) + offset == pytest.approx([found[i] for i in kept], abs=0.03)


def test_a_dose_organism_uses_every_word_equally_often():
    organism = planted("dose", threshold=30)
    assert [pair.category for pair in organism.pairs] == [f"harm{i}" for i in range(8)] * 3
    assert [word.intensity for word in organism.truth.words] == pytest.approx(
        np.linspace(0.5, 2, 8)
    )


def test_the_gate_saturates_above_its_width():
    organism = planted("dose", threshold=30)
    rows = rows_by_word(organism)
    routed = [
        oracle.final_states(organism.model, rows[word.word])[:, C.ROUTE].mean()
        for word in organism.truth.words
    ]
    assert routed[0] < 0.8 * routed[1]
    assert np.ptp(routed[2:]) < 0.15 * routed[2]


def test_the_gates_of_graded_organisms_are_units():
    for variant, options in (("dose", {"threshold": 60}), ("families", {})):
        truth = planted(variant, **options).truth
        assert [(u.layer, u.unit, u.role) for u in truth.units] == [(3, 0, "gate"), (3, 1, "gate")]
        assert truth.with_role("gate") == ()
        assert truth.circuit == {(1, 2), (5, 0), (5, 3), (6, 2)}


# O8


def test_two_families_have_a_threshold_each():
    organism = planted("families")
    words = {(w.family, round(w.intensity, 1)): w for w in organism.truth.words}
    assert sorted(words) == [
        *(("A", value) for value in (0.4, 0.9, 1.0, 1.1)),
        *(("B", value) for value in (0.5, 0.6, 0.7, 0.8)),
    ]
    thresholds = {word.family: word.threshold for word in organism.truth.words}
    assert thresholds == {"A": 0.8, "B": 0.5}
    refused = {key for key, word in words.items() if word.refused}
    assert refused == {("A", 1.0), ("A", 1.1), ("B", 0.7), ("B", 0.8)}


def test_the_words_beside_a_threshold_fall_on_either_side():
    organism = planted("families")
    rows = rows_by_word(organism)
    margins = {
        (word.family, round(word.intensity, 1)): oracle.margins(
            organism.model, rows[word.word]
        ).mean()
        for word in organism.truth.words
    }
    # On the slope .01 of DET moves the margin by 1: what noise does at the tail, another stream
    # does otherwise. So .1 holds off the slope alone; on it, the side and half the distance.
    assert margins["A", 0.9] == pytest.approx(-3.08, abs=0.1)
    assert margins["A", 1.0] == pytest.approx(1.77, abs=0.9)
    assert margins["B", 0.6] == pytest.approx(-1.45, abs=0.7)
    assert margins["B", 0.7] == pytest.approx(5.44, abs=0.9)


# What the build says of words


@pytest.mark.parametrize("seed", [0, 6])
def test_refused_words_are_the_strong_ones_and_the_model_agrees(seed):
    organism = build("planted-routes", "families", seed=seed)
    rows = rows_by_word(organism)
    for family in "AB":
        members = [word for word in organism.truth.words if word.family == family]
        assert [word.refused for word in members] == sorted(word.refused for word in members)
        for word in members:
            share = (oracle.margins(organism.model, rows[word.word]) > 0).mean()
            assert word.refused == (share > 0.5)
    assert organism.truth.policy_accuracy >= 0.95


def test_what_is_said_of_words_does_not_depend_on_the_number_of_pairs():
    words = [build("planted-routes", "dose", pairs=n, threshold=60).truth.words for n in (1, 30)]
    assert words[0] == words[1]


def test_a_model_that_refuses_no_word_has_no_policy():
    with pytest.raises(ModelError, match="only 0%"):
        build("planted-routes", "dose", comply_bias=5.0)
