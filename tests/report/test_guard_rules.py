"""What the verdict says of a guard, and what it warns of."""

from __future__ import annotations

import pandas as pd
import pytest

from refusalscope.guard import drift as drift_module
from refusalscope.guard.audit import verdict as audit_verdict
from refusalscope.report import guard_shortcuts
from refusalscope.report.guard_beside import beside, wrapped
from refusalscope.report.guard_moved import moved
from refusalscope.report.guard_rules import flags
from refusalscope.report.guard_shortcuts import shortcut_word, told
from refusalscope.report.guard_worries import guard_worries
from refusalscope.report.numbers import NBSP
from refusalscope.report.sections.guard_drift import MOVED, WATCHED
from refusalscope.report.verdict import headline, verdict
from refusalscope.stats import clopper_pearson
from report.fake_guard import GuardTables, fake_guard_tables


def words(text: str) -> str:
    return text.replace(NBSP, " ")


def changed(name: str, where: str = "index >= 0", **values: object) -> GuardTables:
    """A run in which the rows of a table that a query finds have other values."""
    table = fake_guard_tables()[f"guard.{name}"]
    rows = table.query(where).index
    assert len(rows)
    for column, value in values.items():
        table[column] = table[column].astype(object)
        table.loc[rows, column] = value
    return GuardTables(**{name: table})


def without(*names: str) -> GuardTables:
    run = GuardTables()
    for name in names:
        del run.held[f"guard.{name}"]
    return run


def worry(run: GuardTables) -> str:
    return words("; ".join(concern.text for concern in guard_worries(run)))


def test_the_verdict_says_how_well_at_which_rate_and_whether_it_can_be_told_from_shortcuts():
    statements = verdict(GuardTables())
    report = fake_guard_tables()["guard.points"].query("set == 'report'").iloc[0]
    text = words(" ".join(statement.text for statement in statements))
    for part in (
        f"flags {100 * report['tpr']:.0f} % (95 % interval",
        "of 160 harmful prompts",
        "of 160 harmless ones at fpr=0.05, which promises FPR ≤ 0.05 at confidence 0.95",
        "AUROC 0.981",
        "The score is told apart (AUROC 0.97",
        "The lowest AUROC of 3 wrappers, picked for being the lowest, is 0.569 under cipher rot13",
        "more harmful prompts than text guard 8B",
        "p < 0.001, corrected",
    ):
        assert part in text
    assert words(headline(statements)).startswith(
        "It flags most harmful prompts: 86 % at 2 % false"
    )
    assert "it can be told from its shortcuts" in headline(statements)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.85, 0.95, "reliably"),
        (0.55, 0.7, "flags most"),
        (0.1, 0.3, "seldom"),
        (0.4, 0.6, "about half"),
    ],
)
def test_the_word_for_the_share_flagged_comes_from_its_interval(low, high, word):
    run = changed("points", "set == 'report'", tpr_low=low, tpr_high=high)
    assert word in flags(run).text


@pytest.mark.parametrize(
    ("low", "high", "said", "tone"),
    [
        (0.06, 0.2, "is not kept here", "bad"),
        (0.0, 0.04, "is kept here", "watch"),
        (0.01, 0.1, "confidence 0.95; AUROC", "watch"),
    ],
)
def test_a_promise_is_broken_kept_or_open_by_the_interval(low, high, said, tone):
    run = changed("points", "set == 'report'", fpr_low=low, fpr_high=high)
    assert said in flags(run).text
    assert flags(run).tone == tone
    assert ("unlike those of calibration" in worry(run)) == (low > 0.05)


def conformal(flagged: int, n_calibration: object = 60) -> GuardTables:
    """A point of the rule conformal that flags so many of 160 new prompts, at 5 % promised."""
    rate = clopper_pearson(flagged, 160)
    table = fake_guard_tables()["guard.points"].assign(rule="conformal")
    new = table["set"] == "report"
    table.loc[new, ["fpr", "fpr_low", "fpr_high"]] = [rate.value, rate.low, rate.high]
    table["n_harmless"] = table["n_harmless"].astype(object)
    table.loc[~new, "n_harmless"] = n_calibration
    return GuardTables(points=table[table["name"] == "fpr=0.05"])


