"""Before and after a repair: a figure and a table over quantities and selections."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot, safe
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    finite,
    p_value,
    percent,
    rate_span,
    share,
    span,
    whole,
)
from refusalscope.report.repair_rules import selections
from refusalscope.report.repair_tables import (
    BEFORE,
    CLIFF,
    KEPT,
    KL,
    MARGIN,
    OVER,
    PROMPTS,
    RATES,
    RESTORED,
    before,
    effect,
    repair_table,
)
from refusalscope.report.tables import Row, RunLike, records

MAX_SELECTIONS, MAX_ROWS = 8, 60
# The selection that was asked for, and the others.
MAIN, REST = "direction", "role_amplifier"
PANELS = {
    RESTORED: "Refuses where refusal was lost",
    KEPT: "Refuses other harmful prompts",
    OVER: "Refuses harmless prompts",
    CLIFF: "Cliff where refusal was lost",
    MARGIN: "Margin where refusal was lost (nats)",
    KL: "Change of harmless replies (KL, nats a token)",
}


def effects_figure(run: RunLike) -> Figure | None:
    """A panel a quantity, before above and each selection below; None without any known quantity."""
    names = selections(run)[:MAX_SELECTIONS]
    panels, counts = [], {}
    for quantity, title in PANELS.items():
        rows = [row for name in names if (row := effect(run, quantity, name)) is not None]
        if rows:
            panels.append(_panel(run, quantity, title, rows, names))
            counts[quantity] = whole(max((row["n"] for row in rows if finite(row["n"])), default=0))
    if not panels:
        return None
    n = ", ".join(f"{quantity} n = {count}" for quantity, count in counts.items())
    prompts = repair_table(run, PROMPTS)
    bare = "" if prompts is not None else "; before without an interval: repair.prompts is missing"
    return Figure(
        "figure-repair-effects",
        "before and after",
        "Before and after",
        panels,
        "The grey mark is the model before, the others the model fine-tuned on a selection of rows. A repair "
        "moves the first panel to the right, leaves the second on the right and the third on the left, and "
        "brings the cliff down; a change of harmless replies of 0 would leave them as they were.",
        f"Held-out prompts (report split): {n}; judged replies with Wilson intervals, means with bootstrap "
        f"intervals, 95{NBSP}%{bare}.",
        keys=[
            Key("dot control", "before"),
            Key("dot direction", safe(names[0]) if names else "after"),
            *([Key("dot role role-amplifier", "other selections")] if len(names) > 1 else []),
        ],
    )


def _panel(
    run: RunLike, quantity: str, title: str, rows: Sequence[Row], names: Sequence[str]
) -> Panel:
    rate, was = quantity in RATES, before(run, quantity)
    dots, labels = [], []
    if was is not None and finite(was.value):
        dots.append(_dot(0, BEFORE, was.value, was.low, was.high, "control", rate))
        labels.append(BEFORE)
    for row in rows:
        role = MAIN if row["selection"] == names[0] else REST
        name = safe(row["selection"], 20)
        dots.append(_dot(len(labels), name, row["value"], row["low"], row["high"], role, rate))
        labels.append(name)
    fig = dot_plot(dots, labels, "", rate=rate)
    if not rate:
        fig.update_xaxes(rangemode="tozero", nticks=5)
    said = "; ".join(
        f"{label} {percent(dot.value) if rate else decimal(dot.value)}"
        for label, dot in zip(labels, dots, strict=True)
    )
    return Panel(fig, f"{title}: {said}.", title)


def _dot(y: int, name: str, value: float, low: float, high: float, role: str, rate: bool) -> Dot:
    known = finite(low) and finite(high)
    interval = rate_span(low, high) if rate else span(low, high)
    hover = f"<b>{name}</b><br>{percent(value) if rate else decimal(value)} ({interval})"
    return Dot(y, value, low if known else value, high if known else value, role, hover)


def effects_table(table: pd.DataFrame) -> Table:
    """Every selection and quantity: before, after, the paired change, and what it does beyond another."""
    return Table(
        "Before and after in numbers",
        (
            *("selection", "quantity", "n", "before", "after"),
            *("change, paired", "p", "beyond the other selection"),
        ),
        [_effect(row) for row in records(table.head(MAX_ROWS))],
        f"Below the numbers 95{NBSP}% intervals over held-out prompts. Change: after minus before, paired by "
        "prompt, with its p value; beyond the other selection: the difference to the model trained on that "
        "selection, paired by prompt.",
        id="table-repair-effects",
        name="before and after in numbers",
    )


def _effect(row: Row) -> tuple[str | Cell, ...]:
    rate = row["quantity"] in RATES
    show, bounds = (percent, rate_span) if rate else (decimal, span)
    signed = share if rate else decimal
    beats = _over(signed(row["beats"]), _signed_span(row, "beats", rate))
    against = f" ({row['against']})" if row["against"] and finite(row["beats"]) else ""
    return (
        str(row["selection"]),
        str(row["quantity"]),
        Cell(whole(row["n"]), number=True),
        Cell(show(row["before"]), number=True),
        _over(show(row["value"]), bounds(row["low"], row["high"])),
        _over(signed(row["change"]), _signed_span(row, "change", rate)),
        Cell(p_value(row["p"]), number=True),
        Cell(f"{beats.text}{against}", number=True, below=beats.below),
    )


def _signed_span(row: Row, column: str, rate: bool) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if not (finite(low) and finite(high)):
        return ABSENT
    return f"{share(low, unit=False)} to {share(high)}" if rate else span(low, high)


def _over(value: str, interval: str) -> Cell:
    return Cell(value, number=True, below="" if interval == ABSENT else interval)
