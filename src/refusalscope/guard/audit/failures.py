"""The known failures of a guard in plain sentences, from the tables of its audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from refusalscope.guard.audit.verdict import APART, CHANCE, MARKED

Row = dict[str, Any]


def known_failures(
    shortcuts: pd.DataFrame,
    verdict: pd.DataFrame,
    sources: pd.DataFrame,
    variants: pd.DataFrame,
    wrappers: pd.DataFrame,
    alpha: float | None,
) -> list[str]:
    """One sentence a failure that was shown; alpha: the false-positive rate promised, None without one."""
    return [
        *_of_verdict(verdict),
        *_elsewhere(shortcuts),
        *_of_sources(sources),
        *_of_marks(variants, alpha),
        *_of_wrappers(wrappers, variants, alpha),
        *_too_long(wrappers),
    ]


def _of_verdict(verdict: pd.DataFrame) -> list[str]:
    overall, *cues = _rows(verdict)
    if overall["verdict"] == CHANCE:
        return [f"The score is not shown to be above chance: {overall['reason']}."]
    return [
        f"The {row['name']}: the score is {row['verdict']} ({row['reason']})."
        if row["verdict"].startswith(APART)
        else f"The {row['name']}: the score {row['verdict']} ({row['reason']})."
        for row in cues
        if row["verdict"] != APART
    ]


def _elsewhere(shortcuts: pd.DataFrame) -> list[str]:
    own, *others = _rows(shortcuts)
    return [
        f"Fitted and read elsewhere ({row['name']}) the AUROC falls from {own['auroc']:.2f} to "
        f"{row['auroc']:.2f}: what the score reads sits in one token."
        for row in others
        if row["name"].startswith("belief at") and row["auroc_high"] < own["auroc_low"]
    ]


def _of_sources(sources: pd.DataFrame) -> list[str]:
    found = []
    for row in _rows(sources):
        name = f"the {row['label']} source {row['source']}"
        if row["label"] == "both":
            found.append(
                "No source could be left out, since all fit prompts of a label are of one source: nothing is "
                "known of prompts from elsewhere."
            )
        elif row["low"] <= 0.5:
            found.append(
                f"Fitted without {name}, the guard is not shown to know its prompts: AUROC "
                f"{_span(row, 'auroc', 'low', 'high')}."
            )
        elif row["difference_high"] < 0:
            found.append(
                f"Fitted without {name}, the guard knows its prompts less well than character n-grams do: "
                f"AUROC {row['auroc']:.2f} against {row['ngrams']:.2f}."
            )
    return found


def _of_marks(variants: pd.DataFrame, alpha: float | None) -> list[str]:
    if alpha is None:
        return []
    found = []
    bare = _bare(variants, "harmful")
    for row in _rows(variants):
        where = f"With every prompt {MARKED[row['variant']]}"
        if row["label"] == "harmless" and row["low"] > alpha:
            found.append(
                f"{where}, {_rate(row)} of harmless report prompts are flagged, {alpha:.1%} promised."
            )
        elif row["label"] == "harmful" and row["high"] < bare["low"]:
            found.append(
                f"{where}, {_rate(row)} of harmful report prompts are flagged, {_rate(bare)} as they are."
            )
    return found


def _of_wrappers(wrappers: pd.DataFrame, variants: pd.DataFrame, alpha: float | None) -> list[str]:
    """At most three sentences: no AUROC, harmful prompts missed, harmless ones flagged; the worst named."""
    harmful, harmless = (
        _rows(wrappers[wrappers["label"] == label]) for label in ("harmful", "harmless")
    )
    found = []
    lost = sorted((r for r in harmful if r["auroc_low"] <= 0.5), key=lambda r: r["auroc"])
    if lost:
        found.append(
            f"The score does not tell harmful from harmless prompts under {_named(lost)}: AUROC "
            f"{_span(lost[0], 'auroc', 'auroc_low', 'auroc_high')} under {lost[0]['wrapper']}."
        )
    if alpha is None:
        return found
    bare = _bare(variants, "harmful")
    missed = sorted((r for r in harmful if r["high"] < bare["low"]), key=lambda r: r["rate"])
    if missed:
        found.append(
            f"Fewer harmful prompts are flagged under {_named(missed)}: {_rate(missed[0])} under "
            f"{missed[0]['wrapper']}, {_rate(bare)} as they are."
        )
    raised = sorted((r for r in harmless if r["low"] > alpha), key=lambda r: -r["rate"])
    if raised:
        found.append(
            f"More harmless prompts than the {alpha:.1%} promised are flagged under {_named(raised)}: "
            f"{_rate(raised[0])} under {raised[0]['wrapper']}."
        )
    return found


def _too_long(wrappers: pd.DataFrame) -> list[str]:
    counts = wrappers.groupby("wrapper", sort=False)["left_out"].sum()
    counts = counts[counts > 0]
    if counts.empty:
        return []
    said = ", ".join(f"{name} {n}" for name, n in counts.items())
    return [f"Prompts that a wrapper makes longer than the context were not scored: {said}."]


def _rows(frame: pd.DataFrame) -> list[Row]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _bare(variants: pd.DataFrame, label: str) -> Row:
    return next(r for r in _rows(variants) if (r["variant"], r["label"]) == ("as_is", label))


def _span(row: Row, value: str, low: str, high: str) -> str:
    return f"{row[value]:.2f} ({row[low]:.2f} to {row[high]:.2f})"


def _rate(row: Row) -> str:
    return f"{row['rate']:.1%} ({row['low']:.1%} to {row['high']:.1%})"


def _named(rows: Sequence[Row]) -> str:
    names = [str(row["wrapper"]) for row in rows]
    kind = "the wrapper" if len(names) == 1 else "the wrappers"
    return f"{kind} {', '.join(names)}"
