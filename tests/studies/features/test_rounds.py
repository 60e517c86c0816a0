"""Rounds of conditional attribution find reserves behind reserves, and feed the search for minimal sets."""

from __future__ import annotations

import pytest

from dictionary import synthetic
from model import tiny
from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.prompts import Prompt
from refusalscope.studies.features import minimal_sets
from refusalscope.studies.features.ablation import LatentTrial
from refusalscope.studies.features.attribution import latent_effects
from refusalscope.studies.features.rounds import conditional_rounds, make_repair
from studies.features.hydra_chat import LAYERS, MARGIN, hydra

WAVES = {
    "base": ["P1 P2 P3", "B1 B2"],
    "chain": ["P1 P2 P3", "B1 B2", "C"],
    "control": ["P1 P2 P3"],
}
POOL = "P1 P2 P3 B1 B2 C W"


def pool_of(made, names=POOL):
    """These latents and a few distractors, at every layer."""
    return [(layer, i) for layer in LAYERS for i in (*made.latents(names), 11, 12, 13)]


def ran(variant, n=4, names=POOL, **settings):
    made = hydra(variant)
    return made, conditional_rounds(
        made.chat,
        made.prompts[:n],
        MARGIN,
        made.dictionaries,
        candidates=pool_of(made, names),
        **settings,
    )


@pytest.mark.parametrize("variant", list(WAVES))
def test_each_round_finds_the_next_reserve_and_the_last_flips(variant):
    made, found = ran(variant)
    waves = [sorted(set(made.names(each.added))) for each in found.rounds]
    assert waves == [sorted(names.split()) for names in WAVES[variant]] + [[]]
    assert found.flipped
    assert [each.flipped for each in found.rounds] == [0.0] * len(WAVES[variant]) + [1.0]
    latents = {latent for _, latent in found.members}
    rows = made.harmful[:4]
    slow = oracle.ablate(made.organism.model, made.organism.dictionary, rows, latents)
    assert found.rounds[-1].margin == pytest.approx(slow.margin.mean(), abs=1e-4)


def test_the_ledger_says_what_woke_and_at_what_margin():
    _, found = ran("chain")
    table = found.frame()
    assert list(table.columns) == [
        *("round", "layer", "latent", "effect", "woken", "margin", "flipped")
    ]
    assert len(table) == len(found.members)
    assert (table.loc[table["round"] == 0, "woken"] == 0).all()
    assert (table.loc[table["round"] > 0, "woken"] == 1).all()
    assert table.groupby("round")["margin"].first().tolist() == pytest.approx(
        [1.58, 1.51, 1.44], abs=0.05
    )
    assert all(
        part["effect"].is_monotonic_decreasing and part["effect"].min() > 0.02 * 1.58
        for _, part in table.groupby("round")
    )


def test_rounds_end_where_nothing_more_speaks_for_refusal():
    made, found = ran("base", names="P1 P2 P3 W")
    assert not found.flipped
    assert set(made.names(found.members)) == {"P1", "P2", "P3"}
    assert len(found.rounds) == 2
    _, short = ran("chain", max_rounds=1)
    assert not short.flipped
    assert len(short.rounds) == 2
    made, nothing = ran("base", share=0.5, held=[(k, i) for k in (2, 4) for i in range(5)])
    assert nothing.flipped
    assert nothing.members == tuple((k, i) for k in (2, 4) for i in range(5))
    assert len(nothing.rounds) == 1


def test_a_held_set_is_where_the_rounds_begin():
    made = hydra("base")
    held = made.written("P1 P2 P3")
    _, found = ran("base", held=held)
    assert found.members[:3] == tuple(held)
    assert set(made.names(found.members[3:])) == {"B1", "B2"}
    assert all(share == 1 for share in found.rounds[0].woken)


def test_a_round_costs_one_forward_and_one_backward_a_prompt():
    made = hydra("chain")
    before = made.chat.cost.forwards
    ran("chain", n=2)
    assert made.chat.cost.forwards - before == 2 * 4


def test_the_search_is_handed_the_reserves_one_after_the_other():
    made = hydra("chain")
    candidates = [*made.written("P1 P2 P3 B1 B2 C W"), (2, 12), (5, 11)]
    slices = {
        layer: made.dictionaries[layer].slice([i for k, i in candidates if k == layer])
        for layer, _ in candidates
    }
    trial = LatentTrial(made.chat, made.prompts[:4], candidates, slices, MARGIN)
    repair = make_repair(trial, made.dictionaries)
    order = repair(frozenset())
    assert set(order) <= {0, 1, 2, 7, 8}
    assert set(order[:3]) == {0, 1, 2}
    assert repair(frozenset({0, 1, 2}))[:2] in ([3, 4], [4, 3])
    search = minimal_sets(trial, order, max_forwards=200, repair=repair)
    assert search.repairs >= 2
    (found,) = search.sets
    names = "".join(sorted(made.names(candidates[i] for i in found.members)))
    assert names in ["B1B2CP1P2", "B1B2CP1P3", "B1B2CP2P3", "B1CP1P2P3", "B2CP1P2P3"]
    latents = [candidates[i][1] for i in found.members]
    model, dictionary = made.organism.model, made.organism.dictionary
    assert (oracle.ablate(model, dictionary, made.harmful[:4], latents).margin < 0).all()


def test_a_latent_that_its_neighbours_keep_active_is_not_added_again(tmp_path):
    """Rows of a random dictionary overlap, so that a zeroed latent reads something all the same."""
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")
    prompts = chat.render([Prompt(id="0", text="Tell me how to bake bread.")])
    made = synthetic.on_model(tmp_path, 4, synthetic.WIDTH)
    dictionaries = {layer: dictionary for layer, (dictionary, _) in made.items()}
    # Nothing flips it: the first side is nearly all of the vocabulary.
    margin = RefusalMargin(tuple(range(351)), (351,))
    first = conditional_rounds(chat, prompts, margin, dictionaries, least=0.005, max_rounds=1)
    ablated: dict[int, list[int]] = {}
    for layer, latent in first.members:
        ablated.setdefault(layer, []).append(latent)
    left = latent_effects(chat, prompts[0], margin, dictionaries, ablated=ablated)
    again = [left[layer][latents].max() for layer, latents in ablated.items()]
    assert max(again) > first.rounds[0].margin * 0.005

    found = conditional_rounds(chat, prompts, margin, dictionaries, least=0.005)
    assert len(found.rounds) > 2
    assert len(set(found.members)) == len(found.members)
    slices = {layer: each.slice() for layer, each in dictionaries.items()}
    trial = LatentTrial(chat, prompts, [(k, i) for k in slices for i in range(24)], slices, margin)
    held = frozenset(trial.candidates.index(latent) for latent in first.members)
    assert held.isdisjoint(make_repair(trial, dictionaries)(held))


def test_what_rounds_cannot_use_is_said():
    made = hydra("base")

    def run(prompts=made.prompts[:1], candidates=((2, 0),), **settings):
        conditional_rounds(
            made.chat, prompts, MARGIN, {2: made.dictionaries[2]}, candidates=candidates, **settings
        )

    for wrong, text in (
        ({"prompts": []}, "rounds need prompts"),
        ({"least": 0.0}, "least above 0"),
        ({"candidates": [(5, 0)]}, "no dictionary of that layer"),
        ({"candidates": [(2, 99)]}, "numbered 0 to 74"),
        ({"candidates": [(2, 0), (2, 0)]}, "one of them twice"),
        ({"share": 2.0}, "above 0 and at most 1"),
    ):
        with pytest.raises(InputError, match=text):
            run(**wrong)
