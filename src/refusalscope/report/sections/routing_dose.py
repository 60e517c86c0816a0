"""Dose curves: the margin and the judged refusals as a direction is taken out or put in."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Block, Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    p_value,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

ARMS = {
    "attenuate": ("harmful", "Taken out of harmful prompts"),
    "amplify": ("harmless", "Put into control prompts"),
}


def dose_blocks(dose: pd.DataFrame, thresholds: pd.DataFrame | None) -> list[Block]:
    """The curves, and the thresholds in numbers."""
    panels, keys, sizes = [], [], []
    for arm, rows in dose.groupby("arm", sort=False):
        known = rows[rows["alpha"].notna()]
        curve = main_curve(known)
        if curve.empty or curve["margin"].isna().all():
            continue
        role, title = ARMS.get(str(arm), ("direction", str(arm)))
        panels.append(_panel(str(arm), role, title, known, curve, thresholds))
        keys.append(Key(f"area {role}", f"{arm}, all prompts"))
        sizes.append(f"{arm} n = {whole(curve['n'].max())}")
    blocks: list[Block] = []
    if panels:
        blocks.append(
            Figure(
                "figure-routing-dose",
                "dose curves",
                "How refusal follows the dose",
                panels,
                "Upper curves: the refusal margin as the direction at the detection layer is taken out of "
                "harmful prompts (attenuate) or put into controls (amplify). Above 0 the model leans "
                "to refuse. Thin lines are single categories and languages: a whole that moves smoothly can "
                "hide parts that switch at different doses. Lower curves: the share of judged replies that "
                "refuse. The dashed line is the dose at which the margin crosses 0, its band the interval; "
                "the dotted one where half of the judged replies refuse.",
                f"{'; '.join(sizes)}; alpha in norms of the residual stream at that layer; margins in nats "
                f"with intervals over prompts, rates with Wilson intervals, 95{NBSP}%.",
                keys=[
                    *keys,
                    Key("thin control", "a category or language"),
                    Key("dash", "threshold of the margin"),
                    Key("dash dotted", "of the judged replies"),
                ],
            )
        )
    if thresholds is not None:
        blocks.append(_thresholds(thresholds))
    return blocks


def main_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows over all categories and languages, by alpha."""
    mine = rows[rows["category"] == "all"]
    languages = set(mine["language"])
    language = next((name for name in ("all", "") if name in languages), None)
    if language is not None:
        mine = mine[mine["language"] == language]
    elif len(languages) > 1:
        return mine.iloc[:0]
    return mine.sort_values("alpha")


def _panel(
    arm: str,
    role: str,
    title: str,
    rows: pd.DataFrame,
    curve: pd.DataFrame,
    thresholds: pd.DataFrame | None,
) -> Panel:
    judged = curve[curve["refused"].notna() & (curve["n_judged"] > 0)]
    fig = figure(
        430 if len(judged) else 320, "alpha (norms of the residual stream)", "margin (nats)"
    )
    at = _threshold(thresholds, arm, str(curve["language"].iloc[0]))
    if at is not None:
        _mark(fig, at)
    others = rows.drop(index=curve.index)
    for (category, language), part in others.groupby(["category", "language"], sort=False):
        part = part[part["margin"].notna()].sort_values("alpha")
        name = ", ".join(x for x in (str(category), str(language)) if x not in ("all", ""))
        fig.add_scatter(
            x=part["alpha"].tolist(),
            y=part["margin"].tolist(),
            mode="lines",
            line={"color": LIGHT["control"], "width": 1},
            opacity=0.65,
            text=[_hover(safe(name), row) for row in records(part)],
            hovertemplate="%{text}<extra></extra>",
        )
    _band(fig, curve, role, "margin", "margin_low", "margin_high")
    fig.add_hline(y=0, line={"color": LIGHT["ink"], "width": 1})
    fig.update_xaxes(zeroline=False)
    if len(judged):
        _judged(fig, judged, role)
    said = f"margin from {decimal(curve['margin'].iloc[0])} to {decimal(curve['margin'].iloc[-1])} nats"
    cross = f", crossing 0 at {decimal(at['alpha50'])}" if at and finite(at["alpha50"]) else ""
    alt = f"{title}: {said} over alpha {decimal(curve['alpha'].min(), 1)} to "
    return Panel(fig, f"{alt}{decimal(curve['alpha'].max(), 1)}{cross}.", title)


