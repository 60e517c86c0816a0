"""Each prompt of a belief study on the plane, and what else could have told its label."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.belief_tables import MARKS, PROMPTS, SHORTCUTS, belief_table, is_belief
from refusalscope.report.content import Block, Cell, Note, Section, Table
from refusalscope.report.numbers import NBSP, decimal, span, whole
from refusalscope.report.sections.belief import plane_figure, quadrants_table, shortcuts_table
from refusalscope.report.sections.belief_jailbreaks import over
from refusalscope.report.tables import RunLike, records, why_missing
from refusalscope.report.worries import failed_shortcuts

MAX_ROWS = 40


def belief_plane(run: RunLike) -> Section | None:
    """The plane, the quadrants, the shortcuts and other final marks; None for a run without a belief study."""
    if not is_belief(run):
        return None
    blocks: list[Block] = []
    for name in (PROMPTS, SHORTCUTS, MARKS):
        table = belief_table(run, name)
        if table is None:
            blocks.append(Note(why_missing(run, name), "missing"))
        else:
            blocks += {PROMPTS: _prompts, SHORTCUTS: _shortcuts, MARKS: _marks}[name](table)
    return Section(
        "belief-plane",
        "Belief and refusal, prompt by prompt",
        blocks,
        "Two scores of every prompt: does the model take the request for harmful (delta_harmful, read where "
        "the request ends), and is it about to refuse (delta_refuse, read where the reply begins)? Beside "
        "them, what cues that are not harm tell of the same prompts.",
    )


def _prompts(table: pd.DataFrame) -> list[Block]:
    return [plane_figure(table), quadrants_table(table)]


def _shortcuts(table: pd.DataFrame) -> list[Block]:
    failed = failed_shortcuts(table)
    said: list[Block] = (
        [] if failed is None else [Note(f"On these prompts {failed.text}.", "warning")]
    )
    return [*said, shortcuts_table(table, "table-shortcuts")]


def _marks(table: pd.DataFrame) -> list[Block]:
    return [
        Table(
            "The same prompts with other final marks",
            ("label", "ends in", "n", "delta_harmful", "spread"),
            [
                (
                    str(row["label"]),
                    str(row["mark"]),
                    Cell(whole(row["n"]), number=True),
                    over(decimal(row["mean"], 3), span(row["low"], row["high"], 3)),
                    over(decimal(row["spread"], 3), span(row["spread_low"], row["spread_high"], 3)),
                )
                for row in records(table.head(MAX_ROWS))
            ],
            f"Means over the report prompts of a label, below them 95{NBSP}% bootstrap intervals. Spread: how "
            "far apart the scores of one prompt lie over all its ends, on average. Where it is as large as "
            "the distance of the labels, the score hangs on the mark.",
            id="table-belief-marks",
            name="other final marks",
        )
    ]
