"""The heads of a cliff run: a signed map over layers, and the heads with a role in numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import safe
from refusalscope.report.head_grid import FEW, Ringed, head_grid
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    counted,
    decimal,
    finite,
    listed,
    p_value,
    share,
    span,
    whole,
)
from refusalscope.report.tables import Row, by_size, records

MAX_ROWS = 30
# Layers and heads of the largest model that a map is drawn of.
LARGEST = 512
ROLES = {"suppressor": "solid", "promoter": "solid", "static": "dot"}


def head_map(heads: pd.DataFrame, layers: int | None) -> Figure | None:
    """Every head by its exact effect; None where none was measured or places are beyond any model."""
    known = heads[heads["effect"].notna()]
    last, widest = int(heads["layer"].max()), int(heads["head"].max())
    if known.empty or max(last, widest) >= LARGEST:
        return None
    first = int(min(heads["head"].min(), 0))
    shape = max(last + 1, min(layers or 0, LARGEST)), widest - first + 1
    grid, hover = np.full(shape, np.nan), [[""] * shape[1] for _ in range(shape[0])]
    for row in records(heads):
        grid[row["layer"], row["head"] - first] = row["effect"]
        hover[row["layer"]][row["head"] - first] = _hover(row)
    top = float(known["effect"].abs().max()) or 1.0
    rings = []
    for role, dash in ROLES.items():
        mine = heads[heads["role"] == role]
        if len(mine):
            places = list(zip(mine["layer"], mine["head"], strict=True))
            rings.append(Ringed(places, "control" if role == "static" else "ink", dash))
    fig = head_grid(grid, hover, top, ".3~g", rings, first=first)
    found = {role: list(heads.loc[heads["role"] == role, "at"]) for role in ROLES}
    told = [f"{role}s: {listed(names[:8])}" for role, names in found.items() if names]
    best = records(by_size(known, "effect"))[0]
    alt = (
        f"Effect by layer and head, largest {best['at']} with {decimal(best['effect'], 3)} logits; "
    )
    counts = ", ".join(counted(len(names), role) for role, names in found.items())
    return Figure(
        "figure-cliff-heads",
        "map of heads",
        "Which heads push refusal down, and which hold it up",
        [Panel(fig, f"{alt}{'; '.join(told) or 'no head has a role'}.")],
        "Each cell is one attention head: its layer (upwards, from input to output) and its number. Green: the "
        "head lowers the probe's score at the closing tokens, so that removing it there brings refusal back; "
        "purple: it raises the score. Only ringed heads passed the tests and write so at the end more than in "
        "the thinking and in benign traces; static ones write the same in benign traces, which explains no "
        "cliff.",
        f"{whole(len(known))} of {whole(shape[0] * (widest + 1))} heads measured: {counts}. Effects are exact, "
        f"one head removed at the closing tokens, in logits of the probe; means over traces, 95{NBSP}% "
        "intervals in the hover and in the table.",
        keys=[
            Key("square answers", "lowers the score"),
            Key("square refuses", "raises it"),
            Key("ring", "suppressor (green) or promoter (purple)"),
            Key("ring dotted" if max(shape) <= FEW else "square open role-other", "static"),
        ],
    )


def _hover(row: Row) -> str:
    lines = [f"<b>{row['at']}{', ' * bool(row['role'])}{safe(row['role'], 20)}</b>"]
    if not finite(row["effect"]):
        return f"{lines[0]}<br>not measured"
    interval = span(row["effect_low"], row["effect_high"], 3)
    part = f", {share(row['share'])} of the fall" if finite(row["share"]) else ""
    lines.append(f"effect {decimal(row['effect'], 3)} logits{part}")
    lines += [] if interval == ABSENT else [f"interval {interval}"]
    lines += [f"p familywise {p_value(row['p_familywise'])}"] if finite(row["p_familywise"]) else []
    for name in ("effect_margin", "contrast", "direct", "published"):
        if finite(row[name]):
            lines.append(f"{_WORDS[name]} {decimal(row[name], 3)}")
    return "<br>".join(lines)


_WORDS = {
    "effect_margin": "on the margin (nats)",
    "contrast": "direct, beyond benign",
    "direct": "direct",
    "published": "as published",
}


def heads_table(heads: pd.DataFrame, statics: list[str]) -> Table:
    """The heads with a role, then the largest others. statics: static heads among the published suppressors."""
    acting = by_size(heads[heads["role"] != ""], "effect")
    others = by_size(heads[(heads["role"] == "") & heads["effect"].notna()], "effect")
    order = {role: i for i, role in enumerate(ROLES)}
    acting = acting.sort_values(
        "role", key=lambda roles: roles.map(order).fillna(len(order)), kind="stable"
    )
    shown = pd.concat([acting, others.head(max(0, min(5, MAX_ROWS - len(acting))))]).head(MAX_ROWS)
    ranks = heads["published"].rank(method="first")
    left = len(acting) - MAX_ROWS
    said = (
        f" The published score also counts {listed(statics[:3])} among the suppressors, which benign traces "
        "show to be static."
        if statics
        else ""
    )
    return Table(
        "Heads with a role, and the largest others",
        (
            *("head", "role", "effect on the probe (logits)", "of the fall", "p familywise"),
            *("on the margin (nats)", "direct, beyond benign", "as published (rank)"),
        ),
        [_head(row, ranks[i]) for i, row in zip(shown.index, records(shown), strict=True)],
        f"Below the numbers 95{NBSP}% intervals over traces. Effect: the probe's logit at the end with the "
        "head minus that without it, so that suppressors are negative; of the fall: as a share of how much "
        "further the probe falls in harmful traces than in benign ones. Direct, beyond benign: what the head "
        "itself writes at the end, less the thinking and less benign traces. As published: its write along the "
        f"probe without the final norm and without a contrast, and its rank from the most negative.{said}"
        + (f" {whole(left)} further heads stand in cliff.heads." if left > 0 else ""),
        id="table-cliff-heads",
        name="heads with a role",
    )


def _head(row: Row, rank: float) -> tuple[str | Cell, ...]:
    place = f" ({whole(rank)})" if finite(rank) else ""
    return (
        Cell(row["at"], strong=bool(row["role"])),
        str(row["role"]) or ABSENT,
        _number(row, "effect"),
        Cell(share(row["share"]), number=True),
        Cell(p_value(row["p_familywise"]), number=True),
        _number(row, "effect_margin"),
        _number(row, "contrast"),
        Cell(f"{decimal(row['published'], 3)}{place}", number=True),
    )


def _number(row: Row, column: str) -> Cell:
    interval = span(row[f"{column}_low"], row[f"{column}_high"], 3)
    return Cell(decimal(row[column], 3), number=True, below="" if interval == ABSENT else interval)
