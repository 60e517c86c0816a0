"""Directions of single categories: how alike they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.content import Cell, Figure, Panel, Table
from refusalscope.report.figures import DIVERGING, colour_bar, figure, safe
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    finite,
    p_value,
    percent,
    span,
    whole,
)
from refusalscope.report.sections.belief_jailbreaks import left_out, over
from refusalscope.report.tables import Row, records

MAX_ROWS, MAX_CATEGORIES = 120, 24


def categories_figure(cosines: pd.DataFrame) -> Figure | None:
    """Cosine of the directions of each pair of categories, for both axes; None without any."""
    panels: list[Panel] = []
    n_pairs, n_names = 0, 0
    for axis, title in (
        ("harmfulness", "Directions of harm"),
        ("refusal", "Directions of refusal"),
    ):
        mine = cosines[cosines["axis"] == axis]
        if not mine.empty:
            panels.append(_matrix(mine, title))
            n_pairs, n_names = max(n_pairs, len(mine)), max(n_names, len(_names(mine)))
    if not panels:
        return None
    cut = f" The first {MAX_CATEGORIES} of {n_names} categories by name are drawn."
    return Figure(
        "figure-belief-categories",
        "directions of categories",
        "How alike the directions of categories are",
        panels,
        "Each cell is the cosine of the directions of two categories, from states of prompts that were "
        "refused less those of harmless ones that were answered. Near 1 they are one direction; near 0 each "
        f"category has its own. {_harmless(cosines)}{cut if n_names > MAX_CATEGORIES else ''}",
        f"n = {n_pairs} pairs of categories for each axis, whose sizes stand in the table; directions from the "
        f"fit split; 95{NBSP}% bootstrap intervals in the hover.",
    )


def _harmless(cosines: pd.DataFrame) -> str:
    if (cosines["harmless"] == "halves").all():
        return "Two directions start from different halves of the harmless prompts."
    return "All start from one harmless mean, whose noise lifts all cosines."


def _names(pairs: pd.DataFrame) -> list[str]:
    return sorted({*pairs["a"], *pairs["b"]})


def _matrix(pairs: pd.DataFrame, title: str) -> Panel:
    names = _names(pairs)[:MAX_CATEGORIES]
    place = {name: i for i, name in enumerate(names)}
    grid = np.full((len(names), len(names)), np.nan)
    text = [["" for _ in names] for _ in names]
    for row in records(pairs):
        if row["a"] in place and row["b"] in place:
            for i, j in ((place[row["a"]], place[row["b"]]), (place[row["b"]], place[row["a"]])):
                grid[i, j] = row["cosine"]
                text[i][j] = (
                    f"{safe(row['a'])}, {safe(row['b'])}<br>{decimal(row['cosine'])} "
                    f"({span(row['low'], row['high'])})"
                )
    np.fill_diagonal(grid, 1.0)
    fig = figure(120 + max(200, 26 * len(names)), "")
    fig.add_heatmap(
        z=grid,
        text=text,
        hovertemplate="%{text}<extra></extra>",
        colorscale=DIVERGING,
        zmin=-1,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar=colour_bar(),
    )
    labels = [safe(name, 14) for name in names]
    ticks = {
        "tickvals": list(range(len(names))),
        "ticktext": labels,
        "showgrid": False,
        "zeroline": False,
    }
    fig.update_xaxes(ticks, tickangle=-45)
    fig.update_yaxes(ticks, autorange="reversed")
    found = pairs["cosine"]
    mean, low, high = (decimal(each) for each in (found.mean(), found.min(), found.max()))
    return Panel(
        fig,
        f"{title}: cosines of {len(names)} categories, {mean} on average, {low} to {high}.",
        title,
    )


def categories_table(table: pd.DataFrame) -> Table:
    """Each category: how alike its direction is to the others, and to itself in another half."""
    return Table(
        "Directions of categories",
        (
            "axis",
            "category",
            "n",
            "to the others",
            "of random categories",
            "to the mean",
            "to its own other half",
            "shared",
        ),
        [
            (
                str(row["axis"]),
                Cell(str(row["category"]), strong=row["total"], below=str(row["reason"])),
                Cell(whole(row["n"]), number=True),
                over(*_with_span(row, "to_others")),
                over(*_by_chance(row, "to_others", decimal)),
                over(*_with_span(row, "to_mean")),
                Cell(
                    decimal(row["halves"]),
                    number=True,
                    strong=row["unsteady"],
                    below="less than to the others" if row["unsteady"] else "",
                ),
                _shared(row),
            )
            for row in records(table.head(MAX_ROWS))
        ],
        f"Cosines, below them 95{NBSP}% bootstrap intervals. Of random categories: the same prompts dealt out "
        f"at random into categories of these sizes, their mean, 95{NBSP}% range and two-sided p; below that "
        "range categories have directions of their own, within it none was shown. Its own other half: a "
        "category that is less like itself than like the others is not told apart from them. Shared: how much "
        f"of all directions lies on one axis.{left_out(len(table), MAX_ROWS)}",
        id="table-belief-categories",
        name="directions of categories in numbers",
    )


def _with_span(row: Row, name: str) -> tuple[str, str]:
    return decimal(row[name]), span(row[f"{name}_low"], row[f"{name}_high"])


def _by_chance(row: Row, name: str, words: Callable[[Any], str]) -> tuple[str, str]:
    """A figure over random categories: its mean; its range with p."""
    value, low, high = (row[f"{name}_null{end}"] for end in ("", "_low", "_high"))
    if not finite(value):
        return ABSENT, ""
    return words(value), f"{words(low)} to {words(high)}, p {p_value(row[f'{name}_p'])}"


def _shared(row: Row) -> Cell:
    if not finite(row["shared"]):
        return Cell(ABSENT, number=True)
    mean, rest = _by_chance(row, "shared", percent)
    below = f"random {mean} ({rest})" if rest else ""
    return Cell(percent(row["shared"]), number=True, below=below)
