"""How the directions of harmfulness and refusal stand to each other, layer by layer."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure
from refusalscope.report.numbers import NBSP, decimal, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.rules import SEPARATE, geometry_at
from refusalscope.report.tables import chosen_candidate, records


def geometry_figure(geometry: pd.DataFrame, candidates: pd.DataFrame | None) -> Figure:
    """Cosine of the two directions by layer, with its band and the layer the verdict speaks about."""
    rows = geometry.sort_values("layer")
    layer = (chosen_candidate(candidates) or {}).get("layer")
    at = geometry_at(geometry, layer)
    fig = figure(320, "layer", "cosine")
    fig.add_hrect(y0=-SEPARATE, y1=SEPARATE, fillcolor=LIGHT["sunken"], line_width=0, layer="below")
    band = rows.dropna(subset=["low", "high"])
    fig.add_scatter(
        x=[*band["layer"], *band["layer"][::-1]],
        y=[*band["high"], *band["low"][::-1]],
        fill="toself",
        fillcolor=LIGHT["direction_fill"],
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    fig.add_scatter(
        x=rows["layer"].tolist(),
        y=rows["cosine"].tolist(),
        mode="lines+markers",
        line={"color": LIGHT["direction"], "width": 2},
        marker={"color": LIGHT["direction"], "size": 7},
        text=[
            f"layer {whole(row['layer'])}: cosine {decimal(row['cosine'])}<br>"
            f"95 % interval {span(row['low'], row['high'])}"
            for row in records(rows)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    marked = at is not None and at["layer"] == layer
    if at is not None and marked:
        fig.add_vline(
            x=float(at["layer"]), line={"color": LIGHT["ink"], "width": 1.5, "dash": "dash"}
        )
    fig.update_yaxes(range=[-1.04, 1.04], tickvals=[-1, -0.5, 0, 0.5, 1])
    fig.update_xaxes(zeroline=False, **({"dtick": 1} if len(rows) <= 16 else {}))
    said = (
        f"Cosine {decimal(at['cosine'])}, interval {span(at['low'], at['high'])}, at layer "
        f"{whole(at['layer'])}."
        if at is not None
        else "No layer has a cosine."
    )
    keys = [
        Key("area direction", "cosine with its interval"),
        Key("band", f"within {decimal(-SEPARATE, 1)} and {decimal(SEPARATE, 1)}: separate axes"),
    ]
    if marked:
        keys.append(Key("dash", "layer of the chosen direction"))
    columns = [c for c in ("harmfulness_norm", "refusal_norm", "residual_norm") if c in rows]
    return Figure(
        "figure-geometry",
        "cosine by layer",
        "Whether harmfulness and refusal are one axis or two",
        [Panel(fig, f"Cosine of the two directions over {len(rows)} layers. {said}")],
        "The harmfulness direction is read at the last token of the request, the refusal direction "
        "at the last token before the reply. A cosine near 0 means that the model can take a "
        f"request for harmful without refusing it, and the other way round; near 1 means one axis. {said}",
        f"directions from the fit split; bootstrap intervals over prompts, 95{NBSP}%.",
        keys=keys,
        numbers=Table(
            "Cosine and norms by layer",
            (
                *("layer", "cosine", "95 % interval"),
                *(name.replace("_", " ") for name in columns),
            ),
            [
                (
                    Cell(whole(row["layer"]), number=True),
                    Cell(decimal(row["cosine"]), number=True),
                    Cell(span(row["low"], row["high"]), number=True),
                    *(Cell(decimal(row[name]), number=True) for name in columns),
                )
                for row in records(rows)
            ],
            folded=True,
        ),
    )
