"""The mean score of refusal over the positions of traces, by group, aligned at their end."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.cliff_tables import COMPLIED, HARMLESS, REFUSED
from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import NBSP, decimal, finite, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

ROLES = {COMPLIED: "harmful", REFUSED: "direction", HARMLESS: "harmless"}
# Thinking tokens before the closing ones that a panel of their own shows.
END = 32
# Positions drawn of a group; further ones are left out evenly, but none of the end.
POINTS = 240


def curve_figure(curve: pd.DataFrame, closing: Sequence[str]) -> Figure:
    """The whole trace, and its end in a panel of its own where the trace is long.

    curve: `cliff.curve`, made even; closing: names of the closing tokens, which stand last.
    """
    groups = [group for group in ROLES if group in set(curve["group"])]
    end = END + len(closing)
    width = int(-curve["position"].min())
    panels = []
    if width > end + END:
        panels.append(_panel(curve, groups, closing, width, "The whole trace"))
        near = curve[curve["position"] >= -end]
        panels.append(_panel(near, groups, closing, end, f"The last {end} tokens"))
    else:
        panels.append(_panel(curve, groups, closing, width, ""))
    last = curve[curve["position"] == -1].set_index("group")["n"].to_dict()
    counts = ", ".join(f"{group} n = {whole(last[group])}" for group in groups if group in last)
    thinned = "; of long traces not every position is drawn" if width > POINTS else ""
    return Figure(
        "figure-cliff-curve",
        "mean trace",
        "Refusal while it thinks",
        panels,
        "Upper plot: the probe's score of refusal at each token, from 0 to 1, averaged over traces that are "
        "aligned at their last token, so that all end at \u22121. Left of the shaded strip the model thinks; "
        "in it stand the closing tokens of the template, between the thinking and the reply. A line of harmful "
        "traces that stays high and falls in the strip, while the benign one stays where it is, is a cliff. "
        "Lower plot: how many traces reach so far back; far left few long traces make the mean.",
        f"Report split: {counts or 'n not stated'}; score calibrated by position where the probe is; bands are "
        f"95{NBSP}% bootstrap intervals over traces{thinned}.",
        keys=[
            *(Key(f"area {ROLES[group]}", group) for group in groups),
            Key("band", "closing tokens"),
        ],
    )


def _panel(
    curve: pd.DataFrame, groups: Sequence[str], closing: Sequence[str], width: int, title: str
) -> Panel:
    fig = figure(400, "token, counted from the end of the prompt", "score of refusal")
    style = fig.layout.yaxis.to_plotly_json()
    fig.update_layout(yaxis2=style)
    fig.update_layout(
        yaxis={"domain": [0.34, 1], "range": [-0.03, 1.03], "tickvals": [0, 0.5, 1]},
        yaxis2={
            "domain": [0, 0.2],
            "title": {"text": "traces"},
            "rangemode": "tozero",
            "anchor": "x",
            "nticks": 3,
        },
        xaxis={"anchor": "y2"},
    )
    fig.update_xaxes(range=[-width - 0.6, -0.4], zeroline=False, tickformat="d", nticks=9)
    if closing:
        fig.add_shape(
            type="rect",
            xref="x",
            yref="paper",
            x0=-len(closing) - 0.5,
            x1=-0.4,
            y0=0,
            y1=1,
            fillcolor=LIGHT["sunken"],
            line_width=0,
            layer="below",
        )
    said = []
    for group in groups:
        rows = _thinned(curve[curve["group"] == group].sort_values("position"), len(closing))
        if rows.empty:
            continue
        _line(fig, rows, ROLES[group], closing)
        before = rows[rows["position"] < -len(closing)]
        final = decimal(rows["mean"].iloc[-1])
        said.append(
            f"{group}: {decimal(before['mean'].mean())} in the thinking, {final} at the end"
            if len(before)
            else f"{group}: {final} at the end"
        )
    alt = f"Mean score of refusal by token, {width} tokens to the end; {'; '.join(said) or 'no group'}."
    return Panel(fig, safe(alt, 600), title)


def _thinned(rows: pd.DataFrame, n_closing: int) -> pd.DataFrame:
    """Every position of the end, and before it every k-th."""
    end = rows["position"] >= -END - n_closing
    early = rows[~end]
    step = -(-len(early) // POINTS) or 1
    return pd.concat([early.iloc[::step], rows[end]])


def _line(fig: go.Figure, rows: pd.DataFrame, role: str, closing: Sequence[str]) -> None:
    band = rows.dropna(subset=["low", "high"])
    if len(band):
        fig.add_scatter(
            x=[*band["position"], *band["position"][::-1]],
            y=[*band["high"].round(4), *band["low"].round(4)[::-1]],
            fill="toself",
            fillcolor=LIGHT[f"{role}_fill"],
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
    fig.add_scatter(
        x=rows["position"].tolist(),
        y=rows["mean"].round(4).tolist(),
        mode="lines+markers" if len(rows) <= 2 * END else "lines",
        line={"color": LIGHT[role], "width": 2.5},
        marker={"color": LIGHT[role], "size": 6},
        text=[_hover(row, closing) for row in records(rows)],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )
    fig.add_scatter(
        x=rows["position"].tolist(),
        y=rows["n"].tolist(),
        mode="lines",
        line={"color": LIGHT[role], "width": 1.5, "shape": "hvh"},
        hoverinfo="skip",
        yaxis="y2",
    )


def _hover(row: Row, closing: Sequence[str]) -> str:
    place = int(row["position"]) + len(closing)
    name = safe(closing[place]) if 0 <= place < len(closing) else "thinking"
    interval = f" ({span(row['low'], row['high'])})" if finite(row["low"]) else ""
    return (
        f"<b>{safe(row['group'])}</b><br>{name}, {decimal(row['position'], 0)} from the end<br>"
        f"{decimal(row['mean'])}{interval}, n = {whole(row['n'])}"
    )
