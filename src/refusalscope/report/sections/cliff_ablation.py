"""Shares of heads removed together: what returns by the margin, and what the model then says."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.cliff_tables import COMPLIED, HARMLESS, REFUSED
from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    counted,
    decimal,
    finite,
    p_value,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

MAX_ROWS, MAX_SHARES, MAX_DRAWS = 120, 12, 60
TITLES = {
    COMPLIED: "Lost refusals restored",
    REFUSED: "Harmful prompts refused before",
    HARMLESS: "Benign prompts refused",
}
ROLES = {COMPLIED: "harmful", REFUSED: "direction", HARMLESS: "harmless"}
ARMS = {"clean": "nothing removed", "top": "top suppressors", "random": "random heads"}


def ablation_figure(arms: pd.DataFrame) -> Figure | None:
    """A panel a group: the rate of refusal by the margin against the share of heads; None without a rate."""
    arms = arms.assign(
        shown=arms["rate"].where(arms["group"] != COMPLIED, arms["restored_rate"]),
        shown_low=arms["low"].where(arms["group"] != COMPLIED, arms["restored_low"]),
        shown_high=arms["high"].where(arms["group"] != COMPLIED, arms["restored_high"]),
    )
    arms = arms[arms["shown"].between(0, 1) & (arms["share"].notna() | (arms["arm"] == "clean"))]
    shares = sorted(set(arms.loc[arms["arm"] == "top", "share"]))[:MAX_SHARES]
    if not shares:
        return None
    groups = [group for group in TITLES if (arms["group"] == group).any()]
    panels = [_panel(arms[arms["group"] == group], group, shares) for group in groups]
    n = ", ".join(
        f"{group} n = {whole(arms.loc[arms['group'] == group, 'n'].max())}" for group in groups
    )
    draws = arms.loc[arms["arm"] == "random", "draw"].nunique()
    beside = f"; {counted(draws, 'draw')} of random heads" if draws else "; no random heads"
    return Figure(
        "figure-cliff-ablation",
        "heads removed together",
        "What removing the top suppressors restores",
        panels,
        "Further right more heads are removed at once, those that the score ranks as strongest against refusal "
        "first. Line: share of traces whose reply then leans to refuse (margin above 0), with intervals; left, "
        "of those that had lost their refusal. Small grey marks: as many random heads of the same layers and "
        "write norms, one mark a draw; the dotted line is their mean. Suppressors that matter lift the line of "
        "the lost refusals above the grey marks and leave benign prompts alone.",
        f"{n}; Wilson intervals, 95{NBSP}%{beside}.",
        keys=[
            *(Key(f"line {ROLES[group]}", group) for group in groups),
            Key("dot role role-other", "a draw of random heads"),
            *([Key("diamond role-other", "another set")] if _others(arms) else []),
        ],
    )


def _others(arms: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(arms["arm"]) if name not in ARMS]


def _panel(arms: pd.DataFrame, group: str, shares: Sequence[float]) -> Panel:
    fig = figure(330, "share of heads removed", "refused")
    role, at = ROLES[group], {share: i + 1 for i, share in enumerate(shares)}
    clean, top = arms[arms["arm"] == "clean"].head(1), arms[arms["arm"] == "top"]
    top = top[top["share"].isin(shares)].sort_values("share").drop_duplicates("share")
    random = arms[(arms["arm"] == "random") & arms["share"].isin(shares)]
    for share in shares:
        part = random[random["share"] == share].head(MAX_DRAWS)
        fan = [at[share] + 0.3 * (i / max(len(part) - 1, 1) - 0.5) for i in range(len(part))]
        _marks(fig, fan, part, "control", "circle", 6)
    means = random.groupby("share")["shown"].mean()
    if len(means):
        fig.add_scatter(
            x=[at[share] for share in means.index],
            y=means.tolist(),
            mode="lines",
            line={"color": LIGHT["control"], "width": 2, "dash": "dot"},
            hoverinfo="skip",
        )
    line = pd.concat([clean, top])
    x = [*([0] * len(clean)), *(at[share] for share in top["share"])]
    fig.add_scatter(
        x=x,
        y=line["shown"].tolist(),
        mode="lines",
        line={"color": LIGHT[role], "width": 2.5},
        hoverinfo="skip",
    )
    _marks(fig, x, line, role, "circle", 9)
    heads = dict(zip(top["share"], top["n_heads"], strict=True))
    ticks = {0: "none"} if len(clean) else {}
    ticks |= {i: _tick(share, heads.get(share)) for share, i in at.items()}
    for i, name in enumerate(_others(arms)[:3]):
        row = arms[arms["arm"] == name].head(1)
        place = len(shares) + 1 + i
        _marks(fig, [place], row, "role_other", "diamond", 9)
        ticks[place] = f"{safe(name, 12)}<br>{whole(row['n_heads'].iloc[0])}"
    fig.update_xaxes(
        tickvals=list(ticks),
        ticktext=list(ticks.values()),
        range=[min(ticks) - 0.4, max(ticks) + 0.4],
        zeroline=False,
        tickangle=0,
    )
    fig.update_yaxes(
        range=[-0.04, 1.04],
        tickvals=[0, 0.25, 0.5, 0.75, 1],
        ticktext=["0%", "", "50%", "", "100%"],
        zeroline=False,
    )
    said = "; ".join(
        f"{percent(row['share'])} of heads {percent(row['shown'])}" for row in records(top)
    )
    beside = f"; random heads at most {percent(random['shown'].max())}" if len(random) else ""
    return Panel(fig, f"{TITLES[group]}: {said or 'not measured'}{beside}.", TITLES[group])


def _tick(share: float, heads: float | None) -> str:
    return f"{percent(share)}<br>{whole(heads)}" if finite(heads) else percent(share)


def _marks(
    fig: go.Figure, x: Sequence[float], rows: pd.DataFrame, role: str, symbol: str, size: int
) -> None:
    bounds = {}
    if size > 6:
        bounds["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": (rows["shown_high"] - rows["shown"]).clip(lower=0).fillna(0).tolist(),
            "arrayminus": (rows["shown"] - rows["shown_low"]).clip(lower=0).fillna(0).tolist(),
            "color": LIGHT[role],
            "thickness": 2,
            "width": 0,
        }
    fig.add_scatter(
        x=list(x),
        y=rows["shown"].tolist(),
        mode="markers",
        marker={"color": LIGHT[role], "symbol": symbol, "size": size},
        text=[_hover(row) for row in records(rows)],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
        **bounds,
    )


def _hover(row: Row) -> str:
    name = ARMS.get(row["arm"], safe(row["arm"], 20))
    lines = [f"<b>{name}</b>"]
    lines += [f"{counted(int(row['n_heads']), 'head')}"] if finite(row["n_heads"]) else []
    lines.append(f"{percent(row['shown'])} ({rate_span(row['shown_low'], row['shown_high'])})")
    lines += [f"margin {decimal(row['margin'])} nats"] if finite(row["margin"]) else []
    return "<br>".join(lines)


def ablation_table(arms: pd.DataFrame) -> Table:
    """Every arm in numbers, the random draws in one row a share."""
    rows = []
    for (arm, share, group), part in arms.groupby(
        ["arm", "share", "group"], sort=False, dropna=False
    ):
        row, drawn = records(part)[0], len(part) > 1
        rows.append(
            (
                ARMS.get(str(arm), str(arm)) + (f" ({whole(len(part))} draws)" if drawn else ""),
                Cell(percent(share), number=True),
                Cell(whole(row["n_heads"]), number=True),
                str(group),
                _over(percent(part["rate"].mean()), _interval(row, "low", "high", drawn)),
                _over(
                    percent(part["restored_rate"].mean()),
                    _interval(row, "restored_low", "restored_high", drawn),
                ),
                Cell(p_value(row["p_random"]), number=True),
                _over(
                    decimal(part["margin"].mean()),
                    ABSENT if drawn else span(row["margin_low"], row["margin_high"]),
                ),
            )
        )
    return Table(
        "Heads removed together, in numbers",
        (
            *("heads", "share", "number", "traces", "refused by the margin"),
            *("lost refusals restored", "p", "margin (nats)"),
        ),
        rows[:MAX_ROWS],
        f"Below the numbers 95{NBSP}% intervals; of random heads the mean over draws. p: rank of the restored "
        "share among the random draws.",
        folded=True,
    )


def _interval(row: Row, low: str, high: str, drawn: bool) -> str:
    return ABSENT if drawn else rate_span(row[low], row[high])


def behaviour_table(replies: pd.DataFrame) -> Table:
    """What the model says with each set of heads removed: judged refusals, a column a group."""
    groups = list(dict.fromkeys(replies["group"]))[:4]
    rows = []
    for (arm, share), part in replies.groupby(["arm", "share"], sort=False, dropna=False):
        of = {row["group"]: row for row in reversed(records(part))}
        rows.append(
            (
                Cell(ARMS.get(str(arm), str(arm)), strong=arm == "top"),
                Cell(percent(share), number=True),
                Cell(whole(part["n_heads"].iloc[0]), number=True),
                *(_rate(of.get(group)) for group in groups),
                Cell(percent(part["degenerate"].max()), number=True),
            )
        )
    counts = replies.groupby("group")["n"].max()
    return Table(
        "What the model says: judged replies",
        (
            *("heads removed", "share", "number"),
            *(f"{group} (n = {whole(counts[group])})" for group in groups),
            "degenerate at most",
        ),
        rows[:MAX_ROWS],
        f"Share of replies judged as refusals, below it the Wilson interval, 95{NBSP}%. The margin of the "
        "figure reads the first token of the reply only; these are whole replies.",
        id="table-cliff-behaviour",
        name="judged replies",
    )


def _rate(row: Row | None) -> Cell:
    if row is None:
        return Cell(ABSENT, number=True)
    return _over(percent(row["rate"]), rate_span(row["low"], row["high"]))


def _over(value: str, interval: str) -> Cell:
    return Cell(value, number=True, below="" if interval == ABSENT else interval)
