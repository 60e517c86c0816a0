"""A map of attention heads: layers upwards, heads across, some of them ringed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from refusalscope.report.figures import DIVERGING, colour_bar, figure
from refusalscope.report.palette import LIGHT

# How far the outline of a head reaches from the middle of its cell.
RING = 0.43
# In a model with more layers or heads than this, cells are too small to be ringed.
FEW = 16


@dataclass(frozen=True)
class Ringed:
    """Heads (layer, head) with a ring of a role's colour, whole or dotted."""

    heads: Sequence[tuple[int, int]]
    role: str = "ink"
    dash: str = "solid"


def head_grid(
    grid: npt.NDArray[np.float64],
    hover: Sequence[Sequence[str]],
    top: float,
    tick_format: str,
    rings: Sequence[Ringed] = (),
    *,
    first: int = 0,
) -> go.Figure:
    """Values [layers, heads] from -top to top as colours; NaN is left blank.

    first: number of the first column; column -1 stands for layers whose mixer has no heads.
    """
    n, width = grid.shape
    fig = figure(int(min(760, 118 + max(190, n * min(24, max(8, 400 / n))))), "head", "layer")
    few = max(grid.shape) <= FEW
    last = first + width - 1
    fig.add_heatmap(
        x=list(range(first, last + 1)),
        y=list(range(n)),
        z=grid.round(5),
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        xgap=1.5 if few else 0,
        ygap=1.5 if few else 0,
        hoverongaps=False,
        colorscale=DIVERGING,
        zmin=-top,
        zmax=top,
        colorbar=colour_bar() | {"tickformat": tick_format},
    )
    for ring in rings:
        if few:
            _outlines(fig, ring.heads, "surface", 5.0, "solid")
            _outlines(fig, ring.heads, ring.role, 2.5, ring.dash)
        else:
            _discs(fig, ring, grid, top, hover, first)
    step = 1 << ((n - 1) // 12).bit_length()
    skip = 1 << ((last) // 12).bit_length()
    edge = 0.5 if few else 1.0
    fig.update_yaxes(
        tickvals=list(range(0, n, step)),
        range=[-edge, n - 1 + edge],
        showgrid=False,
        zeroline=False,
    )
    numbers = list(range(0, last + 1, skip))
    fig.update_xaxes(
        tickvals=[*([-1] if first < 0 else []), *numbers],
        ticktext=[*(["mixer"] if first < 0 else []), *map(str, numbers)],
        range=[first - edge, last + edge],
        tickangle=0,
        title_standoff=16,
        showgrid=False,
        zeroline=False,
    )
    if np.isnan(grid).any():
        fig.update_layout(plot_bgcolor=LIGHT["line"])
    return fig


def _outlines(
    fig: go.Figure, heads: Sequence[tuple[int, int]], role: str, width: float, dash: str
) -> None:
    """Outlines around heads as one trace, in units of cells, so that they fit every screen."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in heads:
        x += [*(head + RING * corner for corner in (-1, 1, 1, -1, -1)), None]
        y += [*(layer + RING * corner for corner in (-1, -1, 1, 1, -1)), None]
    line = {"color": LIGHT[role], "width": width, "dash": dash}
    fig.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", cliponaxis=False)


def _discs(
    fig: go.Figure,
    ring: Ringed,
    grid: npt.NDArray[np.float64],
    top: float,
    hover: Sequence[Sequence[str]],
    first: int,
) -> None:
    """Heads as ringed discs of the map's colours, where its cells are too small to be seen."""
    values = [grid[layer, head - first] for layer, head in ring.heads]
    known = [place for place, value in zip(ring.heads, values, strict=True) if np.isfinite(value)]
    blank = [place for place, value in zip(ring.heads, values, strict=True) if np.isnan(value)]
    for heads, fill in ((blank, None), (known, [v for v in values if np.isfinite(v)])):
        colours = {"colorscale": DIVERGING, "cmin": -top, "cmax": top}
        fig.add_scatter(
            x=[head for _, head in heads],
            y=[layer for layer, _ in heads],
            mode="markers",
            marker={
                "symbol": "circle" if ring.dash == "solid" else "square",
                "size": 11,
                "color": LIGHT["line"] if fill is None else fill,
                "line": {"color": LIGHT[ring.role], "width": 1.6},
                **({} if fill is None else colours),
            },
            text=[hover[layer][head - first] for layer, head in heads],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
