"""Steering and reply inversion in numbers, at the chosen layers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refusalscope.report.belief_tables import DIRECTIONS, NONE, RULES
from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    counted,
    decimal,
    finite,
    p_value,
    percent,
    rate_span,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.sections.belief_jailbreaks import left_out, over
from refusalscope.report.tables import Row, records

MAX_ROWS = 80
LENGTH = "Below the layer the length of what was added, in residual norms."
FURTHEST = (
    "Furthest rotation: the change of the random rotation that went furthest the pushed way, each at its best "
    "layer; p: the rank of the direction among them, below it how many there were."
)
RANGES = "Of rotations the least and the largest are shown, and the largest count."


def steering_table(table: pd.DataFrame) -> Table:
    """Judged replies and margins at the chosen layers, beside rotations and nothing added."""
    parts = _parts(table[table["n"] > 0])
    return Table(
        "Steering in numbers, at the chosen layers",
        (
            *("direction", "prompts", "layer", "n", "refused", "corrected for the judge"),
            *("change, paired", "degenerate", "margin, change", "furthest rotation", "p"),
        ),
        [
            (
                *_named(part),
                _layer(part[0]),
                Cell(whole(part[0]["n"]), number=True),
                _rate(part, "rate", ("low", "high")),
                _rate(part, "corrected", ("corrected_low", "corrected_high")),
                _change(part),
                Cell(whole(max(row["degenerate"] for row in part)), number=True),
                *_margin(part[0]),
            )
            for part in parts[:MAX_ROWS]
        ],
        f"{LENGTH} Below the other numbers 95{NBSP}% intervals. Degenerate replies count as not refused. "
        f"{FURTHEST} {RANGES}{left_out(len(parts), MAX_ROWS)}",
        id="table-belief-steering",
        name="steering in numbers",
    )


def margins_table(table: pd.DataFrame) -> Table | None:
    """Margins of the answers at the chosen layers, by the rank of each direction; None without margins."""
    parts = _parts(table[(table["control"] != "random") & table["margin"].notna()])
    if not parts:
        return None
    return Table(
        "Margins of the answers on harm, at the chosen layers",
        (
            *("direction", "prompts", "tokens", "layer", "n", "margin (nats)"),
            *("change, paired", "furthest rotation", "p", "probability of both answers"),
        ),
        [
            (
                *_named([row]),
                _tokens(row),
                _layer(row),
                Cell(whole(row["n_margin"]), number=True),
                over(decimal(row["margin"]), span(row["margin_low"], row["margin_high"])),
                *_margin(row),
                Cell(percent(row["answer_mass"]), number=True),
            )
            for (row, *_) in parts[:MAX_ROWS]
        ],
        f"Certainly over No, as the model would open its answer. {LENGTH} Below the other numbers 95{NBSP}% "
        f"intervals. {FURTHEST}{left_out(len(parts), MAX_ROWS)}",
        id="table-belief-margins",
        name="margins of the answers in numbers",
    )


def inversion_table(table: pd.DataFrame) -> Table:
    """Answers at the chosen layers, beside rotations and nothing added."""
    parts = _parts(table[table["n"] > 0])
    return Table(
        "Answers on harm in numbers, at the chosen layers",
        (
            *("direction", "prompts", "tokens", "layer", "n", "invalid", "share of No"),
            *("loose No", "change, paired", "n of the change"),
        ),
        [
            (
                *_named(part),
                _tokens(part[0]),
                _layer(part[0]),
                Cell(whole(part[0]["n"]), number=True),
                _rate(part, "invalid", ("invalid_low", "invalid_high")),
                _rate(part, "share_no", ("low", "high")),
                Cell(whole(max(row["loose_no"] for row in part)), number=True),
                _change(part),
                _both(part),
            )
            for part in parts[:MAX_ROWS]
        ],
        f"{LENGTH} Below the other numbers 95{NBSP}% intervals. Invalid: answers that are neither Certainly "
        "nor No, which the share of No leaves out. Loose No: answers that the published rule counts as No for "
        "their letters (know, not, cannot) without the word. The change is over prompts with a valid answer "
        f"in both. {RANGES}{left_out(len(parts), MAX_ROWS)}",
        id="table-belief-inversion",
        name="answers on harm in numbers",
    )


def _parts(table: pd.DataFrame) -> list[list[Row]]:
    """Rows of the run with nothing added and of what was chosen; the rotations of a direction together."""
    mine = table[(table["direction"] == NONE) | table["chosen"]]
    by = ["label", "direction", "positions", "control"]
    return [records(part) for _, part in mine.groupby(by, sort=False)]


def _named(part: Sequence[Row]) -> tuple[Cell, str]:
    random = counted(len(part), "random rotation") if part[0]["control"] == "random" else ""
    name = DIRECTIONS.get(part[0]["direction"], "nothing added")
    return Cell(name, below=random), str(part[0]["label"])


def _tokens(row: Row) -> str:
    bare = row["direction"] == NONE
    return ABSENT if bare else RULES.get(row["positions"], str(row["positions"]))


def _layer(row: Row) -> Cell:
    """The layer, and below it how long the push was."""
    if row["direction"] == NONE:
        return Cell(ABSENT, number=True)
    return over(whole(row["layer"]), decimal(row["scale_in_residual_norms"]))


def _rate(part: Sequence[Row], name: str, ends: tuple[str, str]) -> Cell:
    """A rate with its interval, or the least and the largest of rotations."""
    if part[0]["control"] == "random":
        values = [row[name] for row in part]
        return Cell(rate_span(min(values), max(values)), number=True)
    row = part[0]
    return over(percent(row[name]), rate_span(*(row[end] for end in ends)))


def _change(part: Sequence[Row]) -> Cell:
    """The paired change of replies; nothing for the run that it is a change from."""
    row, values = part[0], [each["change"] for each in part]
    if row["direction"] == NONE:
        return Cell("", number=True)
    if row["control"] == "random":
        return Cell(share_span(min(values), max(values)), number=True)
    return over(share(row["change"]), share_span(row["change_low"], row["change_high"]))


def _both(part: Sequence[Row]) -> Cell:
    bare = part[0]["direction"] == NONE
    return Cell("" if bare else whole(min(row["n_both"] for row in part)), number=True)


def _margin(row: Row) -> tuple[Cell, Cell, Cell]:
    """The paired change of the margin, the furthest rotation, and the rank; of directions alone."""
    blank = Cell("", number=True)
    if row["control"] != "direction":
        return blank, blank, blank
    low, high = row["margin_change_low"], row["margin_change_high"]
    change = over(decimal(row["margin_change"]), span(low, high))
    if not finite(row["p_random"]):
        return change, blank, blank
    rank = over(p_value(row["p_random"]), f"of {whole(row['n_random'])}")
    return change, Cell(decimal(row["random_most"]), number=True), rank
