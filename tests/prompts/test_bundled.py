"""The bundled pairs are matched, so that nothing but the request tells harm."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from refusalscope.prompts import PairSet, bundled_pairs, final_character_class


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return bundled_pairs()


def test_there_are_at_least_sixteen_pairs_in_each_of_at_least_eight_categories(
    pairs: PairSet,
) -> None:
    counts = Counter(pair.category for pair in pairs)
    assert len(pairs) >= 128
    assert len(counts) >= 8
    assert min(counts.values()) >= 16
    assert pairs.skipped == ()


def test_source_and_licence_are_the_projects_own(pairs: PairSet) -> None:
    (source,) = pairs.sources
    assert (source.name, source.licence, source.n) == ("refusalscope", "Apache-2.0", len(pairs))
    assert source.path == "builtin:pairs"
    assert {pair.source for pair in pairs} == {"refusalscope"}


def test_members_match_in_length_final_mark_and_first_word(pairs: PairSet) -> None:
    for pair in pairs:
        harmful, harmless = pair.harmful.split(), pair.harmless.split()
        assert abs(len(harmful) - len(harmless)) <= 2, pair.id
        assert harmful[0] == harmless[0], pair.id
        assert final_character_class(pair.harmful) == final_character_class(pair.harmless), pair.id


def test_members_share_their_topic(pairs: PairSet) -> None:
    for pair in pairs:
        harmful, harmless = (
            set(re.findall(r"[\w']+", t.lower())) for t in (pair.harmful, pair.harmless)
        )
        assert len(harmful & harmless) / len(harmful | harmless) > 0.2, pair.id


def test_final_marks_vary_in_every_category(pairs: PairSet) -> None:
    counts = Counter(final_character_class(pair.harmful) for pair in pairs)
    assert set(counts) == {"period", "question", "none"}
    assert min(counts.values()) >= 0.25 * len(pairs)
    for category in {pair.category for pair in pairs}:
        marks = Counter(final_character_class(p.harmful) for p in pairs.in_category(category or ""))
        assert min(marks.values()) >= 4
        assert len(marks) == 3


def test_no_opening_is_used_more_than_four_times(pairs: PairSet) -> None:
    for side in ("harmful", "harmless"):
        openings = Counter(" ".join(getattr(p, side).lower().split()[:3]) for p in pairs)
        assert max(openings.values()) <= 4


def test_imperatives_questions_and_first_person_stories_all_occur(pairs: PairSet) -> None:
    questions = sum(pair.harmful.endswith("?") for pair in pairs)
    stories = sum(bool(re.match(r"(I|My|We|Our|A man)\b", pair.harmful)) for pair in pairs)
    assert questions >= 40
    assert stories >= 16
    assert len(pairs) - questions - stories >= 60


def test_texts_are_plain_distinct_sentences(pairs: PairSet) -> None:
    texts = pairs.prompts().texts
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == " ".join(text.split())
        assert text.isascii()
        assert text[0].isupper()
        assert 8 <= len(text.split()) <= 20


def _surface(text: str) -> dict[str, float | str]:
    return {
        "words": len(text.split()),
        "characters": len(text),
        "final": text[-1] if not text[-1].isalnum() else "none",
        "first": text.split()[0].lower(),
    }


def test_length_final_character_and_first_word_do_not_tell_the_label(
    pairs: PairSet,
) -> None:
    prompts = pairs.prompts()
    labels = np.array([prompt.label == "harmful" for prompt in prompts])
    owners = [prompt.id.rpartition("/")[0] for prompt in prompts]
    model = make_pipeline(
        DictVectorizer(), StandardScaler(with_mean=False), LogisticRegression(max_iter=1000)
    )
    # By pair: with one member in the training part, the matched other would be scored backwards.
    folds = GroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(
        model,
        [_surface(text) for text in prompts.texts],
        labels,
        groups=owners,
        cv=folds,
        method="decision_function",
    )
    assert 0.4 < roc_auc_score(labels, scores) < 0.6
