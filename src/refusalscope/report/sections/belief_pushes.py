"""What adding a belief direction does: to refusal, and to the answer on harm."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.belief_tables import DIRECTIONS, HARM, LABELS, NONE, RULES
from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.figures import figure
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.belief_clusters import band
from refusalscope.report.tables import Row, records

ROLES = {HARM: "harmful", "refuse": "direction"}
KEYS = [
    Key("area harmful", "harmfulness added"),
    Key("area direction", "refusal added"),
    Key("dot control", "a random rotation"),
]


def steering_figure(table: pd.DataFrame) -> Figure | None:
    """Change of the margin of refusal by layer, for each label; None where no margin was read."""
    panels = [
        _panel(part, "margin_change", "change of the margin (nats)", title)
        for label, title in (
            ("harmless", "Added on harmless prompts"),
            ("harmful", "Taken off harmful ones"),
        )
        if (part := table[(table["label"] == label) & table["margin_change"].notna()]).size
    ]
    if not panels:
        return None
    n = table.groupby("label")["n_margin"].max()
    counts = ", ".join(f"{whole(n[label])} {label}" for label in LABELS if label in n)
    return Figure(
        "figure-belief-steering",
        "steering by layer",
        "What adding a direction does to refusal",
        panels,
        "The direction was added to all prompt tokens at one layer at a time: up is towards refusing. Each "
        "grey mark is a random rotation of a direction, of the same length. A direction that carries refusal "
        "moves the margin beyond all of them.",
        f"n = {counts} prompts; report split; bands are 95{NBSP}% bootstrap intervals over prompts; rotations "
        "are single draws.",
        keys=KEYS,
    )


def inversion_figure(table: pd.DataFrame) -> Figure | None:
    """Share of No by layer, by label and rule of positions; None without answers."""
    panels = []
    for label in LABELS[::-1]:
        for rule, name in RULES.items():
            mine = table[(table["label"] == label) & table["share_no"].notna()]
            part = mine[(mine["positions"] == rule) | (mine["direction"] == NONE)]
            if (part["direction"] != NONE).any():
                panels.append(
                    _panel(part, "share_no", "share of No", f"{label.capitalize()}, {name}")
                )
    if not panels:
        return None
    n = table.groupby("label")["n"].max()
    counts = ", ".join(f"{whole(n[label])} {label}" for label in LABELS if label in n)
    worst = table["invalid"].max()
    return Figure(
        "figure-belief-inversion",
        "answers on harm by layer",
        "Whether the model says that a prompt could harm",
        panels,
        "The model was asked whether the prompt could cause harm, to be answered Certainly or No. The line is "
        "the share of No among answers that are either; the thin dotted line of the same colour is the share "
        "that is neither. The grey dotted line is the model with nothing added. A direction of belief changes "
        "the answer, one of refusal need not.",
        f"n = {counts} prompts; report split; 95{NBSP}% Wilson intervals; up to {percent(worst)} of the "
        "answers are invalid.",
        keys=[*KEYS, Key("dots control", "nothing added"), Key("dots", "invalid answers")],
    )


def _panel(table: pd.DataFrame, value: str, y_title: str, title: str) -> Panel:
    rate = value == "share_no"
    ends = ("low", "high") if rate else (f"{value}_low", f"{value}_high")
    fig = figure(330, "layer", y_title)
    _rotations(fig, table[table["control"] == "random"], value)
    said = []
    for direction, name in DIRECTIONS.items():
        mine = table[(table["direction"] == direction) & (table["control"] == "direction")]
        rows = mine.sort_values("layer", kind="stable")
        if rows.empty:
            continue
        band(fig, rows, "layer", ROLES[direction], ends)
        colour = LIGHT[ROLES[direction]]
        fig.add_scatter(
            x=rows["layer"].tolist(),
            y=rows[value].round(5).tolist(),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "size": [10 if each else 5 for each in rows["chosen"]]},
            text=[_hover(row, name, value, ends) for row in records(rows)],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
        if rate:
            fig.add_scatter(
                x=rows["layer"].tolist(),
                y=rows["invalid"].round(5).tolist(),
                mode="lines",
                line={"color": colour, "width": 1.2, "dash": "dot"},
                hoverinfo="skip",
            )
        best = rows.loc[rows["chosen"], value]
        at = (
            percent(best.iloc[0])
            if rate and len(best)
            else decimal(best.iloc[0])
            if len(best)
            else "unknown"
        )
        said.append(f"{name} {at} at its chosen layer")
    clean = table.loc[table["direction"] == NONE, value]
    if rate and len(clean):
        fig.add_hline(
            y=clean.iloc[0], line={"color": LIGHT["control"], "width": 1.5, "dash": "dot"}
        )
        said.append(f"{percent(clean.iloc[0])} with nothing added")
    if rate:
        fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", nticks=6)
    fig.update_xaxes(zeroline=False, tickformat="d")
    return Panel(fig, f"{title}: {y_title} by layer; {'; '.join(said)}.", title)


def _rotations(fig: go.Figure, rows: pd.DataFrame, value: str) -> None:
    if rows.empty:
        return
    fig.add_scatter(
        x=rows["layer"].tolist(),
        y=rows[value].round(5).tolist(),
        mode="markers",
        marker={"color": LIGHT["control"], "size": 4, "opacity": 0.6},
        hoverinfo="skip",
    )


def _hover(row: Row, name: str, value: str, ends: tuple[str, str]) -> str:
    rate = value == "share_no"
    number = percent(row[value]) if rate else decimal(row[value])
    low, high = (row[end] for end in ends)
    interval = rate_span(low, high) if rate else span(low, high)
    lines = [f"<b>{name}, layer {whole(row['layer'])}</b>", f"{number} ({interval})"]
    if rate:
        lines.append(f"invalid {percent(row['invalid'])}, n = {whole(row['n'])}")
    elif finite(row["rate"]):
        lines.append(f"refused {percent(row['rate'])}, n = {whole(row['n'])}")
    return "<br>".join([*lines, *(["chosen on other prompts"] if row["chosen"] else [])])
