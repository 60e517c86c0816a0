"""Key figures of a guard's run."""

from __future__ import annotations

from refusalscope.report.content import Card
from refusalscope.report.guard_beside import worst_wrapper, wrapper_count
from refusalscope.report.guard_shortcuts import APART, LEANS, shortcut_word
from refusalscope.report.guard_tables import (
    SCORES,
    SHORTCUTS,
    first_point,
    guard_table,
    is_guard,
    metric,
)
from refusalscope.report.numbers import NBSP, decimal, finite, percent, rate_span, span, whole
from refusalscope.report.tables import Row, RunLike
from refusalscope.stats import wilson


def guard_cards(run: RunLike) -> list[Card]:
    """The cards; none for a run without tables of a guard."""
    if not is_guard(run):
        return []
    row = first_point(run)
    cards = [
        _rate(row, "tpr", "Harmful prompts flagged", "harmful"),
        _rate(row, "fpr", "Harmless prompts flagged", "harmless"),
        _auroc(metric(run, "auroc")),
        _shortcuts(run),
        _wrapper(worst_wrapper(run), wrapper_count(run)),
        _abstains(run),
    ]
    return [card for card in cards if card is not None]


def _rate(row: Row | None, name: str, title: str, role: str) -> Card | None:
    if row is None or not finite(row[name]):
        return None
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = finite(low) and finite(high)
    promise = (
        f"; promised {percent(row['alpha'])}" if name == "fpr" and finite(row["alpha"]) else ""
    )
    return Card(
        title,
        percent(row[name]),
        rate_span(low, high),
        f"n = {whole(row[f'n_{role}'])}, at {row['name']}{promise}",
        "table-guard-points",
        role,
        float(row[name]),
        float(low) if known else None,
        float(high) if known else None,
    )


def _auroc(row: Row | None) -> Card | None:
    if row is None:
        return None
    return _area(
        "AUROC of the score", row["value"], row["low"], row["high"], f"n = {whole(row['n'])}"
    )


def _wrapper(row: Row | None, count: int) -> Card | None:
    if row is None:
        return None
    name = f"AUROC under wrappers, the lowest of {whole(count)}: {row['wrapper']}"
    area = row["auroc"], row["auroc_low"], row["auroc_high"]
    return _area(name, *area, f"n = {whole(row['n'])} harmful", "table-guard-wrappers")


def _area(
    name: str, value: float, low: float, high: float, detail: str, link: str = "figure-guard-roc"
) -> Card:
    known = finite(low) and finite(high)
    return Card(
        name,
        decimal(value, 3),
        span(low, high, 3),
        f"{detail}; 0.5 is guessing",
        link,
        "direction",
        float(value),
        float(low) if known else None,
        float(high) if known else None,
    )


def _shortcuts(run: RunLike) -> Card | None:
    word, _, grade = shortcut_word(run)
    if not word:
        return None
    said = {APART: "yes", LEANS: "in part"}.get(grade, "no")
    cues = guard_table(run, SHORTCUTS)
    own = "" if cues is None else f"AUROC {decimal(cues['auroc'].iloc[0], 3)} on the same prompts"
    return Card("Told from its shortcuts", said, word, own, "table-guard-verdict")


def _abstains(run: RunLike) -> Card | None:
    scores = guard_table(run, SCORES)
    if scores is None:
        return None
    rate = wilson(int(scores["abstain"].sum()), len(scores))
    return Card(
        "Prompts it abstains on",
        percent(rate.value),
        rate_span(rate.low, rate.high),
        f"n = {whole(rate.n)}; unlike those of calibration, 95{NBSP}% Wilson interval",
        "figure-guard-plane",
        "ink",
        rate.value,
        rate.low,
        rate.high,
    )
