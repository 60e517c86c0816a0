"""What is flagged of each source and category, of streamed replies, and before and after own examples."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot, safe
from refusalscope.report.guard_tables import HARMFUL, HARMLESS, at_point, basis
from refusalscope.report.numbers import NBSP, decimal, finite, listed, percent, rate_span, whole
from refusalscope.report.tables import Row, RunLike, records

MAX_NAMES, MAX_ROWS = 24, 120
KINDS = {"source": "By source", "category": "By category"}
UNNAMED = "none"


def rates_figure(run: RunLike, rates: pd.DataFrame) -> Figure | None:
    """Share flagged by source and by category at the first operating point; None without any."""
    mine = at_point(rates, run)
    panels = [
        _panel(part, kind, title)
        for kind, title in KINDS.items()
        if not (part := _named(mine[mine["kind"] == kind], kind)).empty
    ]
    if not panels:
        return None
    n = mine[mine["kind"] == mine["kind"].iloc[0]].groupby("label")["n"].sum()
    counts = ", ".join(f"{whole(count)} {label}" for label, count in n.items())
    point = str(mine["point"].iloc[0])
    return Figure(
        "figure-guard-rates",
        "flagged by source and category",
        "What is flagged of each source and category",
        panels,
        "Harmful prompts (circles) should stand on the right, harmless ones (squares) on the left. A threshold "
        "keeps its rate over all harmless prompts together; single sources and categories can lie above it, "
        "and those without a good rate are where the guard fails its users.",
        f"n = {counts} at {safe(point)}; {basis(run)}; exact (Clopper-Pearson) intervals, 95{NBSP}%.",
        keys=[
            Key("dot harmful", "harmful, flagged"),
            Key("square harmless", "harmless, flagged wrongly"),
        ],
    )


def _named(part: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows to draw; none of the categories where only one is named."""
    names = set(part["name"])
    return part.iloc[:0] if kind == "category" and names <= {UNNAMED, ""} else part


def _panel(part: pd.DataFrame, kind: str, title: str) -> Panel:
    part = part.assign(name=part["name"].replace({UNNAMED: "(not named)", "": "(not named)"}))
    sizes = part.groupby("name")["n"].sum().sort_values(ascending=False, kind="stable")
    names = sorted(sizes.index[:MAX_NAMES], key=str)
    dots, said = [], []
    for row in records(part[part["name"].isin(names)]):
        harmful = row["label"] == HARMFUL
        low, high = (row["low"], row["high"]) if finite(row["low"]) else (row["rate"],) * 2
        text = f"{safe(row['name'])}, {safe(row['label'])}: {percent(row['rate'])}"
        said.append(text)
        dots.append(
            Dot(
                names.index(row["name"]) + (-0.14 if harmful else 0.14),
                row["rate"],
                low,
                high,
                "harmful" if harmful else "harmless",
                f"<b>{text}</b><br>{whole(row['flagged'])} of {whole(row['n'])} "
                f"({rate_span(row['low'], row['high'])})",
                symbol="circle" if harmful else "square",
            )
        )
    left_out = len(sizes) - len(names)
    heading = f"{title}, the {len(names)} largest of {len(sizes)}" if left_out > 0 else title
    fig = dot_plot(dots, [safe(name, 26) for name in names], "flagged", rate=True)
    return Panel(fig, f"Share flagged {title.lower()}: {'; '.join(said[:40])}.", heading)


def rates_table(rates: pd.DataFrame) -> Table:
    """Every rate of every operating point."""
    rows = [
        (
            str(row["point"]),
            str(row["kind"]),
            str(row["name"]),
            str(row["label"]),
            Cell(whole(row["flagged"]), number=True),
            Cell(whole(row["n"]), number=True),
            Cell(percent(row["rate"]), number=True, below=rate_span(row["low"], row["high"])),
        )
        for row in records(rates.head(MAX_ROWS))
    ]
    cut = f" The first {MAX_ROWS} of {whole(len(rates))} rows." if len(rates) > MAX_ROWS else ""
    return Table(
        "Flagged of each source and category, at every operating point",
        ("operating point", "by", "name", "label", "flagged", "n", "rate"),
        rows,
        f"Below the rates exact 95{NBSP}% intervals.{cut}",
        folded=True,
    )


def augmented_figure(table: pd.DataFrame) -> Figure | None:
    """Share flagged before and after own examples were added; None without any rate."""
    known = table.dropna(subset=["flagged", "low", "high"])
    if known.empty:
        return None
    dots, labels, said = [], [], []
    pairs = known.drop_duplicates(["label", "point"])[["label", "point"]]
    for label, point in pairs.itertuples(index=False):
        for when in ("before", "after"):
            mine = known[
                (known["label"] == label) & (known["point"] == point) & (known["when"] == when)
            ]
            for row in records(mine.head(1)):
                name = f"{safe(label)}, {when}" + (f", {safe(point)}" if len(pairs) > 2 else "")
                said.append(f"{name} {percent(row['flagged'])}")
                labels.append(name)
                dots.append(_before_after(len(labels) - 1, row, name))
    n = ", ".join(f"{whole(rows['n'].max())} {label}" for label, rows in known.groupby("label"))
    return Figure(
        "figure-guard-augmented",
        "before and after own examples",
        "Before and after own examples were added",
        [Panel(dot_plot(dots, labels, "flagged", rate=True), f"Share flagged: {'; '.join(said)}.")],
        "Own harmful examples were added to the harmful mean, and the thresholds were set again. Examples "
        "that help move the harmful rate to the right and leave the harmless one where it is.",
        f"n = {n}, the prompts of calibration, which also set the thresholds; 95{NBSP}% Wilson intervals.",
        keys=[
            Key("dot control", "before"),
            Key("dot harmful", "harmful, after"),
            Key("dot harmless", "harmless, after"),
        ],
    )


def _before_after(y: int, row: Row, name: str) -> Dot:
    role = "harmless" if row["label"] == HARMLESS else "harmful"
    hover = f"<b>{name}</b><br>{percent(row['flagged'])} ({rate_span(row['low'], row['high'])})"
    where = row["flagged"], row["low"], row["high"]
    return Dot(y, *where, role if row["when"] == "after" else "control", hover)


def monitor_table(table: pd.DataFrame) -> Table:
    """Streamed replies: how many benign ones of each length pass the threshold, and harmful ones caught."""
    taus = sorted({decimal(tau, 4) for tau in table["tau"].dropna()})
    return Table(
        "Replies watched as they stream",
        ("replies", "length in tokens", "n", "flagged", "rate"),
        [_watched(row) for row in records(table.head(MAX_ROWS))],
        f"Threshold {listed(taus) or 'not stated'} on the highest smoothed score of a whole reply, set on "
        "benign replies of the select split, of which the benign rows are; in opened ones an opening was put "
        f"into the model's mouth. Below the rates exact 95{NBSP}% intervals. A rate that rises with the length "
        "means that long replies are stopped wrongly, a high one of benign opened replies that the opening "
        "alone alarms.",
        id="table-guard-monitor",
        name="streamed replies",
    )


def _watched(row: Row) -> tuple[str | Cell, ...]:
    rate = row["flagged"] / row["n"] if row["n"] > 0 else None
    known = finite(row["shortest"]) and finite(row["longest"])
    return (
        str(row["kind"]),
        f"{whole(row['shortest'])} to {whole(row['longest'])}" if known else "all",
        Cell(whole(row["n"]), number=True),
        Cell(whole(row["flagged"]), number=True),
        Cell(percent(rate), number=True, below=rate_span(row["low"], row["high"])),
    )
