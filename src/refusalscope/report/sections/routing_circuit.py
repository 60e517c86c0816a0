"""The heads found, drawn as a circuit: who drives whom, and who writes to the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Figure, Key, Note, Panel
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import (
    counted,
    finite,
    listed,
    p_value,
    share,
    share_span,
    share_words,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.routing_tables import LAST_GATE, found
from refusalscope.report.sections.routing_map import why_lines
from refusalscope.report.tables import Row, records

# Above these a drawing is a tangle: the strongest are drawn, and the caption says so.
MAX_NODES = 40
MAX_EDGES = 40
# A narrow screen has room for so many labels in a row.
PER_ROW = 5
# The least direct effect, as a share of the gap, that is drawn as a line to the output.
LEAST_DIRECT = 0.01


@dataclass(frozen=True)
class Look:
    """How a role is drawn: a colour of the palette, a Plotly symbol, a mark of the style sheet."""

    colour: str
    symbol: str
    mark: str
    meaning: str


LOOKS = {
    "detector": Look("role_detector", "circle", "dot role role-detector", "necessary, earliest"),
    "gate": Look("role_gate", "diamond", "diamond role-gate", "drives deeper heads"),
    "chain": Look("role_chain", "square", "square role-chain", "driven and driving"),
    "amplifier": Look(
        "role_amplifier", "triangle-up", "up role-amplifier", "driven, writes refusal"
    ),
    "direct": Look("role_direct", "square", "square role-direct", "writes refusal, not driven"),
    "suppressor": Look(
        "role_suppressor", "triangle-down", "down role-suppressor", "writes against refusal"
    ),
    "backup": Look(
        "role_gate", "diamond-open", "diamond open role-gate", "stands in when others are swapped"
    ),
    LAST_GATE: Look(
        "role_other", "diamond", "diamond role-other", "nothing lies behind it to drive"
    ),
    "static": Look("role_other", "circle", "dot role role-other", "writes the same on both"),
    "norm-only": Look(
        "role_other", "circle-open", "dot open role role-other", "changes the scale only"
    ),
    "mixed": Look("role_other", "square-open", "square open role-other", "more than one of these"),
}
NO_LOOK = Look("role_other", "square", "square role-other", "no role given")


@dataclass(frozen=True)
class _Edge:
    start: str
    stop: str
    size: float
    hover: str


def circuit(heads: pd.DataFrame, drive: pd.DataFrame | None) -> Figure | Note:
    """The drawing, or a note that there is nothing to draw."""
    mine = found(heads)
    if mine is None or mine.empty:
        text = "No head passed the tests, so there is no circuit to draw."
        return Note(text, "missing")
    drawn = mine.head(MAX_NODES).sort_values(["layer", "head"])
    place, ticks = _places(drawn)
    all_edges = _edges(drawn, drive)
    edges = all_edges[:MAX_EDGES]
    top = len(ticks)
    fig = figure(int(min(1400, 130 + 74 * (top + 1))), "", "layer (those with a head found)")
    place["output"] = (0.5, float(top))
    widest = max((abs(edge.size) for edge in edges), default=0.0) or 1.0
    for number, edge in enumerate(edges):
        _draw_edge(fig, place, edge, widest, number)
    _draw_nodes(fig, drawn, place)
    fig.update_yaxes(
        tickvals=[y for y, label in ticks if label],
        ticktext=[label for _, label in ticks if label],
        range=[-0.6, top + 0.5],
        zeroline=False,
    )
    fig.update_xaxes(visible=False, range=[-0.02, 1.02])
    drives = [edge for edge in all_edges if edge.stop != "output"]
    said = "; ".join(
        f"{edge.start} drives {edge.stop} by {share(edge.size)}" for edge in drives[:12]
    )
    alt = f"Circuit of {len(drawn)} heads: {listed(list(drawn['at']))}. {said or 'No drives'}."
    return Figure(
        "figure-routing-circuit",
        "circuit",
        "How the heads found hang together",
        [Panel(fig, alt)],
        "Each mark is a head found, input below, output above; only layers that hold one are drawn. A line "
        "between heads is a drive: what the upper head writes less of refusal when it alone hears that the "
        "lower one was swapped. A line to the output is the head's direct effect. "
        "Wider is stronger. A gate has lines to heads and none to the output of its own.",
        _basis(len(drawn), len(mine), len(drives), len(all_edges))
        + ("." if drive is not None else "; the run holds no table routing.drive."),
        keys=_keys(drawn, edges),
    )


def _basis(n_drawn: int, n_found: int, n_drives: int, n_edges: int) -> str:
    heads = counted(n_drawn, "head")
    if n_found > n_drawn:
        heads += f" of {n_found} found (the largest necessities)"
    lines = f"{counted(n_drives, 'drive')} beyond the null"
    lines += (
        f" and {counted(n_edges - n_drives, 'direct effect')} of at least {share(LEAST_DIRECT)}"
    )
    if n_edges > MAX_EDGES:
        lines += f", of which the {MAX_EDGES} strongest are drawn"
    return f"{heads}, {lines}; shares of the gap"


def _keys(drawn: pd.DataFrame, edges: list[_Edge]) -> list[Key]:
    roles = set(drawn["role"])
    keys = [
        Key(look.mark, f"{role}: {look.meaning}") for role, look in LOOKS.items() if role in roles
    ]
    keys += [Key(NO_LOOK.mark, NO_LOOK.meaning)] if roles - set(LOOKS) else []
    keys += [Key("bar refuses", "drives or writes refusal")] if edges else []
    against = any(edge.size < 0 for edge in edges)
    return [*keys, Key("bar answers", "the other way")] if against else keys


def _places(drawn: pd.DataFrame) -> tuple[dict[str, tuple[float, float]], list[tuple[int, str]]]:
    """Where each head stands (x from 0 to 1, y in rows), and the label of each row."""
    place: dict[str, tuple[float, float]] = {}
    ticks: list[tuple[int, str]] = []
    for layer, rows in drawn.groupby("layer"):
        names = list(rows["at"])
        n_rows = -(-len(names) // PER_ROW)
        for part in range(n_rows):
            here = names[part::n_rows]
            y = len(ticks)
            ticks.append((y, str(layer) if part == 0 else ""))
            # A row of one steps aside, so that lines past it can be told from lines to it.
            aside = (0.14 if y % 2 else -0.14) if len(here) == 1 else 0.0
            for i, name in enumerate(here):
                place[name] = ((i + 0.5) / len(here) + aside, float(y))
    return place, ticks


def _edges(drawn: pd.DataFrame, drive: pd.DataFrame | None) -> list[_Edge]:
    names = set(drawn["at"])
    edges = []
    if drive is not None:
        known = drive[drive["driven"] & drive["drive"].notna()]
        for row in records(known[known["gate"].isin(names) & known["at"].isin(names)]):
            hover = f"<b>{row['gate']} drives {row['at']}</b><br>{share(row['drive'])} of the gap"
            hover += f" ({share_span(row['low'], row['high'])})<br>p {p_value(row['p'])}"
            edges.append(_Edge(row["gate"], row["at"], row["drive"], hover))
    for row in records(drawn):
        if finite(row["direct"]) and abs(row["direct"]) >= LEAST_DIRECT:
            hover = f"<b>{row['at']} writes to the output</b><br>{share(row['direct'])} of the gap"
            edges.append(_Edge(row["at"], "output", row["direct"], hover))
    return sorted(edges, key=lambda edge: -abs(edge.size))


def _draw_edge(
    fig: go.Figure,
    place: Mapping[str, tuple[float, float]],
    edge: _Edge,
    widest: float,
    number: int,
) -> None:
    (x0, y0), (x1, y1) = place[edge.start], place[edge.stop]
    # Lines that pass a row bend around the marks in it.
    rows = abs(y1 - y0)
    bend = 0.0 if rows <= 1 else (0.06 + 0.03 * min(rows, 4)) * (1 if number % 2 else -1)
    t = np.linspace(0, 1, 21)
    middle = (min(max((x0 + x1) / 2 + bend, 0.0), 1.0), (y0 + y1) / 2)
    x = (1 - t) ** 2 * x0 + 2 * t * (1 - t) * middle[0] + t**2 * x1
    y = (1 - t) ** 2 * y0 + 2 * t * (1 - t) * middle[1] + t**2 * y1
    to_head = edge.stop != "output"
    role = "refuses_2" if edge.size >= 0 else "answers_2"
    fig.add_scatter(
        x=x.tolist(),
        y=y.tolist(),
        mode="lines",
        line={
            "color": LIGHT[role if to_head else role.replace("2", "1")],
            "width": 1.2 + 5.3 * abs(edge.size) / widest,
        },
        text=[edge.hover] * len(x),
        hovertemplate="%{text}<extra></extra>",
    )


def _draw_nodes(
    fig: go.Figure, drawn: pd.DataFrame, place: Mapping[str, tuple[float, float]]
) -> None:
    for row in records(drawn):
        look = LOOKS.get(row["role"], NO_LOOK)
        x, y = place[row["at"]]
        colour = LIGHT[look.colour]
        fig.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={
                "symbol": look.symbol.removesuffix("-open"),
                "size": 19,
                "color": LIGHT["surface"] if look.symbol.endswith("-open") else colour,
                "line": {"color": colour if look.symbol.endswith("-open") else LIGHT["surface"]}
                | {"width": 2.5},
            },
            text=[_hover(row)],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
        _label(fig, x, y, row["at"], -21)
    x, y = place["output"]
    fig.add_annotation(
        x=x,
        y=y,
        text="<b>output: refuse</b>",
        showarrow=False,
        bgcolor=LIGHT["surface"],
        bordercolor=LIGHT["axis"],
        borderpad=5,
        font={"size": 12, "color": LIGHT["ink"]},
    )


def _label(fig: go.Figure, x: float, y: float, text: str, shift: int) -> None:
    fig.add_annotation(
        x=x,
        y=y,
        yshift=shift,
        text=text,
        showarrow=False,
        bgcolor=LIGHT["surface"],
        borderpad=0,
        font={"size": 11, "color": LIGHT["ink"]},
    )


def _hover(row: Row) -> str:
    lines = [
        f"<b>{row['at']}</b> {safe(row['role'])}".rstrip(),
        "necessity " + share_words(row["necessity"], row["necessity_low"], row["necessity_high"]),
        *why_lines(row),
    ]
    return "<br>".join(lines)
