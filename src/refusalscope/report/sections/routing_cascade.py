"""Knockout cascades: what deeper heads write less of once a gate is taken out."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot, safe
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    listed,
    p_value,
    share,
    share_span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.routing_tables import LEAST_CONTRAST, found, telling
from refusalscope.report.tables import Row, by_size, records

# A panel lists so many deeper heads, and so many of them that are not of the route; the page so many
# panels; the table so many rows.
MAX_HEADS = 12
MAX_OTHERS = 4
MAX_PANELS = 6
MAX_ROWS = 60
KNOCKOUTS = {"swap": "swapped", "mean": "set to its mean", "zero": "set to zero"}
FLOOR = "not deeper"


def cascade_figure(
    cascade: pd.DataFrame, heads: pd.DataFrame | None, drive: pd.DataFrame | None
) -> Figure | None:
    """A panel for every gate and knockout; None when no head behind a gate has a change."""
    groups = [
        (str(gate), str(knockout), rows)
        for (gate, knockout), rows in cascade.groupby(["gate", "knockout"], sort=False)
        if (rows["deeper"] & rows["change"].notna()).any()
    ]
    order = list(KNOCKOUTS)
    groups.sort(key=lambda g: order.index(g[1]) if g[1] in order else len(order))
    if not groups:
        return None
    route = found(heads)
    named = set() if route is None else set(route["at"])
    panels = [_panel(*g, named, drive) for g in groups[:MAX_PANELS]]
    left = len(groups) - len(panels)
    more = f" {left} further cascades stand in the table below only." if left > 0 else ""
    return Figure(
        "figure-routing-cascade",
        "cascade",
        "What happens behind a gate that is taken out",
        panels,
        "Each row is a head behind the gate: how far its own contrast between harmful and control "
        "changes once the gate is out, as a share of its clean contrast. \u2212100% means it writes nothing "
        "of it any more. Filled: as measured; hollow: with the scale of the final norm held, which "
        "leaves what the gate did. Heads not deeper than the gate cannot hear it: their changes "
        "(last row and grey band) are the noise floor, made by the norm alone. "
        "A change inside the band says nothing.",
        f"Heads found or driven, and the {MAX_OTHERS} others that change most; heads with less "
        f"than {share(LEAST_CONTRAST)} of the largest contrast are left out; intervals over pairs, "
        f"95{NBSP}%.{more}",
        keys=[
            Key("dot direction", "as measured"),
            Key("dot open direction", "norm's scale held"),
            Key("dot control", "heads that cannot hear the gate"),
            Key("band", "their range"),
        ],
        numbers=_numbers(cascade),
    )


def _panel(
    gate: str, knockout: str, rows: pd.DataFrame, named: set[str], drive: pd.DataFrame | None
) -> Panel:
    readable = telling(rows)
    deeper = readable[readable["deeper"] & readable["change"].notna()]
    floor = readable[~readable["deeper"] & readable["change"].notna() & (readable["at"] != gate)]
    driven = (
        set() if drive is None else set(drive.loc[drive["driven"] & (drive["gate"] == gate), "at"])
    )
    first = deeper["at"].isin(named | driven)
    chosen = deeper.assign(first=first, shift=_shift(deeper).abs())
    chosen = chosen.sort_values(["first", "shift"], ascending=False, kind="stable")
    chosen = chosen[chosen["first"] | (~chosen["first"]).cumsum().le(MAX_OTHERS)][:MAX_HEADS]
    shown = records(chosen.sort_values(["layer", "head"]))
    dots, names = [], []
    for y, row in enumerate(shown):
        names.append(row["at"])
        both = finite(row["held"])
        low, high = (row[n] if finite(row[n]) else row["change"] for n in ("low", "high"))
        hover = _hover(row)
        dots.append(Dot(y - 0.16 * both, row["change"], low, high, "direction", hover))
        if both:
            held = row["held"]
            dots.append(Dot(y + 0.16, held, held, held, "direction", hover, "circle-open", 8))
    if len(floor):
        names.append(f"{FLOOR} ({len(floor)})")
    fig = dot_plot(
        dots,
        names,
        "change of the head's contrast",
        rate=False,
        strong=[i for i, row in enumerate(shown) if row["at"] in driven],
        breaks=[len(shown) - 0.5] if len(floor) else [],
    )
    said = ", ".join(f"{row['at']} {share(row['change'])}" for row in shown)
    noise = "No head before the gate gives a noise floor."
    if len(floor):
        low, high = float(floor["change"].min()), float(floor["change"].max())
        fig.add_vrect(x0=low, x1=high, fillcolor=LIGHT["sunken"], line_width=0, layer="below")
        fig.add_scatter(
            x=floor["change"].tolist(),
            y=[len(shown)] * len(floor),
            mode="markers",
            marker={"color": LIGHT["control"], "size": 6, "opacity": 0.7},
            text=[_hover(row) for row in records(floor)],
            hovertemplate="%{text}<extra></extra>",
        )
        noise = f"Noise floor {share_span(low, high)}."
    fig.update_xaxes(tickformat=".0%", nticks=4, tickangle=0)
    title = f"{safe(gate)} {KNOCKOUTS.get(knockout, safe(knockout) or 'taken out')}"
    return Panel(fig, f"Cascade of {gate}, {knockout}: {said}. {noise}", title)


def _shift(rows: pd.DataFrame) -> pd.Series:
    """The change in logits, with the norm's scale held where that was looked at."""
    return rows["held"].fillna(rows["change"]) * rows["contrast"].fillna(1)


def _hover(row: Row) -> str:
    lines = [
        f"<b>{row['at']}</b>, clean contrast {decimal(row['contrast'], 3)} logits",
        f"change {share(row['change'])} ({share_span(row['low'], row['high'])})",
        f"scale held {share(row['held'])}",
    ]
    if finite(row["p"]):
        lines.append(f"p {p_value(row['p'])} among null heads")
    return "<br>".join(lines)


def _numbers(cascade: pd.DataFrame) -> Table:
    deeper = cascade[cascade["deeper"]]
    shown = by_size(deeper.assign(shift=_shift(deeper)), "shift").head(MAX_ROWS)
    gates = listed(list(dict.fromkeys(cascade["gate"])))
    left = len(deeper) - len(shown)
    return Table(
        f"The largest changes behind {gates}",
        (
            *("gate", "knockout", "head", "contrast (logits)", "change", "95 % interval"),
            *("scale held", "p among null heads"),
        ),
        [
            (
                str(row["gate"]),
                str(row["knockout"]),
                row["at"],
                Cell(decimal(row["contrast"], 3), number=True),
                Cell(share(row["change"]), number=True),
                Cell(share_span(row["low"], row["high"]), number=True),
                Cell(share(row["held"]), number=True),
                Cell(p_value(row["p"]), number=True),
            )
            for row in records(shown)
        ],
        f"{whole(left)} further rows stand in routing.cascade." if left else "",
        folded=True,
    )
