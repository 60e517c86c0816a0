"""What the verdict says of a cliff run and of a repair, and what it warns of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from refusalscope.report.cliff_rules import drops_at, falls, pushers, restores
from refusalscope.report.cliff_tables import COMPLIED, HARMLESS
from refusalscope.report.cliff_worries import (
    batch_rescaled,
    benign_falls,
    benign_refused,
    broken,
    cliff_worries,
    few_traces,
    final_auroc,
    nothing_falls,
    published_statics,
    ranked_statics,
    thinking_changed,
    uncalibrated,
    unsaid,
    weak_probe,
)
from refusalscope.report.numbers import NBSP
from refusalscope.report.repair_rules import better, costs, ranked, returns
from refusalscope.report.repair_tables import RESTORED, before
from refusalscope.report.repair_worries import (
    alone,
    few,
    few_rows,
    moved,
    repair_worries,
    risen,
)
from refusalscope.report.repair_worries import (
    broken as repair_broken,
)
from refusalscope.report.verdict import headline, verdict
from refusalscope.runs import open_run
from refusalscope.stats import wilson
from report.fake_cliff import CliffTables
from report.fake_repair import SETTINGS, fake_repair_tables


def words(text: str) -> str:
    return text.replace(NBSP, " ")


def with_verdict(**rows: dict[str, float] | str) -> CliffTables:
    """A run whose verdict has other numbers; `word` and `reason` are texts of all rows."""
    run = CliffTables()
    table = run.held["cliff.verdict"].copy()
    table = table.assign(n=table["n"].astype(float))
    for name, values in rows.items():
        if name in ("verdict", "reason"):
            table[name] = values
            continue
        mine = table["name"] == name.replace("_", " ")
        assert mine.any()
        for column, value in values.items():
            table.loc[mine, column] = value
    run.held["cliff.verdict"] = table
    return run


def with_arms(arm: str, group: str, name: str = "cliff.ablation", **values: float) -> CliffTables:
    run = CliffTables()
    table = run.held[name].copy()
    for column, value in values.items():
        table[column] = table[column].astype(float)
        table.loc[(table["arm"] == arm) & (table["group"] == group), column] = value
    run.held[name] = table
    return run


def repair(**tables: pd.DataFrame) -> CliffTables:
    held = fake_repair_tables()
    held |= {f"repair.{name}": table for name, table in tables.items()}
    return CliffTables(held, "repair", **SETTINGS)


def with_effect(quantity: str, **values: float) -> CliffTables:
    table = fake_repair_tables()["repair.effects"]
    mine = (table["quantity"] == quantity) & (table["selection"] == "ms_p90")
    for column, value in values.items():
        table[column] = table[column].astype(float)
        table.loc[mine, column] = value
    return repair(effects=table)


def test_the_verdict_says_cliff_token_heads_and_what_removing_them_restores(cliff_run: Path):
    statements = verdict(open_run(cliff_run))
    text = words(" ".join(statement.text for statement in statements))
    for part in (
        "The refusal falls off a cliff where the thinking ends: 95 % (95 % interval 84 to 99 %) of 40 ",
        "harmful traces that were complied with drop by more than 0.2 at the closing tokens, against 2 % ",
        "(95 % interval 0 to 10 %) of 50 benign traces; against probes of nothing p = 0.024",
        "closing[1] drops it: there the score falls by 0.75 on average (95 % interval 0.72 to 0.78), in benign "
        "traces by 0.0",
        "further falls of 0.07 at closing[0] and 0.04 at closing[2]",
        "3 heads of 48 suppress refusal at the closing tokens: L4.H1, L6.H3 and L5.H5, the strongest by "
        "\u22121.400 logits",
        "1 promote it and 1 write the same in benign traces",
        "Removing 5 heads (10 % of all, of 3 shares tried) restores 90 % of the lost refusals",
        "n = 40), against 0 to 2 % with random heads (20 draws; p = 0.048)",
        "of benign prompts 2 % (95 % interval 0.4 to 10 %) are then refused",
        "of the judged replies 85 % (95 % interval 71 to 93 %) refuse",
        "No rule of this report found a further concern",
    ):
        assert part in text
    assert all(statement.text.count(". ") == 0 for statement in statements)
    assert words(headline(statements)) == (
        "The refusal falls off a cliff where the thinking ends; 3 heads push it; removing heads restores 90 % "
        "of lost refusals"
    )


@pytest.mark.parametrize(
    ("name", "opening", "tone"),
    [
        ("cliff", "The refusal falls off a cliff", "bad"),
        (
            "template shift",
            "The score shifts with the template, which is no loss of refusal (why)",
            "plain",
        ),
        ("slope", "The refusal fades within the thinking rather than at its end (why)", "watch"),
        ("no cliff", "The refusal does not fall where the thinking ends", "good"),
        (
            "undecided",
            "Whether the refusal falls where the thinking ends is undecided (why)",
            "watch",
        ),
        ("", "Whether the refusal falls where the thinking ends is undecided (why)", "watch"),
    ],
)
def test_each_word_of_the_study_has_its_sentence(name: str, opening: str, tone: str):
    said = falls(with_verdict(verdict=name, reason="why."))
    assert said.text.startswith(opening)
    assert said.tone == tone
    assert ("shift" in said.short) == (name == "template shift")


@pytest.mark.parametrize("row", ["share", "benign_share"])
def test_too_few_traces_earn_no_word(row: str):
    run = with_verdict(**{row: {"n": 19}})
    said = falls(run)
    assert said.text.startswith("Too few traces to say")
    assert said.short == ""
    assert "only 19" in few_traces(run).text


def test_no_token_is_named_where_no_fall_was_shown():
    assert drops_at(with_verdict(drop={"low": -0.01})) is None
    run = CliffTables()
    table = run.held["cliff.verdict"].copy()
    table.loc[table["name"] == "at closing[1]", "low"] = -0.1
    run.held["cliff.verdict"] = table
    assert drops_at(run).text.startswith("closing[0] drops it")


def test_heads_without_a_suppressor_are_said_to_have_none():
    run = CliffTables()
    run.held["cliff.heads"] = run.held["cliff.heads"].assign(role="")
    assert pushers(run).text.startswith("No head of 48 was shown to suppress refusal")


@pytest.mark.parametrize(("column", "value"), [("p_random", 0.2), ("restored_low", 0.0)])
def test_a_removal_counts_only_beyond_random_heads(column: str, value: float):
    said = restores(with_arms("top", COMPLIED, **{column: value}))
    assert said.short == ""
    assert said.text.endswith("it was not shown to restore more than random heads.")
    assert restores(CliffTables()).short


def test_the_final_score_is_judged_as_the_words_are():
    prompts = CliffTables().held["cliff.prompts"]
    assert final_auroc(CliffTables()).value == roc_auc_score(prompts["refused"], prompts["final"])


@pytest.mark.parametrize(
    ("words_auroc", "high", "worried"), [(0.81, 0.88, False), (1.0, 1.0, True)]
)
def test_a_probe_no_better_than_words_is_a_worry(words_auroc: float, high: float, worried: bool):
    run = CliffTables()
    probes = run.held["cliff.probes"].assign(words_auroc=words_auroc, words_high=high)
    run.held["cliff.probes"] = probes
    assert (weak_probe(run) is not None) == worried


def test_a_noisy_probe_is_weighed_by_its_interval():
    run = CliffTables()
    prompts = run.held["cliff.prompts"]
    rng = np.random.default_rng(0)
    run.held["cliff.prompts"] = prompts.assign(final=rng.random(len(prompts)))
    assert weak_probe(run).tone == "bad"


def test_benign_falls_and_probes_of_nothing_are_worries():
    assert benign_falls(CliffTables()) is None
    assert "40 % of 50" in words(
        benign_falls(with_verdict(benign_share={"value": 0.4, "low": 0.27})).text
    )
    assert nothing_falls(CliffTables()) is None
    chance = "p against probes of nothing"
    for value, said in ((0.2, "fall as far (p = 0.200)"), (np.nan, "no probes of nothing")):
        run = CliffTables()
        table = run.held["cliff.verdict"].copy()
        table.loc[table["name"] == chance, "value"] = value
        run.held["cliff.verdict"] = table
        assert said in nothing_falls(run).text


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (uncalibrated, {"probe": "published"}),
        (batch_rescaled, {"renorm": "official_batch"}),
        (thinking_changed, {"where": "all"}),
    ],
)
def test_choices_of_the_published_method_are_worries(rule, settings: dict[str, str]):
    assert rule(CliffTables()) is None
    assert rule(CliffTables(**settings)) is not None


def test_static_heads_among_those_removed_are_named_only_where_the_score_is_as_published():
    assert ranked_statics(CliffTables()) == ["L3.H0"]
    assert published_statics(CliffTables()) is None
    said = published_statics(CliffTables(rank_heads="published"))
    assert "ranks L3.H0 among the suppressors" in said.text
    run = CliffTables(rank_heads="published")
    arms = run.held["cliff.ablation"]
    run.held["cliff.ablation"] = arms[arms["n_heads"] < 3]
    assert published_statics(run) is None


def test_what_removing_heads_breaks_is_a_worry():
    assert broken(CliffTables()) is None
    assert broken(with_arms("top", HARMLESS, "cliff.behaviour", degenerate=0.4)) is not None
    assert benign_refused(CliffTables()) is None
    run = with_arms("top", HARMLESS, rate=0.6, low=0.46, high=0.72)
    assert "60 % of benign prompts" in words(benign_refused(run).text)
    assert unsaid(CliffTables()) is None
    run = with_arms("top", COMPLIED, "cliff.behaviour", rate=0.1, low=0.04, high=0.23)
    assert "the judged replies 10 %" in words(unsaid(run).text)


def test_no_worry_stands_over_a_sound_run_and_none_is_said_of_an_audit():
    assert cliff_worries(CliffTables()) == []
    assert cliff_worries(repair()) == []
    assert repair_worries(repair()) == []
    assert repair_worries(CliffTables()) == []


def test_the_verdict_on_a_repair_says_what_returns_what_it_costs_and_whether_ranking_matters():
    text = words(" ".join(statement.text for statement in verdict(repair())))
    for part in (
        "The repair brings refusal back: of 40 held-out prompts that had lost their refusal, the model "
        "fine-tuned on the selection ms_p90 refuses 90 %",
        "0 % before; their cliff goes from 0.85 to 0.1",
        "No cost in refusals was shown: harmless prompts are refused in 5 %",
        "The ranking by ms_p90 matters: 40 % more lost refusals return than with random",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("low", "change_low", "short"),
    [
        (0.6, 0.5, "the repair brings refusal back"),
        (0.3, 0.2, "the repair brings part of the refusal back"),
        (0.6, -0.1, "the repair was not shown to bring refusal back"),
        (np.nan, np.nan, "the repair was not shown to bring refusal back"),
    ],
)
def test_a_repair_counts_by_its_interval(low: float, change_low: float, short: str):
    assert returns(with_effect(RESTORED, low=low, change_low=change_low)).short == short


def test_costs_and_comparisons_are_read_off_paired_intervals():
    run = with_effect("over-refusal", change_low=0.01, p=0.01)
    assert costs(run).short == "it costs over-refusal"
    assert costs(with_effect("over-refusal", change_low=0.01, p=0.25)).short == ""
    run = with_effect("refusal of other harmful", change_high=-0.01, p=0.01)
    assert costs(run).short == "it costs lost refusals elsewhere"
    assert "was not shown to do more" in better(with_effect(RESTORED, beats_low=-0.1)).text
    assert "does less" in better(with_effect(RESTORED, beats_low=-0.3, beats_high=-0.1)).text
    assert better(with_effect(RESTORED, beats=np.nan)) is None
    assert returns(with_effect(RESTORED, n=19)).short == ""
    assert better(with_effect(RESTORED, n=19)).text.startswith("Too few")


def test_before_has_the_interval_of_its_prompts_or_none():
    found = before(repair(), RESTORED)
    assert (found.low, found.high) == (wilson(0, 40).low, wilson(0, 40).high)
    tables = fake_repair_tables()
    del tables["repair.prompts"]
    bare = before(CliffTables(tables, "repair", **SETTINGS), RESTORED)
    assert bare.value == 0
    assert np.isnan(bare.low)


def test_a_ranking_alone_is_counted():
    chosen = fake_repair_tables()["repair.selection"].query("selection == 'ms_p90'")
    run = CliffTables({"repair.selection": chosen}, "cliff rank")
    assert "40 rows of the pool chosen by ms_p90, from 4 categories" in ranked(run).text


def test_what_makes_a_repair_doubtful_is_a_worry():
    tables = fake_repair_tables()
    prompts, losses = tables["repair.prompts"], tables["repair.losses"]
    assert repair_broken(prompts.assign(degenerate=prompts["selection"] == "random")).tone == "bad"
    assert repair_broken(prompts.assign(degenerate=prompts["selection"] == "before")) is None
    assert moved(with_effect("KL on harmless replies", low=0.2)) is not None
    held = losses["validation_loss"].where(losses["step"] < 30, 2.0)
    assert "ms_p90 and random" in risen(losses.assign(validation_loss=held)).text
    assert few(with_effect(RESTORED, n=7)).text.startswith("only 7 held-out prompts")
    assert (
        alone(repair(effects=tables["repair.effects"].query("selection == 'ms_p90'"))) is not None
    )
    chosen = tables["repair.selection"]
    assert "ms_p90 40 and random 10" in few_rows(chosen.drop(chosen.index[50:])).text
