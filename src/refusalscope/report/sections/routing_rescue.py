"""Rescue: whether a gate's plain output brings refusal back behind a cipher, beside the controls."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Block, Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot, safe
from refusalscope.report.numbers import NBSP, decimal, finite, percent, rate_span, span, whole
from refusalscope.report.tables import records

MAX_WRAPPERS = 4


def rescue_blocks(rescue: pd.DataFrame) -> list[Block]:
    """Refusal rates with a gate's plain output put into wrapped prompts, beside the controls."""
    known = rescue[rescue["rate"].notna()]
    if known.empty:
        return [_rescue_table(rescue, folded=False)]
    wrappers = list(dict.fromkeys(known["wrapper"]))
    return [
        Figure(
            "figure-routing-rescue",
            "rescue",
            "Whether the gate's plain output brings refusal back",
            [_rescue(name, known[known["wrapper"] == name]) for name in wrappers[:MAX_WRAPPERS]],
            "Each row is a way to answer wrapped harmful requests: the gate's output from the plain request "
            "put in (purple), or in its place a random head's, a benign request's or noise of the same norm "
            "(grey). The rescue is the gate's as far as the purple bar stands clear of the grey ones. "
            "The policy says at which steps the output was put in.",
            f"n = {whole(known['n'].max())} prompts an arm; shares of judged replies with Wilson intervals, "
            f"95{NBSP}%.",
            keys=[
                Key("dot harmful", "nothing put in"),
                Key("dot direction", "the gate's output put in"),
                Key("dot control", "controls"),
            ],
            numbers=_rescue_table(rescue, folded=True),
        )
    ]


def _rescue(wrapper: str, rows: pd.DataFrame) -> Panel:
    dots, names, said = [], [], []
    for y, row in enumerate(records(rows)):
        low, high = (row[c] if finite(row[c]) else row["rate"] for c in ("low", "high"))
        words = f"{row['arm']}, {row['policy']}" if row["policy"] else str(row["arm"])
        hover = f"<b>{safe(words, 60)}</b><br>{percent(row['rate'])} refused, "
        hover += f"{whole(row['refused'])} of {whole(row['n'])} ({rate_span(low, high)})<br>"
        hover += f"margin {decimal(row['margin'])} ({span(row['margin_low'], row['margin_high'])})"
        dots.append(Dot(y, row["rate"], low, high, _arm_role(str(row["arm"])), hover))
        policy = safe(str(row["policy"]).replace("_", " "), 24)
        small = f'<br><span style="font-size:10px">{policy}</span>' if policy else ""
        names.append(f"{safe(row['arm'].replace('_', ' '), 22)}{small}")
        said.append(f"{words} {percent(row['rate'])}")
    fig = dot_plot(dots, names, "share refused", rate=True)
    return Panel(fig, f"{wrapper or 'Rescue'}: {', '.join(said)}.", wrapper or "Rescue")


def _arm_role(arm: str) -> str:
    if any(word in arm for word in ("random", "benign", "noise", "control")):
        return "control"
    return "harmful" if arm in ("plain", "cipher", "clean", "none") else "direction"


def _rescue_table(rescue: pd.DataFrame, folded: bool) -> Table:
    return Table(
        "Rescue by arm and policy",
        (
            "wrapper",
            "arm",
            "policy",
            "refused",
            "rate",
            "95 % interval",
            "margin (nats)",
            "interval",
        ),
        [
            (
                *(str(row[c]) for c in ("wrapper", "arm", "policy")),
                Cell(f"{whole(row['refused'])} / {whole(row['n'])}", number=True),
                Cell(percent(row["rate"]), number=True),
                Cell(rate_span(row["low"], row["high"]), number=True),
                Cell(decimal(row["margin"]), number=True),
                Cell(span(row["margin_low"], row["margin_high"]), number=True),
            )
            for row in records(rescue)
        ],
        folded=folded,
    )
