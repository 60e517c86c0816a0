"""The features scoreboard: its truth against the slow oracle, what methods see, and how its bars are judged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from organisms import oracle
from refusalscope.cli.app import run
from refusalscope.errors import InputError, RunError
from refusalscope.organisms import scoreboard
from refusalscope.organisms.planted import build
from refusalscope.organisms.scoreboard import (
    BARS,
    FEATURES,
    features,
    hydra_checks,
    score_features,
    score_routing,
    threshold,
)
from refusalscope.organisms.scoreboard.bars import (
    FALSE_RESERVES,
    FORWARDS,
    NECESSARY,
    NO_LARGER,
    PAIRS,
    RESERVES,
    judge_bars,
)
from refusalscope.organisms.scoreboard.hydra_bench import Everywhere, set_up
from refusalscope.organisms.scoreboard.searches import METHODS, found_set
from studies.features import oracles

BARRED = ("all barred organisms",)
SHOWN = ("recommended", "as published")
GOOD, ROUGH = (
    next(case for case in FEATURES if case.name == name)
    for name in ("threshold start=1 noise=0.10", "threshold, rough start=1 noise=1.00")
)


@cache
def bench(variant, seed=0):
    return set_up(build("planted-hydra", variant, seed=seed))


def latents(variant, names):
    known = {each.name: each.index for each in bench(variant).planted.truth.latents}
    return frozenset(known[name] for name in names.split())


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """One seed of the chain by two methods, and six instances of each threshold family."""
    out = tmp_path_factory.mktemp("score") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "INSTANCES", 6)
        return score_features(out, seeds=[0], only=["chain", "threshold"], methods=SHOWN)


# Truth


@pytest.mark.parametrize(("variant", "seed", "count"), [("base", 0, 5), ("chain", 1, 4)])
def test_the_true_sets_are_those_of_the_slow_oracle(variant, seed, count):
    made = bench(variant, seed)
    rows = [list(prompt.ids) for prompt in made.harmful]
    slow, _ = oracle.flipping_sets(made.planted.model, made.planted.dictionary, rows, range(6))
    assert len(slow) == count
    assert sorted(map(sorted, made.true_sets)) == sorted(map(sorted, slow))


def test_an_edit_everywhere_is_the_oracles_and_one_prompt_a_set_is_a_part_of_all():
    made = bench("base")
    sets = [frozenset({0, 2}), frozenset({1, 2, 3})]
    trial = Everywhere(made, (0, 3, 1, 70))
    margins = trial.margins(sets)
    rows = [list(prompt.ids) for prompt in made.harmful]
    for column, named in zip(margins.T, ([0, 1], [3, 1, 70]), strict=True):
        slow = oracle.ablate(made.planted.model, made.planted.dictionary, rows, named).margin
        # The study leaves BOS out; the oracle edits it too.
        assert column == pytest.approx(slow, abs=0.02)
    each = trial.margin_each([5, 7], sets)
    assert each == pytest.approx([margins[5, 0], margins[7, 1]], abs=1e-5)
    assert trial.runs == 2


# Methods


@pytest.mark.parametrize("variant", ["base", "partial", "chain", "control"])
def test_the_recommended_search_returns_a_planted_set(variant):
    made = bench(variant)
    found = found_set(made, "recommended")
    assert found.latents in made.true_sets
    assert found.flipped
    assert found.runs <= 40


def test_the_pool_holds_a_marker_and_the_split_takes_it_out():
    made = bench("base")
    (marker,) = latents("base", "DET")
    assert marker in made.pooled
    assert marker not in made.candidates
    assert latents("base", "P1 P2 P3 B1 B2 C") <= set(made.candidates)
    blind = found_set(made, "recommended, harm not told apart")
    assert blind.latents == {marker}
    assert blind.flipped


def test_layer_by_layer_two_late_primaries_flip_and_no_reserve_is_needed():
    found = found_set(bench("base"), "recommended, layer by layer")
    assert found.flipped
    assert found.sites == len(found.latents) == 2
    assert found.latents < latents("base", "P1 P2 P3")


@pytest.mark.parametrize("method", list(METHODS))
def test_no_method_sees_the_truth(method):
    made = bench("base")
    truth = made.planted.truth.model_copy(update={"latents": (), "heads": (), "units": ()})
    blinded = replace(made, planted=replace(made.planted, truth=truth), claims={})
    assert found_set(blinded, method).latents == found_set(made, method).latents


def test_precision_is_of_writers_and_recall_of_the_nearest_true_set(monkeypatch):
    made = bench("base")
    claims = {"recommended": latents("base", "P1 P2 B1 C"), "as published": frozenset()}
    found = found_set(made, "top cosine")
    for method, members in claims.items():
        case = replace(made, claims={method: replace(found, latents=members)})
        row = features._score(FEATURES[0], 0, case, method)
        # C writes nothing in this variant.
        due = (0.75, 0.75) if members else (1.0, 0.0)
        assert (row["precision"], row["recall"], row["planted"]) == (*due, 0.0)


# Checks


def test_one_seed_meets_every_bar_and_the_published_search_does_not(scored):
    scores, checks = scored.table("organisms.scores"), scored.table("organisms.checks")
    judged = judge_bars(scores, checks, "features")
    assert judged["met"].all()
    assert set(judged["bar"]) == {
        *(f"{measure}, {of}" for measure in ("precision", "recall") for of in (*BARRED, "chain")),
        *(f"{check}, chain" for check in (RESERVES, NECESSARY, PAIRS)),
        f"largest {FORWARDS}, threshold",
        f"{NO_LARGER}, threshold",
    }
    theirs = scores.assign(
        method=scores["method"].map(dict(zip(SHOWN, reversed(SHOWN), strict=True)))
    )
    judged = judge_bars(theirs, checks, "features").set_index("bar")["met"]
    assert not judged["precision, all barred organisms"]
    assert not judged["recall, all barred organisms"]


def test_every_latent_called_a_reserve_is_a_false_alarm_that_is_seen(monkeypatch):
    made = bench("control", 1)
    rounds = hydra_checks.conditional_rounds(
        made.chat,
        made.harmful,
        hydra_checks.MARGIN,
        made.dictionaries,
        candidates=made.places(made.candidates),
    )
    due = {"other latents tested": 6.0, "another latent called reserve": 0.0, FALSE_RESERVES: 0.0}
    assert hydra_checks.waking(made, rounds) == due
    # The base shares these primaries, and its backups are found behind them.
    assert hydra_checks.waking(bench("base", 1), rounds)[RESERVES] == 1
    monkeypatch.setattr(hydra_checks, "reserves", lambda table: table[~table["in_set"]])
    found = hydra_checks.waking(made, rounds)
    assert found[FALSE_RESERVES] == found["another latent called reserve"] == 1
    monkeypatch.setattr(hydra_checks, "reserves", lambda table: table[:0])
    assert hydra_checks.waking(bench("base", 1), rounds)[RESERVES] == 0


def test_pairs_of_shuffled_scores_are_ranked_at_chance(monkeypatch):
    """The area follows the margins: where they are shuffled over masks nothing is ranked."""
    made = bench("base")
    rounds = hydra_checks.Rounds((), (), False)
    real = Everywhere.margin_each

    def shuffled(self, places, sets):
        return np.random.default_rng(1).permutation(real(self, places, sets))

    monkeypatch.setattr(Everywhere, "margin_each", shuffled)
    found = hydra_checks.interactions(made, rounds)
    assert 0.1 < found[PAIRS] < 0.9


def test_markers_that_flip_alone_are_not_masked():
    masked = hydra_checks._Masked(bench("chain"), frozenset(), latents("chain", "C"))
    assert len(masked.latents) == hydra_checks.MASKED
    assert latents("chain", "P1 P2 P3 B1 B2") <= set(masked.latents)
    assert not latents("chain", "DET HARM ASST C") & set(masked.latents)


# The family without a model


def test_the_threshold_family_is_that_of_the_tests():
    slow, weights = oracles.threshold(3)
    fast = threshold.Threshold(3)
    np.testing.assert_allclose(fast.weights, weights)
    rng = np.random.default_rng(0)
    sets = [frozenset(np.flatnonzero(rng.random(320) < p).tolist()) for p in (0.3, 0.5, 0.7)]
    for got, want in zip(fast.flips(sets), slow.flips(sets), strict=True):
        assert got.score == pytest.approx(want.score)
        assert got.flipped == want.flipped
    assert fast.runs == 3


def test_a_good_order_costs_a_third_and_a_rough_one_more(monkeypatch):
    monkeypatch.setattr(threshold, "INSTANCES", 10)
    ratios = {}
    for case in (GOOD, ROUGH):
        rows, checks = threshold.measure_threshold(case, tuple(METHODS))
        by_check = checks.set_index("check")["value"]
        ratios[case.organism] = by_check[FORWARDS]
        assert (by_check[NO_LARGER] == 1).all()
        assert len(rows) == 20
        greedy = rows[rows["method"] == "as published"]
        assert (greedy["runs"] == 194).all()
        assert (greedy["flipped"] == 0).all()
    assert ratios["threshold"].max() <= BARS["forwards over block greedy's"]
    assert ratios["threshold, rough"].mean() > BARS["forwards over block greedy's"]


# Bars and command


def test_the_largest_share_of_the_forwards_is_judged_and_not_the_mean(scored):
    scores, checks = scored.table("organisms.scores"), scored.table("organisms.checks")
    worse = checks.copy()
    at = worse.index[(worse["organism"] == "threshold") & worse["check"].str.contains("forwards")]
    worse.loc[at[0], "value"] = 0.34
    judged = judge_bars(scores, worse, "features").set_index("bar")
    bar = judged.loc[f"largest {FORWARDS}, threshold"]
    assert (bar["needed"], bar["measured"], bar["met"]) == ("at most 0.333", 0.34, False)


def test_the_command_prints_one_table_and_one_line_a_bar(scored, capsys, monkeypatch):
    monkeypatch.setattr(scoreboard, "score_features", lambda *args, **kwargs: scored)
    assert run(["organism", "score", "features"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for word in ("case", "method", "seeds", "precision", "planted", "flips", "sets run"):
        assert word in lines[1]
    assert lines[2].split()[:6] == ["chain", "recommended", "1", "1.000", "1.000", "1.00"]
    assert "woken reserves found, chain: 1.000, needed at least 0.95: met" in lines
    assert lines[-1].startswith("run: ")


def test_a_stopped_scoreboard_goes_on_where_it_stopped_and_another_suite_may_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(threshold, "INSTANCES", 2)
    what = {"seeds": [0], "only": ["threshold"]}
    whole = score_features(tmp_path / "whole", **what)
    real, built = features.measure_threshold, []

    def cut(case, methods):
        built.append(case.name)
        if len(built) == 2:
            raise KeyboardInterrupt
        return real(case, methods)

    monkeypatch.setattr(features, "measure_threshold", cut)
    with pytest.raises(KeyboardInterrupt):
        score_features(tmp_path / "cut", **what)
    with pytest.raises(RunError):
        score_routing(tmp_path / "cut", seeds=[0], only=["O12"], resume=True)
    again = score_features(tmp_path / "cut", **what, resume=True)
    assert [name[-4:] for name in built] == ["0.00", "0.10", "0.10"]
    for name in whole.tables():
        pd.testing.assert_frame_equal(whole.table(name), again.table(name))


def test_names_that_are_not_there_leave_no_folder(tmp_path, capsys):
    with pytest.raises(InputError, match=r"no organism 'O1'.*base, chain"):
        score_features(tmp_path / "r", only=["O1"])
    with pytest.raises(InputError, match=r"no method 'guessing'.*top cosine"):
        score_features(tmp_path / "r", methods=["guessing"])
    assert not (tmp_path / "r").exists()
    assert run(["organism", "score", "nope"]) == 1
    assert "there is one for routing, features" in capsys.readouterr().err
