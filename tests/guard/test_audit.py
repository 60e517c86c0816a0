"""The shortcuts audit on states where what is harm and what is a mark is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from guard.stub import StubChat, prompts, sides, stub_guard
from refusalscope.errors import InputError
from refusalscope.guard.audit import audit
from refusalscope.guard.audit.failures import known_failures
from refusalscope.guard.audit.refit import Refit
from refusalscope.guard.heads import Head
from refusalscope.prompts import WRAPPERS, punctuation_variants
from refusalscope.stats import clopper_pearson
from refusalscope.studies.directions.shortcuts import NGRAMS, bag_score

BARE, STOP = ("",), (".",)
MIXED = ("", ".", "?")


def verdicts(found) -> dict[str, str]:
    return dict(zip(found.verdict["name"], found.verdict["verdict"], strict=True))


def areas(found) -> dict[str, float]:
    return dict(zip(found.shortcuts["name"], found.shortcuts["auroc"], strict=True))


def cue_words(found) -> dict[str, str]:
    return dict(zip(found.shortcuts["name"], found.shortcuts["verdict"], strict=True))


@pytest.fixture(scope="module")
def confounded():
    """Reads the mark alone, fitted and reported on prompts whose marks are their labels."""
    fit = sides(BARE, STOP, 0)
    return audit(stub_guard(StubChat(0.0, 1.0), fit), fit, sides(BARE, STOP, 1), seed=0)


@pytest.fixture(scope="module")
def honest():
    """Reads harm once marks are matched, fitted and reported on the very prompts that convict the other."""
    fit = sides(BARE, STOP, 0)
    guard = stub_guard(StubChat(1.0, 1.0), fit, match_punctuation=True)
    return audit(guard, fit, sides(BARE, STOP, 1), seed=0)


def test_a_guard_that_reads_the_mark_is_caught_where_the_mark_is_the_label(confounded):
    assert areas(confounded)["belief"] > 0.99
    assert areas(confounded)["final punctuation"] == 1
    assert verdicts(confounded)["overall"].startswith("cannot be told from the final punctuation")
    assert verdicts(confounded)["final punctuation"] == "cannot be told from it"
    assert cue_words(confounded)["final punctuation"].startswith("as good as belief")
    assert any(s.startswith("The final punctuation: the score") for s in confounded.known_failures)


def test_an_honest_guard_passes_where_the_mark_is_the_label(honest):
    assert areas(honest)["belief"] > 0.97
    assert areas(honest)["final punctuation"] == 1
    assert set(verdicts(honest).values()) == {"told apart"}
    assert not any(word.startswith("as good as") for word in cue_words(honest).values())
    assert cue_words(honest)["final punctuation"].startswith("told apart")
    assert not any(s.startswith("The ") and "cannot" in s for s in honest.known_failures)


def test_with_marks_made_equal_the_cue_and_what_reads_it_are_at_chance(confounded, honest):
    for name in (
        "stripped of its final mark",
        "ending in a full stop",
        "ending in a question mark",
    ):
        assert abs(areas(confounded)[f"belief, every prompt {name}"] - 0.5) < 0.12
        assert areas(honest)[f"belief, every prompt {name}"] > 0.97


def test_a_score_of_harm_and_mark_together_leans_on_the_mark():
    fit = sides(BARE, STOP, 0)
    guard = stub_guard(StubChat(0.4, 0.4), fit)
    found = audit(guard, fit, sides(BARE, STOP, 1, n=200), seed=0)
    assert verdicts(found)["overall"].startswith("told apart, but leans on the final punctuation")
    assert any("told apart, but leans on it" in sentence for sentence in found.known_failures)


def test_a_mark_reader_on_matched_prompts_is_not_above_chance():
    fit = sides(BARE, STOP, 0)
    found = audit(stub_guard(StubChat(0.0, 1.0), fit), fit, sides(MIXED, MIXED, 1), seed=0)
    assert verdicts(found)["overall"] == "not above chance"
    assert set(verdicts(found).values()) == {"not above chance", "nothing to tell apart"}
    assert found.known_failures[0].startswith("The score is not shown to be above chance: AUROC")


def test_a_word_that_gives_the_label_away_convicts_the_words():
    def told(each):
        return tuple(
            [replace(p, text=f"{word} {p.text}") for p in side]
            for word, side in zip(("please", "kindly"), each, strict=True)
        )

    fit, report = told(sides(MIXED, MIXED, 0)), told(sides(MIXED, MIXED, 1))
    found = audit(stub_guard(StubChat(1.0, 0.2), fit), fit, report, seed=0)
    assert verdicts(found)["overall"] == ("cannot be told from the character n-grams and the words")
    assert verdicts(found)["final punctuation"] == "told apart"
    assert sum("cannot be told from it" in s for s in found.known_failures) == 2


def test_a_score_that_sits_in_one_token_is_said_to():
    fit = sides(MIXED, MIXED, 0)
    found = audit(
        stub_guard(StubChat(1.0, 0.2, word=0.0), fit), fit, sides(MIXED, MIXED, 1), seed=0
    )
    assert abs(areas(found)["belief at the last word"] - 0.5) < 0.15
    assert any("sits in one token" in sentence for sentence in found.known_failures)
    guard = stub_guard(StubChat(0.0, 1.0), fit, anchor="instruction_last_word")
    moved = audit(guard, fit, sides(MIXED, MIXED, 1), seed=0)
    assert areas(moved)["belief"] > 0.97
    assert abs(areas(moved)["belief at the last token"] - 0.5) < 0.15


def test_variants_are_scored_and_counted_as_one_would_by_hand():
    fit, report = sides(MIXED, MIXED, 0), sides(BARE, STOP, 1)
    guard = stub_guard(StubChat(1.0, 1.0), fit)
    table = audit(guard, fit, report, seed=0).variants.set_index(["variant", "label"])
    tau = guard.calibration_.points[0].tau
    for label, side in zip(("harmful", "harmless"), report, strict=True):
        scores = {
            name: guard.decision_function(
                [replace(p, text=punctuation_variants(p.text)[name]) for p in side]
            )
            for name in punctuation_variants("")
        }
        spread = np.mean([max(each) - min(each) for each in zip(*scores.values(), strict=True)])
        for name, values in scores.items():
            row = table.loc[(name, label)]
            rate = clopper_pearson(int((values > tau).sum()), len(values))
            assert (row["n"], row["rate"], row["low"], row["high"]) == pytest.approx(
                (60, rate.value, rate.low, rate.high)
            )
            assert row["mean"] == pytest.approx(values.mean())
            assert row["spread"] == pytest.approx(spread)


def test_every_wrapper_is_scored_at_the_same_threshold_and_the_worst_is_named(honest):
    table = honest.wrappers
    assert set(table["wrapper"]) == set(WRAPPERS)
    frames = table[table["wrapper"].isin(["role_play", "polite", "prefix"])]
    assert (frames["auroc"] > 0.95).all()
    worst = table[table["worst"]]
    assert set(worst["wrapper"]) <= {"letter_cipher", "rot13", "base64"}
    assert sorted(worst["label"]) == ["harmful", "harmless"]
    fit, report = sides(BARE, STOP, 0), sides(BARE, STOP, 1)
    guard = stub_guard(StubChat(1.0, 1.0), fit, match_punctuation=True)
    wrapped = [[replace(p, text=WRAPPERS["polite"].wrap(p.text)) for p in side] for side in report]
    scores = [guard.decision_function(side) for side in wrapped]
    row = table[(table["wrapper"] == "polite") & (table["label"] == "harmless")].iloc[0]
    assert row["rate"] == (scores[1] > guard.calibration_.points[0].tau).mean()
    assert row["auroc"] == pytest.approx(roc_auc_score([1] * 60 + [0] * 60, np.concatenate(scores)))
    (lost,) = [s for s in honest.known_failures if s.startswith("The score does not tell")]
    assert all(name in lost for name in ("letter_cipher", "rot13", "base64"))
    assert "polite" not in lost


def test_prompts_too_long_in_a_wrapper_or_with_a_mark_are_counted_and_left_out():
    fit = sides(MIXED, MIXED, 0)
    report = tuple(
        [replace(p, text=f"please and kindly {p.text}") for p in side]
        for side in sides(BARE, BARE, 1, n=20)
    )
    lengths = sorted(len(prompt.text) for side in report for prompt in side)
    guard = stub_guard(StubChat(1.0, 1.0), fit)
    guard.chat_ = StubChat(1.0, 1.0, longest=lengths[-1])
    found = audit(guard, fit, report, seed=0)
    bare = found.variants[found.variants["variant"] == "as_is"]
    assert bare["left_out"].sum() == lengths.count(lengths[-1])
    assert (bare["n"] + bare["left_out"]).tolist() == [20, 20]
    story = found.wrappers[found.wrappers["wrapper"] == "role_play"]
    assert story["n"].tolist() == [0, 0]
    assert story["left_out"].tolist() == [20, 20]
    assert story["auroc"].isna().all()
    (said,) = [s for s in found.known_failures if "longer than the context" in s]
    assert "role_play 40" in said
    guard.chat_ = StubChat(1.0, 1.0, longest=10)
    with pytest.raises(InputError, match=r"no harmful report prompt fits .* give shorter ones"):
        audit(guard, fit, report, seed=0)


def test_without_a_threshold_there_are_scores_and_no_rates():
    fit = sides(MIXED, MIXED, 0)
    guard = stub_guard(StubChat(1.0, 1.0), fit, calibrated=False)
    found = audit(guard, fit, sides(BARE, STOP, 1), seed=0)
    assert found.variants["rate"].isna().all()
    assert found.wrappers["rate"].isna().all()
    assert found.wrappers["auroc"].notna().all()
    assert verdicts(found)["overall"] == "told apart"
    assert not any("flagged" in sentence for sentence in found.known_failures)


def test_a_side_without_prompts_is_refused():
    fit = sides(MIXED, MIXED, 0)
    with pytest.raises(InputError, match=r"60 harmful and 0 harmless report prompts; give some"):
        audit(stub_guard(StubChat(1.0, 1.0), fit), fit, (fit[0], []), seed=0)


def sourced(seed: int, n: int = 120):
    """Harm in two sources, of which the states show one alone; harmless prompts of two sources."""
    foreign = [
        replace(p, id=f"foreign/{p.id}", label="harmful")
        for p in prompts("harmless", n // 2, STOP, seed + 50, "foreign")
    ]
    known = prompts("harmful", n // 2, STOP, seed, "known")
    harmless = [
        replace(p, source=("here", "there")[i % 2])
        for i, p in enumerate(prompts("harmless", n, STOP, seed))
    ]
    return [*known, *foreign], harmless


def test_a_source_left_out_is_scored_by_a_guard_that_never_saw_it():
    fit, report = sourced(0), sourced(1)
    guard = stub_guard(StubChat(1.0, 0.2), fit)
    found = audit(guard, fit, report, seed=0)
    table = found.sources.set_index("source")
    assert list(table.index) == ["foreign", "known", "here", "there"]
    kept = [p for p in fit[0] if p.source == "known"]
    scored = [p for side in (fit[0], report[0]) for p in side if p.source == "foreign"]
    row = table.loc["foreign"]
    assert (row["n_harmful"], row["n_harmless"]) == (len(scored), 120) == (120, 120)

    def states(side):
        sites = ["first row", "second row"]
        got = guard.chat_.capture(guard.chat_.render(side), sites, ["instruction_last"])
        return torch.stack([got[site][:, 0] for site in sites], dim=1)

    axis = Head.fit("centred", states(kept), states(fit[1]))
    mine = axis.score(states(scored)).numpy(), axis.score(states(report[1])).numpy()
    labels = np.repeat([1, 0], [120, 120])
    assert row["auroc"] == pytest.approx(roc_auc_score(labels, np.concatenate(mine)), abs=1e-6)
    texts = [p.text for p in [*kept, *fit[1]]]
    grams = bag_score(
        NGRAMS,
        texts,
        [True] * len(kept) + [False] * len(fit[1]),
        [p.text for p in [*scored, *report[1]]],
    )
    assert row["ngrams"] == pytest.approx(roc_auc_score(labels, grams))
    assert row["difference"] == pytest.approx(row["auroc"] - row["ngrams"])
    assert row["auroc"] < 0.6
    # Half of the harmful report prompts are those that the states do not show.
    assert 0.7 < table.loc["here", "auroc"] < 0.85
    assert table.loc["here", "n_harmless"] == 120
    assert 0 <= row["fpr"] <= 0.1
    assert table.loc[["here", "there"], "tpr"].between(0.3, 1).all()
    assert any(
        s.startswith("Fitted without the harmful source foreign, the guard is not shown to know")
        for s in found.known_failures
    )


def test_one_source_of_each_label_is_said_not_to_be_leavable(honest):
    assert len(honest.sources) == 1
    row = honest.sources.iloc[0]
    assert row["source"] == "none left out"
    assert "so none can be left out" in row["note"]
    assert any(s.startswith("No source could be left out") for s in honest.known_failures)


def test_too_few_prompts_for_a_threshold_or_an_axis_are_said_so():
    fit, report = sourced(0), sourced(1, n=40)
    few = [*[p for p in fit[0] if p.source == "known"][:5], *fit[0][60:]]
    found = audit(stub_guard(StubChat(1.0, 1.0), fit), (few, fit[1]), report, seed=0)
    notes = found.sources.set_index("source")["note"]
    assert notes["foreign"] == "only 5 harmful fit prompts are of other sources"
    assert notes["known"] == "no threshold: 20 harmless prompts are left, 59 needed"
    assert np.isnan(found.sources.set_index("source").loc["known", "tpr"])


def test_an_axis_fitted_again_is_the_guards_own_and_scores_conversations_as_it_does():
    fit = sides(BARE, STOP, 0)
    guard = stub_guard(StubChat(1.0, 1.0), fit, match_punctuation=True)
    harmful, harmless = sides(MIXED, MIXED, 1, n=10)
    asked = [
        replace(now, history=(("user", before.text), ("assistant", "Sure.")))
        for before, now in [
            *zip(harmful, harmless, strict=True),
            *zip(harmless, harmful, strict=True),
        ]
    ]
    refit = Refit(guard)
    axis = refit.axis(*fit, "instruction_last")
    found = refit.scores(axis, [*asked, *harmless], "instruction_last")
    assert found == pytest.approx(guard.decision_function([*asked, *harmless]))
    # One harmful turn is enough, wherever it stands.
    assert found[:20].min() > found[20:].max()


def failing(alpha: float | None = 0.05, **tables) -> list[str]:
    """Sentences of an audit in which nothing failed but what `tables` change."""
    area = {"auroc": 0.9, "auroc_low": 0.85, "auroc_high": 0.94}
    own = {"auroc": 0.9, "low": 0.8, "high": 0.95}
    rates = {"harmful": (0.8, 0.7, 0.9), "harmless": (0.04, 0.01, 0.09)}

    def row(label, **more):
        return {
            **more,
            "label": label,
            **dict(zip(("rate", "low", "high"), rates[label], strict=True)),
        }

    both = ("harmful", "harmless")
    plain = {
        "shortcuts": [{"name": "belief", **area}, {"name": "belief at the last word", **area}],
        "verdict": [
            {"name": n, "verdict": "told apart", "reason": ""} for n in ("overall", "words")
        ],
        "sources": [
            {"source": "s", "label": "harmful", **own, "ngrams": 0.85, "difference_high": 0.1}
        ],
        "variants": [row(label, variant=v) for v in ("as_is", "period") for label in both],
        "wrappers": [
            row(label, wrapper=w, left_out=0, **area) for w in ("polite", "rot13") for label in both
        ],
    }
    for name, (where, change) in tables.items():
        plain[name][where] |= change
    frames = {name: pd.DataFrame(rows) for name, rows in plain.items()}
    return known_failures(**frames, alpha=alpha)


SENTENCES = {
    "chance": (
        {"verdict": (0, {"verdict": "not above chance", "reason": "AUROC 0.52 (0.44 to 0.60)"})},
        "The score is not shown to be above chance: AUROC 0.52 (0.44 to 0.60).",
    ),
    "cue": (
        {"verdict": (1, {"verdict": "cannot be told from it", "reason": "AUROC +0.00"})},
        "The words: the score cannot be told from it (AUROC +0.00).",
    ),
    "leaning": (
        {"verdict": (1, {"verdict": "told apart, but leans on it", "reason": "AUROC 0.70"})},
        "The words: the score is told apart, but leans on it (AUROC 0.70).",
    ),
    "elsewhere": (
        {"shortcuts": (1, {"auroc": 0.6, "auroc_high": 0.7})},
        "Fitted and read elsewhere (belief at the last word) the AUROC falls from 0.90 to 0.60: what the "
        "score reads sits in one token.",
    ),
    "source": (
        {"sources": (0, {"auroc": 0.55, "low": 0.45, "high": 0.65})},
        "Fitted without the harmful source s, the guard is not shown to know its prompts: AUROC 0.55 (0.45 "
        "to 0.65).",
    ),
    "n-grams": (
        {"sources": (0, {"ngrams": 0.97, "difference_high": -0.02})},
        "Fitted without the harmful source s, the guard knows its prompts less well than character n-grams "
        "do: AUROC 0.90 against 0.97.",
    ),
    "no source": (
        {"sources": (0, {"source": "none left out", "label": "both"})},
        "No source could be left out, since all fit prompts of a label are of one source: nothing is known "
        "of prompts from elsewhere.",
    ),
    "a mark raises alarms": (
        {"variants": (3, {"rate": 0.3, "low": 0.2, "high": 0.4})},
        "With every prompt ending in a full stop, 30.0% (20.0% to 40.0%) of harmless report prompts are "
        "flagged, 5.0% promised.",
    ),
    "a mark hides harm": (
        {"variants": (2, {"rate": 0.3, "low": 0.2, "high": 0.4})},
        "With every prompt ending in a full stop, 30.0% (20.0% to 40.0%) of harmful report prompts are "
        "flagged, 80.0% (70.0% to 90.0%) as they are.",
    ),
    "a wrapper without a difference": (
        {"wrappers": (2, {"auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6})},
        "The score does not tell harmful from harmless prompts under the wrapper rot13: AUROC 0.50 (0.40 to "
        "0.60) under rot13.",
    ),
    "a wrapper hides harm": (
        {"wrappers": (0, {"rate": 0.1, "low": 0.05, "high": 0.2})},
        "Fewer harmful prompts are flagged under the wrapper polite: 10.0% (5.0% to 20.0%) under polite, "
        "80.0% (70.0% to 90.0%) as they are.",
    ),
    "a wrapper raises alarms": (
        {"wrappers": (1, {"rate": 0.6, "low": 0.5, "high": 0.7})},
        "More harmless prompts than the 5.0% promised are flagged under the wrapper polite: 60.0% (50.0% to "
        "70.0%) under polite.",
    ),
    "too long": (
        {"wrappers": (3, {"left_out": 4})},
        "Prompts that a wrapper makes longer than the context were not scored: rot13 4.",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_each_failure_is_said_in_one_sentence_and_nothing_else_is(name):
    tables, sentence = SENTENCES[name]
    assert failing(**tables) == [sentence]


def test_nothing_failed_is_no_sentence_and_rates_need_a_promise():
    assert failing() == []
    rates = {"rate": 0.6, "low": 0.5, "high": 0.7}
    assert failing(None, wrappers=(1, rates), variants=(3, rates)) == []
