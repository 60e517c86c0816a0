"""Key figures of a routing run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusalscope.report.content import Card
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    percent,
    rate_span,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.routing_rules import UNCOUNTED
from refusalscope.report.routing_tables import (
    GROUPS,
    all_heads,
    found,
    group,
    layers,
    main_gap,
    routing_table,
)
from refusalscope.report.tables import Row, RunLike, by_size, records


def routing_cards(run: RunLike) -> list[Card]:
    """The cards; none for a run without routing tables."""
    heads, groups = all_heads(run), routing_table(run, GROUPS)
    cards = [
        _gap(main_gap(run)),
        _count(heads),
        _largest(heads),
        _together(groups),
        _redundancy(groups),
        _threshold(routing_table(run, "routing.thresholds")),
        _rescue(routing_table(run, "routing.rescue")),
    ]
    return [card for card in cards if card is not None]


def _gap(gap: Row | None) -> Card | None:
    if gap is None:
        return None
    sides = f"harmful {decimal(gap['harmful'])}, control {decimal(gap['control'])}"
    return Card(
        f"Gap of the {gap['metric'] or 'metric'}",
        f"{decimal(gap['gap'])}{NBSP}{gap['unit']}".rstrip(),
        span(gap["low"], gap["high"]),
        f"{sides}; {whole(gap['n'])} pairs",
        "table-routing-gap",
    )


def _count(heads: pd.DataFrame | None) -> Card | None:
    mine = found(heads)
    if heads is None or mine is None:
        return None
    roles = mine["role"].replace("", "without a role").value_counts(sort=False)
    said = ", ".join(
        f"{n} {role}" if role in UNCOUNTED else counted(n, str(role)) for role, n in roles.items()
    )
    return Card(
        "Heads found",
        whole(len(mine)),
        f"of {whole(heads['necessity'].notna().sum())} looked at",
        said or "none passed",
        "figure-routing-map",
        "direction",
    )


def _largest(heads: pd.DataFrame | None) -> Card | None:
    if heads is None or heads["necessity"].isna().all():
        return None
    row = records(by_size(heads, "necessity"))[0]
    role = f", {row['role']}" if row["role"] else ""
    passes = "" if row["passes"] else ", did not pass"
    return _share_card(
        "Largest necessity of one head",
        (row["necessity"], row["necessity_low"], row["necessity_high"]),
        f"{row['at']}{role}{passes}",
        "table-routing-heads",
    )


def _together(groups: pd.DataFrame | None) -> Card | None:
    rows = group(groups, "found")
    if rows is None:
        return None
    row = rows.iloc[0]
    return _share_card(
        "Found heads swapped together",
        (row["necessity"], row["low"], row["high"]),
        f"{whole(row['n_heads'])} heads; one by one they sum to {share(row['summed'])}",
        "table-routing-groups",
    )


def _redundancy(groups: pd.DataFrame | None) -> Card | None:
    if groups is None:
        return None
    hiding = groups[groups["hides"] & groups["necessity"].notna()]
    if hiding.empty:
        return None
    row = records(by_size(hiding, "necessity"))[0]
    return _share_card(
        f"Redundancy: {layers(row) or row['name'] or 'a group'}",
        (row["necessity"], row["low"], row["high"]),
        f"swapped together; the best head inside alone {share(row['largest'])}",
        "table-routing-groups",
    )


def _threshold(thresholds: pd.DataFrame | None) -> Card | None:
    if thresholds is None:
        return None
    rows = thresholds[(thresholds["category"] == "all") & thresholds["alpha50"].notna()]
    if rows.empty:
        return None
    row = records(rows)[0]
    return Card(
        f"Dose at which the margin crosses 0 ({row['arm']})",
        decimal(row["alpha50"]),
        span(row["alpha50_low"], row["alpha50_high"]),
        "in norms of the residual stream",
        "figure-routing-dose",
    )


def _rescue(rescue: pd.DataFrame | None) -> Card | None:
    if rescue is None:
        return None
    rows = rescue[rescue["rate"].notna() & rescue["arm"].str.contains("gate|rescue")]
    if rows.empty:
        return None
    row = records(rows)[0]
    value, low, high = row["rate"], row["low"], row["high"]
    return Card(
        "Refusal rescued under the cipher",
        percent(value),
        rate_span(low, high),
        f"{row['arm']}; {whole(row['refused'])} of {whole(row['n'])} refused",
        "figure-routing-rescue",
        "direction",
        *_bar(value, low, high),
    )


def _share_card(name: str, values: tuple[Any, Any, Any], detail: str, link: str) -> Card:
    value, low, high = values
    bar = _bar(value, low, high)
    return Card(name, share(value), share_span(low, high), detail, link, "direction", *bar)


def _bar(value: Any, low: Any, high: Any) -> tuple[float | None, float | None, float | None]:
    """Where the bar of a card lies between 0 and 1; none for a value that lies outside."""
    if not finite(value) or not 0 <= value <= 1:
        return None, None, None
    if not (finite(low) and finite(high)):
        return float(value), None, None
    return float(value), min(max(float(low), 0.0), 1.0), min(max(float(high), 0.0), 1.0)
