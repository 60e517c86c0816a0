"""Interactions: which latents stand in for each other and which need each other."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.features_held import (
    NOTHING,
    REST,
    judged_pairs,
    one_a_pair,
    pair_names,
)
from refusalscope.report.figures import DIVERGING, colour_bar, figure
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    counted,
    decimal,
    finite,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, by_size, records

# Latents of a map, those of the largest interactions first; pairs of the table.
MAX_LATENTS, MAX_PAIRS = 24, 20
# Up to so many latents the kind is written in the cell.
FEW = 12
KINDS = {
    "OR": ("OR", "either alone is enough to refuse"),
    "redundant": ("R", "stand in for each other"),
    "AND": ("AND", "both are needed to refuse"),
    "synergistic": ("S", "need each other"),
    "additive": ("+", "add up"),
    "undecided": ("?", "too uncertain to say"),
}
MAPS = (
    ("effect", ("low", "high"), "Taken out alone and together"),
    ("moment", ("moment_low", "moment_high"), "Over random masks of many"),
)


def pairs_figure(pairs: pd.DataFrame, in_set: set[str]) -> Figure | None:
    """The map of the main set's pairs; a second panel for the moments they were chosen by. None without any."""
    every_row = pairs[pairs["effect"].notna() | pairs["moment"].notna()]
    if every_row.empty:
        return None
    known = one_a_pair(every_row, NOTHING)
    again = every_row[every_row["effect"].notna() & ~every_row.index.isin(known.index)]
    beside = {pair_names(row): row for row in records(again)}
    names = _latents(known, in_set)
    drawn = known[known["first"].isin(names) & known["second"].isin(names)]
    maps = [each for each in MAPS if drawn[each[0]].notna().any()]
    panels = [_panel(drawn, beside, names, in_set, *each) for each in maps]
    every = set(known["first"]) | set(known["second"])
    n = known["n"].max()
    return Figure(
        "figure-features-pairs",
        "interactions",
        "Which latents act together",
        panels,
        "Each cell is a pair of latents, a write by its strongest. Green: taking out both lowers the margin "
        "more than the sum of each alone, so they stand in for each other; purple: less, so they need each "
        f"other. Without colour: they add up.{_line(names, in_set)} The map over random masks looks at all "
        "pairs at once (a quarter of the interaction, on average over what else is out) and chooses which "
        f"are then taken out exactly.{_letters(known, len(names))}",
        f"{counted(int(known['effect'].notna().sum()), 'pair')} measured exactly, with nothing else taken out"
        + (
            f" ({whole(len(beside))} of them also with the rest of the set out, in the hover)"
            if beside
            else ""
        )
        + (f", n = {whole(n)} prompts" if finite(n) else "")
        + (
            f"; the {len(names)} of {len(every)} latents with the largest interactions are drawn"
            if len(names) < len(every)
            else ""
        )
        + f"; nats; intervals over prompts (over masks in the second map), 95{NBSP}%, in the hover.",
        keys=[
            Key("square answers", "stand in for each other"),
            Key("square refuses", "need each other"),
            Key("blank", "not measured"),
        ],
    )


def _line(names: list[str], in_set: set[str]) -> str:
    inside = sum(name in in_set for name in names)
    parted = 0 < inside < len(names)
    return " The line parts members of the set from latents outside it." if parted else ""


def _letters(pairs: pd.DataFrame, n: int) -> str:
    kinds = set(pairs.loc[pairs["effect"].notna(), "kind"])
    words = [f"{mark}, {meaning}" for kind, (mark, meaning) in KINDS.items() if kind in kinds]
    return f" Letters: {'; '.join(words)}." if words and n <= FEW else ""


def _latents(pairs: pd.DataFrame, in_set: set[str]) -> list[str]:
    """The latents of the largest interactions: members by layer, then the others by layer."""
    size = pairs["effect"].abs().fillna(pairs["moment"].abs())
    order: dict[str, tuple[int, int]] = {}
    for index in size.sort_values(ascending=False, kind="stable").index:
        row = pairs.loc[index]
        order.setdefault(row["first"], (row["layer_a"], row["latent_a"]))
        order.setdefault(row["second"], (row["layer_b"], row["latent_b"]))
    chosen = dict(list(order.items())[:MAX_LATENTS])
    return sorted(chosen, key=lambda name: (name not in in_set, chosen[name]))


