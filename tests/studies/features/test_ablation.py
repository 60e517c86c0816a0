"""Trials on a planted hydra against plain hooked forwards, and the minimal sets that they lead to."""

from __future__ import annotations

import numpy as np
import pytest

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.studies.features import minimal_sets
from refusalscope.studies.features.ablation import LatentTrial
from studies.features.hydra_chat import MARGIN, hydra

CANDIDATES = "P1 P2 P3 B1 B2 W"
SETS = [
    frozenset(each) for each in ((), (0,), (0, 1, 2), (3, 4), (0, 1, 2, 3), (0, 1, 2, 3, 4), (0, 5))
]


def trial(variant="base", n=6, **settings):
    found = hydra(variant)
    candidates = [*found.written(CANDIDATES), (5, 11), (6, 12), (3, 13)]
    slices = {
        layer: found.dictionaries[layer].slice([i for k, i in candidates if k == layer])
        for layer, _ in candidates
    }
    return LatentTrial(found.chat, found.prompts[:n], candidates, slices, MARGIN, **settings)


def slow(made, variant, members):
    """Margin of each prompt with latents zeroed at every layer, by plain hooks."""
    found = hydra(variant)
    latents = [made.candidates[i][1] for i in members]
    rows = found.harmful[: len(made.prompts)]
    return oracle.ablate(found.organism.model, found.organism.dictionary, rows, latents).margin


def test_margins_are_those_of_the_hooked_model():
    made = trial(positions="all")
    found = made.margins(SETS)
    for column, members in zip(found.T, SETS, strict=True):
        np.testing.assert_allclose(column, slow(made, "base", members), atol=1e-4)


def test_all_sets_and_prompts_run_in_one_call_on_the_chats_account(monkeypatch):
    made, calls = trial(), []
    measure = ChatModel.measure

    def counted(self, prompts, variants, metrics):
        calls.append((len(prompts), len(variants)))
        return measure(self, prompts, variants, metrics)

    monkeypatch.setattr(ChatModel, "measure", counted)
    before = made.chat.cost.forwards
    outcomes = made.flips(SETS)
    assert calls == [(6, len(SETS))]
    assert 0 < made.chat.cost.forwards - before < len(SETS) * 6
    assert [each.flipped for each in outcomes] == [False] * 4 + [True] * 2 + [False]
    means = [float(column.mean()) for column in made.margins(SETS).T]
    assert [each.score for each in outcomes] == pytest.approx(means, abs=1e-6)


def test_a_share_of_the_prompts_is_enough_where_one_is_given():
    both = [frozenset({0, 1})]
    margins = trial("partial", n=24).margins(both)[:, 0]
    share = float((margins < 0).mean())
    assert 0 < share < 1
    assert trial("partial", n=24, share=share).flips(both)[0].flipped
    assert not trial("partial", n=24, share=share + 0.03).flips(both)[0].flipped
    assert not trial("partial", n=24).flips(both)[0].flipped


def test_the_first_token_is_left_out_unless_asked_for():
    assert {edit.positions for edit in trial().variant({0, 3})} == {"no_bos"}
    assert {edit.positions for edit in trial(positions="all").variant({0, 3})} == {"all"}


def test_the_planted_minimal_sets_are_found_and_each_flips_in_the_hooked_model():
    made = trial()
    order = [6, 0, 1, 2, 7, 5, 3, 4, 8]
    search = minimal_sets(made, order, max_forwards=2000, n_sets=99)
    assert search.complete
    named = hydra("base").names
    got = {"".join(sorted(named(made.candidates[i] for i in s.members))) for s in search.sets}
    assert got == {"B1B2P1P2", "B1B2P1P3", "B1B2P2P3", "B1P1P2P3", "B2P1P2P3"}
    for found in search.sets:
        assert found.minimal
        assert (slow(made, "base", found.members) < 0).all()
        for member in found.members:
            assert not (slow(made, "base", set(found.members) - {member}) < 0).all()


def test_what_a_trial_cannot_use_is_said():
    found = hydra("base")
    slices = {2: found.dictionaries[2].slice([0, 1])}

    def made(prompts=found.prompts[:1], candidates=((2, 0),), **settings):
        return LatentTrial(found.chat, prompts, candidates, slices, MARGIN, **settings)

    for wrong, text in (
        ({"prompts": []}, "at least one prompt"),
        ({"candidates": []}, "at least one candidate"),
        ({"candidates": [(2, 0), (2, 0)]}, "none twice"),
        ({"candidates": [(3, 0)]}, "no slice of that layer"),
        ({"candidates": [(2, 5)]}, "not in this slice"),
        ({"share": 0.0}, "above 0 and at most 1"),
    ):
        with pytest.raises(InputError, match=text):
            made(**wrong)
