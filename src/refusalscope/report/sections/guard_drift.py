"""Whether the scores of a log still look like those at calibration."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot, safe
from refusalscope.report.guard_moved import DRIFTED, STEADY, TO_WATCH
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    p_value,
    percent,
    share,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

FLAG_RATE = "flag rate"
# Rows of a deep model's profile that are drawn, the largest index first.
MAX_DRAWN = 30
# Indices of stability from which a measure is watched and has drifted, as the measure of drift has them.
WATCHED, MOVED = 0.1, 0.25


def drift_figure(table: pd.DataFrame) -> Figure | None:
    """The stability index of each measure but the flag rate; None without any."""
    known = table[table["effect"].notna() & (table["measure"] != FLAG_RATE)]
    if known.empty:
        return None
    drawn = known.sort_values("effect", ascending=False, kind="stable").head(MAX_DRAWN).sort_index()
    dots, said = [], []
    for y, row in enumerate(records(drawn)):
        role = _tone(str(row["verdict"]))
        text = f"{safe(row['measure'])}: {decimal(row['effect'])}"
        said.append(text)
        hover = f"<b>{text}</b><br>{safe(row['verdict'], 90)}<br>p {p_value(row['p_adjusted'])}"
        dots.append(Dot(y, row["effect"], row["effect"], row["effect"], role, hover))
    fig = dot_plot(
        dots, [safe(name, 24) for name in drawn["measure"]], "stability index", rate=False
    )
    for at in (WATCHED, MOVED):
        fig.add_vline(x=at, line={"color": LIGHT["ink"], "width": 1.5, "dash": "dash"})
    fig.update_xaxes(range=[-0.02, 1.08 * max(float(drawn["effect"].max()), 0.3)], nticks=6)
    cut = f"; the {MAX_DRAWN} largest of {len(known)} are drawn" if len(known) > MAX_DRAWN else ""
    return Figure(
        "figure-guard-drift",
        "drift",
        "How far the log has moved from calibration",
        [Panel(fig, f"Stability index of each measure: {'; '.join(said)}.")],
        "0: the log is spread as the prompts of calibration were. From the first dashed line on a measure is "
        "to be watched, from the second it has drifted, if chance does not explain it as well. Drift says "
        "that the threshold's promise may no longer hold; no threshold is moved by it.",
        f"n = {whole(table['n_reference'].max())} prompts at calibration, {whole(table['n_log'].max())} in "
        f"the log; an index has no interval, its p value is in the table{cut}.",
        keys=[
            Key("dot role role-suppressor", STEADY),
            Key("dot role role-direct", "to watch"),
            Key("dot role role-amplifier", DRIFTED),
            Key("dash", f"{decimal(WATCHED)} and {decimal(MOVED)}"),
        ],
    )


def _tone(verdict: str) -> str:
    if verdict.startswith(DRIFTED):
        return "role_amplifier"
    return "role_direct" if verdict.startswith(TO_WATCH) else "role_suppressor"


def drift_table(table: pd.DataFrame) -> Table:
    """Every measure with its test, effect, shift and verdict."""
    return Table(
        "Drift, measure by measure",
        ("measure", "verdict", "effect", "shift", "test", "p", "in words"),
        [_row(row) for row in records(table.head(120))],
        "Effect: a stability index, of the flag rate its ratio to the promised one. Shift: mean of the log "
        f"minus that of calibration, of the flag rate what lies above the promise; below it its 95{NBSP}% "
        "interval. p is corrected for the number of measures (Benjamini-Hochberg). Steady needs no proof: it "
        "says that no drift was shown.",
        id="table-guard-drift",
        name="drift, measure by measure",
    )


def _row(row: Row) -> tuple[str | Cell, ...]:
    rate = row["measure"] == FLAG_RATE
    word, _, words = str(row["verdict"]).partition(": ")
    interval = span(row["low"], row["high"], 3)
    if rate and finite(row["low"]) and finite(row["high"]):
        interval = f"{share(row['low'], unit=False)} to {share(row['high'])}"
    limit = f"limit {percent(row['limit'])}" if finite(row["limit"]) else ""
    return (
        str(row["measure"]),
        Cell(word, strong=word in (DRIFTED, TO_WATCH)),
        Cell(decimal(row["effect"]), number=True),
        Cell(
            share(row["shift"]) if rate else decimal(row["shift"], 3), number=True, below=interval
        ),
        Cell(str(row["test"]), below=limit),
        Cell(p_value(row["p_adjusted"]), number=True),
        words,
    )
