"""The belief guard: how well it tells harm, what else could, whom it flags, and whether its scores drift."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from refusalscope.report.content import Block, Note, Section
from refusalscope.report.guard_tables import (
    AGAINST,
    AUGMENTED,
    DRIFT,
    FIT,
    LAYERS,
    METRICS,
    MONITOR,
    POINTS,
    RATES,
    ROC,
    SCORES,
    SHORTCUTS,
    SOURCES,
    VARIANTS,
    VERDICT,
    WATCH,
    WRAPPERS,
    guard_table,
    is_guard,
)
from refusalscope.report.sections.belief import shortcuts_table
from refusalscope.report.sections.guard_against import against_figure, against_table
from refusalscope.report.sections.guard_audit import (
    sources_table,
    variants_table,
    verdict_note,
    verdict_table,
    wrappers_table,
)
from refusalscope.report.sections.guard_drift import drift_figure, drift_table
from refusalscope.report.sections.guard_plane import plane_figure
from refusalscope.report.sections.guard_rates import (
    augmented_figure,
    monitor_table,
    rates_figure,
    rates_table,
)
from refusalscope.report.sections.guard_roc import points_table, roc_figure
from refusalscope.report.sections.guard_scores import (
    layers_figure,
    metrics_table,
    reliability_figure,
)
from refusalscope.report.tables import RunLike, why_missing

Make = Callable[[pd.DataFrame], "Block | None"]
# Tables that only some runs are asked for: without them the page says so in a word, not as a lack.
UNASKED = {
    AGAINST: "No scores of another guard were given, so none stands beside it.",
    AUGMENTED: "No own examples were added to the guard.",
    MONITOR: "No monitor of streamed replies was fitted.",
}


def guard(run: RunLike) -> Section | None:
    """How well it tells harm: curve, operating points, plane, measures; None for a run without a guard."""
    if not is_guard(run) or _only_drift(run):
        return None
    scores = guard_table(run, SCORES)
    blocks = [
        *_shown(run, ROC, lambda table: roc_figure(run, table)),
        *_shown(run, POINTS, points_table),
        *_shown(run, SCORES, lambda table: plane_figure(run, table)),
        *_shown(run, METRICS, metrics_table),
    ]
    reliable = None if scores is None else reliability_figure(run, scores)
    nothing = "No labelled prompts carry a probability, so it could not be held against outcomes."
    blocks.append(reliable or Note(nothing, "missing"))
    blocks += _shown(run, LAYERS, lambda table: layers_figure(run, table))
    return Section(
        "guard",
        "How well it tells harm",
        blocks,
        "The belief guard reads from the model's own states whether the model takes a prompt for harmful, "
        "where the request ends. A prompt whose score lies above a threshold is flagged.",
    )


def guard_shortcuts(run: RunLike) -> Section | None:
    """What else could tell the labels apart; None for a run that was not audited."""
    names = (SHORTCUTS, VERDICT, SOURCES, VARIANTS, WRAPPERS)
    fitted = run.info.get("command") == FIT
    if not is_guard(run) or not (fitted or any(name in run.tables() for name in names)):
        return None
    verdict = verdict_note(run)
    blocks: list[Block] = [verdict] if verdict else []
    blocks += _shown(run, VERDICT, verdict_table)
    blocks += _shown(run, SHORTCUTS, lambda table: shortcuts_table(table, "table-guard-shortcuts"))
    blocks += _shown(run, SOURCES, sources_table)
    blocks += _shown(run, VARIANTS, variants_table)
    blocks += _shown(run, WRAPPERS, lambda table: wrappers_table(run, table))
    return Section(
        "guard-shortcuts",
        "What else could tell",
        blocks,
        "Harmful and harmless prompts of most collections also differ in what is not harm: the final mark, the "
        "length, the words. A score that does no better than these may have learnt them.",
    )


def guard_use(run: RunLike) -> Section | None:
    """Whom it flags, beside others, in streams, with own examples; None for a run without a guard."""
    if not is_guard(run) or _only_drift(run):
        return None
    blocks = _shown(run, RATES, lambda table: rates_figure(run, table))
    rates = guard_table(run, RATES)
    blocks += [] if rates is None else [rates_table(rates)]
    blocks += _shown(run, AGAINST, lambda table: against_figure(run, table))
    against = guard_table(run, AGAINST)
    blocks += [] if against is None else [against_table(against)]
    if run.info.get("command") == FIT:
        blocks += _shown(run, MONITOR, monitor_table)
        blocks += _shown(run, AUGMENTED, augmented_figure)
    return Section(
        "guard-use",
        "Whom it flags",
        blocks,
        "A rate over all prompts hides where a guard fails: here it is by source and category, beside other "
        "guards, on streamed replies, and before and after own examples.",
    )


def guard_drift(run: RunLike) -> Section | None:
    """The log held against calibration; None for a run that watched none."""
    if run.info.get("command") != WATCH and DRIFT not in run.tables():
        return None
    blocks = _shown(run, DRIFT, drift_figure)
    table = guard_table(run, DRIFT)
    blocks += [] if table is None else [drift_table(table)]
    return Section(
        "guard-drift",
        "Drift",
        blocks,
        "A threshold keeps its promise for prompts of the kind it was set on. Here the scores of a log are "
        "held against those of calibration.",
    )


def _only_drift(run: RunLike) -> bool:
    return run.info.get("command") == WATCH


def _shown(run: RunLike, name: str, make: Make) -> list[Block]:
    """What a table gives, or the sentence that says why it gives nothing."""
    table = guard_table(run, name)
    if table is None and name in UNASKED and name not in run.tables():
        return [Note(UNASKED[name])]
    drawn = None if table is None else make(table)
    missing = f"Nothing of {name} could be drawn." if table is not None else why_missing(run, name)
    return [drawn or Note(missing, "missing")]
