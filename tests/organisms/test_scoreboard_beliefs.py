"""The beliefs scoreboard: its scores against slow ones, what it calls a failure, how its bars are judged."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from refusalscope.cli.app import run
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build_two_beliefs, refuse_finetuned
from refusalscope.organisms.scoreboard import BELIEFS, score_beliefs
from refusalscope.organisms.scoreboard.bars import (
    COSINE,
    CUE_IN_HARMFUL,
    HARMFUL,
    IN_QUADRANT,
    MOVED,
    REFUSE,
    REFUSED,
    SHORTCUT,
    SMALLEST,
    STILL_REFUSED,
    UNMOVED,
    judge_bars,
)
from refusalscope.organisms.scoreboard.beliefs import belief_checks
from refusalscope.organisms.scoreboard.beliefs_bench import set_up

TABLES = ("organisms.scores", "organisms.checks")


@cache
def bench(variant="base"):
    return set_up(build_two_beliefs(variant))


@cache
def scores(variant="base"):
    return bench(variant).scores(list(bench(variant).made.sets["report"]))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return score_beliefs(tmp_path_factory.mktemp("score") / "run", seeds=[0])


def slow_scores(variant="base"):
    """Both deltas of the report set, prompt by prompt, as the page writes them (Eq. 3 and 4)."""
    one = bench(variant).made
    chat = ChatModel.wrap(one.model, one.tokenizer, id="slow")

    def read(prompt):
        rendered = chat.render([prompt])[0]
        with torch.no_grad():
            out = one.model(torch.tensor([rendered.ids]), output_hidden_states=True)
        rows = [out.hidden_states[row][0].double().numpy() for row in one.truth.rows]
        return [
            [row[rendered.anchor(at)] for row in rows] for at in ("instruction_last", "prompt_last")
        ]

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    groups = {True: [], False: []}
    for prompt in one.sets["fit"]:
        told = one.bits[prompt.id]
        if told.harmful == told.refuse:
            groups[told.harmful].append(read(prompt))
    means = {side: np.mean(found, axis=0) for side, found in groups.items()}
    return np.array(
        [
            [
                np.mean(
                    [
                        cosine(state, means[True][place][i]) - cosine(state, means[False][place][i])
                        for i, state in enumerate(rows)
                    ]
                )
                for place, rows in enumerate(read(prompt))
            ]
            for prompt in one.sets["report"]
        ]
    )


def test_the_scores_are_those_of_the_slow_way():
    found = scores()[[HARMFUL, REFUSE]].to_numpy()
    assert np.abs(found - slow_scores()).max() < 1e-5


def test_the_areas_are_counts_of_couples_in_order(scored):
    table = scored.table("organisms.scores")
    row = table[(table["case"] == "topic-only") & (table["method"] == REFUSE)].iloc[0]
    bits, score = bench("topic-only").bits("report"), scores("topic-only")[REFUSE].to_numpy()

    def area(positive, among):
        couples = score[positive & among][:, None] - score[~positive & among][None]
        return float(((couples > 0) + 0.5 * (couples == 0)).mean())

    everything = np.ones(len(score), dtype=bool)
    strata = [area(bits.refuse, among) for among in (bits.harmful, ~bits.harmful)]
    assert row["auroc"] == pytest.approx(area(bits.refuse, everything))
    assert row["lowest"] == pytest.approx(min(strata))
    assert row["other"] == pytest.approx(area(bits.harmful, everything))
    checks = scored.table("organisms.checks").set_index(["case", "check"])["value"]
    assert checks["topic-only", CUE_IN_HARMFUL] == pytest.approx(strata[0])


def test_every_organism_is_scored_and_the_bars_of_the_first_are_met(scored):
    table, checks = (scored.table(name) for name in TABLES)
    assert list(table["case"].unique()) == [case.name for case in BELIEFS]
    assert table.groupby("case")["barred"].first().to_dict() == {
        "base": True,
        "punctuation": False,
        "topic-only": False,
    }
    assert (table["policy"] > 0.97).all()
    assert (table[["forwards", "token_layers", "seconds"]] > 0).all(axis=None)
    bars = judge_bars(table, checks, "beliefs").set_index("bar")
    # One seed has too few cue words for its share of chance to be near one half.
    assert bars.drop(index=f"{CUE_IN_HARMFUL}, topic-only")["met"].all()
    assert len(bars) == 15


def test_each_variant_shows_what_it_was_made_for(scored):
    found = scored.table("organisms.checks").set_index(["case", "check"])["value"]
    assert found["punctuation", "AUROC of the final mark"] == 1
    assert 0.3 < found["punctuation", "AUROC of delta_harmful without final marks"] < 0.7
    assert found["base", "AUROC of delta_harmful without final marks"] > 0.95
    assert found["base", "AUROC of the words"] < 0.7
    assert [found[case.name, SHORTCUT] for case in BELIEFS] == [0, 1, 0]
    assert [found[case.name, REFUSED] for case in BELIEFS] == [0.5, 0.5, 0]
    # Nothing was refused in the first place.
    assert ("topic-only", MOVED) not in found.index
    assert found["base", MOVED] < -0.5
    assert found["base", UNMOVED] < 0.1
    assert found["base", STILL_REFUSED] == 0


def test_a_shift_is_of_the_class_and_in_distances(scored):
    found = scored.table("organisms.checks").set_index(["case", "check"])["value"]["base"]
    one = bench()
    tuned = refuse_finetuned(one.made)
    after = one.scores(
        list(tuned.sets["report"]), ChatModel.wrap(tuned.model, tuned.tokenizer, id="t")
    )
    bits, change = one.bits("report"), after[REFUSE] - scores()[REFUSE]
    of_cue = scores()[REFUSE].groupby(bits.refuse).mean()
    assert found[MOVED] == pytest.approx(
        change[bits.refuse].mean() / (of_cue[True] - of_cue[False])
    )
    change, of_label = (
        after[HARMFUL] - scores()[HARMFUL],
        scores()[HARMFUL].groupby(bits.harmful).mean(),
    )
    shifts = change.groupby(bits.harmful).mean().abs() / (of_label[True] - of_label[False])
    assert found[UNMOVED] == pytest.approx(shifts.max())


def test_a_model_without_belief_meets_no_bar():
    """Centroids of the wrong classes: what is told apart is gone, and the checks say it."""
    one = bench()
    labels = one.fitted_harmful[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    blind = replace(one, fitted_harmful=labels)
    found = blind.scores(list(one.made.sets["report"]))
    checks = belief_checks(blind, found)
    assert checks[IN_QUADRANT] < 0.9
    # Both directions follow the same noise of the draw, or none.
    turned = replace(one, fitted_harmful=~one.fitted_harmful)
    checks = belief_checks(turned, turned.scores(list(one.made.sets["report"])))
    assert checks[IN_QUADRANT] == 0
    assert checks[SMALLEST] == pytest.approx(0.25, abs=0.03)
    assert checks[COSINE] < 0.3


def test_a_belief_that_is_gone_fails_its_bars(scored):
    table, checks = (scored.table(name) for name in TABLES)

    def not_met(changed_scores, changed_checks):
        bars = judge_bars(changed_scores, changed_checks, "beliefs").set_index("bar")
        always = judge_bars(table, checks, "beliefs").set_index("bar")["met"]
        return set(bars.index[always & ~bars["met"]])

    low = table.assign(lowest=table["lowest"].where(table["method"] != HARMFUL, 0.94))
    assert not_met(low, checks) == {
        "lowest of delta_harmful, all barred organisms",
        "lowest of delta_harmful, base",
    }
    for check, value in ((COSINE, 0.31), (MOVED, -0.49), (UNMOVED, 0.11), (SMALLEST, 0.1)):
        here = (checks["check"] == check) & (checks["organism"] == "base")
        assert not_met(table, checks.assign(value=checks["value"].mask(here, value))) == {check}
    flipped = checks["value"].mask(checks["check"] == SHORTCUT, 1 - checks["value"])
    assert not_met(table, checks.assign(value=flipped)) == {
        f"{SHORTCUT}, base",
        f"{SHORTCUT}, punctuation",
    }


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(InputError, match="no organism 'nope'; choose of base, punctuation"):
        score_beliefs(tmp_path / "a", only=["nope"])
    with pytest.raises(InputError, match="no method 'nope'; choose of delta_harmful"):
        score_beliefs(tmp_path / "b", methods=["nope"])


def test_the_command_prints_the_means_and_the_bars(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["organism", "score", "beliefs", "--seeds", "1", "--only", "base", "--out", str(out)]
    assert run(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lowest of delta_harmful, base: 1.000, needed at least 0.95: met" in text
    assert "NOT met" not in text
    assert isinstance(pd.read_parquet(next(out.rglob("organisms.checks*"))), pd.DataFrame)


def test_the_list_names_the_variants(capsys):
    assert run(["organism", "list"]) == 0
    text = capsys.readouterr().out
    # A narrow table breaks the long name.
    for name in ("builtin:two-", "punctuation", "topic-only"):
        assert name in text
