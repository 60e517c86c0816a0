"""The table of the dictionaries: whether each fits this model."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    percent,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, records

# More dictionaries than this are folded.
MAX_OPEN = 12


def dictionaries_table(dictionaries: pd.DataFrame) -> Table:
    """Whether each dictionary fits this model, measured on the run's own prompts."""
    folded = len(dictionaries) > MAX_OPEN
    return Table(
        f"The dictionaries ({whole(len(dictionaries))})",
        (
            *("layer", "dictionary", "kind", "latents", "active a token", "at special tokens"),
            *("variance explained", "norm ratio", "dead", "warnings"),
        ),
        [_dictionary(row) for row in records(dictionaries)],
        f"Measured on the prompts of this run, below 95{NBSP}% intervals. Norm ratio: length of the stream "
        "over that of its reconstruction. Dead: latents active on no token of these prompts.",
        folded=folded,
        id="" if folded else "table-features-dictionaries",
        name="dictionaries",
    )


def _dictionary(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(whole(row["layer"]), number=True),
        row["name"] or ABSENT,
        row["architecture"] or ABSENT,
        Cell(whole(row["d_sae"]), number=True),
        Cell(
            decimal(row["l0"], 1), number=True, below=_known(span(row["l0_low"], row["l0_high"], 1))
        ),
        Cell(decimal(row["l0_special"], 1), number=True),
        Cell(
            share(row["explained"]),
            number=True,
            below=_known(share_span(row["explained_low"], row["explained_high"])),
        ),
        Cell(decimal(row["norm_ratio"]), number=True),
        Cell(percent(row["dead_share"]), number=True),
        row["warnings"] or "none",
    )


def _known(interval: str) -> str:
    return "" if interval == ABSENT else interval
