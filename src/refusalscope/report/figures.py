"""One theme for all figures, and the marks that several of them share.

Figures are built in the light palette; the page's script shows them in dark. Only SVG traces are
used: the page's security policy forbids the code generation that WebGL traces need.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from refusalscope.report.palette import LIGHT

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif'

# From strong answering over zero to strong refusing.
DIVERGING = [
    [0.0, LIGHT["answers_2"]],
    [0.25, LIGHT["answers_1"]],
    [0.5, LIGHT["middle"]],
    [0.75, LIGHT["refuses_1"]],
    [1.0, LIGHT["refuses_2"]],
]
AMOUNT = [[0.0, LIGHT["middle"]], [0.5, LIGHT["amount_1"]], [1.0, LIGHT["amount_2"]]]


def safe(text: Any, longest: int = 40) -> str:
    """Text from data for a label of a figure, where Plotly would read tags and links."""
    plain = " ".join(str(text).split())
    short = plain if len(plain) <= longest else plain[: longest - 1] + "\u2026"
    return html.escape(short, quote=False)


def figure(height: int, x_title: str, y_title: str = "") -> go.Figure:
    """An empty figure in the report's theme; it takes the width of its place on the page."""
    axis = {
        "gridcolor": LIGHT["grid"],
        "linecolor": LIGHT["axis"],
        "zerolinecolor": LIGHT["axis"],
        "zerolinewidth": 1,
        "tickfont": {"color": LIGHT["muted"], "size": 12},
        "title": {"font": {"color": LIGHT["muted"], "size": 12}, "standoff": 10},
        "automargin": True,
        "fixedrange": False,
    }
    fig = go.Figure()
    fig.update_layout(
        template=None,
        autosize=True,
        height=height,
        margin={"l": 12, "r": 14, "t": 8, "b": 36},
        paper_bgcolor=LIGHT["surface"],
        plot_bgcolor=LIGHT["surface"],
        font={"family": FONT, "size": 13, "color": LIGHT["ink"]},
        hoverlabel={
            "bgcolor": LIGHT["surface"],
            "bordercolor": LIGHT["axis"],
            "font": {"family": FONT, "size": 12, "color": LIGHT["ink"]},
            "align": "left",
        },
        showlegend=False,
        # A finger that scrolls the page must not zoom a figure; the mode bar offers zooming.
        dragmode=False,
        hovermode="closest",
    )
    fig.update_xaxes(axis | {"title_text": x_title})
    fig.update_yaxes(axis | {"title_text": y_title})
    return fig


@dataclass(frozen=True)
class Dot:
    """An estimate with its interval on one row of a dot plot. `y` counts rows from the top."""

    y: float
    value: float
    low: float
    high: float
    role: str
    hover: str
    symbol: str = "circle"
    size: int = 9


def dot_plot(
    dots: Sequence[Dot],
    rows: Sequence[str],
    x_title: str,
    *,
    rate: bool,
    strong: Sequence[int] = (),
    breaks: Sequence[float] = (),
) -> go.Figure:
    """Estimates with intervals, one row a label.

    rate: the values are fractions, shown from 0 to 100 %. strong: rows whose label is bold.
    breaks: places between rows where a line parts two groups.
    """
    fig = figure(66 + 30 * len(rows), x_title)
    for dot in dots:
        colour = LIGHT[dot.role]
        fig.add_scatter(
            x=[dot.value],
            y=[dot.y],
            mode="markers",
            marker={
                "color": colour if not dot.symbol.endswith("-open") else LIGHT["surface"],
                "symbol": dot.symbol.removesuffix("-open"),
                "size": dot.size,
                "line": {"color": colour, "width": 1.6},
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, dot.high - dot.value)],
                "arrayminus": [max(0.0, dot.value - dot.low)],
                "color": colour,
                "thickness": 2,
                "width": 0,
            },
            # Rates of none and of all stand on the edge of the plot.
            cliponaxis=False,
            hovertext=dot.hover,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    labels = [f"<b>{row}</b>" if i in strong else row for i, row in enumerate(rows)]
    fig.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=labels,
        tickfont={"color": LIGHT["ink"], "size": 12},
        range=[len(rows) - 0.4, -0.6],
        zeroline=False,
        ticklabelstandoff=6,
    )
    fig.update_xaxes(zeroline=not rate, showline=rate)
    if rate:
        # A line at every quarter, a label at every half: a phone has no room for more.
        quarters, labels = [0, 0.25, 0.5, 0.75, 1], ["0%", "", "50%", "", "100%"]
        fig.update_xaxes(range=[-0.02, 1.02], tickvals=quarters, ticktext=labels, tickangle=0)
    for at in breaks:
        fig.add_hline(y=at, line={"color": LIGHT["line"], "width": 1})
    return fig


def shade(fig: go.Figure, x: Sequence[float], y: Sequence[float], role: str, shape: str) -> None:
    """A line of a role's colour with the area under it filled."""
    fig.add_scatter(
        x=list(x),
        y=list(y),
        mode="lines",
        line={"color": LIGHT[role], "width": 2, "shape": shape},
        fill="tozeroy",
        fillcolor=LIGHT[f"{role}_fill"],
        hoverinfo="skip",
    )


def colour_bar() -> dict[str, Any]:
    """The bar of a heat map, above it; give its tick format besides."""
    return {
        "orientation": "h",
        "thickness": 9,
        "len": 1.0,
        "x": 0.5,
        "y": 1.0,
        "yanchor": "bottom",
        "ypad": 6,
        "outlinewidth": 0,
        "tickfont": {"size": 11, "color": LIGHT["muted"]},
        "nticks": 5,
    }
