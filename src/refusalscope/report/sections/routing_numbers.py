"""The tables of the routing sections: the gap, the heads found, groups, coverage, stability."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import (
    decimal,
    p_value,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.routing_tables import MAPS, found, layers
from refusalscope.report.tables import Row, by_size, records

MAX_ROWS = 40
# Windows that hide nothing and that the table of groups still lists.
MAX_WINDOWS = 6


def gap_table(gaps: pd.DataFrame) -> Table:
    """What harmful prompts and their controls differ by, in each metric."""
    return Table(
        "The gap between harmful prompts and their controls",
        ("metric", "unit", "pairs", "harmful", "control", "gap", "95 % interval"),
        [
            (
                str(row["metric"]),
                str(row["unit"]),
                Cell(whole(row["n"]), number=True),
                Cell(decimal(row["harmful"]), number=True),
                Cell(decimal(row["control"]), number=True),
                Cell(decimal(row["gap"]), number=True),
                Cell(span(row["low"], row["high"]), number=True),
            )
            for row in records(gaps)
        ],
        "Shares on this page are of the gap in the first row, unless a metric is named.",
        id="table-routing-gap",
        name="the gap",
    )


def heads_tables(heads: pd.DataFrame) -> list[Table]:
    """The heads found with their role and its reason; folded, what else was measured of them.

    Without any the largest that did not pass.
    """
    mine = found(heads)
    caption = "The heads found"
    if mine is None or mine.empty:
        mine = by_size(heads, "necessity").head(5)
        caption = "No head passed; the largest necessities"
    left = len(mine) - MAX_ROWS
    rows = records(mine.head(MAX_ROWS))
    further = f" {whole(left)} further heads stand in routing.heads." if left > 0 else ""
    return [
        Table(
            caption,
            ("head", "role", "why", "necessity", "95 % interval", "sufficiency", "95 % interval"),
            [_head(row) for row in rows],
            f"Necessity and sufficiency are shares of the gap.{further}",
            id="table-routing-heads",
            name="heads found",
        ),
        Table(
            "Tests and further measures of the same heads",
            (
                *("head", "p necessity", "p sufficiency", "p both", "p no effect"),
                *("halves", "sd over donors", "in its window", "direct", "norms frozen"),
                *("DLA (logits)", "drives / driven by"),
            ),
            [_further(row) for row in rows],
            "p values of necessity and sufficiency are familywise over all heads tested; p of no effect is "
            "that of a test of equivalence. Halves: necessity in either half of the pairs. In its window: with "
            "the rest of its window of layers swapped too. Direct: with the scale of the final norm held. "
            "A dash: not looked at.",
            folded=True,
        ),
    ]


def _head(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(row["at"], strong=True),
        str(row["role"]) or "none given",
        str(row["why"]),
        Cell(share(row["necessity"]), number=True),
        Cell(share_span(row["necessity_low"], row["necessity_high"]), number=True),
        Cell(share(row["sufficiency"]), number=True),
        Cell(share_span(row["sufficiency_low"], row["sufficiency_high"]), number=True),
    )


def _further(row: Row) -> tuple[str | Cell, ...]:
    tests = ("p_familywise", "p_sufficiency", "p_both", "p_equivalent")
    shares = ("donor_sd", "conditional", "direct", "frozen")
    halves = (share(row["necessity_first"], unit=False), share(row["necessity_second"]))
    return (
        Cell(row["at"], strong=True),
        *(Cell(p_value(row[name]), number=True) for name in tests),
        Cell(" / ".join(halves), number=True),
        *(Cell(share(row[name]), number=True) for name in shares),
        Cell(decimal(row["dla"], 3), number=True),
        Cell(f"{whole(row['drives'])} / {whole(row['driven_by'])}", number=True),
    )


def groups_table(groups: pd.DataFrame, coalitions: pd.DataFrame | None) -> Table:
    """Groups swapped together beside their heads one by one; the largest windows only."""
    plain = (groups["kind"] == "window") & ~groups["hides"]
    dropped = by_size(groups[plain], "necessity").index[MAX_WINDOWS:]
    shown = groups.drop(index=dropped)
    note = (
        "Redundancy is found where the group carries clearly more than its heads one by one: they "
    )
    note += "stand in for each other, and no single swap shows them."
    if len(dropped):
        note += (
            f" {whole(len(dropped))} smaller windows, which hide nothing, stand in routing.groups."
        )
    if coalitions is not None:
        note += f" {_coalitions(records(coalitions)[0])}"
    return Table(
        "Groups of heads swapped together",
        (
            *("group", "which", "heads", "necessity", "95 % interval", "best single head"),
            *("sum of single heads", "finding"),
        ),
        [
            (
                str(row["kind"]),
                ", ".join(part for part in (str(row["name"]), layers(row)) if part),
                Cell(whole(row["n_heads"]), number=True),
                Cell(share(row["necessity"]), number=True),
                Cell(share_span(row["low"], row["high"]), number=True),
                Cell(share(row["largest"]), number=True),
                Cell(share(row["summed"]), number=True),
                _finding(row),
            )
            for row in records(shown)
        ],
        note,
        id="table-routing-groups",
        name="groups of heads",
    )


def _finding(row: Row) -> str | Cell:
    if row["hides"]:
        return Cell("redundancy found", strong=True)
    return "nothing hidden" if row["kind"] == "window" else ""


def _coalitions(row: Row) -> str:
    sizes = f"{whole(row['n_pro'])} heads for and {whole(row['n_counter'])} against refusal"
    return (
        f"Coalitions: contributions of {sizes} correlate {decimal(row['r_raw'])} over prompts, and "
        f"{decimal(row['r_held'])} once the shared scale of the final norm is taken out "
        f"(p {p_value(row['p'])}); only the second says that they oppose each other."
    )


def stability_table(stability: pd.DataFrame) -> Table:
    """How alike the set of top heads is over resamples, halves of the pairs and donors."""
    names = {"resamples": "bootstrap resamples", "halves": "halves of the pairs"}
    return Table(
        "Stability of the set of top heads",
        ("over", "top heads", "Jaccard (1: the same set)"),
        [
            (
                names.get(row["measure"], str(row["measure"])),
                Cell(whole(row["top"]), number=True),
                Cell(decimal(row["jaccard"]), number=True),
            )
            for row in records(stability)
        ],
        id="table-routing-stability",
        name="stability",
    )


def coverage_table(coverage: pd.DataFrame) -> Table:
    """Which heads each position map was screened for."""
    return Table(
        "What was looked at",
        ("tokens swapped", "heads", "of", "layers", "note"),
        [
            (
                MAPS.get(row["map"], str(row["map"])),
                Cell(whole(row["heads"]), number=True),
                Cell(whole(row["of"]), number=True),
                str(row["layers"]),
                str(row["note"]),
            )
            for row in records(coverage)
        ],
        id="table-routing-coverage",
        name="coverage",
    )


def metrics_table(metrics: pd.DataFrame, heads: pd.DataFrame | None) -> Table:
    """The heads found under each metric; without any, the largest."""
    route = found(heads)
    named = set() if route is None else set(route["at"])
    mine = metrics[metrics["at"].isin(named)]
    if mine.empty:
        mine = by_size(metrics, "necessity")
    return Table(
        "The heads found under each metric",
        ("head", "metric", "unit", "necessity", "sufficiency", "p familywise"),
        [
            (
                row["at"],
                str(row["metric"]),
                str(row["unit"]),
                Cell(share(row["necessity"]), number=True),
                Cell(share(row["sufficiency"]), number=True),
                Cell(p_value(row["p_familywise"]), number=True),
            )
            for row in records(
                mine.head(4 * MAX_ROWS).sort_values(["layer", "head"], kind="stable")
            )
        ],
        "Each share is of the gap in its own metric.",
        folded=True,
    )


def moved_table(moved: pd.DataFrame, drift: pd.DataFrame | None) -> Table:
    """Heads whose necessity differs between two checkpoints."""
    changed = moved[moved["moved"]]
    rows = by_size(changed, "change").head(MAX_ROWS)
    caption = f"Heads whose necessity moved: {whole(len(changed))} of {whole(len(moved))}"
    return Table(
        caption,
        ("head", "first", "second", "change", "95 % interval", "p familywise"),
        [
            (
                row["at"],
                Cell(share(row["first"]), number=True),
                Cell(share(row["second"]), number=True),
                Cell(share(row["change"]), number=True),
                Cell(share_span(row["low"], row["high"]), number=True),
                Cell(p_value(row["p_familywise"]), number=True),
            )
            for row in records(rows)
        ],
        _drift(records(drift)[0]) if drift is not None else "",
        id="table-routing-moved",
        name="heads that moved",
    )


def _drift(row: Row) -> str:
    return (
        f"First: {row['first'] or 'unnamed'}; second: {row['second'] or 'unnamed'}. The two rankings of heads "
        f"overlap {decimal(row['rbo'])} (rank-biased overlap, 1: the same); over resamples of the same "
        f"model {decimal(row['null_mean'])} on average and {decimal(row['null_low'])} at the low end "
        f"(p {p_value(row['p'])}, {whole(row['n'])} pairs)."
    )