def _band(
    fig: go.Figure, rows: pd.DataFrame, role: str, value: str, low: str, high: str, axis: str = "y"
) -> None:
    rows = rows[rows[value].notna()]
    band = rows.dropna(subset=[low, high])
    if len(band):
        fig.add_scatter(
            x=[*band["alpha"], *band["alpha"][::-1]],
            y=[*band[high], *band[low][::-1]],
            fill="toself",
            fillcolor=LIGHT[f"{role}_fill"],
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            yaxis=axis,
        )
    fig.add_scatter(
        x=rows["alpha"].tolist(),
        y=rows[value].tolist(),
        mode="lines+markers",
        line={"color": LIGHT[role], "width": 2.5},
        marker={"color": LIGHT[role], "size": 7},
        text=[_hover("all", row) for row in records(rows)],
        hovertemplate="%{text}<extra></extra>",
        yaxis=axis,
    )


def _judged(fig: go.Figure, judged: pd.DataFrame, role: str) -> None:
    """Refused share on an axis of its own under the margins."""
    style = fig.layout.yaxis.to_plotly_json()
    fig.update_layout(yaxis2=style)
    fig.update_layout(
        yaxis={"domain": [0.42, 1]},
        yaxis2={
            "domain": [0, 0.29],
            "title": {"text": "share refused"},
            "range": [-0.04, 1.04],
            "tickvals": [0, 0.5, 1],
            "ticktext": ["0%", "50%", "100%"],
            "anchor": "x",
        },
        xaxis={"anchor": "y2"},
    )
    rates = judged.assign(rate=judged["refused"])
    _band(fig, rates, role, "rate", "low", "high", "y2")


def _mark(fig: go.Figure, at: Row) -> None:
    low, high = at["alpha50_low"], at["alpha50_high"]
    if finite(low) and finite(high):
        fig.add_vrect(x0=low, x1=high, fillcolor=LIGHT["sunken"], line_width=0, layer="below")
    for column, dash in (("alpha50", "dash"), ("behaviour_alpha50", "dot")):
        if finite(at[column]):
            fig.add_vline(x=at[column], line={"color": LIGHT["ink"], "width": 1.5, "dash": dash})


def _threshold(thresholds: pd.DataFrame | None, arm: str, language: str) -> Row | None:
    if thresholds is None:
        return None
    mine = thresholds[(thresholds["arm"] == arm) & (thresholds["category"] == "all")]
    same = mine[mine["language"] == language]
    return next(iter(records(same if len(same) else mine)), None)


def _hover(name: str, row: Row) -> str:
    lines = [
        f"<b>{name}</b>, alpha {decimal(row['alpha'])}, n = {whole(row['n'])}",
        f"margin {decimal(row['margin'])} ({span(row['margin_low'], row['margin_high'])})",
    ]
    if finite(row["refused"]) and row["n_judged"] > 0:
        rate = percent(row["refused"])
        count = f"{whole(row['refused'] * row['n_judged'])} of {whole(row['n_judged'])}"
        lines.append(f"refused {rate}, {count} ({rate_span(row['low'], row['high'])})")
    return "<br>".join(lines)


def _thresholds(thresholds: pd.DataFrame) -> Table:
    return Table(
        "Thresholds: the dose at which the margin crosses 0, and at which half of the replies refuse",
        (
            *("arm", "category", "language", "n", "alpha50", "95 % interval"),
            *("crossed", "alpha50 of judged replies", "p of a monotone curve"),
        ),
        [
            (
                str(row["arm"]),
                str(row["category"]),
                str(row["language"]),
                Cell(whole(row["n"]), number=True),
                Cell(decimal(row["alpha50"]), number=True),
                Cell(span(row["alpha50_low"], row["alpha50_high"]), number=True),
                "yes" if row["crossed"] else "no",
                Cell(decimal(row["behaviour_alpha50"]), number=True),
                Cell(p_value(row["p_monotone"]), number=True),
            )
            for row in records(thresholds)
        ],
        "A dash: the curve did not cross within the doses tried, or was not judged.",
        folded=len(thresholds) > 12,
        id="" if len(thresholds) > 12 else "table-routing-thresholds",
        name="thresholds",
    )
