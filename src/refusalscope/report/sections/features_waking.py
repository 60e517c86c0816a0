"""What wakes when the set is taken out: each latent beside chance, and what it holds up."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.features_tables import WAKES, main_arm, marked
from refusalscope.report.figures import Dot, dot_plot, figure
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    p_value,
    percent,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, by_size, records

# Of latents that wake by chance so many are drawn; of those beyond chance so many are listed.
MAX_POINTS, MAX_LISTED = 400, 14
ARMS = {"no_bos": "BOS left out of edit and read", "all": "BOS edited and read too"}
# What became of a woken latent: colour, symbol, mark of the style sheet, meaning.
STATES = {
    "chance": ("control", "circle", "dot control", "wakes no more than by chance"),
    "idle": ("role_direct", "square", "square role-direct", "wakes beyond chance, does little"),
    "reserve": (
        "role_chain",
        "diamond",
        "diamond role-chain",
        "reserve: beyond chance, and it matters",
    ),
}


def woken_figure(dormant: pd.DataFrame, n: float) -> Figure | None:
    """Each woken latent of the main set, one panel an arm; None when none was compared with chance.

    dormant: the rows of the main set; n: prompts, NaN where unknown.
    """
    rows = marked(dormant)
    woken = rows[~rows["in_set"] & rows["woken"].notna() & rows["null"].notna()]
    if woken.empty:
        return None
    woken = woken.assign(state=[_state(row) for row in records(woken)])
    main = main_arm(dormant)
    arms = [main, *(arm for arm in dict.fromkeys(woken["arm"]) if arm != main)][:2]
    panels = [
        _shares(arm, woken[woken["arm"] == arm]) for arm in arms if (woken["arm"] == arm).any()
    ]
    own = woken[woken["arm"] == main]
    effects = own[(own["q"] < WAKES) & own["effect"].notna()]
    if len(effects):
        panels.append(_effects(by_size(effects, "effect"), len(effects)))
    said = {name: int((own["state"] == name).sum()) for name in STATES}
    return Figure(
        "figure-features-woken",
        "what wakes",
        "Which latents wake when the set is taken out",
        panels,
        "Each mark is a latent outside the set that is silent without an edit and active with the set taken "
        "out. Upwards: the share of prompts on which it wakes; to the right: the share on which it wakes under "
        "a random direction of the same norm. On the dashed line it wakes as often by chance. Waking is not "
        "yet standing in: the last panel shows the margin that goes when a latent that wakes beyond chance is "
        "taken out as well.",
        f"{f'n = {whole(n)} prompts; ' if finite(n) else ''}{counted(len(own), 'latent')} woken, "
        f"{whole(said['idle'] + said['reserve'])} beyond chance (false discovery rate {percent(WAKES)}), "
        f"{counted(said['reserve'], 'reserve')}; effects with intervals over prompts, 95{NBSP}%."
        + (
            f" Of those that wake by chance the {MAX_POINTS} most frequent are drawn."
            if said["chance"] > MAX_POINTS
            else ""
        ),
        keys=[
            Key(mark, meaning)
            for name, (_, _, mark, meaning) in STATES.items()
            if (woken["state"] == name).any()
        ],
    )


def _state(row: Row) -> str:
    if row["reserve"]:
        return "reserve"
    return "idle" if row["q"] < WAKES else "chance"


def _shares(arm: str, rows: pd.DataFrame) -> Panel:
    fig = figure(340, "woken by a random direction", "woken by the set")
    fig.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": LIGHT["axis"], "width": 1, "dash": "dash"},
        hoverinfo="skip",
    )
    for name, (role, symbol, _, _) in STATES.items():
        mine = rows[rows["state"] == name].nlargest(MAX_POINTS, "woken")
        if mine.empty:
            continue
        fig.add_scatter(
            x=mine["null"].tolist(),
            y=mine["woken"].tolist(),
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 6 if name == "chance" else 10,
                "color": LIGHT[role],
                "line": {"color": LIGHT["surface"], "width": 1},
            },
            text=[_hover(row) for row in records(mine)],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    _quarters(fig)
    reserves = list(rows.loc[rows["state"] == "reserve", "at"])
    alt = f"Woken share against chance, {ARMS.get(arm, arm)}: {counted(len(rows), 'latent')}; reserves: "
    return Panel(fig, f"{alt}{', '.join(reserves[:8]) or 'none'}.", ARMS.get(arm, arm))


def _quarters(fig: go.Figure) -> None:
    ticks = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0%", "", "50%", "", "100%"]}
    fig.update_xaxes(range=[-0.03, 1.03], tickangle=0, zeroline=False, **ticks)
    fig.update_yaxes(range=[-0.03, 1.03], zeroline=False, **ticks)


def _effects(rows: pd.DataFrame, total: int) -> Panel:
    shown = records(rows.head(MAX_LISTED))
    dots = []
    for y, row in enumerate(shown):
        role, symbol, _, _ = STATES[row["state"]]
        low, high = (
            row[name] if finite(row[name]) else row["effect"]
            for name in ("effect_low", "effect_high")
        )
        dots.append(Dot(y, row["effect"], low, high, role, _hover(row), symbol))
    names = [row["at"] for row in shown]
    fig = dot_plot(dots, names, "margin it holds up (nats)", rate=False)
    best = shown[0]
    alt = f"Margin that woken latents hold up: largest {best['at']} with {decimal(best['effect'])} nats."
    more = f", {MAX_LISTED} of {total}" if total > MAX_LISTED else ""
    return Panel(fig, alt, f"What those beyond chance hold up{more}")


def _hover(row: Row) -> str:
    lines = [
        f"<b>{row['at']}</b>, layer {row['layer']}",
        f"wakes on {percent(row['woken'])}, by chance on {percent(row['null'])}",
    ]
    if finite(row["q"]):
        lines.append(f"q {p_value(row['q'])}")
    if finite(row["effect"]):
        interval = span(row["effect_low"], row["effect_high"])
        lines.append(f"holds up {decimal(row['effect'])} nats ({interval})")
    return "<br>".join(lines)


def rounds_table(rounds: pd.DataFrame) -> Table:
    """What each round of conditional attribution added, one row a round."""
    rows = []
    for number, added in rounds.groupby("round", sort=True):
        best = by_size(added, "effect")
        names = [
            f"{row['at']} ({decimal(row['effect'])}{NBSP}nats)" for row in records(best.head(4))
        ]
        more = f" and {whole(len(best) - 4)} more" if len(best) > 4 else ""
        rows.append(
            (
                Cell(whole(number), number=True),
                Cell(decimal(added["margin"].iloc[0]), number=True),
                Cell(percent(added["flipped"].iloc[0]), number=True),
                Cell(whole(len(added)), number=True),
                f"{', '.join(names)}{more}",
            )
        )
    return Table(
        "Rounds: take out, see what carries the refusal now, take that out too",
        ("round", "margin before (nats)", "flipped before", "latents added", "the strongest"),
        rows,
        "Estimates by gradient, without intervals; a round ends the chain when nothing new carries anything.",
        id="table-features-rounds",
        name="rounds",
    )
