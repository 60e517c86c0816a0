"""What the verdict says of a features run, and what it warns of."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report.features_beside import beside_direction, beside_random
from refusalscope.report.features_held import REST, judged_pairs
from refusalscope.report.features_rules import carriers, features_statements, pairs, sleepers
from refusalscope.report.features_tables import (
    BASELINES,
    DORMANT,
    SETS,
    dormant_rows,
    main_set,
    marked,
    set_arm,
)
from refusalscope.report.features_worries import (
    bos_alone,
    bos_differs,
    broken,
    exhausted,
    features_worries,
    few_flips,
    misfits,
    no_null,
    overshoots,
    uncovered,
    unsteady,
    unverified,
)
from refusalscope.report.numbers import NBSP
from refusalscope.report.verdict import headline, verdict
from refusalscope.runs import open_run
from refusalscope.studies.features.dormant import reserves
from report.fake_features import Tables, fake_features_tables, write_fake_features


def words(text: str) -> str:
    return text.replace(NBSP, " ")


def with_set_arm(run: Tables, **values: float) -> Tables:
    arms = run.held[BASELINES].copy()
    for column, value in values.items():
        arms.loc[arms["group"] == "set", column] = value
    run.held[BASELINES] = arms
    return run


def test_the_verdict_names_set_random_latents_reserves_pairs_and_direction(features_run: Path):
    statements = verdict(open_run(features_run))
    text = words(" ".join(statement.text for statement in statements))
    for part in (
        "The smallest set found is 5 latents in 3 layers (L3/17, L3/204, L5/31 and 2 more)",
        "taken out, it flips 85 % (95 % interval 74 to 92 %, n = 60) of the refused prompts",
        "6.25 nats more (95 % interval 5.63 to 6.87) than with matched random latents (20 draws; p = 0.048)",
        "2 of 5 members (40 %) are dormant, worth 1.20 nats (95 % interval 0.90 to 1.50)",
        "14.9 under random directions of the same norm and 2.1 under matched random latents",
        "2 reserves wake beyond chance and matter: L6/311 and L8/52",
        "Of 8 pairs taken out alone and together (6 with the rest of the set out), latents stand in for each "
        "other in 2",
        "(L3/17 and L6/311: −2.30 nats",
        "the refusal direction by 7.20 nats, so the direction does more at that cost",
    ):
        assert part in text
    assert all(statement.text.count(". ") == 0 for statement in statements)
    assert words(headline(statements)).startswith("5 latents in 3 layers carry the refusal; 2 res")


def test_a_reserve_is_what_the_study_calls_one():
    table = Tables().clean(DORMANT)
    assert set(marked(table).query("reserve")["at"]) == set(reserves(table)["at"])


@pytest.mark.parametrize(
    ("low", "beats_low", "short"),
    [
        (0.6, 1.0, "carry the refusal"),
        (0.5, 1.0, "carry part of the refusal"),
        (0.6, -0.1, "were not shown to carry the refusal"),
        (0.6, np.nan, "were not shown to carry the refusal"),
    ],
)
def test_a_set_carries_refusal_only_beyond_random_latents(low, beats_low, short):
    run = with_set_arm(Tables(), flipped_low=low, beats_low=beats_low)
    assert carriers(run).short == f"5 latents in 3 layers {short}"


def test_too_few_prompts_earn_no_word():
    run = with_set_arm(Tables(), n_harmful=19)
    assert "too few unseen prompts (19)" in carriers(run).text
    assert carriers(run).short == ""
    assert beside_random(run).text.startswith("Too few prompts to say")
    assert few_flips(with_set_arm(Tables(), n_harmful=19, flipped_low=0.1)) is None


def test_a_set_without_arms_says_that_unseen_prompts_were_not_measured():
    run = Tables()
    del run.held[BASELINES]
    text = words(carriers(run).text)
    assert "flips 94 % of the prompts it was searched on; on unseen prompts it was not" in text
    assert features_statements(run)[1] == [
        "matched random latents",
        "the refusal direction at equal KL",
    ]


def test_the_set_looked_into_is_spoken_of_and_a_smaller_one_named():
    run = Tables()
    sets = run.held[SETS]
    small = sets[sets["set_id"] == "pool/0"].head(2).assign(set_id="pool/2")
    run.held[SETS] = pd.concat([small, sets])
    assert set(main_set(run)["set_id"]) == {"pool/0"}
    assert "The set looked into is 5 latents in 3 layers" in carriers(run).text
    assert "the smallest has 2 latents" in carriers(run).text


def test_sets_of_single_prompts_speak_where_no_pooled_set_was_found():
    run = Tables()
    sets = run.held[SETS]
    run.held[SETS] = sets[sets["prompt_id"] != ""]
    assert len(main_set(run)) == 3
    assert set_arm(run, main_set(run)) is None


@pytest.mark.parametrize(
    ("low", "high", "opening", "tone"),
    [
        (0.1, 9.0, "The set does more than random latents", "good"),
        (-0.1, 9.0, "The set was not shown to do more", "bad"),
        (-9.0, -0.1, "The set does less", "bad"),
    ],
)
def test_random_latents_are_beaten_only_when_the_interval_excludes_zero(low, high, opening, tone):
    said = beside_random(with_set_arm(Tables(), beats_low=low, beats_high=high))
    assert said.text.startswith(opening)
    assert said.tone == tone


@pytest.mark.parametrize(
    ("equal", "part"),
    [
        (9.9, "so the direction does more"),
        (1.0, "so the set does more"),
        (6.7, "no clear difference"),
        (5.9, "no clear difference"),
        (np.nan, "the refusal direction never spends that much"),
    ],
)
def test_the_direction_is_compared_with_the_interval_of_the_set_at_its_cost(equal, part):
    run = Tables()
    arms = run.held[BASELINES]
    arms.loc[arms["group"] == "direction", "equal_kl"] = equal
    assert part in words(beside_direction(run).text)


def test_a_set_that_costs_nothing_is_not_compared_at_its_cost():
    run = Tables()
    run.held[BASELINES]["equal_kl"] = np.nan
    text = words(beside_direction(run).text)
    assert text.startswith(
        "The set costs too little on harmless replies to compare arms at its cost"
    )
    assert "the refusal direction by 8.40 nats at a KL of 0.052" in text
    assert "never spends" not in text


def test_a_set_that_many_random_draws_match_is_not_said_to_do_more():
    run = with_set_arm(Tables(), p_random=0.2)
    assert beside_random(run).text.startswith("The set was not shown to do more")
    assert "(20 draws; p = 0.200)" in words(beside_random(run).text)
    assert "were not shown to carry" in carriers(run).short
    assert "carry the refusal" in carriers(with_set_arm(run, p_random=np.nan)).short


def test_halves_of_the_prompts_are_no_sets_of_their_own():
    run = Tables()
    sets = run.held[SETS]
    assert sets["set_id"].str.startswith("half/").any()
    assert not run.clean(SETS)["set_id"].str.startswith("half/").any()
    # They are the smallest, and yet neither spoken of nor counted.
    assert carriers(run).text.startswith("The smallest set found is 5 latents")
    halves = sets["set_id"].str.startswith("half/")
    assert unverified(Tables({SETS: sets.assign(minimal=~halves)}).clean(SETS)) is None
    alone = Tables({SETS: sets[halves]})
    assert main_set(alone) is None
    assert carriers(alone) is None


def test_a_pair_is_judged_once_and_with_the_rest_of_the_set_out_where_that_was_run():
    run = Tables()
    table = run.clean("features.interactions")
    judged = judged_pairs(table)
    names = [frozenset(pair) for pair in zip(judged["first"], judged["second"], strict=True)]
    assert len(names) == len(set(names)) == 8
    expected = {
        frozenset((row["first"], row["second"])): row["held"]
        for row in table[table["effect"].notna()].sort_values("held").to_dict("records")
    }
    assert [expected[name] for name in names] == judged["held"].tolist()
    # Turned about, or with the context that was not measured, it is the same pair.
    turned = table.copy()
    rest = turned["held"] == REST
    turned.loc[rest, ["first", "second"]] = turned.loc[rest, ["second", "first"]].to_numpy()
    assert judged_pairs(turned)["held"].tolist() == judged["held"].tolist()
    turned.loc[rest, "effect"] = np.nan
    assert set(judged_pairs(turned)["held"]) == {"nothing"}
    # Alone the two need each other; with the rest out they add up.
    assert "need each other" not in pairs(run).text
    run.held["features.interactions"] = run.held["features.interactions"].query("held == 'nothing'")
    assert "need each other in 1" in pairs(run).text


def test_nothing_beyond_chance_is_said_and_so_is_a_missing_null():
    run = Tables()
    run.held[DORMANT] = run.held[DORMANT].assign(q=0.9)
    assert "no reserve was found" in sleepers(run).text
    assert sleepers(run).short == ""
    run.held[DORMANT] = run.held[DORMANT].assign(q=np.nan, null=np.nan)
    assert "was not compared with chance" in sleepers(run).text
    assert "random directions" in no_null(run).text


def test_a_reserve_that_wakes_and_does_little_is_none():
    run = Tables()
    table = run.held[DORMANT]
    run.held[DORMANT] = table.assign(effect_low=table["effect_low"].clip(upper=0.1))
    assert not dormant_rows(run)["reserve"].any()


def test_pairs_that_do_not_interact_are_said_to():
    run = Tables()
    run.held["features.interactions"]["kind"] = "additive"
    opening = "Of 8 pairs taken out alone and together (6 with the rest of the set out)"
    assert pairs(run).text == f"{opening}, none was shown to interact."
    run.held["features.interactions"]["effect"] = np.nan
    assert pairs(run) is None


def test_few_flips_are_said_once(tmp_path: Path):
    tables = with_set_arm(Tables(), flipped=0.2, flipped_low=0.1, flipped_high=0.3).held
    statements = verdict(open_run(write_fake_features(tmp_path / "run", tables=tables)))
    text = words(" ".join(statement.text for statement in statements))
    assert "not shown to be most of them" in text
    assert "was not shown to flip most prompts" not in text
    assert few_flips(Tables(tables)).tone == "bad"
    assert few_flips(Tables()) is None


def test_a_calm_run_has_no_worries_and_another_study_none_at_all():
    assert features_worries(Tables()) == []
    assert features_worries(Tables({})) == []


def test_overshooting_members_are_named():
    overshoot = Tables().clean("features.overshoot")
    assert overshoots(overshoot) is None
    steep = overshoot.assign(slope_high=overshoot["claimed"] - 0.01)
    steep.loc[0, "slope"] = 0.1
    concern = overshoots(steep)
    assert concern.tone == "bad"
    assert "5 of 5 latents of the set claim more" in concern.text
    # Where nothing was regressed nothing can be said.
    steep.loc[1, ["slope", "slope_low", "slope_high"]] = np.nan
    assert "4 of 4 latents" in overshoots(steep).text
    assert "L3/17: 0.50 claimed, 0.10 written" in concern.text


def test_dictionaries_that_do_not_fit_are_counted_and_one_is_quoted():
    dictionaries = Tables().clean("features.dictionaries")
    assert misfits(dictionaries) is None
    dictionaries.loc[4, "warnings"] = "it reconstructs 3% of the variance. " * 9
    text = misfits(dictionaries).text
    assert text.startswith("1 of 10 dictionaries may not fit this model (layer 4: it reconstructs")
    assert len(text) < 240


def test_layers_without_a_dictionary_budgets_and_unproven_sets_are_counted():
    run = Tables()
    dictionaries, searches = run.clean("features.dictionaries"), run.clean("features.searches")
    assert uncovered(dictionaries, 10) is None
    assert "6 of 16 layers have no dictionary" in uncovered(dictionaries, 16).text
    assert exhausted(searches) is None
    searches.loc[3:5, "exhausted"] = True
    assert "3 of 51 searches ran out" in exhausted(searches).text
    sets = run.clean(SETS)
    assert unverified(sets) is None
    sets.loc[sets["set_id"] == "pool/1", "minimal"] = False
    assert "1 of 48 sets were not proven" in unverified(sets).text


def test_bos_alone_and_bos_beside_the_rest_are_compared():
    run = Tables()
    assert bos_alone(run) is None
    assert bos_differs(run) is None
    values = run.held["features.values"]
    values.loc[values["name"] == "margin, BOS alone", ["value", "low", "high"]] = [1.0, 0.5, 1.5]
    assert "at BOS alone already lowers the margin from 4.20 to 1.00" in words(bos_alone(run).text)
    table = run.held[DORMANT]
    table.loc[(table["arm"] == "no_bos") & (table["latent"] == 52), "q"] = 0.9
    text = bos_differs(run).text
    assert text == "with BOS edited and read too the run finds 2 reserves against 1 without it"


def test_missing_and_thin_nulls_unsteady_sets_and_broken_replies_are_named():
    run = Tables()
    arms = run.held[BASELINES]
    run.held[BASELINES] = arms.assign(draws=arms["draws"].where(arms["draws"].isna(), 5.0))
    assert "only 5 draws" in no_null(run).text
    run.held[BASELINES] = arms[arms["group"] != "random"]
    assert "no random latents stand beside the set" in no_null(run).text
    stability = Tables().clean("features.stability")
    assert unsteady(stability) is None
    low = unsteady(stability.assign(jaccard=[0.3, 0.2, np.nan]))
    assert "differ over prompts (Jaccard 0.20, 0 latents in all of them)" in low.text
    assert broken(Tables()) is None
    assert "30 % of replies" in words(broken(with_set_arm(Tables(), degenerate=0.3)).text)


def test_every_sentence_is_of_the_main_set_alone():
    tables = fake_features_tables()
    for name in ("values", "interactions", "waking", "dormant"):
        own = tables[f"features.{name}"]
        other = own.assign(set_id="pool/1")
        for column in ("value", "effect", "woken", "active_clean"):
            if column in other:
                other[column] = 99.0
        tables[f"features.{name}"] = pd.concat([other, own])
    text = " ".join(s.text for s in features_statements(Tables(tables))[0])
    assert not re.search(r"\b99", text)
