"""All arms on one plot: what each costs on harmless replies, and how far it lowers the refusal margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.features_tables import full_strength
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.features_arms import strengths_table
from refusalscope.report.tables import Row, records

# A KL below this is drawn at the left edge: on a scale of powers of ten nothing has no place.
LEAST_KL = 1e-5


@dataclass(frozen=True)
class Look:
    """How arms of a group are drawn: a colour of the palette and its class in the style sheet."""

    colour: str
    mark: str


GROUPS = {
    "set": Look("role_gate", "role-gate"),
    "direction": Look("role_amplifier", "role-amplifier"),
    "baseline": Look("role_detector", "role-detector"),
    "stage3": Look("role_chain", "role-chain"),
    "random": Look("role_other", "role-other"),
    "pca": Look("role_direct", "role-direct"),
}
# Plotly symbol and mark of the style sheet of the arms of a group, in the order of the table.
SYMBOLS = (
    ("circle", "dot role"),
    ("square", "square"),
    ("diamond", "diamond"),
    ("triangle-up", "up"),
    ("triangle-down", "down"),
    ("circle-open", "dot open role"),
    ("square-open", "square open"),
    ("diamond-open", "diamond open"),
)


def baselines_figure(arms: pd.DataFrame, budget: Row | None) -> Figure | None:
    """Margin against KL of every arm and strength; None when no arm has both.

    budget: the row of the set at full strength, whose KL is marked.
    """
    known = arms[arms["change"].notna() & arms["kl"].notna()]
    if known.empty:
        return None
    positive = known.loc[known["kl"] >= LEAST_KL, "kl"]
    left = 10 ** math.floor(math.log10(positive.min())) if len(positive) else LEAST_KL
    right = max(float(known["kl"].max()), 10 * left)
    fig = figure(470, "KL on harmless replies (nats a position)", "fall of the margin (nats)")
    keys, said = [], []
    taken = dict.fromkeys(GROUPS, 0)
    _scale(fig, left, right, bool((known["kl"] < left).any()))
    fig.add_hline(y=0, line={"color": LIGHT["axis"], "width": 1}, layer="below")
    if budget is not None and finite(budget["kl"]):
        line = {"color": LIGHT["muted"], "width": 1.4, "dash": "dash"}
        fig.add_vline(x=max(budget["kl"], left), line=line)
    for name, rows in known.groupby("arm", sort=False):
        group = str(rows["group"].iloc[0])
        group = group if group in GROUPS else "baseline"
        symbol, shape = SYMBOLS[taken[group] % len(SYMBOLS)]
        taken[group] += 1
        _draw(fig, str(name), rows.sort_values("strength"), GROUPS[group].colour, symbol, left)
        words = "" if group != "random" else _draws(rows)
        keys.append(Key(f"{shape} {GROUPS[group].mark}", f"{arm_name(str(name), group)}{words}"))
        full = full_strength(rows)
        if full is not None:
            said.append(f"{name} {decimal(full['change'])} nats at KL {decimal(full['kl'], 3)}")
    n, m = known["n_harmful"].max(), known["n_harmless"].max()
    return Figure(
        "figure-features-baselines",
        "all arms",
        "What each way to take refusal away costs",
        [Panel(fig, f"{len(keys)} arms: {'; '.join(said[:14])}.")],
        "Each mark is one way to edit the model. Upwards: how far the refusal margin of harmful prompts falls; "
        "to the right: how much the edit disturbs replies to harmless prompts, on a scale of powers of ten. "
        "Better is up and to the left. Lines join the strengths of one arm; the large mark has its latents out "
        "whole (strength 1), with intervals both ways. The dashed line is what the set costs: compare arms "
        "along it. Grey: random latents matched to the set, the mean of their draws.",
        f"n = {whole(n)} harmful and {whole(m)} harmless prompts of the report split; intervals over prompts, "
        f"95{NBSP}%.",
        keys=[*keys, Key("dash", "KL that the set costs")],
        numbers=strengths_table(arms),
    )


def arm_name(arm: str, group: str) -> str:
    """An arm as the page calls it; not every arm whose name begins so is a set alone."""
    return f"the set ({arm.removeprefix('set ')})" if group == "set" else arm


def _draws(rows: pd.DataFrame) -> str:
    draws = rows["draws"].max()
    return f" ({counted(int(draws), 'draw')})" if finite(draws) else ""


def _scale(fig: go.Figure, left: float, right: float, nothing: bool) -> None:
    first, last = round(math.log10(left)), math.ceil(math.log10(right))
    # A phone has room for about five labels.
    step = 1 + (last - first) // 5
    powers = list(range(first, last + 1, step))
    labels = [f"{10.0**i:.{max(0, -i)}f}" for i in powers]
    if nothing:
        labels[0] = f"\u2264{NBSP}{labels[0]}"
    fig.update_xaxes(
        type="log",
        range=[first - 0.12, math.log10(right) + 0.15],
        tickvals=[10.0**i for i in powers],
        ticktext=labels,
        tickangle=0,
        zeroline=False,
    )
    fig.update_yaxes(zeroline=False)


def _draw(
    fig: go.Figure, name: str, rows: pd.DataFrame, role: str, symbol: str, left: float
) -> None:
    colour = LIGHT[role]
    is_open = symbol.endswith("-open")
    look = {
        "symbol": symbol.removesuffix("-open"),
        "color": LIGHT["surface"] if is_open else colour,
        "line": {"color": colour, "width": 2 if is_open else 0},
    }
    x = rows["kl"].clip(lower=left)
    hover = [_hover(name, row) for row in records(rows)]
    if len(rows) > 1:
        fig.add_scatter(
            x=x.tolist(),
            y=rows["change"].tolist(),
            mode="lines+markers",
            line={"color": colour, "width": 1.4},
            marker={**look, "size": 5},
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        )
    full = full_strength(rows)
    if full is None:
        return
    at = max(full["kl"], left)
    fig.add_scatter(
        x=[at],
        y=[full["change"]],
        mode="markers",
        marker={**look, "size": 12},
        error_x=_bounds(full, "kl", colour, left),
        error_y=_bounds(full, "change", colour, -math.inf),
        text=[_hover(name, full)],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )


def _bounds(row: Row, column: str, colour: str, least: float) -> Mapping[str, object]:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if not (finite(low) and finite(high)):
        return {"visible": False}
    value, low = max(value, least), max(low, least)
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value)],
        "arrayminus": [max(0.0, value - low)],
        "color": colour,
        "thickness": 1.6,
        "width": 0,
    }


def _hover(name: str, row: Row) -> str:
    # Short lines: a label that stands in the middle of a phone has half of it.
    strength = f"strength {decimal(row['strength'])}"
    if finite(row["n_latents"]):
        strength += f", {counted(int(row['n_latents']), 'latent')}"
    lines = [
        f"<b>{safe(arm_name(name, row['group']), 24)}</b>",
        strength,
        f"falls {decimal(row['change'])} ({span(row['change_low'], row['change_high'])})",
        f"KL {decimal(row['kl'], 3)} ({span(row['kl_low'], row['kl_high'], 3)})",
    ]
    if finite(row["flipped"]):
        interval = rate_span(row["flipped_low"], row["flipped_high"])
        lines.append(f"flips {percent(row['flipped'])} ({interval})")
    return "<br>".join(lines)
