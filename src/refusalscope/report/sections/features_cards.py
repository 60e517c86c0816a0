"""Key figures of a features run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusalscope.report.content import Card
from refusalscope.report.features_tables import (
    arms_at_full,
    dormant_rows,
    main_set,
    pooled_searches,
    set_arm,
)
from refusalscope.report.features_writes import followed, spread
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, RunLike, by_size, records


def features_cards(run: RunLike) -> list[Card]:
    """The cards; none for a run without tables of a features study."""
    members, arm, dormant = main_set(run), set_arm(run), dormant_rows(run)
    cards = [
        _size(members, pooled_searches(run)),
        _rate("Unseen refused prompts that the set flips", arm, "flipped", "n_harmful"),
        _beats(arm),
        _cost(arm),
        _direction(arm, arms_at_full(run)),
        _rate("Judged refusals with the set taken out", arm, "refused", "n_harmful"),
        _dormant(dormant, members),
        _reserves(dormant),
    ]
    return [card for card in cards if card is not None]


def _size(members: pd.DataFrame | None, searches: pd.DataFrame | None) -> Card | None:
    if members is None:
        return None
    searched = "" if searches is None else searches["candidates"].max()
    row = records(members)[0]
    proof = "verified" if row["verified"] else "not verified"
    proof += " and minimal" if row["verified"] and row["minimal"] else ""
    layers = counted(members["layer"].nunique(), "layer")
    return Card(
        f"{'Writes' if spread(members) else 'Latents'} in the set",
        whole(members["write"].nunique()),
        f"{counted(len(members), 'latent')} over {layers}" if spread(members) else f"in {layers}",
        f"of {whole(searched)} searched; {proof}" if finite(searched) else proof,
        "figure-features-set",
        "direction",
    )


def _rate(name: str, arm: Row | None, column: str, count: str) -> Card | None:
    if arm is None or not finite(arm[column]):
        return None
    low, high = arm[f"{column}_low"], arm[f"{column}_high"]
    return Card(
        name,
        percent(arm[column]),
        rate_span(low, high),
        f"n = {whole(arm[count])} prompts that the set was not searched on",
        "figure-features-baselines",
        "harmful",
        *_bar(arm[column], low, high),
    )


def _beats(arm: Row | None) -> Card | None:
    if arm is None or not finite(arm["change"]):
        return None
    beside = "random latents not tried"
    if finite(arm["beats"]):
        beside = f"{decimal(arm['beats'])} more than matched random latents "
        beside += f"({span(arm['beats_low'], arm['beats_high'])})"
    return Card(
        "Fall of the refusal margin",
        f"{decimal(arm['change'])}{NBSP}nats",
        span(arm["change_low"], arm["change_high"]),
        beside,
        "figure-features-baselines",
        "direction",
    )


def _cost(arm: Row | None) -> Card | None:
    if arm is None or not finite(arm["kl"]):
        return None
    return Card(
        "Cost on harmless replies (KL)",
        f"{decimal(arm['kl'], 3)}{NBSP}nats",
        span(arm["kl_low"], arm["kl_high"], 3),
        f"a position; n = {whole(arm['n_harmless'])} prompts",
        "figure-features-baselines",
        "harmless",
    )


def _direction(arm: Row | None, rows: pd.DataFrame | None) -> Card | None:
    if arm is None or rows is None:
        return None
    line = next(iter(records(rows[rows["group"] == "direction"])), None)
    if line is None or not finite(line["equal_kl"]):
        return None
    return Card(
        "Refusal direction at equal KL",
        f"{decimal(line['equal_kl'])}{NBSP}nats",
        "without an interval",
        f"fall of the margin; the set {decimal(arm['change'])} "
        f"({span(arm['change_low'], arm['change_high'])})",
        "table-features-baselines",
    )


def _dormant(dormant: pd.DataFrame | None, members: pd.DataFrame | None) -> Card | None:
    if dormant is None or not dormant["in_set"].any():
        return None
    mine = followed(dormant, members)
    n = int(mine["dormant"].sum())
    return Card(
        "Dormant members",
        f"{whole(n)} of {whole(len(mine))}",
        f"{percent(n / len(mine))} of the set",
        "active on no prompt without an edit",
        "table-features-members",
        "direction",
    )


def _reserves(dormant: pd.DataFrame | None) -> Card | None:
    if dormant is None:
        return None
    outside = dormant[~dormant["in_set"]]
    if outside["q"].isna().all():
        return None
    found = by_size(outside[outside["reserve"]], "effect")
    detail = f"of {counted(len(outside), 'latent')} that wake at all"
    interval = "none wakes beyond chance and matters"
    if len(found):
        best = records(found)[0]
        interval = f"strongest {decimal(best['effect'])}{NBSP}nats "
        interval += f"({span(best['effect_low'], best['effect_high'])})"
    return Card(
        "Reserves", whole(len(found)), interval, detail, "figure-features-woken", "direction"
    )


def _bar(value: Any, low: Any, high: Any) -> tuple[float, float | None, float | None]:
    known = finite(low) and finite(high)
    return float(value), float(low) if known else None, float(high) if known else None
