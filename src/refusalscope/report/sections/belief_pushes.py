"""What adding a belief direction does: to refusal, and to the answer on harm."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.belief_tables import DIRECTIONS, HARM, LABELS, NONE, REFUSAL, RULES
from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.figures import figure
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    p_value,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.belief_clusters import band
from refusalscope.report.tables import Row, records

ROLES = {HARM: "harmful", REFUSAL: "direction"}
KEYS = [
    Key("area harmful", "harmfulness added"),
    Key("area direction", "refusal added"),
    Key("dot control", "a random rotation"),
]
CHANGE, SHARE = "margin_change", "share_no"
ENDS = {CHANGE: ("margin_change_low", "margin_change_high"), SHARE: ("low", "high")}
# Fewer layers have no line to follow, so their intervals are bars; more than the second have no tick each.
FEW, TICKED = 3, 12
# Bars of the two directions stand side by side.
ASIDE = {HARM: -0.06, REFUSAL: 0.06}


def steering_figure(table: pd.DataFrame) -> Figure | None:
    """Change of the margin of refusal by layer, for each label; None where no margin was read."""
    panels = [
        _panel(part, CHANGE, "change of the margin (nats)", title)
        for label, title in (
            ("harmless", "Added on harmless prompts"),
            ("harmful", "Taken off harmful ones"),
        )
        if (part := table[(table["label"] == label) & table[CHANGE].notna()]).size
    ]
    if not panels:
        return None
    return Figure(
        "figure-belief-steering",
        "steering by layer",
        "What adding a direction does to refusal",
        panels,
        "The direction was added to all prompt tokens at one layer at a time: up is towards refusing. Each "
        "grey mark is a random rotation of a direction, of the same length. A direction that carries refusal "
        "moves the margin beyond all of them, at its best layer beyond each at its own best.",
        f"n = {_counts(table, 'n_margin')} prompts; report split; bands and bars are 95{NBSP}% bootstrap "
        "intervals over prompts; rotations are single draws.",
        keys=KEYS,
    )


def answers_figure(table: pd.DataFrame) -> Figure | None:
    """Change of the margin of Certainly over No by layer, by label and rule; None where none was read."""
    panels = _by_rule(table, CHANGE, "change of the margin (nats)")
    if not panels:
        return None
    return Figure(
        "figure-belief-answers",
        "margin of the answers on harm by layer",
        "What the directions do to the answer whether a prompt could harm",
        panels,
        "The model was asked whether the prompt could cause harm; the margin is how much more likely it would "
        "open with Certainly than with No, so up is towards harm. It is read of every prompt, also where the "
        "answer is neither. The direction is added on harmless prompts and taken off harmful ones; each grey "
        "mark is a random rotation of the same length.",
        f"n = {_counts(table, 'n_margin')} prompts; report split; bands and bars are 95{NBSP}% bootstrap "
        "intervals over prompts; rotations are single draws.",
        keys=KEYS,
    )


def inversion_figure(table: pd.DataFrame) -> Figure | None:
    """Share of No by layer, by label and rule of positions; None without answers."""
    panels = _by_rule(table, SHARE, "share of No")
    if not panels:
        return None
    worst = table["invalid"].max()
    return Figure(
        "figure-belief-inversion",
        "answers on harm by layer",
        "Whether the model says that a prompt could harm",
        panels,
        "The line is the share of No among answers that are Certainly or No, the measure of the paper; the "
        "thin dotted line (crosses, of few layers) of the same colour is the share that is neither. The grey "
        "dotted line is the model with nothing added. A direction of belief changes the answer, one of refusal "
        "need not.",
        f"n = {_counts(table, 'n')} prompts; report split; 95{NBSP}% Wilson intervals; up to {percent(worst)} "
        "of the answers are invalid.",
        keys=[*KEYS, Key("dots control", "nothing added"), Key("dots", "invalid answers")],
    )


def _by_rule(table: pd.DataFrame, value: str, y_title: str) -> list[Panel]:
    panels = []
    for label in LABELS[::-1]:
        for rule, name in RULES.items():
            mine = table[(table["label"] == label) & table[value].notna()]
            part = mine[(mine["positions"] == rule) | (mine["direction"] == NONE)]
            if (part["direction"] != NONE).any():
                panels.append(_panel(part, value, y_title, f"{label.capitalize()}, {name}"))
    return panels


def _counts(table: pd.DataFrame, column: str) -> str:
    n = table.groupby("label")[column].max()
    return ", ".join(f"{whole(n[label])} {label}" for label in LABELS if label in n)


def _panel(table: pd.DataFrame, value: str, y_title: str, title: str) -> Panel:
    fig = figure(330, "layer", y_title)
    pushed = table[table["direction"].isin(DIRECTIONS)]
    layers = sorted(int(layer) for layer in pushed["layer"].unique())
    _rotations(fig, pushed[pushed["control"] == "random"], value)
    said = []
    for direction, name in DIRECTIONS.items():
        mine = pushed[(pushed["direction"] == direction) & (pushed["control"] == "direction")]
        if not mine.empty:
            rows = mine.sort_values("layer", kind="stable")
            _line(fig, rows, value, direction, len(layers) < FEW)
            said.append(f"{name} {_at_chosen(rows, value)} at its chosen layer")
    if value == SHARE:
        said += _nothing_added(fig, table)
        fig.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", nticks=6)
    fig.update_xaxes(zeroline=False, tickformat="d")
    if len(layers) <= TICKED:
        fig.update_xaxes(tickvals=layers)
    if layers and len(layers) < FEW:
        fig.update_xaxes(range=[layers[0] - 0.6, layers[-1] + 0.6])
    return Panel(fig, f"{title}: {y_title} by layer; {'; '.join(said)}.", title)


def _line(fig: go.Figure, rows: pd.DataFrame, value: str, direction: str, barred: bool) -> None:
    """A direction by layer with its intervals; invalid answers beside the share of No."""
    colour, ends = LIGHT[ROLES[direction]], ENDS[value]
    x = (rows["layer"] + (ASIDE[direction] if barred else 0)).tolist()
    if not barred:
        band(fig, rows, "layer", ROLES[direction], ends)
    fig.add_scatter(
        x=x,
        y=rows[value].round(5).tolist(),
        error_y=_bars(rows, value, colour) if barred else None,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": [10 if each else 5 for each in rows["chosen"]]},
        text=[_hover(row, DIRECTIONS[direction], value) for row in records(rows)],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )
    if value == SHARE:
        fig.add_scatter(
            x=x,
            y=rows["invalid"].round(5).tolist(),
            mode="lines+markers" if barred else "lines",
            line={"color": colour, "width": 1.2, "dash": "dot"},
            marker={"color": colour, "symbol": "x-thin-open", "size": 8},
            hoverinfo="skip",
        )


def _bars(rows: pd.DataFrame, value: str, colour: str) -> dict[str, Any]:
    low, high = (rows[end] for end in ENDS[value])
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - rows[value]).clip(lower=0).fillna(0).tolist(),
        "arrayminus": (rows[value] - low).clip(lower=0).fillna(0).tolist(),
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _at_chosen(rows: pd.DataFrame, value: str) -> str:
    best = rows.loc[rows["chosen"], value]
    if best.empty:
        return "unknown"
    return percent(best.iloc[0]) if value == SHARE else decimal(best.iloc[0])


def _nothing_added(fig: go.Figure, table: pd.DataFrame) -> list[str]:
    clean = table.loc[table["direction"] == NONE, SHARE]
    if clean.empty:
        return []
    fig.add_hline(y=clean.iloc[0], line={"color": LIGHT["control"], "width": 1.5, "dash": "dot"})
    return [f"{percent(clean.iloc[0])} with nothing added"]


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


def _hover(row: Row, name: str, value: str) -> str:
    low, high = (row[end] for end in ENDS[value])
    number, interval = percent(row[value]), rate_span(low, high)
    if value == CHANGE:
        number, interval = decimal(row[value]), span(low, high)
    lines = [f"<b>{name}, layer {whole(row['layer'])}</b>", f"{number} ({interval})"]
    if value == SHARE:
        lines.append(f"invalid {percent(row['invalid'])}, n = {whole(row['n'])}")
    else:
        if finite(row["p_random"]):
            lines.append(f"p = {p_value(row['p_random'])} among {whole(row['n_random'])} rotations")
        if finite(row.get("rate")):
            lines.append(f"refused {percent(row['rate'])}, n = {whole(row['n'])}")
    return "<br>".join([*lines, *(["chosen on other prompts"] if row["chosen"] else [])])