@pytest.mark.parametrize(
    ("flagged", "n_calibration", "said", "broken"),
    [
        # 9 % of 160 lies above 5 %, and one calibration in twelve of 60 prompts does so.
        (15, 60, "is exceeded here by no more than chance of calibration explains", False),
        (15, 5000, "is not kept here", True),
        (40, 60, "is not kept here", True),
        (2, 60, "is kept here", False),
        (15, None, "", False),
        (15, 3, "", False),
    ],
)
def test_a_promise_on_average_is_broken_only_beyond_the_spread_of_calibrations(
    flagged, n_calibration, said, broken
):
    run = conformal(flagged, n_calibration)
    assert said in words(flags(run).text)
    assert ("kept here" in flags(run).text or "exceeded here" in flags(run).text) == bool(said)
    assert (flags(run).tone == "bad") == broken
    assert ("or the calibration was unlucky" in worry(run)) == broken


def test_a_probability_that_is_flat_is_said_to_say_nothing():
    assert "says nothing here" not in worry(GuardTables())
    said = "the probability of harm says nothing here: it is 48 % (47 to 49 %) at the lowest score"
    run = changed("scores", p_harmful=0.48, p_low=0.47, p_high=0.49)
    assert f"{said} and 48 % (47 to 49 %) at the highest" in worry(run)
    # A curve that rises, of which a flat one lies within the intervals too.
    scores = fake_guard_tables("score")["guard.scores"]
    place = scores["delta_harmful"].rank(pct=True)
    p = 0.3 + 0.4 * place
    wide = scores.assign(p_harmful=p, p_low=p - 0.25, p_high=p + 0.25)
    assert "says nothing here" in worry(GuardTables({"guard.scores": wide}, "score"))
    narrow = scores.assign(p_harmful=p, p_low=p - 0.15, p_high=p + 0.15)
    assert "says nothing here" not in worry(GuardTables({"guard.scores": narrow}, "score"))


def test_prompts_that_may_be_alike_are_not_asked_to_differ_in_probability():
    flat = fake_guard_tables("score")["guard.scores"].assign(p_harmful=0.9, p_low=0.8, p_high=0.95)
    for kept, told_apart in (
        (flat.assign(label=None), True),
        (flat.assign(label=None, flagged=False), False),
        (flat[flat["label"] == "harmful"].assign(flagged=True), False),
        (flat.iloc[[0, -1]], False),
    ):
        run = GuardTables({"guard.scores": kept}, "score")
        assert ("says nothing here" in worry(run)) == told_apart


def test_another_guard_is_better_or_worse_by_the_corrected_p():
    run = changed("against", p=0.02, p_adjusted=0.06, difference=-0.1)
    assert "as far as was shown" in beside(run).text
    assert beside(run).tone == "plain"
    run = changed("against", p=0.02, p_adjusted=0.04, difference=-0.1)
    assert "fewer harmful prompts than" in beside(run).text
    assert "p = 0.040, corrected" in beside(run).text
    assert beside(run).tone == "watch"


def test_too_few_prompts_earn_no_word_and_are_named():
    run = changed("points", "set == 'report'", n_harmful=19)
    assert flags(run).short == ""
    assert "Too few prompts" in flags(run).text
    assert "only 19 harmful prompts were scored" in worry(run)


@pytest.mark.parametrize(
    ("word", "short", "tone"),
    [
        (audit_verdict.APART, "it can be told from its shortcuts", "good"),
        (f"{audit_verdict.APART}, but leans on the final mark", "it leans on a shortcut", "watch"),
        ("cannot be told from the words", "it cannot be told from its shortcuts", "bad"),
        (audit_verdict.CHANCE, "it is not above chance", "bad"),
    ],
)
def test_the_words_of_the_audit_become_a_headline(word, short, tone):
    run = changed("verdict", "name == 'overall'", verdict=word)
    statement = told(run)
    assert (statement.short, statement.tone) == (short, tone)
    assert word in statement.text
    assert bool("shortcuts" in worry(run) or "leans" in worry(run) or "chance" in worry(run)) == (
        tone != "good"
    )


