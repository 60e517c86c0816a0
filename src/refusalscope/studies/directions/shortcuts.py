"""What cues that are not harm can do on the same prompts: the last token, the final mark, length, words.

A direction that separates no better than these may have learnt them (harmfulness_and_refusal section 7).
Baselines are fitted on the fit split and scored on the report split, as the direction is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from refusalscope.prompts import final_character_class
from refusalscope.stats import auroc

Array = npt.NDArray[np.float64]


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
    labels = np.array(fit_harmful)

    def odds(feature) -> Array:
        """Smoothed log-odds of the label given one feature, learnt on the fit split."""
        counts = [
            Counter(feature(t) for t in np.array(fit_texts)[labels == side]) for side in (1, 0)
        ]
        return np.array(
            [
                np.log((counts[0][feature(t)] + 0.5) / (labels.sum() + 1))
                - np.log((counts[1][feature(t)] + 0.5) / ((~labels).sum() + 1))
                for t in report_texts
            ]
        )

    def model(**options) -> Array:
        pipe = make_pipeline(TfidfVectorizer(**options), LogisticRegression(max_iter=1000))
        # One-letter words count: a default of the vectoriser would leave some prompts without any.
        return pipe.fit(list(fit_texts), labels).decision_function(list(report_texts))

    lengths = np.array([len(text.split()) for text in report_texts], dtype=float)
    fit_lengths = np.array([len(text.split()) for text in fit_texts], dtype=float)
    sign = 1.0 if fit_lengths[labels].mean() >= fit_lengths[~labels].mean() else -1.0
    scores = {
        **beliefs,
        "final punctuation": odds(final_character_class),
        "last word": odds(lambda text: text.lower().split()[-1].strip(".?!")),
        "length in words": sign * lengths,
        "character n-grams": model(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
        "words": model(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True),
    }
    areas = {name: auroc(report_harmful, score, seed=seed) for name, score in scores.items()}
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
        elif own.low > 0.5 and area.value >= own.value - 0.02:
            verdict = "as good as belief: the score cannot be told from this cue here"
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
