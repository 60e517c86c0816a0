"""The guard on models whose two beliefs were planted: both bits found, the confounded one caught."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from refusalscope.guard.audit import audit
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.heads import VARIANTS
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build_two_beliefs, refuse_finetuned
from refusalscope.prompts import PromptSet

# The organisms are trained on demand and held by the process.
pytestmark = pytest.mark.xdist_group("two-beliefs")


@cache
def made(variant: str = "base"):
    return build_two_beliefs(variant)


def chat_of(one) -> ChatModel:
    return ChatModel.wrap(one.model, one.tokenizer, id=one.name)


def both(prompts: PromptSet) -> tuple[PromptSet, PromptSet]:
    return prompts.of("harmful"), prompts.of("harmless")


@cache
def guard_of(kind: str = "base", variant: str = "centroid", matched: bool = True) -> BeliefGuard:
    guard = BeliefGuard(variant, match_punctuation=matched, judge="phrases:planted")
    guard.fit(chat_of(made(kind)), *both(made(kind).sets["fit"]))
    harmful, harmless = both(made(kind).sets["calibrate"])
    return guard.calibrate(harmless, harmful, fpr=(0.1,))


def area(truth, scores) -> float:
    return roc_auc_score(np.array(truth), scores)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_bits_are_read_each_whatever_the_other_is(variant):
    guard, report = guard_of("base", variant), list(made().sets["report"])
    bits = [made().bits[prompt.id] for prompt in report]
    harm, refuse = (np.array([getattr(bit, n) for bit in bits]) for n in ("harmful", "refuse"))
    readings, _ = guard.read(report)
    for side in (True, False):
        assert area(harm[refuse == side], readings.harmful[refuse == side]) >= 0.95
        assert area(refuse[harm == side], readings.refuse[harm == side]) >= 0.95


def test_the_four_quadrants_are_filled():
    report = list(made().sets["report"])
    beliefs = guard_of("base", "centred").beliefs(report)
    for prompt, belief in zip(report, beliefs, strict=True):
        bit = made().bits[prompt.id]
        expected = {
            (True, True): "coherent harmful",
            (True, False): "suppressed refusal",
            (False, True): "over-refusal",
            (False, False): "coherent harmless",
        }[bit.harmful, bit.refuse]
        assert belief.quadrant == expected


def test_a_fine_tune_that_flips_refusal_alone_leaves_belief_unmoved():
    guard, report = guard_of("base", "centred"), list(made().sets["report"])
    before, _ = guard.read(report)
    kept = guard.chat_
    guard.chat_ = chat_of(refuse_finetuned(made()))
    try:
        after, _ = guard.read(report)
    finally:
        guard.chat_ = kept
    refuse = np.array([made().bits[prompt.id].refuse for prompt in report])
    assert np.corrcoef(before.harmful, after.harmful)[0, 1] > 0.97
    assert abs(np.mean(after.harmful - before.harmful)) < 0.1 * before.harmful.std()
    assert np.mean(after.refuse[refuse] - before.refuse[refuse]) < -0.75 * before.refuse.std()


def test_an_honest_guard_is_told_apart_from_its_marks():
    found = audit(
        guard_of(), both(made().sets["fit"]), both(made().sets["report"]), seed=0
    ).verdict.set_index("name")
    assert found.loc["final punctuation", "verdict"] == "told apart"
    assert found.loc["last token", "verdict"] == "told apart"


def test_a_guard_that_learnt_a_mark_is_caught():
    guard = guard_of("punctuation", "centroid", False)
    sets = made("punctuation").sets
    harmful, harmless = both(sets["report"])
    both_scores = [guard.decision_function(side) for side in (harmful, harmless)]
    # By its own figures it is perfect.
    labels = np.repeat([1, 0], [len(harmful), len(harmless)])
    assert area(labels, np.concatenate(both_scores)) >= 0.99
    found = audit(guard, both(sets["fit"]), (harmful, harmless), seed=0)
    verdict = found.verdict.set_index("name")
    assert "final punctuation" in verdict.loc["overall", "verdict"]
    assert verdict.loc["overall", "verdict"].startswith("cannot be told from")
    assert any("punctuation" in sentence for sentence in found.known_failures)


def test_matched_marks_leave_a_guard_of_marks_with_nothing():
    guard = guard_of("punctuation", "centroid", True)
    assert guard.matched_ == "rewritten"
    harmful, harmless = both(made("punctuation").sets["report"])
    spread = np.concatenate([guard.decision_function(side) for side in (harmful, harmless)])
    assert np.ptp(spread) < 0.1 * np.ptp(
        guard_of("punctuation", "centroid", False).decision_function([*harmful, *harmless])
    )


def test_a_model_that_never_refuses_gives_no_refusal_axis():
    assert guard_of("topic-only").refuse_ is None