def test_the_words_are_those_that_the_audit_and_drift_write():
    assert audit_verdict.APART == guard_shortcuts.APART
    assert guard_shortcuts.LEANS in audit_verdict.LEANS
    assert audit_verdict.CANNOT.startswith(guard_shortcuts.CANNOT)
    assert audit_verdict.CHANCE == guard_shortcuts.CHANCE_ITSELF
    assert (WATCHED, MOVED) == (
        drift_module.PSI_WATCH,
        drift_module.PSI_DRIFTED,
    )


def test_without_a_verdict_the_cues_speak():
    run = changed("shortcuts", "name == 'words'", verdict="as good as belief: words do it")
    del run.held["guard.verdict"]
    assert shortcut_word(run) == ("cannot be told from words", "", "cannot be told from")
    assert "cannot be told from its shortcuts (words)" in worry(run)
    assert shortcut_word(without("verdict"))[0] == "told apart"
    assert shortcut_word(without("verdict", "shortcuts")) == ("", "", "")
    assert "nothing stands beside the score" in worry(without("verdict", "shortcuts"))


def test_a_wrapper_that_leaves_chance_is_grave():
    run = changed("wrappers", "worst", auroc_low=0.45)
    assert wrapped(run).tone == "bad"
    assert "chance under cipher rot13" in wrapped(run).short
    said = "under the wrapper cipher rot13, the lowest of 3, the AUROC falls from 0.981 to 0.569"
    assert said in worry(run)
    run = changed("wrappers", "worst", auroc_high=0.99)
    assert "under the wrapper" not in worry(run)


def test_few_negatives_are_named_with_the_number_needed():
    assert (
        "160 harmless prompts are too few to check a false-positive rate of 1 %, for which 300 are"
        in (worry(GuardTables()))
    )
    run = changed("points", "set == 'report'", n_harmless=300)
    assert "too few to check" not in worry(run)


def test_marks_that_differ_between_the_labels_are_named():
    run = changed("scores", "label == 'harmful'", final_mark="period")
    assert "100 % of harmful and 34 % of harmless prompts end in 'period'" in worry(run)
    assert "unmatched" not in worry(GuardTables())


def test_a_mark_that_moves_the_flags_is_named_only_where_intervals_part():
    run = changed(
        "variants", "label == 'harmless' and variant == 'question'", rate=0.4, low=0.3, high=0.5
    )
    assert "flags on harmless prompts from 2 % (period) to 40 % (question)" in worry(run)
    assert "another final mark" not in worry(GuardTables())


def test_a_source_that_is_not_known_from_outside_is_named():
    run = changed("sources", "source == 'advice'", auroc=0.55, low=0.45, high=0.65)
    assert "was not shown to know advice at all (AUROC 0.550" in worry(run)


def test_abstentions_and_a_missing_axis_are_named():
    run = changed("scores", abstain=True, delta_refuse=float("nan"))
    assert "abstains on 320 of 320 prompts" in worry(run)
    assert "has no refusal axis" in worry(run)
    assert "abstains" not in worry(GuardTables())


def test_a_guard_without_thresholds_says_that_it_flags_nothing():
    run = without("points", "rates")
    run.held["guard.scores"]["flagged"] = None
    assert "not calibrated" in flags(run).text
    assert "has scores and no threshold" in worry(run)


def test_own_examples_that_raise_false_alarms_are_named():
    run = changed(
        "augmented", "label == 'harmless' and when == 'after'", flagged=0.2, low=0.15, high=0.26
    )
    assert "20 % of harmless prompts are flagged, 4 % before" in worry(run)


def test_drift_is_said_with_its_gravest_measures_and_steady_only_where_all_is():
    run = GuardTables(kind="drift")
    assert "drifted" in moved(run).text
    assert moved(run).tone == "bad"
    table = run.held["guard.drift"].assign(verdict="steady")
    assert moved(GuardTables({"guard.drift": table}, "drift")).short == "no drift was found"
    table = pd.DataFrame(table.assign(verdict="not measured: per_layer was not kept"))
    assert "Nothing of the log could be compared" in (
        moved(GuardTables({"guard.drift": table}, "drift")).text
    )
