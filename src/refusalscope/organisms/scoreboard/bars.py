"""What is promised of the recommended method, judged on the two tables of a scored run.

Source: ../shared/methods/planted_models.md sections 3 to 5 and 7; the numbers are those of `suite.BARS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import pandas as pd

from refusalscope.organisms.scoreboard.suite import BARS, CLIFFS, GOOD_ORDER, NO_CLIFFS

METHOD = "recommended"
# Below this policy accuracy the planted truth does not describe the model, and no bar applies.
POLICY = 0.95
COLUMNS = ("bar", "needed", "measured", "met")
# Checks of the features suite.
RESERVES = "woken reserves found"
NECESSARY = "dormant members necessary"
FALSE_RESERVES = "share of other latents called reserve"
PAIRS = "AUROC of the planted pairs"
FORWARDS = "forwards over block greedy's"
NO_LARGER = "verified set no larger than block greedy's"
# Methods and checks of the cliff suite.
CONTRAST, RANKING = "contrast score", "ranking by"
CLAIMED, NAMED_SHIFT = "cliff claimed", "called a template shift"
STATIC = "static head named"
# Methods and checks of the beliefs suite.
HARMFUL, REFUSE = "delta_harmful", "delta_refuse"
IN_QUADRANT, SMALLEST = "prompts in their planted quadrant", "share of the smallest quadrant"
COSINE = "largest |cos(v_harm, v_refuse)|"
SHORTCUT = "called no better than a shortcut"
KEPT, UNMOVED, MOVED = (
    "correlation of delta_harmful with itself after fine-tuning",
    "largest shift of delta_harmful by fine-tuning",
    "shift of delta_refuse by fine-tuning",
)
STILL_REFUSED = "refused after fine-tuning"
CUE_IN_HARMFUL, REFUSED = "AUROC of the cue within harmful", "refused"
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
ROUTING_PROMISES = (
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


def _features() -> Iterator[Promise]:
    found, pairs = BARS["woken reserves found"], BARS["AUROC of planted pairs"]
    for variant in ("base", "chain"):
        for check in (RESERVES, NECESSARY):
            yield Promise(f"{check}, {variant}", variant, check, low=found)
    yield Promise(
        "share of latents called reserve, control",
        "control",
        FALSE_RESERVES,
        high=BARS["latents called reserve in the twin"],
    )
    for variant in ("base", "partial", "chain"):
        yield Promise(f"{PAIRS}, {variant}", variant, PAIRS, low=pairs)
    yield Promise(
        f"largest {FORWARDS}, {GOOD_ORDER}",
        GOOD_ORDER,
        FORWARDS,
        high=BARS["forwards over block greedy's"],
        worst=True,
    )
    yield Promise(f"{NO_LARGER}, {GOOD_ORDER}", GOOD_ORDER, NO_LARGER, low=1)


def _cliff() -> Iterator[Promise]:
    for variant in CLIFFS:
        yield Promise(f"{CLAIMED}, {variant}", variant, CLAIMED, low=1)
    for variant in NO_CLIFFS:
        yield Promise(f"{CLAIMED}, {variant}", variant, CLAIMED, high=0)
    yield Promise(f"{NAMED_SHIFT}, template_shift", "template_shift", NAMED_SHIFT, low=1)
    for method in (METHOD, CONTRAST):
        for variant in CLIFFS:
            check = f"{STATIC}, {method}"
            yield Promise(f"{check}, {variant}", variant, check, high=0)


BELIEF_PROMISES = (
    Promise(IN_QUADRANT, "base", IN_QUADRANT, low=BARS[IN_QUADRANT]),
    Promise(SMALLEST, "base", SMALLEST, low=BARS["smallest quadrant"]),
    Promise(COSINE, "base", COSINE, high=BARS["cosine of the two directions"], worst=True),
    Promise(f"{SHORTCUT}, base", "base", SHORTCUT, high=0),
    Promise(f"{SHORTCUT}, punctuation", "punctuation", SHORTCUT, low=1),
    Promise(KEPT, "base", KEPT, low=BARS["correlation after fine-tuning"]),
    Promise(
        UNMOVED, "base", UNMOVED, high=BARS["shift of the bit that was not trained"], worst=True
    ),
    Promise(MOVED, "base", MOVED, high=BARS["shift of the bit that was trained"]),
    Promise(STILL_REFUSED, "base", STILL_REFUSED, high=0.05),
    Promise(
        f"{CUE_IN_HARMFUL}, topic-only",
        "topic-only",
        CUE_IN_HARMFUL,
        low=BARS["chance, low"],
        high=BARS["chance, high"],
    ),
    Promise(f"{REFUSED}, topic-only", "topic-only", REFUSED, high=0.05),
)


PROMISES = {
    "routing": ROUTING_PROMISES,
    "features": tuple(_features()),
    "cliff": tuple(_cliff()),
    "beliefs": BELIEF_PROMISES,
}


@dataclass(frozen=True)
class Standard:
    """What the mean of a measure of one method must reach, over all barred organisms and on each."""

    method: str
    measure: str
    low: float


_RECOMMENDED = tuple(Standard(METHOD, name, BARS[name]) for name in ("precision", "recall"))
STANDARDS = {
    "routing": _RECOMMENDED,
    "features": _RECOMMENDED,
    "cliff": (
        *_RECOMMENDED,
        *(Standard(CONTRAST, name, BARS[name]) for name in ("precision", "recall")),
        *(
            Standard(f"{RANKING} {by}", "precision", BARS["precision at k of a ranking"])
            for by in ("ms_p90", "final")
        ),
    ),
    "beliefs": tuple(
        Standard(name, "lowest", BARS["AUROC of a planted bit"]) for name in (HARMFUL, REFUSE)
    ),
}


def judge_bars(scores: pd.DataFrame, checks: pd.DataFrame, suite: str = "routing") -> pd.DataFrame:
    """`organisms.scores`, `organisms.checks` against a suite's bars: rows of bar, needed, measured, met.

    Measures of a method are means over the barred organisms' cases and seeds, then organism by organism. A
    model whose policy accuracy is below POLICY is left out of every bar; a bar that nothing was measured for
    has no row, and a measure that is no number meets none.
    """
    met = (row for standard in STANDARDS[suite] for row in _accuracy(scores, standard))
    rows = [*met, *_checks(scores, checks, PROMISES[suite])]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _accuracy(scores: pd.DataFrame, standard: Standard) -> Iterator[Row]:
    mine = scores["method"] == standard.method
    judged = scores[mine & scores["barred"] & (scores["policy"] >= POLICY)]
    measure, low = standard.measure, standard.low
    name = measure if standard.method == METHOD else f"{measure} of {standard.method}"
    if len(judged):
        yield _row(f"{name}, all barred organisms", judged[measure].mean(), low)
    for organism, values in judged.groupby("organism", sort=False)[measure]:
        yield _row(f"{name}, {organism}", values.mean(), low)


def _checks(
    scores: pd.DataFrame, checks: pd.DataFrame, promises: Iterable[Promise]
) -> Iterator[Row]:
    weak = scores.loc[scores["policy"] < POLICY, ["case", "seed"]]
    left_out = set(weak.itertuples(index=False, name=None))
    keys = checks[["case", "seed"]].itertuples(index=False, name=None)
    judged = checks[np.array([key not in left_out for key in keys], dtype=bool)]
    for promise in promises:
        values = judged.loc[
            (judged["organism"] == promise.organism) & (judged["check"] == promise.check), "value"
        ].to_numpy(float)
        if len(values):
            measured = values.max() if promise.worst else values.mean()
            yield _row(promise.bar, measured, promise.low, promise.high)


def _row(bar: str, measured: float, low: float, high: float = inf) -> Row:
    if low == -inf:
        needed = f"at most {high:.3g}"
    else:
        needed = f"at least {low:g}" if high == inf else f"{low:g} to {high:g}"
    return bar, needed, float(measured), bool(low <= measured <= high)
