"""The ROC curve with the operating points, and what each point promises and does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.guard_tables import MEASURED, basis, metric, points
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, RunLike, records

# Steps of the curve that are drawn, false alarms of the near panel, and points named in it.
STEPS, NEAR, NAMED = 400, 0.2, 3


def roc_figure(run: RunLike, roc: pd.DataFrame) -> Figure:
    """The whole curve, and its left end, where a guard is used."""
    marked = [row for row in points(run) if finite(row["fpr"]) and finite(row["tpr"])]
    curve = roc.sort_values(["fpr", "tpr"], kind="stable")
    area = metric(run, "auroc")
    said = "" if area is None else f"AUROC {decimal(area['value'], 3)}. "
    at = "; ".join(
        f"{safe(row['name'])}: {percent(row['tpr'])} of harmful and {percent(row['fpr'])} of harmless prompts"
        for row in marked[:NAMED]
    )
    alt = f"{said}Share of harmful prompts flagged against that of harmless ones. {at or 'No threshold'}."
    panels = [
        _panel(curve, marked, 1.0, "All thresholds", alt),
        _panel(curve, marked, NEAR, f"Up to {percent(NEAR)} false alarms", f"Its left end. {alt}"),
    ]
    n = marked[0] if marked else None
    counts = (
        f"n = {whole(n['n_harmful'])} harmful, {whole(n['n_harmless'])} harmless"
        if n is not None
        else f"n = {whole(area['n'])} prompts"
        if area is not None
        else "n not stated"
    )
    interval = (
        f"AUROC {decimal(area['value'], 3)} (95{NBSP}% bootstrap interval "
        f"{span(area['low'], area['high'], 3)}); "
        if area is not None
        else ""
    )
    keys = [Key("line direction", "every threshold")]
    keys += [Key("dot direction", "operating point with its intervals")] if marked else []
    return Figure(
        "figure-guard-roc",
        "ROC curve",
        "What each threshold would flag",
        panels,
        "Each step of the line is a threshold: how many of the harmful prompts it flags, against how many "
        "harmless ones it flags wrongly. A line along the left and upper edge would be perfect, one along the "
        "diagonal is guessing. The marks are the guard's own thresholds, set at calibration.",
        f"{counts}; {basis(run)}; {interval}bars are exact 95{NBSP}% intervals.",
        keys=[*keys, Key("dots control", "guessing")],
    )


def _panel(curve: pd.DataFrame, marked: Sequence[Row], width: float, title: str, alt: str) -> Panel:
    fig = figure(360, "harmless prompts flagged", "harmful prompts flagged")
    fig.add_scatter(
        x=[0, width],
        y=[0, width],
        mode="lines",
        line={"color": LIGHT["control"], "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    near = curve[curve["fpr"] <= width]
    # The step that leaves the panel ends at its edge.
    last = float(near["tpr"].max()) if len(near) else 0.0
    rows = (
        near.iloc[np.unique(np.linspace(0, len(near) - 1, STEPS).astype(int))]
        if len(near)
        else near
    )
    fig.add_scatter(
        x=[*rows["fpr"].round(5), width],
        y=[*rows["tpr"].round(5), last],
        mode="lines",
        line={"color": LIGHT["direction"], "width": 2.5, "shape": "hv"},
        text=[*(_step(row) for row in records(rows)), ""],
        hovertemplate="%{text}<extra></extra>",
    )
    shown = [row for row in marked if row["fpr"] <= width]
    if shown:
        fig.add_scatter(
            x=[row["fpr"] for row in shown],
            y=[row["tpr"] for row in shown],
            mode="markers",
            marker={
                "color": LIGHT["direction"],
                "size": 10,
                "line": {"color": LIGHT["surface"], "width": 1.5},
            },
            error_x=_bars(shown, "fpr"),
            error_y=_bars(shown, "tpr"),
            text=[_hover(row) for row in shown],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    edge = 0.02 * width
    fig.update_xaxes(range=[-edge, width + edge], tickformat=".0%", zeroline=False, nticks=6)
    fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%", zeroline=False, nticks=6)
    return Panel(fig, alt, title)


def _bars(rows: Sequence[Row], name: str) -> dict:
    low, high = f"{name}_low", f"{name}_high"
    return {
        "type": "data",
        "symmetric": False,
        "array": [_reach(row[high], row[name]) for row in rows],
        "arrayminus": [_reach(row[name], row[low]) for row in rows],
        "color": LIGHT["direction"],
        "thickness": 1.5,
        "width": 4,
    }


def _reach(far: float, near: float) -> float:
    return max(0.0, far - near) if finite(far) and finite(near) else 0.0


def _step(row: Row) -> str:
    tau = f"threshold {decimal(row['threshold'], 3)}<br>" if finite(row["threshold"]) else ""
    return f"{tau}flags {percent(row['tpr'])} of harmful, {percent(row['fpr'])} of harmless prompts"


def _hover(row: Row) -> str:
    return (
        f"<b>{safe(row['name'])}</b>, threshold {decimal(row['tau'], 3)}<br>"
        f"harmful {percent(row['tpr'])} ({rate_span(row['tpr_low'], row['tpr_high'])})<br>"
        f"harmless {percent(row['fpr'])} ({rate_span(row['fpr_low'], row['fpr_high'])})"
    )


def points_table(table: pd.DataFrame) -> Table:
    """Every operating point at calibration and on the prompts that the run measures."""
    return Table(
        "Operating points: what they promise and what they do",
        (
            *("operating point", "prompts", "threshold", "harmless", "flagged"),
            *("harmful", "flagged", "promised of harmless"),
        ),
        [_point(row) for row in records(table)],
        f"Below the rates exact 95{NBSP}% intervals; at calibration at the confidence of the rule, from the "
        "prompts that set the threshold. A promise holds for harmless prompts of the kind that the guard was "
        "calibrated on, and for no others.",
        id="table-guard-points",
        name="operating points",
    )


def _point(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(str(row["name"]), strong=row["set"] in MEASURED),
        MEASURED.get(row["set"], str(row["set"])),
        Cell(decimal(row["tau"], 4), number=True),
        Cell(whole(row["n_harmless"]), number=True),
        _rate(row, "fpr"),
        Cell(whole(row["n_harmful"]), number=True),
        _rate(row, "tpr"),
        _promise(row),
    )


def _promise(row: Row) -> Cell:
    if not finite(row["alpha"]):
        return Cell(ABSENT, number=True)
    how = "on average" if row["rule"] == "conformal" else f"confidence {percent(row['confidence'])}"
    return Cell(f"\u2264 {percent(row['alpha'])}", number=True, below=how)


def _rate(row: Row, name: str) -> Cell:
    known = finite(row[f"{name}_low"]) and finite(row[f"{name}_high"])
    below = rate_span(row[f"{name}_low"], row[f"{name}_high"]) if known else ""
    return Cell(percent(row[name]), number=True, below=below)
