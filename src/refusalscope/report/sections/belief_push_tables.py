"""Steering and reply inversion in numbers, at the chosen layers."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.belief_tables import DIRECTIONS, NONE, RULES
from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    percent,
    rate_span,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.sections.belief_jailbreaks import over
from refusalscope.report.tables import Row, records

MAX_ROWS = 80


def steering_table(table: pd.DataFrame) -> Table:
    """Judged replies and margins at the chosen layers, beside rotations and nothing added."""
    return Table(
        "Steering in numbers, at the chosen layers",
        (
            *(
                "direction",
                "prompts",
                "layer",
                "length",
                "n",
                "refused",
                "change, paired",
                "degenerate",
            ),
            "margin beyond random",
        ),
        [
            (
                Cell(DIRECTIONS.get(row["direction"], "nothing added"), below=_kind(row)),
                str(row["label"]),
                *_where(row),
                Cell(whole(row["n"]), number=True),
                Cell(percent(row["rate"]), number=True, below=rate_span(row["low"], row["high"])),
                _change(row),
                Cell(whole(row["degenerate"]), number=True),
                over(
                    decimal(row["over_random"]),
                    span(row["over_random_low"], row["over_random_high"]),
                ),
            )
            for row in records(_main(table))
        ],
        f"Length in residual norms. Below the numbers 95{NBSP}% intervals. Degenerate replies count as not "
        "refused.",
        id="table-belief-steering",
        name="steering in numbers",
    )


def inversion_table(table: pd.DataFrame) -> Table:
    """Answers at the chosen layers, beside rotations and nothing added."""
    return Table(
        "Answers on harm in numbers, at the chosen layers",
        (
            "direction",
            "prompts",
            "tokens",
            "layer",
            "length",
            "n",
            "invalid",
            "share of No",
            "change, paired",
        ),
        [
            (
                Cell(DIRECTIONS.get(row["direction"], "nothing added"), below=_kind(row)),
                str(row["label"]),
                RULES.get(row["positions"], str(row["positions"])),
                *_where(row),
                Cell(whole(row["n"]), number=True),
                Cell(
                    percent(row["invalid"]),
                    number=True,
                    below=rate_span(row["invalid_low"], row["invalid_high"]),
                ),
                Cell(
                    percent(row["share_no"]), number=True, below=rate_span(row["low"], row["high"])
                ),
                _change(row),
            )
            for row in records(_main(table))
        ],
        f"Below the numbers 95{NBSP}% intervals. Invalid: answers that are neither Certainly nor No, which "
        "the share of No leaves out; the change is over prompts with a valid answer in both.",
        id="table-belief-inversion",
        name="answers on harm in numbers",
    )


def _main(table: pd.DataFrame) -> pd.DataFrame:
    """The run with nothing added, and what was chosen, where replies were generated."""
    mine = table[(table["direction"] == NONE) | table["chosen"]]
    return mine[mine["n"] > 0].head(MAX_ROWS)


def _kind(row: Row) -> str:
    return f"random rotation {whole(row['seed'])}" if row["control"] == "random" else ""


def _where(row: Row) -> tuple[Cell, Cell]:
    bare = row["direction"] == NONE
    return (
        Cell(ABSENT if bare else whole(row["layer"]), number=True),
        Cell(ABSENT if bare else decimal(row["scale_in_residual_norms"]), number=True),
    )


def _change(row: Row) -> Cell:
    return over(share(row["change"]), share_span(row["change_low"], row["change_high"]))