def _panel(
    pairs: pd.DataFrame,
    beside: dict[tuple[str, str], Row],
    names: list[str],
    in_set: set[str],
    column: str,
    bounds: tuple[str, str],
    title: str,
) -> Panel:
    n = len(names)
    place = {name: i for i, name in enumerate(names)}
    grid = np.full((n, n), np.nan)
    hover = [[""] * n for _ in range(n)]
    mark = [[""] * n for _ in range(n)]
    exact = column == "effect"
    for row in records(pairs[pairs[column].notna()]):
        i, j = place[row["first"]], place[row["second"]]
        for a, b in ((i, j), (j, i)):
            grid[a, b] = row[column]
            hover[a][b] = _hover(
                row, beside.get(pair_names(row)) if exact else None, column, bounds
            )
            mark[a][b] = KINDS.get(row["kind"], ("", ""))[0] if exact and n <= FEW else ""
    sizes = np.abs(grid[np.isfinite(grid)])
    top = float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0
    fig = figure(150 + max(200, n * max(15, 30 - n)), "")
    fig.add_heatmap(
        x=list(range(n)),
        y=list(range(n)),
        z=grid.round(5),
        text=mark,
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
        xgap=1.5,
        ygap=1.5,
        colorscale=DIVERGING,
        zmin=-top,
        zmax=top,
        colorbar=colour_bar() | {"tickformat": ".2~f"},
    )
    inside = sum(name in in_set for name in names)
    ticks = {"tickvals": list(range(n)), "ticktext": names, "showgrid": False, "zeroline": False}
    small = {"color": LIGHT["ink"], "size": 9 if n > FEW else 11}
    angle = -90 if n > FEW else -60
    fig.update_xaxes(range=[-0.5, n - 0.5], tickangle=angle, tickfont=small, **ticks)
    fig.update_yaxes(range=[n - 0.5, -0.5], tickfont=small, **ticks)
    if 0 < inside < n:
        line = {"color": LIGHT["ink"], "width": 1.5}
        fig.add_hline(y=inside - 0.5, line=line)
        fig.add_vline(x=inside - 0.5, line=line)
    fig.update_layout(plot_bgcolor=LIGHT["line"])
    best = records(by_size(pairs[pairs[column].notna()], column))[0]
    alt = f"{title}: {n} latents, the largest interaction is that of {best['first']} and {best['second']}, "
    return Panel(fig, f"{alt}{decimal(best[column])} nats.", title)


def _hover(row: Row, again: Row | None, column: str, bounds: tuple[str, str]) -> str:
    low, high = (row[name] for name in bounds)
    lines = [f"<b>{row['first']} and {row['second']}</b>"]
    if column == "effect":
        meaning = KINDS.get(row["kind"], ("", "kind not stated"))[1]
        lines += [
            meaning,
            f"interaction {decimal(row['effect'])} nats ({span(low, high)})",
            f"alone {decimal(row['alone_a'])} and {decimal(row['alone_b'])},",
            f"together {decimal(row['both'])}",
        ]
        if again is not None:
            lines += [
                f"with {again['held']} out:" if again["held"] == REST else "with nothing else out:",
                f"{decimal(again['effect'])} nats ({span(again['low'], again['high'])})",
                KINDS.get(again["kind"], ("", "kind not stated"))[1],
            ]
    else:
        lines.append(f"moment {decimal(row['moment'], 3)} nats ({span(low, high, 3)})")
    return "<br>".join(lines)


def pairs_table(pairs: pd.DataFrame) -> Table:
    """The pairs of the largest interaction, with the four corners they were measured by, each context a row."""
    judged = by_size(judged_pairs(pairs), "effect")
    left = len(judged) - MAX_PAIRS
    counts = judged["kind"].replace("", "not stated").value_counts(sort=False)
    kinds = ", ".join(f"{whole(n)} {kind}" for kind, n in counts.items())
    measured: dict[tuple[str, str], list[Row]] = {
        pair_names(row): [row] for row in records(judged.head(MAX_PAIRS))
    }
    others = pairs[pairs["effect"].notna() & ~pairs.index.isin(judged.index)]
    for row in records(others):
        if pair_names(row) in measured:
            measured[pair_names(row)].append(row)
    return Table(
        "The pairs of the largest interaction",
        (
            *("first", "second", "besides", "kind", "interaction (nats)", "95 % interval"),
            *("first alone", "second alone", "both", "prompts"),
        ),
        [_pair(row) for rows in measured.values() for row in rows],
        "A write is named by its strongest latent. Changes of the margin from what it is with that out which "
        "stands under besides; interaction: what taking out both does beyond the sum of each alone. Of "
        f"{counted(len(judged), 'pair')}, each judged by its first row: {kinds or 'none measured exactly'}."
        + (f" {whole(left)} further pairs stand in features.interactions." if left > 0 else ""),
        id="table-features-pairs",
        name="pairs",
    )


def _pair(row: Row) -> tuple[str | Cell, ...]:
    meaning = KINDS.get(row["kind"], ("", ""))[1]
    kind = f"{row['kind']}: {meaning}" if meaning else str(row["kind"])
    return (
        Cell(row["first"], strong=True),
        Cell(row["second"], strong=True),
        str(row["held"]) or NOTHING,
        kind or ABSENT,
        Cell(decimal(row["effect"]), number=True),
        Cell(span(row["low"], row["high"]), number=True),
        *(Cell(decimal(row[name]), number=True) for name in ("alone_a", "alone_b", "both")),
        Cell(whole(row["n"]), number=True),
    )
