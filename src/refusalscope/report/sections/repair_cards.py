"""Key figures of a repair run."""

from __future__ import annotations

from refusalscope.report.content import Card
from refusalscope.report.numbers import NBSP, decimal, finite, percent, rate_span, span, whole
from refusalscope.report.repair_tables import (
    CLIFF,
    KEPT,
    KL,
    OVER,
    RESTORED,
    effect,
    main_selection,
)
from refusalscope.report.tables import RunLike

RATES = {
    RESTORED: ("Refuses where refusal was lost", "direction"),
    KEPT: ("Refuses other harmful prompts", "harmful"),
    OVER: ("Refuses harmless prompts", "harmless"),
}
LEVELS = {
    CLIFF: ("Cliff where refusal was lost", "", 2),
    KL: ("Change of harmless replies", f"{NBSP}nats", 3),
}


def repair_cards(run: RunLike) -> list[Card]:
    """What the main selection does on held-out prompts; none for a run without effects."""
    rates = [_rate(run, quantity) for quantity in RATES]
    levels = [_level(run, quantity) for quantity in LEVELS]
    return [card for card in (*rates, *levels) if card is not None]


def _rate(run: RunLike, quantity: str) -> Card | None:
    row = effect(run, quantity)
    if row is None:
        return None
    name, role = RATES[quantity]
    known = finite(row["low"]) and finite(row["high"])
    return Card(
        f"{name}, repaired",
        percent(row["value"]),
        rate_span(row["low"], row["high"]),
        f"{percent(row['before'])} before; n = {whole(row['n'])}; by {main_selection(run)}",
        "figure-repair-effects",
        role,
        float(row["value"]),
        float(row["low"]) if known else None,
        float(row["high"]) if known else None,
    )


def _level(run: RunLike, quantity: str) -> Card | None:
    row = effect(run, quantity)
    if row is None:
        return None
    name, unit, digits = LEVELS[quantity]
    return Card(
        f"{name}, repaired",
        f"{decimal(row['value'], digits)}{unit}",
        span(row["low"], row["high"], digits),
        f"{decimal(row['before'], digits)} before; n = {whole(row['n'])}",
        "figure-repair-effects",
    )
