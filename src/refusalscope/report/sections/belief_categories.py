"""Directions of single categories: how alike they are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.report.content import Cell, Figure, Panel, Table
from refusalscope.report.figures import DIVERGING, colour_bar, figure, safe
from refusalscope.report.numbers import ABSENT, NBSP, decimal, finite, percent, span, whole
from refusalscope.report.sections.belief_jailbreaks import over
from refusalscope.report.tables import Row, records

MAX_ROWS, MAX_CATEGORIES = 120, 24


def categories_figure(cosines: pd.DataFrame) -> Figure | None:
    """Cosine of the directions of each pair of categories, for both axes; None without any."""
    panels = []
    for axis, title in (
        ("harmfulness", "Directions of harm"),
        ("refusal", "Directions of refusal"),
    ):
        mine = cosines[cosines["axis"] == axis]
        if not mine.empty:
            panels.append(_matrix(mine, title))
    if not panels:
        return None
    return Figure(
        "figure-belief-categories",
        "directions of categories",
        "How alike the directions of categories are",
        panels,
        "Each cell is the cosine of the directions of two categories, from states of prompts that were "
        "refused less those of harmless ones that were answered. Near 1 they are one direction; near 0 each "
        "category has its own. They share one harmless mean, whose noise lifts all cosines.",
        f"n = {len(cosines)} pairs of categories, whose sizes stand in the table; directions from the fit "
        f"split; 95{NBSP}% bootstrap intervals in the hover.",
    )


def _matrix(pairs: pd.DataFrame, title: str) -> Panel:
    names = sorted({*pairs["a"], *pairs["b"]})[:MAX_CATEGORIES]
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
            "to the mean",
            "to its own other half",
            "shared",
        ),
        [
            (
                str(row["axis"]),
                Cell(
                    str(row["category"]), strong=row["category"] == "all", below=str(row["reason"])
                ),
                Cell(whole(row["n"]), number=True),
                *(
                    over(decimal(row[name]), span(row[f"{name}_low"], row[f"{name}_high"]))
                    for name in ("to_others", "to_mean")
                ),
                Cell(decimal(row["halves"]), number=True),
                _shared(row),
            )
            for row in records(table.head(MAX_ROWS))
        ],
        f"Cosines, below them 95{NBSP}% bootstrap intervals. Its own other half: what noise leaves of a "
        "perfect agreement. Shared: how much of all directions lies on one axis, below it what orthogonal "
        "ones would have.",
        id="table-belief-categories",
        name="directions of categories in numbers",
    )


def _shared(row: Row) -> Cell:
    if not finite(row["shared"]):
        return Cell(ABSENT, number=True)
    orthogonal = f"{percent(row['shared_if_orthogonal'])} if orthogonal"
    return Cell(percent(row["shared"]), number=True, below=orthogonal)
