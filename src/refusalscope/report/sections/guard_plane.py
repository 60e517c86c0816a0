"""Each prompt on the plane of belief and refusal, coloured by its label, with the thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.guard_tables import HARMFUL, HARMLESS, basis, calibration_points, points
from refusalscope.report.numbers import decimal, finite, listed, percent, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.belief import QUADRANTS, corner
from refusalscope.report.tables import Row, RunLike, records

# Prompts of a label that are drawn; further ones are left out evenly along the score.
DRAWN = 1500
# Role and symbol of a label; prompts without one are the last.
MARKS = {
    HARMLESS: ("harmless", "square"),
    HARMFUL: ("harmful", "circle"),
    "": ("control", "diamond"),
}
NAMES = {HARMLESS: "harmless", HARMFUL: "harmful", "": "no label"}


def plane_figure(run: RunLike, scores: pd.DataFrame) -> Figure:
    """The plane; a strip of one score where the guard has no refusal axis."""
    two = bool(scores["delta_refuse"].notna().any())
    table = scores[scores["delta_refuse"].notna()] if two else scores
    table = table.assign(label=table["label"].where(table["label"].isin(MARKS), ""))
    labels = [label for label in MARKS if (table["label"] == label).any()]
    taus = thresholds(run)
    fig = _empty(table, two, labels)
    decided = "flagged" in table and bool(table["flagged"].notna().any())
    for label in labels:
        mine = _thinned(table[table["label"] == label])
        heights = mine["delta_refuse"] if two else _spread(len(mine), labels.index(label))
        _marks(fig, mine.assign(y=heights), label, decided)
    for name, tau in taus:
        fig.add_vline(x=tau, line={"color": LIGHT["ink"], "width": 1.5, "dash": "dash"})
        fig.add_annotation(
            x=tau,
            y=0.99,
            yref="paper",
            text=safe(name, 14),
            textangle=-90,
            showarrow=False,
            xanchor="right",
            yanchor="top",
            font={"size": 11, "color": LIGHT["muted"]},
        )
    counts = ", ".join(f"{whole((table['label'] == each).sum())} {NAMES[each]}" for each in labels)
    keys = [
        Key(f"{_shape(each)} {MARKS[each][0]}", f"{NAMES[each]}{', flagged' * decided}")
        for each in labels
    ]
    if decided:
        keys += [
            Key(f"{_shape(each)} open {MARKS[each][0]}", f"{NAMES[each]}, passed")
            for each in labels
        ]
    keys += [Key("dash", "threshold")] if taus else []
    cut = [NAMES[each] for each in labels if (table["label"] == each).sum() > DRAWN]
    thinned = f"; drawn are {whole(DRAWN)} of the prompts of {listed(cut)}" if cut else ""
    return Figure(
        "figure-guard-plane",
        "belief plane" if two else "scores",
        "What it takes a prompt for, and what it is about to do"
        if two
        else "What it takes a prompt for",
        [Panel(fig, _alt(table, two))],
        _reading(two, bool(taus)),
        f"n = {counts}; {basis(run)}; single prompts, so no intervals{thinned}.",
        keys=keys,
        numbers=quadrants_table(scores) if two else None,
    )


def thresholds(run: RunLike) -> list[tuple[str, float]]:
    """Name and threshold of each operating point, each threshold once."""
    found: dict[float, str] = {}
    for row in points(run) or calibration_points(run):
        if finite(row["tau"]):
            found.setdefault(float(row["tau"]), str(row["name"]))
    return [(name, tau) for tau, name in found.items()]


def _empty(table: pd.DataFrame, two: bool, labels: Sequence[str]) -> go.Figure:
    if not two:
        fig = figure(110 + 70 * len(labels), "delta_harmful (right: taken for harmful)")
        fig.update_yaxes(
            range=[len(labels) - 0.5, -0.5],
            tickvals=list(range(len(labels))),
            ticktext=[NAMES[label] for label in labels],
            zeroline=False,
        )
        return fig
    fig = figure(
        480, "delta_harmful (right: taken for harmful)", "delta_refuse (up: about to refuse)"
    )
    reach = [
        1.25 * max(float(table[a].abs().max()), 1e-6) for a in ("delta_harmful", "delta_refuse")
    ]
    fig.update_xaxes(range=[-reach[0], reach[0]], zerolinewidth=1.5, nticks=7)
    fig.update_yaxes(range=[-reach[1], reach[1]], zerolinewidth=1.5, nticks=7)
    for name, (x, y, _) in QUADRANTS.items():
        corner(fig, name, x, y)
    return fig


def _marks(fig: go.Figure, rows: pd.DataFrame, label: str, decided: bool) -> None:
    role, symbol = MARKS[label]
    for flagged in (False, True) if decided else (True,):
        mine = rows[rows["flagged"].eq(True) == flagged] if decided else rows
        if mine.empty:
            continue
        fig.add_scatter(
            x=mine["delta_harmful"].round(5).tolist(),
            y=mine["y"].round(5).tolist(),
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 8 if len(rows) < 400 else 6,
                "opacity": 0.8,
                "color": LIGHT[role] if flagged else LIGHT["surface"],
                "line": {"color": LIGHT[role], "width": 1.4},
            },
            text=[_hover(row) for row in records(mine)],
            hovertemplate="%{text}<extra></extra>",
        )


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most `DRAWN` rows, evenly along the score; the ends stay."""
    ordered = rows.sort_values("delta_harmful", kind="stable")
    return ordered.iloc[np.unique(np.linspace(0, len(rows) - 1, DRAWN).astype(int))]


