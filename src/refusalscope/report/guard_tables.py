"""The tables of a guard's run, made even: every column there, numbers finite or NaN."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from refusalscope.report.tables import NEEDED, Row, RunLike, even, once, records, usable

SCORES, POINTS, RATES, ROC = "guard.scores", "guard.points", "guard.rates", "guard.roc"
METRICS, LAYERS = "guard.metrics", "guard.layers"
SHORTCUTS, VERDICT, SOURCES = "guard.shortcuts", "guard.verdict", "guard.sources"
VARIANTS, WRAPPERS, AGAINST = "guard.variants", "guard.wrappers", "guard.against"
MONITOR, AUGMENTED, DRIFT = "guard.monitor", "guard.augmented", "guard.drift"
FIT, SCORE, WATCH = "guard fit", "guard score", "guard drift"
COMMANDS = (FIT, SCORE, WATCH)
HARMFUL, HARMLESS = "harmful", "harmless"
CALIBRATION = "calibration"
# Prompts that a run measures the guard on, as its tables name them and as a page does.
MEASURED = {"report": "report split", "scored": "scored prompts"}
UNKNOWN = "whether they are new to the guard is not known"

_TEXTS: Mapping[str, tuple[str, ...]] = {
    SCORES: ("id", "label", "category", "source", "quadrant", "final_mark"),
    POINTS: ("name", "rule", "promise", "set"),
    RATES: ("point", "label", "kind", "name"),
    METRICS: ("name",),
    SHORTCUTS: ("name", "verdict"),
    VERDICT: ("name", "verdict", "reason"),
    SOURCES: ("source", "label", "note"),
    VARIANTS: ("variant", "label"),
    WRAPPERS: ("wrapper", "label"),
    AGAINST: ("guard", "point"),
    MONITOR: ("kind",),
    AUGMENTED: ("label", "point", "when"),
    DRIFT: ("measure", "test", "verdict"),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {SCORES: ("abstain",), WRAPPERS: ("worst",)}
_BOUNDS = ("", "_low", "_high")
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    SCORES: ("delta_harmful", "delta_refuse", "p_harmful", "p_low", "p_high"),
    POINTS: (
        *("alpha", "confidence", "tau", "n_harmless", "n_harmful"),
        *(f"{name}{end}" for name in ("fpr", "tpr") for end in _BOUNDS),
    ),
    RATES: ("n", "flagged", "rate", "low", "high"),
    ROC: ("fpr", "tpr", "threshold"),
    METRICS: ("value", "low", "high", "n"),
    LAYERS: ("row", "auroc", "low", "high"),
    SHORTCUTS: ("auroc", "auroc_low", "auroc_high"),
    VERDICT: ("difference", "low", "high"),
    SOURCES: (
        *("n_harmful", "n_harmless", "auroc", "low", "high"),
        *(f"{name}{end}" for name in ("ngrams", "difference", "tpr", "fpr") for end in _BOUNDS),
    ),
    VARIANTS: ("n", "mean", "rate", "low", "high", "spread", "left_out"),
    WRAPPERS: ("n", "auroc", "auroc_low", "auroc_high", "rate", "low", "high", "left_out"),
    AGAINST: (
        *("alpha", "tpr", "low", "high", "own_tpr", "own_low", "own_high"),
        *("difference", "difference_low", "difference_high", "p", "p_adjusted", "n"),
        *("fpr", "other_fpr"),
    ),
    MONITOR: ("tau", "shortest", "longest", "n", "flagged", "low", "high"),
    AUGMENTED: ("n", "flagged", "low", "high"),
    DRIFT: (
        *("statistic", "effect", "shift", "low", "high", "limit", "p", "p_adjusted"),
        *("n_reference", "n_log"),
    ),
}


def is_guard(run: RunLike) -> bool:
    """Whether the run fitted, scored or watched a guard."""
    named = run.info.get("command") in COMMANDS
    return named or any(name.startswith("guard.") for name in run.tables())


def guard_table(run: RunLike, name: str) -> pd.DataFrame | None:
    """A table of the guard with all its columns, or None when it is absent, empty or too narrow.

    Prompts without a score, and points of a curve without a place, are dropped.
    """
    return once(run, name, lambda: _made_even(run, name))


def _made_even(run: RunLike, name: str) -> pd.DataFrame | None:
    frame = _shown(run, name)
    if frame is None:
        return None
    frame = even(frame, _NUMBERS[name], _TEXTS.get(name, ()), _FLAGS.get(name, ()))
    if name in _PLACES:
        frame = frame.dropna(subset=list(_PLACES[name]))
    return None if frame.empty else frame.reset_index(drop=True)


def _shown(run: RunLike, name: str) -> pd.DataFrame | None:
    """`usable`, which would drop prompts of a scored file since they are of no split; these are all shown."""
    if run.info.get("command") != SCORE:
        return usable(run, name)
    frame = run.table(name) if name in run.tables() else pd.DataFrame()
    return None if frame.empty or set(NEEDED[name]) - set(frame.columns) else frame


# What a row must have to be shown at all.
_PLACES: Mapping[str, tuple[str, ...]] = {
    SCORES: ("delta_harmful",),
    ROC: ("fpr", "tpr"),
    LAYERS: ("row", "auroc"),
    METRICS: ("value",),
    RATES: ("rate", "n"),
    SHORTCUTS: ("auroc",),
}


def basis(run: RunLike) -> str:
    """Which prompts a caption speaks of: only a fit knows that they are new to the guard."""
    if run.info.get("command") == SCORE:
        return f"{MEASURED['scored']} ({UNKNOWN})"
    return MEASURED["report"]


def points(run: RunLike) -> list[Row]:
    """The operating points on the prompts that the run measures the guard on, in their order."""
    table = guard_table(run, POINTS)
    return [] if table is None else records(table[table["set"].isin(MEASURED)])


def calibration_points(run: RunLike) -> list[Row]:
    """The operating points on the prompts that set the thresholds, in their order."""
    table = guard_table(run, POINTS)
    return [] if table is None else records(table[table["set"] == CALIBRATION])


def first_point(run: RunLike) -> Row | None:
    """The operating point that the verdict speaks of: the first, on the prompts that the run measures."""
    return next(iter(points(run)), None)


def metric(run: RunLike, name: str) -> Row | None:
    """A row of `guard.metrics`, None when it was not measured."""
    table = guard_table(run, METRICS)
    if table is None:
        return None
    return next(iter(records(table[table["name"].str.lower() == name])), None)


def known_labels(scores: pd.DataFrame) -> pd.DataFrame:
    """The prompts that are known to be harmful or harmless."""
    return scores[scores["label"].isin((HARMFUL, HARMLESS))]


def at_point(table: pd.DataFrame, run: RunLike) -> pd.DataFrame:
    """The rows of the operating point that the verdict speaks of; of the table's first where it has no such."""
    mine = first_point(run)
    names = list(dict.fromkeys(table["point"]))
    name = mine["name"] if mine is not None and mine["name"] in names else names[0]
    return table[table["point"] == name]
