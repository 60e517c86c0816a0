"""Jailbreaks on the plane of belief and refusal, and belief before and after fine-tuning."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.belief_tables import LABELS, NONE, QUANTITIES
from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import (
    ABSENT,
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
from refusalscope.report.sections.belief import QUADRANTS, corner
from refusalscope.report.tables import Row, records

MAX_ROWS = 120
AXES = ("delta_harmful", "delta_refuse")


def jailbreaks_figure(table: pd.DataFrame) -> Figure | None:
    """Mean of each wrapper on the plane of belief and refusal, by label; None without any."""
    mine = table[(table["group"] == "all") & table["quantity"].isin(AXES)]
    places = mine.pivot_table(
        values=["value", "low", "high"],
        index=["wrapper", "label"],
        columns="quantity",
        aggfunc="first",
        sort=False,
    )
    if any(("value", axis) not in places for axis in AXES):
        return None
    known = places.dropna(subset=[("value", axis) for axis in AXES])
    if known.empty:
        return None
    fig = figure(
        460, "delta_harmful (right: taken for harmful)", "delta_refuse (up: about to refuse)"
    )
    said = []
    for label in LABELS:
        rows = known[known.index.get_level_values("label") == label]
        if rows.empty:
            continue
        names = [str(name) for name in rows.index.get_level_values("wrapper")]
        x, y = (rows["value", axis] for axis in AXES)
        fig.add_scatter(
            x=x.round(5).tolist(),
            y=y.round(5).tolist(),
            mode="markers+text",
            marker={
                "color": [LIGHT[label] if name != NONE else LIGHT["surface"] for name in names],
                "size": 10,
                "symbol": "circle" if label == "harmful" else "square",
                "line": {"color": LIGHT[label], "width": 2},
            },
            text=[safe(name, 18) if name != NONE else "bare" for name in names],
            textposition="top right" if label == "harmful" else "bottom right",
            textfont={"size": 11, "color": LIGHT["muted"]},
            error_x=_bars(rows, AXES[0], label),
            error_y=_bars(rows, AXES[1], label),
            hovertemplate="%{text}: %{x:.3f}, %{y:.3f}<extra></extra>",
        )
        said += [
            f"{safe(name)} {label} {decimal(a, 3)}, {decimal(b, 3)}"
            for name, a, b in zip(names, x, y, strict=True)
        ]
    # Room for the intervals and for the names above the marks.
    ends = mine[["value", "low", "high"]].abs()
    for axis, update in zip(AXES, (fig.update_xaxes, fig.update_yaxes), strict=True):
        far = 1.25 * max(float(ends[mine["quantity"] == axis].max().max()), 1e-6)
        update(range=[-far, far], zerolinewidth=1.5, nticks=7)
    for name, (x_side, y_side, _) in QUADRANTS.items():
        corner(fig, name, x_side, y_side)
    n = mine.groupby("label")["n"].max()
    counts = ", ".join(f"{whole(n[label])} {label}" for label in LABELS if label in n)
    return Figure(
        "figure-belief-jailbreaks",
        "jailbreaks on the plane",
        "Where wrappers move belief and refusal",
        [Panel(fig, f"Mean of each wrapper on both scores: {'; '.join(said[:20])}.")],
        "Each mark is the mean of all prompts of a label inside one wrapper; open marks are the bare prompts. "
        "A jailbreak that moves a mark down alone takes refusal away and leaves the belief; one that moves it "
        "to the left hides the harm from the model itself, and from a guard that reads its belief.",
        f"n = {counts} prompts a wrapper; report split; bars are 95{NBSP}% bootstrap intervals of the means.",
        keys=[
            Key("dot harmful", "harmful, wrapped"),
            Key("square harmless", "harmless, wrapped"),
            Key("dot open harmful", "harmful, bare"),
            Key("square open harmless", "harmless, bare"),
        ],
    )


def _bars(rows: pd.DataFrame, axis: str, label: str) -> dict:
    value = rows["value", axis]
    low, high = (rows.get((end, axis), value) for end in ("low", "high"))
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - value).clip(lower=0).fillna(0).tolist(),
        "arrayminus": (value - low).clip(lower=0).fillna(0).tolist(),
        "color": LIGHT[label],
        "thickness": 1.5,
        "width": 0,
    }


def jailbreaks_table(table: pd.DataFrame) -> Table:
    """Every wrapper, label, group and quantity, with the change from the bare prompts."""
    return Table(
        "Wrappers in numbers",
        ("wrapper", "label", "prompts", "quantity", "n", "value", "change, paired", "p"),
        [
            (
                "bare" if row["wrapper"] == NONE else str(row["wrapper"]),
                str(row["label"]),
                str(row["group"]),
                str(row["quantity"]),
                Cell(whole(row["n"]), number=True),
                _valued(row),
                over(decimal(row["change"], 3), span(row["change_low"], row["change_high"], 3)),
                Cell(p_value(row["p"]), number=True),
            )
            for row in records(table.head(MAX_ROWS))
        ],
        f"Below the numbers 95{NBSP}% intervals. Change: from the same prompts without the wrapper."
        f"{left_out(len(table), MAX_ROWS)}",
        folded=True,
    )


def _valued(row: Row) -> Cell:
    if row["quantity"] in AXES:
        return over(decimal(row["value"], 3), span(row["low"], row["high"], 3))
    return over(percent(row["value"]), rate_span(row["low"], row["high"]))


def tuned_table(table: pd.DataFrame) -> Table:
    """Refusal and belief before and after fine-tuning, paired by prompt."""
    return Table(
        "Before and after fine-tuning",
        ("label", "quantity", "centroids", "n", "before", "after", "change, paired", "p"),
        [
            (
                str(row["label"]),
                QUANTITIES.get(row["quantity"], str(row["quantity"])),
                {"kept": "those of before", "refitted": "fitted again"}.get(
                    row["centroids"], ABSENT
                ),
                Cell(whole(row["n"]), number=True),
                *(_moved(row, name) for name in ("before", "after", "change")),
                Cell(p_value(row["p"]), number=True),
            )
            for row in records(table.head(MAX_ROWS))
        ],
        f"Below the numbers 95{NBSP}% intervals over prompts of the report split: Wilson's and Newcombe's of "
        "the share refused, bootstrap ones of the scores. With the centroids of before, states of the tuned "
        f"model are read in the old terms; fitted again, in its own.{left_out(len(table), MAX_ROWS)}",
        id="table-belief-tuned",
        name="before and after fine-tuning",
    )


def _moved(row: Row, name: str) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if row["quantity"] == "refused":
        return over(share(row[name]), share_span(low, high))
    return over(decimal(row[name], 3), span(low, high, 3))


def left_out(n: int, most: int) -> str:
    """The sentence on rows that a table has no room for; nothing where it shows all."""
    if n <= most:
        return ""
    return f" The first {whole(most)} rows of {whole(n)}; the others stand in the run's table."


def over(value: str, interval: str) -> Cell:
    """A number with its interval below, where it has one."""
    return Cell(value, number=True, below="" if interval == ABSENT else interval)
