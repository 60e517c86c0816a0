"""The screens of the study, how they are kept, and the span map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refusalscope.errors import InputError
from refusalscope.model import KL, Rendered
from refusalscope.progress import Silent
from refusalscope.runs import Run
from refusalscope.studies.heads import WHOLE
from refusalscope.studies.routing import Pair, all_heads, position_map, preset, screen
from refusalscope.studies.routing.interchange import Screen
from refusalscope.studies.routing.problem import Problem, pose
from refusalscope.studies.routing.screens import (
    Screens,
    from_arrays,
    same_places,
    screen_all,
    strongest_layers,
    to_arrays,
    together,
)
from studies.routing.test_interchange import row
from studies.routing.test_problem import MARGIN, planted

DETECTOR, GATE, AMPLIFIER, TOPIC = (1, 2), (3, 1), (5, 0), (4, 7)
SPAN = "span:instruction_last..prompt_last"
TRACK = Silent().track


def posed(variant="base", n=12, **settings):
    subject, pairs = planted(variant, n)
    chosen = preset("recommended", **settings)
    return pose(subject, pairs, MARGIN, chosen), chosen


def problem_of(*pairs):
    return Problem(None, MARGIN, None, tuple(pairs), None)


def drawn(units, metrics=("margin",), n=5, donors=2, seed=0):
    rng = np.random.default_rng(seed)
    clean = [{m: rng.standard_normal(n) for m in metrics} for _ in range(2)]
    tables = [{m: rng.standard_normal((n, donors, len(units))) for m in metrics} for _ in range(2)]
    return Screen(tuple(units), *clean, *tables)


def equal(first, second):
    assert first.units == second.units
    for side in ("harmful", "control", "necessity", "sufficiency"):
        one, other = getattr(first, side), getattr(second, side)
        assert set(one) == set(other)
        for metric in one:
            np.testing.assert_array_equal(one[metric], other[metric])


# How they are kept


def test_screens_come_back_from_a_run_as_they_were(tmp_path):
    by_map = {
        SPAN: drawn(
            [((0, 0),), ((0, 1), (2, 3), (1, WHOLE)), ((2, WHOLE),)], ("margin", "kl", "probe")
        ),
        "last": drawn([((0, 0),), ((0, 1),)], seed=1, donors=1),
        "right": drawn([((2, 3),)], seed=2, donors=1),
    }
    run = Run.create(tmp_path / "run", command="routing", settings={}, inputs={})
    run.write_array("routing.screens", to_arrays(Screens(SPAN, by_map)))
    found = from_arrays(run.array("routing.screens"), SPAN)
    assert found.main == SPAN
    assert list(found.by_map) == list(by_map)
    for name, one in by_map.items():
        equal(found.by_map[name], one)
    equal(found.first, by_map[SPAN])


@pytest.mark.parametrize("main", ["last", "right", "suffix"])
def test_the_main_map_comes_first_whatever_its_name(main):
    by_map = {
        name: drawn([((0, 0),)], seed=i) for i, name in enumerate(("right", "suffix", "last"))
    }
    found = from_arrays(to_arrays(Screens(main, by_map)), main)
    assert next(iter(found.by_map)) == main
    equal(found.first, by_map[main])


# Which maps are run


def test_a_map_of_the_same_places_is_the_same():
    same_tail = Pair(row([1, 2, 3, 9], "h"), row([1, 4, 3, 9], "c"))
    other_tail = Pair(row([1, 2, 3, 9], "h"), row([1, 2, 3, 8], "c"))
    longer = Pair(row([1, 2, 3, 9], "h"), row([5, 2, 3, 9], "c"))
    suffix = preset("recommended")
    assert not same_places(problem_of(same_tail), suffix, "last")
    assert same_places(problem_of(other_tail), suffix, "last")
    # One pair that differs is enough.
    assert not same_places(problem_of(other_tail, same_tail), suffix, "last")
    assert not same_places(problem_of(same_tail), suffix, "right")
    everything = preset("recommended", positions="suffix+9")
    assert same_places(problem_of(same_tail, longer), everything, "right")
    assert same_places(problem_of(other_tail), preset("recommended", positions="last"), "last")


def test_a_map_is_run_once_and_with_what_it_needs(monkeypatch):
    problem, settings = posed(n=8, donors=2, all_position_layers=3)
    units = [(head,) for head in (DETECTOR, GATE, AMPLIFIER, TOPIC, (6, 2))]
    metrics = {"margin": MARGIN, "kl": KL()}
    found = screen_all(problem, units, metrics, settings, TRACK)
    assert list(found.by_map) == ["suffix", "last", "right"]
    equal(
        found.first, screen(problem.chat, problem.pairs, metrics, units=units, positions="suffix")
    )
    assert found.first.necessity["margin"].shape == (8, 2, 5)
    last = screen(problem.chat, problem.partners, {"margin": MARGIN}, units=units)
    equal(found.by_map["last"], last)
    best = strongest_layers(problem, units, 3)
    assert {unit[0][0] for unit in found.by_map["right"].units} == best
    shown = [unit for unit in units if unit[0][0] in best]
    every = screen(
        problem.chat, problem.partners, {"margin": MARGIN}, units=shown, positions="right"
    )
    equal(found.by_map["right"], every)


@pytest.mark.parametrize(
    ("changes", "maps"),
    [
        ({"positions": "last"}, ["last", "right"]),
        ({"positions": "right"}, ["right", "last"]),
        ({"all_position_layers": 0}, ["suffix", "last"]),
        ({"positions": SPAN}, [SPAN, "last", "right"]),
    ],
)
def test_the_maps_asked_for_are_run(changes, maps):
    problem, settings = posed(n=8, donors=1, metrics=(), **changes)
    found = screen_all(problem, [(GATE,)], {"margin": MARGIN}, settings, TRACK)
    assert list(found.by_map) == maps


def test_a_tail_that_differs_makes_last_and_suffix_one():
    problem, settings = posed("no_circuit", n=8, donors=1)
    found = screen_all(problem, [(GATE,)], {"margin": MARGIN}, settings, TRACK)
    assert list(found.by_map) == ["suffix", "right"]


def test_the_strongest_layers_are_those_with_planted_heads():
    problem, _ = posed()
    units = all_heads(8, 8)
    # Detector, gate, amplifiers of layer 5: each carries more of the gap than any other layer.
    assert strongest_layers(problem, units, 3) == {1, 3, 5}
    assert strongest_layers(problem, units, 4) == {1, 3, 5, 6}
    assert strongest_layers(problem, units, 5) == {1, 3, 5, 6, 4}
    assert strongest_layers(problem, units, 8) == set(range(8))
    assert strongest_layers(problem, units, 99) == set(range(8))
    moved, _ = posed("relocated")
    assert strongest_layers(moved, units, 3) == {1, 2, 5}


def test_stacked_screens_are_the_maps_one_after_the_other_with_donors_averaged():
    metrics = ("margin", "kl")
    by_map = {
        "suffix": drawn([((0, 0),), ((0, 1),)], metrics, donors=3),
        "right": drawn([((0, 1),)], donors=1, seed=1),
    }
    found = together(Screens("suffix", by_map), "margin")
    assert found.units == (((0, 0),), ((0, 1),), ((0, 1),))
    for side in ("necessity", "sufficiency"):
        table = getattr(found, side)["margin"]
        assert table.shape == (5, 1, 3)
        for k in range(2):
            want = getattr(by_map["suffix"], side)["margin"][:, :, k].mean(axis=1)
            np.testing.assert_allclose(table[:, 0, k], want)
        np.testing.assert_array_equal(
            table[:, 0, 2], getattr(by_map["right"], side)["margin"][:, 0, 0]
        )
    assert found.gap("margin") == by_map["suffix"].gap("margin")


# The span map


def anchored(ids, first, last, name="x"):
    n = len(ids)
    anchors = {"bos": 0, "instruction_last": first, "prompt_last": last}
    return Rendered(name, "", tuple(ids), n, (1, first), anchors)


def test_a_span_runs_from_its_first_to_its_last_token_inclusive():
    one, other = anchored([1, 5, 6, 7, 8], 2, 4), anchored([1, 4, 6, 7, 8], 2, 4)
    assert position_map(one, other, SPAN) == ((2, 2), (3, 3), (4, 4))
    assert position_map(one, other, "span:prompt_last..prompt_last") == ((4, 4),)
    assert position_map(one, other, "span:bos..instruction_last") == ((0, 0), (1, 1), (2, 2))
    assert position_map(one, other, "span:template[0]..template[-1]") == ((3, 3), (4, 4))


def test_spans_of_unequal_length_are_matched_from_their_ends():
    longer, shorter = anchored([1, 5, 6, 7, 8, 9], 1, 5), anchored([1, 5, 8, 9], 1, 3)
    assert position_map(longer, shorter, SPAN) == ((3, 1), (4, 2), (5, 3))
    assert position_map(shorter, longer, SPAN) == ((1, 3), (2, 4), (3, 5))
    # A span that ends before the prompt does is matched from its own end.
    assert position_map(longer, shorter, "span:bos..instruction_last") == ((0, 0), (1, 1))
    inside = "span:instruction_last..template[0]"
    assert position_map(longer, shorter, inside) == ((1, 1), (2, 2))


def test_a_reply_after_the_prompt_is_no_part_of_a_span():
    one, other = anchored([1, 5, 6, 7], 2, 3), anchored([1, 4, 6, 7], 2, 3)
    assert position_map(one.with_reply([8, 9]), other.with_reply([8]), SPAN) == ((2, 2), (3, 3))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "middle",
        "Last",
        "span",
        "span:",
        "span:bos",
        "span:bos..",
        "span:..prompt_last",
        "span:..",
        "bos..prompt_last",
        "spam:bos..prompt_last",
        "span:bos.prompt_last",
    ],
)
def test_a_name_that_is_no_map_is_refused(name):
    one = anchored([1, 5, 6, 7], 2, 3)
    with pytest.raises(
        InputError, match=r"no position map .*such as span:instruction_last"
    ) as told:
        position_map(one, one, name)
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="no position map"):
        preset("recommended", positions=name)


def test_a_span_between_anchors_that_a_prompt_lacks_is_refused():
    one = anchored([1, 5, 6, 7], 2, 3, "pair-1/harmful")
    with pytest.raises(InputError, match="prompt 'pair-1/harmful' has no anchor 'think_close'"):
        position_map(one, one, "span:think_close..prompt_last")


def test_a_span_that_ends_before_it_starts_is_refused_by_name_of_the_prompt():
    fine, bad = anchored([1, 5, 6, 7], 2, 3, "fine"), anchored([1, 5, 6, 7], 3, 2, "bad")
    for pair in ((fine, bad), (bad, fine)):
        with pytest.raises(InputError, match="'bad' the anchor 'prompt_last' comes before"):
            position_map(*pair, SPAN)


@pytest.mark.parametrize("positions", [SPAN, "last", "suffix", "right"])
def test_a_prefix_moves_nothing(positions):
    """Filler before either member: the places move along with it, and the gate's necessity stays."""
    problem, _ = posed(n=8)
    gate = [(GATE,), (AMPLIFIER,)]
    filler = problem.pairs[0].control.ids[1:2] * 20

    def behind(prompt):
        ids = (prompt.ids[0], *filler, *prompt.ids[1:])
        moved = {name: at + 20 if at else 0 for name, at in prompt.anchors.items()}
        instruction = (prompt.instruction[0], prompt.instruction[1] + 20)
        return replace(
            prompt, ids=ids, n_prompt=prompt.n_prompt + 20, instruction=instruction, anchors=moved
        )

    plain = list(problem.partners)
    versions = {
        "harmful": [Pair(behind(p.harmful), p.control) for p in plain],
        "control": [Pair(p.harmful, behind(p.control)) for p in plain],
    }

    def share(pairs):
        found = screen(problem.chat, pairs, {"m": MARGIN}, units=gate, positions=positions)
        return found.necessity["m"].mean(axis=(0, 1)) / found.gap("m")

    want = share(plain)
    assert want[0] > 0.7
    for side, pairs in versions.items():
        shift = (20, 0) if side == "harmful" else (0, 20)
        for moved, pair in zip(pairs, plain, strict=True):
            before = position_map(pair.harmful, pair.control, positions)
            after = position_map(moved.harmful, moved.control, positions)
            shifted = tuple((a + shift[0], b + shift[1]) for a, b in before)
            assert after == shifted
        np.testing.assert_allclose(share(pairs), want, atol=0.05)


def test_the_span_map_finds_what_the_last_token_finds_in_a_planted_model():
    problem, _ = posed(n=8)
    units = [(head,) for head in (DETECTOR, GATE, AMPLIFIER)]
    shares = {}
    for positions in (SPAN, "last"):
        found = screen(
            problem.chat, problem.partners, {"m": MARGIN}, units=units, positions=positions
        )
        shares[positions] = found.necessity["m"].mean(axis=(0, 1)) / found.gap("m")
    np.testing.assert_allclose(shares[SPAN], shares["last"], atol=0.01)
    early = screen(
        problem.chat, problem.partners, {"m": MARGIN}, units=units, positions="span:bos..bos"
    )
    assert np.abs(early.necessity["m"]).max() < 1e-5
