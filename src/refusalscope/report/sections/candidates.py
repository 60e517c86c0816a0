"""Every candidate direction by anchor and layer: its scores, the filters, the choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.figures import AMOUNT, DIVERGING, colour_bar, figure, safe
from refusalscope.report.numbers import decimal, finite, percent, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.candidate_table import flagged, state
from refusalscope.report.tables import Row, records


@dataclass(frozen=True)
class Score:
    """A score of the candidates: its column, its name, and what is good."""

    column: str
    title: str
    unit: str
    signed: bool


SCORES = (
    Score("bypass", "Bypass: refusal left after ablation (lower is better)", "log-odds", True),
    Score("induce", "Induce: refusal after adding it (higher is better)", "log-odds", True),
    Score("kl", "KL: change of harmless replies (lower is better)", "nats", False),
)


def candidate_maps(candidates: pd.DataFrame) -> Figure:
    """Three maps of layer against anchor, with the choice and the filters marked."""
    dropped = int((~candidates["kept"].astype(bool)).sum())
    chosen = candidates[candidates["chosen"].astype(bool)]
    where = (
        f"Chosen: layer {whole(chosen['layer'].iloc[0])} at {chosen['anchor'].iloc[0]}."
        if len(chosen)
        else "No candidate passed the filters, so none was chosen."
    )
    panels = [_panel(candidates, score, where) for score in SCORES]
    return Figure(
        "figure-candidates",
        "map of candidates",
        "Where a direction takes refusal away, and where it brings refusal about",
        panels,
        "Each cell is one candidate: its layer (upwards, from input to output) and its anchor, the "
        "token position it was read at: [-1] is the last token of the chat template before the reply, "
        "(request) end the last token of the request. Bypass and induce are log-odds of refusing: "
        "purple refuses, green answers. A good candidate is green in the first map, purple in the "
        f"second and pale in the third. {where}",
        f"{len(candidates)} candidates, {dropped} dropped by a filter; scores on the select split "
        "(the choice is made here, the test of it below is on the report split); means over prompts.",
        keys=[
            Key("ring", "chosen"),
            Key("dot", "tie: as good within the tolerance"),
            Key("cross", "dropped by a filter"),
        ],
    )


def _panel(candidates: pd.DataFrame, score: Score, where: str) -> Panel:
    anchors = [str(name) for name in candidates["anchor"].drop_duplicates()]
    layers = sorted(int(layer) for layer in candidates["layer"].unique())
    grid = np.full((len(layers), len(anchors)), np.nan)
    hover = [[""] * len(anchors) for _ in layers]
    for row in records(candidates):
        y, x = layers.index(int(row["layer"])), anchors.index(str(row["anchor"]))
        grid[y, x] = row[score.column]
        hover[y][x] = _hover(row)
    shown, bar = _scale(grid, score)
    fig = figure(int(min(640, 118 + max(24 * len(layers), 150))), "", "layer")
    columns = list(range(len(anchors)))
    fig.add_heatmap(
        x=columns,
        y=layers,
        z=shown,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        xgap=1.5,
        ygap=1.5,
        hoverongaps=False,
        **bar,
    )
    # A cell without a score is still a candidate that a filter dropped, so it is marked too.
    # Each mark stands on a halo of the surface, because it must show on dark and on pale cells.
    dropped, chosen = ~candidates["kept"].astype(bool), candidates["chosen"].astype(bool)
    ties = flagged(candidates, "tie") & ~chosen
    # Smaller where there are many: the crosses must not hide the colours.
    few = len(candidates) <= 60
    cross = 6 if few else 3
    for mask, style in (
        (dropped & few, _mark("x-thin", cross, "surface", 3) | {"opacity": 0.7}),
        (dropped, _mark("x-thin", cross, "ink", 1) | {"opacity": 0.7}),
        (ties, _mark("circle", 10, "surface", 0)),
        (ties, _mark("circle", 7, "ink", 0)),
    ):
        rows = candidates[mask]
        fig.add_scatter(
            x=[anchors.index(str(name)) for name in rows["anchor"]],
            y=rows["layer"].astype(int).tolist(),
            mode="markers",
            marker=style,
            hoverinfo="skip",
        )
    for row in records(candidates[chosen]):
        x, y = anchors.index(str(row["anchor"])), int(row["layer"])
        for role, width in (("surface", 6), ("ink", 2.5)):
            fig.add_shape(
                type="rect",
                x0=x - 0.48,
                x1=x + 0.48,
                y0=y - 0.48,
                y1=y + 0.48,
                line={"color": LIGHT[role], "width": width},
            )
    skip = 1 + (len(anchors) - 1) // 12
    fig.update_xaxes(
        title_text="anchor",
        tickvals=columns[::skip],
        ticktext=[_short(name, len(anchors)) for name in anchors[::skip]],
        tickangle=0,
        range=[-0.5, len(anchors) - 0.5],
        showgrid=False,
        zeroline=False,
        constrain="domain",
    )
    # A power of two that leaves about twelve labels.
    step = 1 << ((len(layers) - 1) // 12).bit_length()
    fig.update_yaxes(
        tickvals=layers[::step],
        range=[layers[0] - 0.5, layers[-1] + 0.5],
        showgrid=False,
        zeroline=False,
    )
    values = grid[np.isfinite(grid)]
    extent = f"from {decimal(values.min())} to {decimal(values.max())}" if len(values) else "absent"
    alt = f"{score.title}, by layer and anchor, {extent} {score.unit}. {where}"
    return Panel(fig, alt, score.title)


def _scale(grid: np.ndarray, score: Score) -> tuple[np.ndarray, dict]:
    """What is shown of the values, and its colour scale."""
    values = grid[np.isfinite(grid)]
    bar = colour_bar()
    if score.signed:
        reach = float(np.abs(values).max()) if len(values) else 1.0
        options = {"colorscale": DIVERGING, "zmin": -reach, "zmax": reach, "colorbar": bar}
        return grid, options
    # KL spans orders of magnitude: without a logarithm a few cells would hide all others.
    floor = 1e-4
    shown = np.log10(np.maximum(grid, floor))
    top = float(np.log10(max(values.max(), floor))) if len(values) else 0.0
    low = float(np.log10(max(values.min(), floor))) if len(values) else -1.0
    low, top = float(np.floor(low)), float(max(np.ceil(top), np.floor(low) + 1))
    ticks = list(range(int(low), int(top) + 1))
    bar |= {"tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks]}
    return shown, {"colorscale": AMOUNT, "zmin": low, "zmax": top, "colorbar": bar}


def _short(anchor: str, n: int) -> str:
    """An anchor's name as short as a narrow map of `n` anchors needs it."""
    if anchor.startswith("template"):
        return safe(anchor.removeprefix("template"))
    if n > 6:
        return {"instruction_last": "end"}.get(anchor, safe(anchor, 5))
    names = {"instruction_last": "request<br>end", "instruction_last_word": "last<br>word"}
    return names.get(anchor, safe(anchor, 12))


def _mark(symbol: str, size: int, role: str, width: float) -> dict:
    line = {"color": LIGHT[role], "width": width}
    return {"symbol": symbol, "size": size, "color": LIGHT[role], "line": line}


def _hover(row: Row) -> str:
    lines = [
        f"<b>layer {whole(row['layer'])}, {safe(row['anchor'])}</b>",
        f"bypass {decimal(row['bypass'])}, induce {decimal(row['induce'])}, "
        f"KL {decimal(row['kl'], 3)}",
        safe(state(row), 60),
    ]
    if finite(row.get("stability")):
        lines.append(f"chosen in {percent(row['stability'])} of resamples")
    return "<br>".join(lines)
