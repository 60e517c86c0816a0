"""Minimal sets against brute force, and the published search with its defect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusalscope.errors import InputError
from refusalscope.studies.features import (
    Outcome,
    block_greedy,
    mended_set,
    minimal_sets,
    stability,
)
from studies.features.oracles import (
    BACKUP,
    HYDRA,
    PRIMARY,
    SECOND,
    Counted,
    boolean,
    hydra_margin,
    minimal,
    one_minimal,
    threshold,
)

INSTANCES = 100
GREEDY_RUNS = 3 * 64


def by_weight(weights, noise, seed):
    """An attribution order with log-normal error, and where its sum says that the margin is gone."""
    rng = np.random.default_rng([seed, 1])
    guess = weights * np.exp(noise * rng.standard_normal(len(weights)))
    order = np.argsort(-guess)
    start = int((guess[order].cumsum() < 0.6 * guess.sum()).sum()) + 1
    return [int(i) for i in order], start


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_third_of_block_greedys_runs_buys_a_smaller_proven_set_on_every_instance(noise):
    for k in range(INSTANCES):
        trial, weights = threshold(k)
        order, start = by_weight(weights, noise, k)
        found = minimal_sets(trial, order, start=start, max_forwards=1000)
        assert found.evaluations == trial.runs <= GREEDY_RUNS / 3
        (best,) = found.sets
        greedy = block_greedy(threshold(k)[0], order, tau=0.4, seed=k)
        assert len(best.members) <= min(len(s) for s in greedy.sets)
        assert one_minimal(lambda s, t=trial: t.score(s) < t.tau, frozenset(best.members))
        smallest = int((np.sort(weights)[::-1].cumsum() < 0.6).sum()) + 1
        assert len(best.members) == smallest if noise == 0 else len(best.members) <= smallest + 3


def test_a_rough_attribution_costs_a_third_on_average_and_little_size():
    runs, sizes, best = [], [], []
    for k in range(INSTANCES):
        trial, weights = threshold(k)
        order, start = by_weight(weights, 0.5, k)
        found = minimal_sets(trial, order, start=start, max_forwards=1000)
        runs.append(found.evaluations)
        sizes.append(len(found.sets[0].members))
        best.append(int((np.sort(weights)[::-1].cumsum() < 0.6).sum()) + 1)
    assert np.mean(runs) < 58
    assert np.mean(np.array(runs) <= GREEDY_RUNS / 3) > 0.8
    assert np.mean(sizes) == pytest.approx(41, abs=1.5)
    assert np.mean(best) == pytest.approx(37, abs=1)


def test_the_published_intersection_of_three_flipping_sets_never_flips():
    sizes, common, union = [], [], []
    for k in range(INSTANCES):
        trial, weights = threshold(k)
        found = block_greedy(trial, range(len(weights)), tau=0.4, seed=k)
        assert found.evaluations == 2 + GREEDY_RUNS == trial.runs - 1
        assert all(found.flipped)
        assert found.why_not == ""
        assert found.intersection == frozenset.intersection(*found.sets)
        assert not found.intersection_flipped
        sizes += [len(s) for s in found.sets]
        common.append(len(found.intersection))
        union.append(len(frozenset.union(*found.sets)))
    assert np.mean(sizes) == pytest.approx(184, abs=4)
    assert np.mean(common) == pytest.approx(60, abs=5)
    assert np.mean(union) == pytest.approx(296, abs=5)


def slow_greedy(score, pool, tau, block, reading, order):
    kept = set(pool)
    for at in range(0, len(order), block):
        without = kept - set(order[at : at + block])
        if reading == "restore":
            drop = score(frozenset(without)) < tau
        else:
            drop = score(frozenset(without)) - score(frozenset(kept)) < tau
        kept = without if drop else kept
    return frozenset(kept)


@pytest.mark.parametrize("reading", ["restore", "delta"])
def test_block_greedy_equals_one_order_after_the_other(reading):
    trial, _ = threshold(3, count=23)
    tau = 0.4 if reading == "restore" else 0.1
    found = block_greedy(trial, range(23), tau=tau, block=4, seeds=2, reading=reading, seed=5)
    for k, got in enumerate(found.sets):
        order = np.random.default_rng([5, k]).permutation(23).tolist()
        assert got == slow_greedy(trial.score, range(23), tau, 4, reading, order)
        assert found.scores[k] == trial.score(got)
    assert len(set(found.sets)) == 2


def test_the_delta_reading_can_leave_a_set_that_does_not_flip():
    trial, _ = threshold(3, count=60)
    assert not any(block_greedy(trial, range(60), tau=0.2, reading="delta").flipped)


def test_a_prompt_that_cannot_flip_is_said_to_be_one():
    never = block_greedy(Counted(lambda members: 0.9), range(9), tau=0.5)
    assert "does not flip it" in never.why_not
    assert never.sets == ()
    assert never.evaluations == 2
    always = block_greedy(Counted(lambda members: 0.1), range(9), tau=0.5)
    assert "not refused" in always.why_not


MONOTONE = st.lists(st.frozensets(st.integers(0, 6), min_size=1), max_size=5)


@given(MONOTONE, st.permutations(range(7)), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_of_a_monotone_function_every_minimal_set_is_found(sets, order, batch, seed):
    def flips(members):
        return any(enough <= members for enough in sets)

    found = minimal_sets(
        boolean(flips), order, max_forwards=5000, n_sets=99, batch=batch, seed=seed
    )
    assert found.complete
    assert not found.exhausted
    got = [frozenset(s.members) for s in found.sets]
    assert len(got) == len(set(got))
    assert set(got) == minimal(flips, range(7))


@given(
    st.frozensets(st.integers(0, 63), max_size=40),
    st.permutations(range(6)),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(0, 9)),
    st.integers(3, 60),
)
@settings(max_examples=300, deadline=None)
def test_of_any_function_the_returned_sets_flip_and_are_minimal(
    table, order, batch, start, max_forwards
):
    def flips(members):
        return sum(1 << i for i in members) in table

    trial = boolean(flips)
    found = minimal_sets(
        trial, order, max_forwards=max_forwards, n_sets=4, batch=batch, start=start
    )
    assert found.evaluations == trial.runs <= max_forwards
    assert found.already_flipped == flips(frozenset())
    assert len({frozenset(s.members) for s in found.sets}) == len(found.sets)
    for got in found.sets:
        members = frozenset(got.members)
        assert [members] in trial.calls
        assert got.outcome.flipped
        assert flips(members)
        if got.minimal:
            assert one_minimal(flips, members)
        else:
            assert found.exhausted


@pytest.mark.parametrize("batch", [1, 3])
def test_a_member_that_was_needed_is_tried_again_after_a_drop(batch):
    flipping = ({0, 1, 2, 3, 4}, {0, 1, 2, 4}, {0, 2, 4}, {0, 2})
    trial = boolean(lambda s: s in flipping)
    (best,) = minimal_sets(trial, range(5), max_forwards=60, batch=batch).sets
    assert set(best.members) == {0, 2}


def test_a_pool_that_goes_too_far_still_yields_a_smaller_set():
    found = minimal_sets(boolean(lambda s: {2, 3} <= s and len(s) < 7), range(16), max_forwards=99)
    assert set(found.sets[0].members) == {2, 3}


@pytest.mark.parametrize("max_forwards", [3, 5, 12, 20, 40])
def test_when_the_runs_end_the_best_verified_set_is_returned_and_marked(max_forwards):
    trial, weights = threshold(0)
    order, _ = by_weight(weights, 0.3, 0)
    found = minimal_sets(trial, order, max_forwards=max_forwards)
    assert found.exhausted
    assert trial.runs == found.evaluations <= max_forwards
    (best,) = found.sets
    assert not best.minimal
    assert best.outcome.flipped
    assert [frozenset(best.members)] in trial.calls
    assert list(best.members) == [i for i in order if i in set(best.members)]
    assert len(best.members) < (321 if max_forwards < 5 else 100)


def test_many_idle_candidates_are_dropped_in_groups():
    trial = boolean(lambda s: {0, 50, 99} <= s)
    found = minimal_sets(trial, range(100), max_forwards=1000)
    assert set(found.sets[0].members) == {0, 50, 99}
    assert trial.runs < 50


@pytest.mark.parametrize("seed", range(5))
def test_the_hydra_has_five_minimal_sets_and_no_core(seed):
    trial = Counted(hydra_margin)
    order = [int(i) for i in np.random.default_rng(seed).permutation(30)]
    found = minimal_sets(trial, order, max_forwards=500, n_sets=5, seed=seed)
    assert sorted(map(sorted, (s.members for s in found.sets))) == sorted(map(sorted, HYDRA))
    assert all(s.minimal for s in found.sets)
    alike = stability([s.members for s in found.sets])
    assert alike.core == frozenset()
    assert alike.jaccard == pytest.approx(3 / 5)
    assert {i: k.value for i, k in alike.frequency.items()} == pytest.approx(
        dict.fromkeys(range(5), 0.8)
    )


def test_the_hydra_of_the_tests_is_the_one_of_the_page():
    live = {(): 1.59, (0,): 1.41, (0, 1): 1.52, (0, 1, 2): 1.56, (3, 4): 1.59}
    for members, margin in live.items():
        assert hydra_margin(set(members)) == pytest.approx(margin, abs=0.05)
    assert hydra_margin({0, 1}, eta=0.4) == pytest.approx(0.04, abs=0.1)
    for eta, chain, want in (
        (1.0, False, [set(s) for s in HYDRA]),
        (1.0, True, [s | {SECOND} for s in HYDRA]),
        (0.0, False, [{0, 1}, {0, 2}, {1, 2}]),
    ):
        got = minimal(
            lambda s, eta=eta, chain=chain: hydra_margin(s, eta, chain=chain) < 0, range(7)
        )
        assert sorted(map(sorted, got)) == sorted(map(sorted, want))


def woken(ablated):
    """Latents of the chain that are silent until others are gone: what a conditional attribution ranks."""
    if len(ablated & set(PRIMARY)) < 2:
        return []
    return [SECOND, *BACKUP] if ablated >= set(BACKUP) else [*BACKUP, 9]


def test_the_repair_hook_follows_a_waking_chain():
    trial = Counted(lambda s: hydra_margin(s, chain=True))
    found = minimal_sets(trial, [8, 0, 7, 1, 2], max_forwards=200, repair=woken)
    (best,) = found.sets
    assert set(best.members) in [s | {SECOND} for s in HYDRA]
    assert best.minimal
    assert found.repairs == 2
    assert not minimal_sets(trial, [8, 0, 7, 1, 2], max_forwards=200).sets


def test_repair_keeps_to_what_is_not_forbidden():
    found = minimal_sets(Counted(hydra_margin), [0, 1, 2], max_forwards=300, n_sets=9, repair=woken)
    assert found.complete
    assert sorted(sorted(s.members) for s in found.sets) == sorted(map(sorted, HYDRA))


def test_what_failed_before_the_repair_is_cut_to_a_prefix_too():
    order = [0, 1, 2, *range(10, 310)]
    found = minimal_sets(Counted(hydra_margin), order, max_forwards=300, repair=woken)
    assert set(found.sets[0].members) in HYDRA
    assert found.evaluations <= 24


def test_a_stored_set_that_no_longer_flips_is_repaired_and_a_loose_one_trimmed():
    trial = Counted(hydra_margin)
    for stored, order, repair in (
        ([0, 1, 3], [8, 4], None),
        ([0, 1, 3], [], woken),
        ([0, 1, 2, 3, 4, 8], [], None),
    ):
        (mended,) = mended_set(trial, stored, order, repair=repair, max_forwards=100).sets
        assert set(mended.members) in HYDRA
        assert mended.minimal
    assert mended_set(trial, [0, 1, 3], max_forwards=100).sets == ()
    assert mended_set(trial, [0, 1, 2, 3, 4], max_forwards=4).exhausted


class BatchDependent:
    """Flips with three of four, but by itself {0, 1, 2} is just too weak: what another batch can do."""

    def flips(self, sets):
        weak = [sets == [frozenset({0, 1, 2})] or len(members) < 3 for members in sets]
        return [Outcome(0.01 if no else -0.01, not no) for no in weak]


def test_a_set_that_fails_its_own_run_is_not_returned():
    found = minimal_sets(BatchDependent(), [0, 1, 2, 3], max_forwards=60)
    (best,) = found.sets
    assert set(best.members) != {0, 1, 2}
    assert best.outcome.flipped


def test_wrong_input_is_said_to_be_wrong():
    trial = Counted(hydra_margin)
    for order, options, message in (
        ([], {}, "at least one candidate"),
        ([1, 1], {}, "none twice"),
        ([1], {"max_forwards": 2}, "give 3 or more"),
        ([1], {"n_sets": 0}, "must be 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            minimal_sets(trial, order, **{"max_forwards": 9, **options})
    for pool, options, message in (
        ([], {}, "at least one latent"),
        ([1], {"reading": "x"}, "no reading"),
        ([1], {"block": 0}, "must be 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            block_greedy(trial, pool, tau=0.0, **options)
    with pytest.raises(InputError, match="no set"):
        stability([])


def test_stability_of_one_set_and_of_empty_ones():
    one = stability([{1, 2}])
    assert np.isnan(one.jaccard)
    assert one.core == {1, 2}
    both = stability([set(), set()])
    assert (both.jaccard, both.lowest, both.core) == (1.0, 1.0, frozenset())
    mixed = stability([{1, 2}, {2, 3}, {2}])
    assert mixed.lowest == pytest.approx(1 / 3)
    assert mixed.jaccard == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert next(iter(mixed.frequency)) == 2
