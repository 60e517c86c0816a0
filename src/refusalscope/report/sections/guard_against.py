"""Other guards on the same prompts, at this guard's own rate of false alarms."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot, safe
from refusalscope.report.guard_tables import at_point, basis
from refusalscope.report.numbers import (
    NBSP,
    finite,
    p_value,
    percent,
    rate_span,
    share,
    share_span,
    whole,
)
from refusalscope.report.tables import Row, RunLike, records

MAX_GUARDS = 10


def against_figure(run: RunLike, table: pd.DataFrame) -> Figure | None:
    """Recall of each guard beside this one's, at the first operating point; None without any."""
    mine = at_point(table, run).dropna(subset=["tpr", "own_tpr"]).head(MAX_GUARDS)
    if mine.empty:
        return None
    dots: list[Dot] = []
    labels: list[str] = []
    said: list[str] = []
    for row in records(mine):
        name = safe(row["guard"], 24)
        for who, prefix, role in (
            (f"this guard, beside {name}", "own_", "direction"),
            (name, "", "control"),
        ):
            value = row[f"{prefix}tpr"]
            low, high = row[f"{prefix}low"], row[f"{prefix}high"]
            hover = (
                f"<b>{who}</b><br>{percent(value)} ({rate_span(low, high)}), n = {whole(row['n'])}"
            )
            known = finite(low) and finite(high)
            ends = (low, high) if known else (value, value)
            dots.append(Dot(len(labels), value, *ends, role, hover))
            labels.append("this guard" if prefix else name)
            said.append(f"{who} {percent(value)}")
    point, fpr = str(mine["point"].iloc[0]), mine["fpr"].iloc[0]
    breaks = [i + 0.5 for i in range(1, len(labels) - 1, 2)]
    return Figure(
        "figure-guard-against",
        "beside other guards",
        "Beside other guards, at the same rate of false alarms",
        [
            Panel(
                dot_plot(dots, labels, "harmful prompts flagged", rate=True, breaks=breaks),
                f"Share of harmful prompts flagged: {'; '.join(said)}.",
            )
        ],
        "Each pair stands on the prompts that both guards scored. The other guard's threshold is set so that "
        "it flags as many harmless prompts wrongly as this one does; further to the right is better. Its "
        f"threshold is set on these prompts themselves, which favours it.{_ties(mine)}",
        f"n = {whole(mine['n'].max())} harmful prompts at {safe(point)}, at which {percent(fpr)} of harmless "
        f"ones are flagged; {basis(run)}; exact 95{NBSP}% intervals.",
        keys=[Key("dot direction", "this guard"), Key("dot control", "other guard")],
    )


def against_table(table: pd.DataFrame) -> Table:
    """Every guard and operating point with the paired difference."""
    return Table(
        "Beside other guards in numbers",
        (
            *("guard", "operating point", "false alarms of both", "n harmful"),
            *("it flags", "this guard flags", "difference, paired", "p, corrected"),
        ),
        [_row(row) for row in records(table.head(60))],
        f"Below the numbers 95{NBSP}% intervals. Difference: this guard minus the other on the same harmful "
        "prompts; p by sign flips, corrected (Benjamini-Hochberg) over all guards and operating points."
        f"{_ties(table)}",
        id="table-guard-against",
        name="beside other guards in numbers",
    )


def _tied(row: Row) -> bool:
    """Whether no threshold of the other guard has this guard's rate of false alarms."""
    return bool(row["other_fpr"] < row["fpr"])


def _ties(table: pd.DataFrame) -> str:
    if not any(_tied(row) for row in records(table)):
        return ""
    return (
        " Where no threshold of the other guard has this rate, since it gives prompts the same score, ties "
        "were interpolated: of the tied prompts it flags the share that makes up the rate, as on the straight "
        "line between two points of its ROC curve; the interval spans those of the whole counts around."
    )


def _row(row: Row) -> tuple[str | Cell, ...]:
    return (
        str(row["guard"]),
        str(row["point"]),
        Cell(
            percent(row["fpr"]),
            number=True,
            below=f"ties interpolated from {percent(row['other_fpr'])}" if _tied(row) else "",
        ),
        Cell(whole(row["n"]), number=True),
        Cell(percent(row["tpr"]), number=True, below=rate_span(row["low"], row["high"])),
        Cell(
            percent(row["own_tpr"]), number=True, below=rate_span(row["own_low"], row["own_high"])
        ),
        Cell(
            share(row["difference"]),
            number=True,
            below=share_span(row["difference_low"], row["difference_high"]),
        ),
        Cell(p_value(row["p_adjusted"]), number=True),
    )
