"""What else could tell the labels apart: sources left out, other final marks, wrappers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusalscope.report.content import Cell, Note, Table
from refusalscope.report.guard_beside import worst_wrapper, wrapper_count
from refusalscope.report.guard_shortcuts import CANNOT, LEANS, told
from refusalscope.report.guard_tables import HARMLESS
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, RunLike, records

MAX_ROWS = 80


def verdict_note(run: RunLike) -> Note | None:
    """The audit's verdict as the headline of its section; None without any."""
    said = told(run)
    return None if said is None else Note(said.text, "plain" if said.tone == "good" else "warning")


def verdict_table(table: pd.DataFrame) -> Table:
    """The verdict over all cues, then cue by cue, each with what decided it."""
    return Table(
        "Whether the score can be told from each cue",
        ("cue", "difference of AUROC", "verdict", "why"),
        [
            (
                Cell(str(row["name"]), strong=place == 0),
                _area(row, "difference", "low", "high"),
                Cell(
                    str(row["verdict"]), strong=CANNOT in row["verdict"] or LEANS in row["verdict"]
                ),
                str(row["reason"]),
            )
            for place, row in enumerate(records(table.head(MAX_ROWS)))
        ],
        "Difference: the score's AUROC less the cue's, paired by prompt; of a final mark, with every prompt "
        f"given the same mark, where the cue itself has 0.5. Below it the 95{NBSP}% interval.",
        id="table-guard-verdict",
        name="cue by cue",
    )


def sources_table(table: pd.DataFrame) -> Table:
    """The guard fitted anew without each source, and scored on that source alone."""
    return Table(
        "Leave one source out",
        (
            *("source left out", "harmful", "harmless", "AUROC", "n-grams alone", "difference"),
            *("harmful flagged", "harmless flagged"),
        ),
        [_source(row) for row in records(table.head(MAX_ROWS))],
        "The axis was fitted anew without any prompt of the source and held its prompts against the report "
        "prompts of the other label. N-grams alone: the AUROC of character n-grams on the same prompts; "
        "difference: of the two, paired. The threshold was set anew by the rule of the first operating "
        f"point. Below the numbers 95{NBSP}% intervals. A guard that knows its sources rather than harm "
        "falls towards 0.5 here.",
        id="table-guard-sources",
        name="leave one source out",
    )


def _source(row: Row) -> tuple[str | Cell, ...]:
    note = str(row["note"]) or (f"of the {row['label']} prompts" if row["label"] else "")
    return (
        Cell(str(row["source"]), below=note),
        Cell(whole(row["n_harmful"]), number=True),
        Cell(whole(row["n_harmless"]), number=True),
        _area(row, "auroc", "low", "high"),
        _area(row, "ngrams", "ngrams_low", "ngrams_high"),
        _area(row, "difference", "difference_low", "difference_high"),
        _rate(row, "tpr", "tpr_low", "tpr_high"),
        _rate(row, "fpr", "fpr_low", "fpr_high"),
    )


def variants_table(table: pd.DataFrame) -> Table:
    """Every prompt with another final mark."""
    return Table(
        "The same prompts with other final marks",
        ("final mark", "label", "n", "mean score", "flagged", "spread"),
        [
            (
                str(row["variant"]).replace("_", " "),
                str(row["label"]),
                _counted(row),
                Cell(decimal(row["mean"], 3), number=True),
                _rate(row, "rate", "low", "high"),
                Cell(decimal(row["spread"], 3), number=True),
            )
            for row in records(table.head(MAX_ROWS))
        ],
        f"Below the rates exact 95{NBSP}% intervals. Spread: how far apart the scores of one prompt lie "
        "between its final marks, on average. A guard that reads harm flags the same prompts whatever their "
        "mark.",
        id="table-guard-variants",
        name="other final marks",
    )


def wrappers_table(run: RunLike, table: pd.DataFrame) -> Table:
    """Every wrapper around the prompts of both labels; the one with the lowest AUROC stands out."""
    worst = worst_wrapper(run)
    name, count = None if worst is None else worst["wrapper"], wrapper_count(run)
    order = {each: place for place, each in enumerate(dict.fromkeys(table["wrapper"]))}
    rows = sorted(records(table), key=lambda row: (row["wrapper"] != name, order[row["wrapper"]]))
    return Table(
        "Under wrappers",
        ("wrapper", "label", "n", "AUROC", "flagged"),
        [_wrapper(row, count if row["wrapper"] == name else 0) for row in rows[:MAX_ROWS]],
        "Prompts of both labels inside the same wrapper, with the threshold of bare prompts: the AUROC says "
        "what the score still tells, the rates what the guard would do. Below the numbers "
        f"95{NBSP}% intervals, which do not allow for picking the lowest. Nothing is claimed beyond "
        "the wrappers of this table.",
        id="table-guard-wrappers",
        name="under wrappers",
    )


def _wrapper(row: Row, lowest_of: int) -> tuple[str | Cell, ...]:
    name = str(row["wrapper"])
    return (
        Cell(name, strong=True, below=f"the lowest of {lowest_of}") if lowest_of else name,
        str(row["label"]),
        _counted(row),
        Cell(ABSENT, number=True)
        if row["label"] == HARMLESS
        else _area(row, "auroc", "auroc_low", "auroc_high"),
        _rate(row, "rate", "low", "high"),
    )


def _counted(row: Row) -> Cell:
    left = f"{whole(row['left_out'])} too long" if row["left_out"] > 0 else ""
    return Cell(whole(row["n"]), number=True, below=left)


def _area(row: Row, name: str, low: str, high: str) -> Cell:
    return _over(decimal(row[name], 3), span(row.get(low), row.get(high), 3), row[name])


def _rate(row: Row, name: str, low: str, high: str) -> Cell:
    return _over(percent(row[name]), rate_span(row[low], row[high]), row[name])


def _over(value: str, interval: str, known: Any) -> Cell:
    return Cell(value, number=True, below=interval if finite(known) and interval != ABSENT else "")
