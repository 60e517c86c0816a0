"""Every attention head by layer: how much of the refusal gap goes when it is swapped."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.figures import safe
from refusalscope.report.head_grid import Ringed, head_grid
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    listed,
    p_value,
    share,
    share_span,
    whole,
)
from refusalscope.report.routing_tables import MAPS, found, n_layers
from refusalscope.report.tables import Row, RunLike, by_size, records

# Another position map gets a panel of its own when a head differs by more than this share of the gap.
DIFFERS = 0.005
# Characters on a line of a hover: a panel cuts off what is wider than itself.
LINE = 42
OTHERS = {"necessity_last": "last", "necessity_all": "all"}


def head_map(run: RunLike, heads: pd.DataFrame) -> Figure:
    """The main position map, and beside it the maps that differ from it."""
    shape = n_layers(run, heads), int(heads["head"].max()) + 1
    columns = {"necessity": _map_name(heads)}
    same = []
    for column, name in OTHERS.items():
        both = heads[[column, "necessity"]].dropna()
        if both.empty or name in set(heads["map"]):
            continue
        if (both[column] - both["necessity"]).abs().max() > DIFFERS:
            columns[column] = MAPS[name]
        else:
            same.append(MAPS[name])
    values = heads[list(columns)].to_numpy(float)
    known = np.abs(values[np.isfinite(values)])
    top = float(known.max()) if known.size and known.max() > 0 else 1.0
    panels = [_panel(heads, column, name, shape, top) for column, name in columns.items()]
    blank = any(panel_cells(heads, column) < shape[0] * shape[1] for column in columns)
    mine = found(heads)
    n_found = 0 if mine is None else len(mine)
    agree = f" On the same heads {listed(same)} gives the same picture." if same else ""
    return Figure(
        "figure-routing-map",
        "map of heads",
        "Which heads carry refusal",
        panels,
        "Each cell is one attention head: its layer (upwards, from input to output) and its number. "
        "Purple: with the head's output swapped for the one on the harmless control, that share of "
        "the gap between harmful and control goes (necessity); green: the gap grows, so the head works "
        "against refusal. Panels differ in the tokens that were swapped; a head that "
        f"works at earlier tokens is pale in a map of the last one.{agree}",
        f"{whole(heads['necessity'].notna().sum())} of {whole(shape[0] * shape[1])} heads looked at, "
        f"{n_found} found; shares of the gap, means over pairs; intervals and p values in the hover "
        "and in the table.",
        keys=[
            Key("square refuses", "carries refusal"),
            Key("square answers", "works against it"),
            Key("ring", "found"),
            *([Key("blank", "not looked at")] if blank else []),
        ],
    )


def panel_cells(heads: pd.DataFrame, column: str) -> int:
    """How many heads a map has a value for."""
    return int(heads.loc[heads[column].notna(), "at"].nunique())


def _map_name(heads: pd.DataFrame) -> str:
    names = [MAPS.get(name, name) for name in dict.fromkeys(heads["map"]) if name]
    return listed(names) or "positions not stated"


def _panel(
    heads: pd.DataFrame, column: str, name: str, shape: tuple[int, int], top: float
) -> Panel:
    n, width = shape
    grid = np.full(shape, np.nan)
    hover = [[""] * width for _ in range(n)]
    for row in records(heads):
        grid[row["layer"], row["head"]] = row[column]
        hover[row["layer"]][row["head"]] = _hover(row) if column == "necessity" else _brief(row)
    mine = found(heads)
    rings = [] if mine is None else [Ringed(list(zip(mine["layer"], mine["head"], strict=True)))]
    fig = head_grid(grid, hover, top, ".0%" if top > 0.04 else ".1%", rings)
    best = records(by_size(heads, column))[0]
    said = f"largest {best['at']} with {share(best[column])}"
    names = "" if mine is None else f"; found: {listed(list(mine['at'][:8])) or 'none'}"
    alt = f"Necessity by layer and head, swapped at {name}: {said}{names}."
    return Panel(fig, alt, f"Swapped at {name}")


def _hover(row: Row) -> str:
    role = f", {safe(row['role'])}" if row["role"] else ""
    lines = [f"<b>{row['at']}{role}</b>{', found' if row['passes'] else ''}"]
    for name in ("necessity", "sufficiency"):
        lines.append(_share(name, row[name], row[f"{name}_low"], row[f"{name}_high"]))
    tests = (
        ("p_familywise", "necessity"),
        ("p_sufficiency", "sufficiency"),
        ("p_both", "both"),
        ("p_equivalent", "no effect"),
    )
    p = [f"p {name} {p_value(row[column])}" for column, name in tests if finite(row[column])]
    shares = (
        ("necessity_last", "last token"),
        ("necessity_all", "all positions"),
        ("necessity_first", "first half of pairs"),
        ("necessity_second", "second half"),
        ("conditional", "in its window"),
        ("direct", "direct"),
        ("dla_share", "share of DLA"),
        ("frozen", "norms frozen"),
        ("donor_sd", "sd over donors"),
    )
    parts = _values(row, *shares)
    parts += [f"DLA {decimal(row['dla'])} logits"] if finite(row["dla"]) else []
    lines += [*_packed(p), *_packed(parts)]
    if finite(row["drives"]) or finite(row["driven_by"]):
        lines.append(f"drives {whole(row['drives'])}, driven by {whole(row['driven_by'])}")
    lines += why_lines(row)
    return "<br>".join(line for line in lines if line)


def _brief(row: Row) -> str:
    role = f", {safe(row['role'])}" if row["role"] else ""
    maps = ("necessity_last", "last token"), ("necessity_all", "all positions")
    shown = _packed(_values(row, ("necessity", "main map"), *maps))
    return "<br>".join([f"<b>{row['at']}{role}</b>", *shown])


def why_lines(row: Row) -> list[str]:
    """The reason of a head's role, in lines that a hover can hold; cut short where it is long."""
    short = textwrap.shorten(str(row["why"]), 3 * LINE, placeholder="\u2026")
    return [safe(line) for line in textwrap.wrap(short, LINE)]


def _share(name: str, value: float, low: float, high: float) -> str:
    if not finite(value):
        return f"{name} not looked at" if name == "necessity" else ""
    interval = f" ({share_span(low, high)})" if finite(low) and finite(high) else ""
    return f"{name} {share(value)}{interval}"


def _values(row: Row, *columns: tuple[str, str]) -> list[str]:
    """The columns that hold a number, each after its name."""
    return [f"{name}{NBSP}{share(row[column])}" for column, name in columns if finite(row[column])]


def _packed(parts: list[str]) -> list[str]:
    """Parts on as few lines as a hover on a narrow panel can hold."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 2 <= LINE:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return lines
