"""How well a score tells refusal from compliance, by position class, and what words alone can do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from refusalscope.errors import InputError
from refusalscope.stats import Interval, auroc
from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]
# The first any probe of intention or of topic shows; the second a probe of the topic cannot.
KNOWN, WITHIN = "refused harmful, complied harmless", "harmful, refused or complied"


def separation_table(
    traces: Sequence[Trace], refused: Sequence[bool], logits: Sequence[Array], *, seed: int
) -> pd.DataFrame:
    """AUROC with its interval by position class and contrast: of a trace's mean logit in the class.

    logits: [tokens] a trace. Columns position, contrast, auroc, auroc_low, auroc_high, n; NaN where a
    contrast has one side only.
    """
    said = np.asarray(refused, dtype=bool)
    harmful = np.array([trace.prompt.label == "harmful" for trace in traces])
    contrasts = {KNOWN: harmful == said, WITHIN: harmful}
    contrasts["harmless, refused or complied"] = ~harmful
    classes = [np.array(trace.classes) for trace in traces]
    rows = []
    for name in dict.fromkeys(np.concatenate(classes).tolist()):
        has = np.array([name in kinds for kinds in classes])
        means = np.array(
            [
                one[kinds == name].mean() if name in kinds else 0.0
                for one, kinds in zip(logits, classes, strict=True)
            ]
        )
        for contrast, mask in contrasts.items():
            area = auroc(said[mask & has], means[mask & has], seed=seed)
            rows.append(
                {
                    "position": name,
                    "contrast": contrast,
                    "auroc": area.value,
                    "auroc_low": area.low,
                    "auroc_high": area.high,
                    "n": area.n,
                }
            )
    return pd.DataFrame(rows)


def unreadable(table: pd.DataFrame) -> str:
    """Why a `separation_table` does not let its scores speak of a cliff, in a sentence; "" where it does.

    A probe must tell settled behaviours apart in the thinking, and at the last closing token refused from
    complied harmful traces, where there are both: a probe of the topic does not.
    """

    def shown(position: str, contrast: str) -> bool:
        row = table[(table["position"] == position) & (table["contrast"] == contrast)].iloc[0]
        return bool(row["auroc_low"] > 0.5 or (contrast == WITHIN and np.isnan(row["auroc"])))

    if not shown("thinking", KNOWN):
        return (
            "in the thinking the probe does not tell refused harmful from complied harmless traces"
        )
    if not shown(table["position"].iloc[-1], WITHIN):
        return (
            "the probe does not tell refused from complied harmful traces where the thinking ends"
        )
    return ""


def bag_of_words(
    traces: Sequence[Trace], refused: Sequence[bool], splits: Sequence[str], *, seed: int
) -> Interval:
    """AUROC of refusal on the split "report" by the words of request and thinking, learnt on "fit".

    Raises InputError where "fit" has one kind of behaviour only.
    """
    said, split = np.asarray(refused, dtype=bool), np.asarray(splits)
    texts = np.array([f"{t.prompt.text}\n{t.prompt.thinking}" for t in traces], dtype=object)
    fit, report = split == "fit", split == "report"
    if len(set(said[fit].tolist())) < 2:
        raise InputError("a bag of words needs refused and complied traces to learn from; add some")
    pipe = make_pipeline(
        TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True),
        LogisticRegression(max_iter=1000),
    )
    scores = pipe.fit(list(texts[fit]), said[fit]).decision_function(list(texts[report]))
    return auroc(said[report], scores, seed=seed)
