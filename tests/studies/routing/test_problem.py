"""The routing problem: who is paired with whom, who lends to whom, and what swaps are scored by."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from model import oracle as plain
from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.judge import Judge
from refusalscope.judge.behaviour import prompt_table, reply
from refusalscope.model import ChatModel, RefusalMargin, Site
from refusalscope.organisms.planted import build
from refusalscope.prompts import PairSet
from refusalscope.studies.routing import Pair, preset, screen
from refusalscope.studies.routing.problem import (
    REPLY_TOKENS,
    nll,
    pose,
    state_metrics,
    unequal,
    with_replies,
)
from refusalscope.studies.subject import Subject
from studies.routing.test_interchange import row

MARGIN = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))


def subject_of(chat, pairs, margin, *, fit=0, judge="phrases:planted"):
    """A prepared patient by hand: the first `fit` pairs teach, the rest are reported on."""
    prompts = tuple(pairs.prompts())
    rendered = tuple(chat.render(prompts))
    judge = Judge.from_name(judge)
    said = reply(chat, prompts, rendered, judge, max_new_tokens=2)
    splits = ["fit"] * 2 * fit + ["report"] * (len(prompts) - 2 * fit)
    empty = np.full(len(prompts), np.nan)
    table = prompt_table(prompts, rendered, splits, said.judgements, empty)
    return Subject(chat, prompts, rendered, table, margin, judge)


@cache
def planted(variant="base", n=12, fit=0, **options):
    """(subject, pairs of the report split) of a planted model."""
    organism = build("planted-routes", variant, pairs=n + fit, **options)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=variant)
    return subject_of(chat, organism.pairs, MARGIN, fit=fit), organism.pairs[fit:]


def named(pairs, names):
    """The pairs with other categories."""
    return PairSet(
        tuple(replace(pair, category=name) for pair, name in zip(pairs, names, strict=True))
    )


def posed(names=None, **settings):
    subject, pairs = planted()
    if names is not None:
        pairs = named(pairs, names)
    return pose(subject, pairs, MARGIN, preset("recommended", **settings)), pairs


def lenders(problem):
    """By pair, the numbers of the pairs that lend to its harmful prompt, then to its control."""
    harmful = [pair.harmful.id for pair in problem.pairs]
    control = [pair.control.id for pair in problem.pairs]
    return [
        (
            [control.index(donor.id) for donor in pair.donors("necessity")],
            [harmful.index(donor.id) for donor in pair.donors("sufficiency")],
        )
        for pair in problem.pairs
    ]


def test_pairs_are_the_rendered_members_in_order():
    problem, pairs = posed()
    subject, _ = planted()
    assert problem.prompts is pairs
    assert [pair.harmful.id for pair in problem.pairs] == [f"{p.id}/harmful" for p in pairs]
    assert [pair.control.id for pair in problem.pairs] == [f"{p.id}/harmless" for p in pairs]
    assert [pair.harmful for pair in problem.pairs] == list(subject.rendered[::2])


def test_the_pairs_of_another_split_are_left_alone():
    subject, pairs = planted(n=8, fit=4)
    problem = pose(subject, pairs, MARGIN, preset("recommended"))
    assert len(problem.pairs) == 8
    lent = {
        d.id for p in problem.pairs for side in ("necessity", "sufficiency") for d in p.donors(side)
    }
    assert lent == {prompt.id for prompt in pairs.prompts()}


def test_the_partner_lends_first_and_nobody_to_itself_or_twice():
    for seed in range(5):
        problem, _ = posed(donors=4, seed=seed)
        for i, (necessity, sufficiency) in enumerate(lenders(problem)):
            assert necessity[0] == sufficiency[0] == i
            assert necessity == sufficiency
            assert len(set(necessity)) == 4


def test_a_pair_of_the_same_category_lends_before_another():
    names = ["a"] * 5 + ["b"] * 3 + ["c"] * 3 + ["d"]
    for seed in range(5):
        problem, _ = posed(names, donors=4, seed=seed)
        for i, (donors, _) in enumerate(lenders(problem)):
            alike = min(3, names.count(names[i]) - 1)
            assert [names[j] for j in donors[1 : 1 + alike]] == [names[i]] * alike
            assert all(names[j] != names[i] for j in donors[1 + alike :])


def test_the_seed_draws_the_donors():
    assert lenders(posed(seed=3)[0]) == lenders(posed(seed=3)[0])
    assert lenders(posed(seed=3)[0]) != lenders(posed(seed=4)[0])


def test_one_donor_is_the_partner_and_more_than_there_are_is_all():
    one, _ = posed(donors=1)
    assert all(pair.to_harmful == pair.to_control == () for pair in one.pairs)
    assert one.partners == one.pairs
    every, _ = posed(donors=50)
    assert all(sorted(donors) == list(range(12)) for donors, _ in lenders(every))
    assert every.partners == one.pairs


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ("abcdefabcdef", True),
        ("abcdeabcdeab", False),
        ([*"abcdefabcde", None], False),
        ([None] * 12, False),
    ],
)
def test_categories_are_clusters_where_there_are_six(names, known):
    problem, _ = posed(list(names))
    assert problem.categories == (tuple(names) if known else None)


def test_a_pair_without_its_other_member_is_refused():
    subject, pairs = planted()
    part = replace(subject, prompts=subject.prompts[:-1], rendered=subject.rendered[:-1])
    with pytest.raises(InputError, match="'pair-011' lacks a member; give both"):
        pose(part, pairs, MARGIN, preset("recommended"))


@pytest.mark.parametrize(
    ("metrics", "names"), [((), []), (("nll",), []), (("probe", "kl"), ["kl", "probe"])]
)
def test_the_metrics_of_a_row_are_those_asked_for(metrics, names):
    problem, _ = posed(metrics=metrics)
    subject, _ = planted(n=8, fit=4)
    found = state_metrics(subject, problem, preset("recommended", metrics=metrics))
    assert sorted(set(found) - {"margin"}) == names
    assert found["margin"] is MARGIN


def test_the_probe_is_the_mean_difference_of_the_fit_split_before_the_final_norm():
    subject, pairs = planted(n=8, fit=4)
    settings = preset("recommended", metrics=("probe",))
    problem = pose(subject, pairs, MARGIN, settings)
    probe = state_metrics(subject, problem, settings)["probe"]
    with torch.no_grad():
        last = [plain.read(subject.chat.model, r, Site("final"))[-1] for r in subject.rendered[:8]]
    want = torch.stack(last[::2]).mean(0) - torch.stack(last[1::2]).mean(0)
    torch.testing.assert_close(probe.weight, want / want.norm(), atol=1e-5, rtol=0)
    assert (probe.site, probe.position, probe.bias) == (Site("final"), "last", 0.0)
    found = screen(subject.chat, problem.partners, {"probe": probe}, units=[((3, 1),)])
    # Nothing of the report split went into it, and it tells its members apart all the same.
    assert (found.harmful["probe"] - found.control["probe"]).min() > 4
    assert found.necessity["probe"].mean() / found.gap("probe") > 0.5


def test_both_members_are_followed_by_the_opening_of_the_controls_own_reply():
    problem, _ = posed()
    chat = problem.chat
    pairs = with_replies(problem)
    greedy = chat.generate([pair.control for pair in problem.pairs], max_new_tokens=REPLY_TOKENS)
    for pair, given, said in zip(problem.pairs, pairs, greedy, strict=True):
        assert 0 < len(said) <= REPLY_TOKENS
        for member, patient in ((given.harmful, pair.harmful), (given.control, pair.control)):
            assert member.ids == (*patient.ids, *said)
            assert (member.id, member.n_prompt) == (patient.id, patient.n_prompt)
        assert given.to_harmful == given.to_control == ()
    found = screen(chat, pairs, {"nll": nll()}, units=[((3, 1),)], policy="prompt_only")
    # The control's reply is unlikely after the harmful prompt, and likely once the gate is swapped.
    assert found.harmful["nll"].min() > 1 > found.control["nll"].max()
    with torch.no_grad():
        logits = plain.logits(chat.model, pairs[0].harmful, ())
    at = pairs[0].harmful.n_prompt
    said = torch.tensor(pairs[0].harmful.ids[at:])
    want = -logits[at - 1 : -1].log_softmax(-1).gather(-1, said[:, None]).mean()
    assert found.harmful["nll"][0] == pytest.approx(float(want), abs=1e-5)
    assert found.necessity["nll"].mean() / found.gap("nll") > 0.5


def test_a_long_reply_is_cut_to_the_tokens_that_are_scored(monkeypatch):
    problem, _ = posed()
    asked = []

    def talk(self, prompts, *args, max_new_tokens, **kwargs):
        asked.append(max_new_tokens)
        return [[24, 25, 26, 27, 28, 29][:max_new_tokens] for _ in prompts]

    monkeypatch.setattr(ChatModel, "generate", talk)
    pairs = with_replies(problem)
    assert asked == [5]
    assert len(nll().reads(pairs[0].harmful)) == 5
    assert pairs[0].harmful.ids[-5:] == (24, 25, 26, 27, 28)


def test_an_empty_reply_leaves_nothing_to_score(monkeypatch):
    problem, _ = posed()
    silent = [[5]] * (len(problem.pairs) - 1) + [[]]
    monkeypatch.setattr(ChatModel, "generate", lambda self, *args, **kwargs: silent)
    assert with_replies(problem) is None


@pytest.mark.parametrize(
    ("harmful", "control", "uneven"), [(10, 5, False), (11, 5, True), (5, 10, False), (5, 11, True)]
)
def test_lengths_are_unequal_beyond_a_factor_of_two(harmful, control, uneven):
    even = Pair(row(range(6), "even"), row(range(6), "other"))
    pair = Pair(row(range(harmful), "h"), row(range(control), "c"))
    assert unequal([even, pair, even]) == (["h"] if uneven else [])


def test_a_reply_does_not_count_towards_the_length():
    pair = Pair(row(range(6), "h").with_reply([1] * 9), row(range(6), "c"))
    assert unequal([pair]) == []