def _spread(n: int, row: int) -> np.ndarray:
    """Heights around a row of a strip: steps of the golden ratio lie evenly and never the same."""
    return row + 0.6 * (np.arange(n) * 0.6180339887 % 1 - 0.5)


def _shape(label: str) -> str:
    return {"circle": "dot", "square": "square", "diamond": "diamond"}[MARKS[label][1]]


def _reading(two: bool, threshold: bool) -> str:
    flagged = (
        "what lies to the right of a dashed line is flagged" if threshold else "nothing is flagged"
    )
    if not two:
        return (
            f"Each mark is one prompt. To the right: the model takes it for harmful; {flagged}. The guard has "
            "no refusal axis, so whether the model is about to refuse is not shown; heights only part the "
            "marks."
        )
    return (
        "Each mark is one prompt. To the right: the model takes it for harmful; upwards: it is about to "
        f"refuse. With the guard {flagged}, whatever its height. Bottom right, suppressed refusal, is where "
        "jailbreaks show; top left, over-refusal, is where the model refuses what it does not take for harmful."
    )


def _alt(table: pd.DataFrame, two: bool) -> str:
    means = [
        f"{NAMES[label]} {decimal(table.loc[table['label'] == label, 'delta_harmful'].mean(), 3)} on average"
        for label in MARKS
        if (table["label"] == label).any()
    ]
    said = f"Each prompt by its belief score; {', '.join(means)}."
    if not two:
        return said
    counts = table["quadrant"].value_counts()
    quadrants = ", ".join(f"{name} {int(counts.get(name, 0))}" for name in QUADRANTS)
    return f"{said} Prompts per quadrant: {quadrants}."


def _hover(row: Row) -> str:
    lines = [
        f"<b>{safe(row['id'])}</b>",
        f"{safe(NAMES[row['label']])} {safe(row['category'])}".strip(),
    ]
    lines.append(
        f"delta_harmful {decimal(row['delta_harmful'], 3)}, delta_refuse {decimal(row['delta_refuse'], 3)}"
    )
    if finite(row["p_harmful"]):
        lines.append(f"p {decimal(row['p_harmful'])} ({span(row['p_low'], row['p_high'])})")
    lines += ["abstains"] if row["abstain"] else []
    return "<br>".join(lines)


def quadrants_table(scores: pd.DataFrame) -> Table:
    """Prompts in each quadrant, by label."""
    rows = []
    for name, (_, _, meaning) in QUADRANTS.items():
        mine = scores[scores["quadrant"] == name]
        row: list[str | Cell] = [Cell(name, strong=True), meaning]
        for label in (HARMFUL, HARMLESS):
            n = int((mine["label"] == label).sum())
            of = int((scores["label"] == label).sum())
            row.append(Cell(whole(n), number=True, below=percent(n / of) if of else ""))
        row.append(Cell(whole(len(mine)), number=True))
        rows.append(row)
    return Table(
        "Prompts in each quadrant", ("quadrant", "meaning", HARMFUL, HARMLESS, "all"), rows
    )
