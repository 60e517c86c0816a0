"""What cues that are not harm can do on the same prompts: the last token, the final mark, length, words.

A direction that separates no better than these may have learnt them (harmfulness_and_refusal section 7).
Baselines are fitted on the fit split and scored on the report split, as the direction is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from refusalscope.prompts import final_character_class
from refusalscope.stats import auroc

Array = npt.NDArray[np.float64]
MARK, NGRAMS = "final punctuation", "character n-grams"
# A cue within this much AUROC of a score is as good as the score (section 7, requirement e).
MARGIN = 0.02
AS_GOOD = "as good as belief: the score cannot be told from this cue here"
BAGS: dict[str, dict[str, Any]] = {
    NGRAMS: {"analyzer": "char_wb", "ngram_range": (2, 4), "sublinear_tf": True},
    # One-letter words count: a default of the vectoriser would leave some prompts without any.
    "words": {"token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True},
}


def shortcuts(
    fit_texts: Sequence[str],
    fit_harmful: Sequence[bool],
    report_texts: Sequence[str],
    report_harmful: Sequence[bool],
    beliefs: Mapping[str, Array],
    seed: int,
) -> pd.DataFrame:
    """AUROC of harm on the report split, of the belief score and of each shortcut, with verdicts.

    beliefs: name -> score [report prompts]; the first is the score under test, the others are the same score
    on prompts with another final mark, or at another token.
    """
    return compare(report_harmful, beliefs, cue_scores(fit_texts, fit_harmful, report_texts), seed)


def cue_scores(
    fit_texts: Sequence[str], fit_harmful: Sequence[bool], report_texts: Sequence[str]
) -> dict[str, Array]:
    """Score of harm [report texts] by each cue of the text alone, learnt on the fit texts."""

    def odds(feature) -> Array:
        return log_odds(
            [feature(text) for text in fit_texts], fit_harmful, [feature(t) for t in report_texts]
        )

    labels = np.array(fit_harmful, dtype=bool)
    lengths = np.array([len(text.split()) for text in report_texts], dtype=float)
    fit_lengths = np.array([len(text.split()) for text in fit_texts], dtype=float)
    sign = 1.0 if fit_lengths[labels].mean() >= fit_lengths[~labels].mean() else -1.0
    return {
        MARK: odds(final_character_class),
        "last word": odds(lambda text: text.lower().split()[-1].strip(".?!")),
        "length in words": sign * lengths,
        **{bag: bag_score(bag, fit_texts, fit_harmful, report_texts) for bag in BAGS},
    }


def log_odds(
    fit_features: Sequence[Hashable],
    fit_harmful: Sequence[bool],
    report_features: Sequence[Hashable],
) -> Array:
    """Smoothed log-odds of harm given one feature, learnt on the fit split: [report features]."""
    labels = np.array(fit_harmful, dtype=bool)
    harmful, harmless = (
        Counter(f for f, bad in zip(fit_features, labels, strict=True) if bad == side)
        for side in (True, False)
    )
    return np.array(
        [
            np.log((harmful[feature] + 0.5) / (labels.sum() + 1))
            - np.log((harmless[feature] + 0.5) / ((~labels).sum() + 1))
            for feature in report_features
        ]
    )


def bag_score(
    bag: str, fit_texts: Sequence[str], fit_harmful: Sequence[bool], report_texts: Sequence[str]
) -> Array:
    """Logistic regression on a weighted bag of words or of character n-grams (`BAGS`): [report texts]."""
    model = make_pipeline(TfidfVectorizer(**BAGS[bag]), LogisticRegression(max_iter=1000))
    model.fit(list(fit_texts), np.array(fit_harmful, dtype=bool))
    return model.decision_function(list(report_texts))


def compare(
    harmful: Sequence[bool], beliefs: Mapping[str, Array], cues: Mapping[str, Array], seed: int
) -> pd.DataFrame:
    """AUROC of each score with its interval and a verdict: name, auroc, auroc_low, auroc_high, verdict.

    beliefs as for `shortcuts`; cues: name -> score [prompts].
    """
    areas = {name: auroc(harmful, score, seed=seed) for name, score in {**beliefs, **cues}.items()}
    tested, *controls = beliefs
    own = areas[tested]
    rows = []
    for name, area in areas.items():
        if name == tested:
            verdict = (
                "the score under test" if own.low > 0.5 else "not shown to be above chance itself"
            )
        elif name in controls:
            verdict = f"the same score, {area.value - own.value:+.2f} from the one under test"
        elif own.low > 0.5 and area.value >= own.value - MARGIN:
            verdict = AS_GOOD
        elif area.low > 0.5:
            than = "less" if area.value < own.value else "more"
            verdict = f"carries some of the label, {than} than belief"
        else:
            verdict = "not shown to carry the label"
        rows.append(
            {
                "name": name,
                "auroc": area.value,
                "auroc_low": area.low,
                "auroc_high": area.high,
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)
