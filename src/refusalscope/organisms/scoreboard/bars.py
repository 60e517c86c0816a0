"""What is promised of the recommended method, judged on the two tables of a scored run.

Source: ../shared/methods/planted_models.md section 5; the numbers are those of `suite.BARS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import pandas as pd

from refusalscope.organisms.scoreboard.suite import BARS

METHOD = "recommended"
# Below this policy accuracy the planted truth does not describe the model, and no bar applies.
POLICY = 0.95
COLUMNS = ("bar", "needed", "measured", "met")
Row = tuple[str, str, float, bool]


@dataclass(frozen=True)
class Promise:
    """A check of one organism with the range that its mean over cases and seeds must lie in.

    worst: the largest value over cases and seeds is judged, not the mean.
    """

    bar: str
    organism: str
    check: str
    low: float = -inf
    high: float = inf
    worst: bool = False


# A yes or no that has no share of its own in BARS must hold on every seed.
PROMISES = (
    Promise("gate and all backups found in O2", "O2", "gate and backups found", low=1),
    Promise("no head claimed in O10", "O10", "no head claimed", low=BARS["no head claimed in O10"]),
    Promise("collapse found in O7", "O7", "collapse found", low=1),
    Promise("rescue rate in O7", "O7", "rescued", low=BARS["rescue in O7"]),
    Promise("collapse claimed in O7'", "O7'", "collapse claimed", high=0),
    Promise(
        "largest change of a necessity by the prefix of O7'",
        "O7'",
        "largest change of a necessity",
        high=BARS["prefix moves necessity by"],
        worst=True,
    ),
    Promise(
        "type-I error of the familywise test",
        "all",
        "type-I error of the familywise test",
        low=BARS["type-I error, low"],
        high=BARS["type-I error, high"],
    ),
)


def judge_bars(scores: pd.DataFrame, checks: pd.DataFrame) -> pd.DataFrame:
    """`organisms.scores` and `organisms.checks` against the bars: one row each of bar, needed, measured, met.

    Precision and recall are means over the barred organisms' cases and seeds, then organism by organism. A
    model whose policy accuracy is below POLICY is left out of every bar; a bar that nothing was measured for
    has no row, and a measure that is no number meets none.
    """
    rows = [*_accuracy(scores), *_checks(scores, checks)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _accuracy(scores: pd.DataFrame) -> Iterator[Row]:
    judged = scores[(scores["method"] == METHOD) & scores["barred"] & (scores["policy"] >= POLICY)]
    for measure in ("precision", "recall"):
        if len(judged):
            yield _row(f"{measure}, all barred organisms", judged[measure].mean(), BARS[measure])
        for organism, mine in judged.groupby("organism", sort=False):
            yield _row(f"{measure}, {organism}", mine[measure].mean(), BARS[measure])


def _checks(scores: pd.DataFrame, checks: pd.DataFrame) -> Iterator[Row]:
    weak = scores.loc[scores["policy"] < POLICY, ["case", "seed"]]
    left_out = set(weak.itertuples(index=False, name=None))
    keys = checks[["case", "seed"]].itertuples(index=False, name=None)
    judged = checks[np.array([key not in left_out for key in keys], dtype=bool)]
    for promise in PROMISES:
        values = judged.loc[
            (judged["organism"] == promise.organism) & (judged["check"] == promise.check), "value"
        ].to_numpy(float)
        if len(values):
            measured = values.max() if promise.worst else values.mean()
            yield _row(promise.bar, measured, promise.low, promise.high)


def _row(bar: str, measured: float, low: float, high: float = inf) -> Row:
    if low == -inf:
        needed = f"at most {high:g}"
    else:
        needed = f"at least {low:g}" if high == inf else f"{low:g} to {high:g}"
    return bar, needed, float(measured), bool(low <= measured <= high)
