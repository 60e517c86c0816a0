"""The four clusters of harm and behaviour by layer and by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.belief_tables import AGAINST, CLUSTER_NAMES, sorted_by
from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    p_value,
    percent,
    rate_span,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

# Role of a cluster's label; a cluster that goes against its label is dotted, with open marks.
ROLES = dict(zip(CLUSTER_NAMES, ("harmful", "harmful", "harmless", "harmless"), strict=True))
ENDS = {"t_inst": "At the end of the request", "t_post": "At the end of the prompt"}


def clusters_figure(table: pd.DataFrame) -> Figure | None:
    """Mean score of each cluster by layer at both positions; None without any."""
    panels, shown = [], []
    for position, title in ENDS.items():
        mine = table[table["position"] == position]
        rows = mine[mine["behaviour"] == sorted_by(mine)]
        if rows["mean"].notna().any():
            panels.append(_panel(rows, "layer", "layer", title, {}))
            shown.append(rows)
    if not panels:
        return None
    return Figure(
        "figure-belief-clusters",
        "four clusters by layer",
        "Belief by layer, of prompts by what they ask and what the model did",
        panels,
        "Above 0: the state is nearer to harmful prompts that were refused; below: to harmless ones that were "
        "answered. At the end of the request lines of one colour should stay together, which is belief of "
        "harm; at the end of the prompt lines of one behaviour should, which is refusal. Dotted lines are the "
        "prompts that behave against their label, with open marks.",
        f"{_counts(pd.concat(shown))}; sorted by what the model does without the template's end where enough "
        f"prompts then go against their label, else with it; report split, bands are 95{NBSP}% bootstrap "
        "intervals.",
        keys=_keys(),
    )


def positions_figure(table: pd.DataFrame) -> Figure | None:
    """Mean score of each cluster token by token around the end of the request; None without any."""
    request, after = table[table["position"] <= 0], table[table["position"] > 0]
    # As the verdict has it, which speaks of position 0.
    behaviour = sorted_by(request[request["position"] == 0])
    request = request[request["behaviour"] == behaviour]
    shown = pd.concat([request, after[after["behaviour"] == sorted_by(after)]])
    if shown.empty:
        return None
    tokens = {
        int(row["position"]): _token(row) for row in records(shown.drop_duplicates("position"))
    }
    told = shown.drop_duplicates("position").sort_values("position")
    yes = [tokens[int(row["position"])] for row in records(told) if row["separates"] == "yes"]
    said = f"Belief stands apart from behaviour at: {', '.join(yes) or 'no token'}."
    layers = f"layers {whole(shown['first_layer'].min())} to {whole(shown['last_layer'].max())}"
    return Figure(
        "figure-belief-positions",
        "token by token",
        "Belief token by token",
        [_panel(shown, "position", "token", "", tokens)],
        "Token 0 is the last of the request, those to the right belong to the template. Where the accepted "
        "harmful prompts stand above 0 and the refused harmless ones below, the state tells harm rather than "
        f"what the model does. {said}",
        f"{_counts(shown)}; mean over {layers}; report split, bands are 95{NBSP}% bootstrap intervals.",
        keys=_keys(),
    )


def _token(row: Row) -> str:
    """How a token is called: the place of those of the request, and words for what cannot be seen."""
    place, token = int(row["position"]), row["token"]
    if place == 0:
        return "request end"
    if token and not token.strip():
        lines = token.count("\n")
        return (f"{lines} newlines" if lines > 1 else "newline") if lines else "space"
    return safe(token.strip(" ").replace("\n", "\u21b5"), 14) or decimal(place, 0)


def _counts(table: pd.DataFrame) -> str:
    """Prompts of each cluster, by each behaviour that sorts them."""
    said = []
    for behaviour, part in table.groupby("behaviour", sort=False):
        sizes = part.groupby("cluster")["n"].max()
        known = [f"{name} {whole(sizes[name])}" for name in CLUSTER_NAMES if name in sizes]
        said.append(f"{', '.join(known)} ({behaviour})")
    return f"n = {'; '.join(said)}"


def _keys() -> list[Key]:
    return [
        Key("line harmful", "harmful, refused"),
        Key("line dotted harmful", "harmful, accepted (open marks)"),
        Key("line harmless", "harmless, accepted"),
        Key("line dotted harmless", "harmless, refused (open marks)"),
    ]


def _panel(table: pd.DataFrame, x: str, x_title: str, title: str, ticks: dict[int, str]) -> Panel:
    fig = figure(360, x_title, "score")
    said = []
    for name in CLUSTER_NAMES:
        rows = table[table["cluster"] == name].dropna(subset=["mean"]).sort_values(x, kind="stable")
        if rows.empty:
            continue
        band(fig, rows, x, ROLES[name])
        fig.add_scatter(
            x=rows[x].tolist(),
            y=rows["mean"].round(5).tolist(),
            mode="lines+markers",
            line={
                "color": LIGHT[ROLES[name]],
                "width": 2,
                "dash": "dot" if name in AGAINST else "solid",
            },
            marker=_mark(name),
            text=[
                f"<b>{name}</b>, {x} {whole(row[x]) if row[x] >= 0 else decimal(row[x], 0)}<br>"
                f"{decimal(row['mean'], 3)} ({span(row['low'], row['high'], 3)}), n = {whole(row['n'])}"
                for row in records(rows)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
        said.append(f"{name} {decimal(rows['mean'].iloc[-1], 3)} at the last")
    if ticks:
        fig.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()), tickangle=-35)
    else:
        fig.update_xaxes(tickformat="d")
    fig.update_xaxes(zeroline=False)
    fig.update_yaxes(zerolinewidth=1.5, nticks=6)
    return Panel(fig, f"Mean score of each cluster by {x}: {'; '.join(said)}.", title)


def _mark(name: str) -> dict[str, Any]:
    colour = LIGHT[ROLES[name]]
    if name not in AGAINST:
        return {"color": colour, "size": 6}
    ring = {"color": colour, "width": 2}
    return {"color": LIGHT["surface"], "symbol": "diamond", "size": 9, "line": ring}


def band(
    fig: go.Figure, rows: pd.DataFrame, x: str, role: str, ends: Sequence[str] = ("low", "high")
) -> None:
    """The area between the bounds of rows with an interval."""
    low, high = ends
    known = rows.dropna(subset=[low, high])
    if known.empty:
        return
    fig.add_scatter(
        x=[*known[x], *known[x][::-1]],
        y=[*known[high].round(5), *known[low].round(5)[::-1]],
        fill="toself",
        fillcolor=LIGHT[f"{role}_fill"],
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def cut_table(table: pd.DataFrame) -> Table:
    """Refusal with the template's end and without it, by label."""
    return Table(
        "What the template's end does to refusal",
        (
            "label",
            "n",
            "refused with it",
            "refused without",
            "difference, paired",
            "p",
            "garbled without",
        ),
        [
            (
                str(row["label"]),
                Cell(whole(row["n"]), number=True),
                *(
                    Cell(
                        percent(row[f"rate_{name}"]),
                        number=True,
                        below=rate_span(row[f"low_{name}"], row[f"high_{name}"]),
                    )
                    for name in ("full", "cut")
                ),
                Cell(
                    share(row["change"]),
                    number=True,
                    below=share_span(row["change_low"], row["change_high"]),
                ),
                Cell(p_value(row["p"]), number=True),
                Cell(percent(row["garbled_cut"]), number=True),
            )
            for row in records(table)
        ],
        f"The template's tokens after the request were left out. Below the numbers 95{NBSP}% intervals; p is "
        "McNemar's. Garbled: replies that neither refuse nor answer.",
        id="table-belief-cut",
        name="with and without the template's end",
    )
