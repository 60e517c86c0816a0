"""A set of writes, a row each: its latents over the layers, and what it is worth beside."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Panel
from refusalscope.report.features_writes import layer_words
from refusalscope.report.figures import Dot, dot_plot, figure
from refusalscope.report.numbers import counted, decimal, finite, percent, span
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

# Writes, and reserves below them, that have a row; the others stand in the table of members.
MAX_ROWS = 24
ROWS_READ = (
    "Each row is a write, named by its strongest latent (the larger mark), with the latents of other layers "
    "that show it again; the line spans its layers, from input, left, to output. Open marks are latents that "
    "are active on no prompt without an edit. "
)


def rows_panels(frame: pd.DataFrame, column: str, axis: str, last: int) -> list[Panel]:
    """The layers of each write, and its `column` with intervals where it is an effect.

    frame: of `shown_writes`; axis: title of the second panel; last: the last layer of the model.
    """
    inside = frame["in_set"]
    half = MAX_ROWS // 3
    n_reserves = min(int((~inside).sum()), max(half, MAX_ROWS - int(inside.sum())))
    shown = pd.concat([frame[inside].head(MAX_ROWS - n_reserves), frame[~inside].head(n_reserves)])
    rows = records(shown)
    names = [row["at"] for row in rows]
    more = f", {len(rows)} of {len(frame)}" if len(frame) > len(rows) else ""
    dots = [_dot(y, row, column) for y, row in enumerate(rows) if finite(row[column])]
    worth = dot_plot(dots, names, axis, rate=False)
    worth.update_xaxes(rangemode="tozero")
    first, line = int(shown["in_set"].sum()), {"color": LIGHT["line"], "width": 1}
    layers = _layers(rows, names, last)
    if 0 < first < len(rows):
        for fig in (layers, worth):
            fig.add_hline(y=first - 0.5, line=line)
    where = "; ".join(
        f"{row['at']} in layers {layer_words(sorted(row['layers']))}" for row in rows[:8]
    )
    best = max(dots, key=lambda dot: dot.value)
    return [
        Panel(
            layers, f"{counted(len(rows), 'row')} over {last + 1} layers: {where}.", f"Layers{more}"
        ),
        Panel(
            worth,
            f"{axis[0].upper()}{axis[1:]}: the largest is {names[int(best.y)]} with {decimal(best.value)}.",
            f"{axis[0].upper()}{axis[1:]}",
        ),
    ]


def _layers(rows: list[Row], names: list[str], last: int) -> go.Figure:
    # Of the height of the other panel, so that the rows of both stand level.
    fig = figure(66 + 30 * len(rows), "layer")
    for y, row in enumerate(rows):
        role = "role_chain" if row["state"] == "reserve" else "direction"
        fig.add_scatter(
            x=[min(row["layers"]), max(row["layers"])],
            y=[y, y],
            mode="lines",
            line={"color": LIGHT[role], "width": 1.2},
            hoverinfo="skip",
        )
        sleeps = [active == 0 for active in row["active"]]
        fig.add_scatter(
            x=row["layers"],
            y=[y] * len(row["layers"]),
            mode="markers",
            marker={
                "symbol": "diamond" if row["state"] == "reserve" else "circle",
                "size": [11, *[7] * (len(row["layers"]) - 1)],
                "color": [
                    LIGHT["surface"] if asleep and row["in_set"] else LIGHT[role]
                    for asleep in sleeps
                ],
                "line": {"color": LIGHT[role], "width": 1.8},
                # Marks of several sizes are drawn half clear without it.
                "opacity": 1,
            },
            text=[
                f"<b>{name}</b>, of the write {row['at']}{_active(active)}"
                if row["in_set"]
                else f"<b>{name}</b>, reserve{_active(active)}"
                for name, active in zip(row["names"], row["active"], strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    step = 1 << (last // 12).bit_length() if last >= 12 else 1
    fig.update_xaxes(
        range=[-0.6, last + 0.6],
        tickvals=list(range(0, last + 1, step)),
        tickangle=0,
        zeroline=False,
    )
    fig.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        tickfont={"color": LIGHT["ink"], "size": 12},
        range=[len(names) - 0.4, -0.6],
        zeroline=False,
        ticklabelstandoff=6,
    )
    return fig


def _active(share: float) -> str:
    return f"<br>active without an edit on {percent(share)}" if finite(share) else ""


def _dot(y: int, row: Row, column: str) -> Dot:
    value = row[column]
    low, high = (row["effect_low"], row["effect_high"]) if column == "effect" else (value, value)
    known = finite(low) and finite(high)
    role, symbol = (
        ("role_chain", "diamond") if row["state"] == "reserve" else ("direction", "circle")
    )
    symbol += "-open" if row["state"] == "dormant" else ""
    interval = f" ({span(low, high)})" if known and low < high else ""
    hover = f"<b>{row['at']}</b>, {row['state']}<br>{decimal(value)}{interval}"
    return Dot(y, value, low if known else value, high if known else value, role, hover, symbol)
