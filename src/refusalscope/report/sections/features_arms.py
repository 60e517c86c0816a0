"""The arms in numbers, and the sweep of the published search."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    p_value,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, records
from refusalscope.stats import wilson

MAX_ROWS = 120


def arms_table(rows: pd.DataFrame) -> Table:
    """One row an arm, at full strength."""
    return Table(
        "Every arm with its latents out whole",
        (
            *("arm", "latents", "margin falls (nats)", "beyond random latents", "p", "at equal KL"),
            *("KL (nats a position)", "flips", "judged refusals", "nats per nat of KL"),
        ),
        [_arm(row) for row in records(rows)],
        f"Below each number its 95{NBSP}% interval over prompts. Beyond random latents: the fall less that "
        "with matched random latents, paired by prompt; p: share of the random draws, the arm itself counted "
        "in, that do as much. At equal KL: the fall at the strength at which the arm costs what the set "
        "costs, read between the strengths that were run, along the root of the KL (a small edit moves the "
        "margin in proportion and the KL with its square). Flips: share of refused harmful prompts whose "
        "margin falls below 0. A dash: not measured, never that costly, or the set itself costs nothing.",
        id="table-features-baselines",
        name="arms",
    )


def _arm(row: Row) -> tuple[str | Cell, ...]:
    latents = whole(row["n_latents"]) if row["n_latents"] > 0 else ABSENT
    return (
        Cell(str(row["arm"]), strong=row["group"] == "set"),
        Cell(latents, number=True),
        _number(row, "change", 2),
        _number(row, "beats", 2),
        Cell(p_value(row["p_random"]), number=True),
        Cell(decimal(row["equal_kl"]), number=True),
        Cell(decimal(row["kl"], 4), number=True),
        _rate(row, "flipped"),
        _rate(row, "refused"),
        Cell(decimal(row["ratio"], 1), number=True),
    )


def _number(row: Row, column: str, digits: int) -> Cell:
    interval = span(row[f"{column}_low"], row[f"{column}_high"], digits)
    return _over(decimal(row[column], digits), interval)


def _rate(row: Row, column: str) -> Cell:
    interval = rate_span(row[f"{column}_low"], row[f"{column}_high"])
    return _over(percent(row[column]), interval)


def _over(value: str, interval: str) -> Cell:
    return Cell(value, number=True, below="" if interval == ABSENT else interval)


def strengths_table(arms: pd.DataFrame) -> Table:
    """Every arm at every strength, with what else it does to replies."""
    left = len(arms) - MAX_ROWS
    return Table(
        "Every strength, and what else it does",
        (
            *("arm", "strength", "draws", "margin (nats)", "falls by", "flips"),
            *("KL (nats a position)", "CE (nats a token)", "degenerate", "over-refused"),
        ),
        [_strength(row) for row in records(arms.head(MAX_ROWS))],
        f"Below the numbers 95{NBSP}% intervals over prompts. CE: change of the cross-entropy of the clean "
        "model's replies. Degenerate: share of replies that say nothing; over-refused: share of harmless "
        "prompts that are then refused."
        + (f" {whole(left)} further rows stand in features.baselines." if left > 0 else ""),
        folded=True,
    )


def _strength(row: Row) -> tuple[str | Cell, ...]:
    return (
        str(row["arm"]),
        Cell(decimal(row["strength"]), number=True),
        Cell(whole(row["draws"]), number=True),
        Cell(decimal(row["margin"]), number=True),
        Cell(decimal(row["change"]), number=True),
        Cell(percent(row["flipped"]), number=True),
        _number(row, "kl", 4),
        _number(row, "ce", 3),
        Cell(percent(row["degenerate"]), number=True),
        Cell(percent(row["over_refused"]), number=True),
    )


def published_table(published: pd.DataFrame) -> Table:
    """The published block search by reading and threshold, over prompts."""
    rows = []
    for (reading, tau), part in published.groupby(["reading", "tau"], sort=True):
        searched = part[part["why_not"] == ""]
        n, k = len(searched), int(searched["intersection_flipped"].sum())
        rate = wilson(k, n) if n else None
        rows.append(
            (
                str(reading) or ABSENT,
                Cell(decimal(tau), number=True),
                Cell(f"{whole(n)} of {whole(len(part))}", number=True),
                Cell(decimal(searched["sizes_mean"].mean(), 1), number=True),
                Cell(decimal(searched["intersection_size"].mean(), 1), number=True),
                Cell(f"{whole(k)} of {whole(n)}" if n else ABSENT, number=True),
                Cell(rate_span(rate.low, rate.high) if rate else ABSENT, number=True),
                Cell(whole(searched["evaluations"].sum()), number=True),
            )
        )
    return Table(
        "The published search: blocks taken back in several orders, their sets intersected",
        (
            *("reading", "threshold", "prompts searched", "mean size of a set"),
            *("mean size of the intersection", "intersection still flips", "95 % interval", "runs"),
        ),
        rows,
        "An intersection of sets that each flip the refusal need not flip it. Restore and delta are two "
        "readings of a step that the published text leaves open.",
        id="table-features-published",
        name="published search",
    )
