"""The trainings of a repair: their losses, and the rows that each was trained on."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import ABSENT, counted, decimal, listed, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import records

MAX_SELECTIONS, MAX_ROWS, MAX_IDS = 8, 60, 100


def losses_figure(losses: pd.DataFrame) -> Figure | None:
    """Training and validation loss over the steps, a panel a selection; None without a loss."""
    names = list(dict.fromkeys(losses["selection"]))[:MAX_SELECTIONS]
    columns = ["loss", "validation_loss"]
    top = losses[columns].max().max()
    panels, best = [], []
    for name in names:
        part = losses[losses["selection"] == name].sort_values("step")
        if part[columns].isna().all().all():
            continue
        fig = figure(260, "step", "loss (nats a token)")
        for column, role, width in (
            ("loss", "control", 1.4),
            ("validation_loss", "direction", 2.5),
        ):
            line = part[part[column].notna()]
            fig.add_scatter(
                x=line["step"].tolist(),
                y=line[column].round(5).tolist(),
                mode="lines" if column == "loss" else "lines+markers",
                line={"color": LIGHT[role], "width": width},
                marker={"color": LIGHT[role], "size": 6},
                hovertemplate=f"{column.replace('_', ' ')} %{{y:.3f}} at step %{{x}}<extra></extra>",
            )
        fig.update_yaxes(range=[-0.03 * top, 1.05 * top] if top > 0 else None, zeroline=False)
        held = part.dropna(subset=["validation_loss"])
        said = "no validation loss"
        if len(held):
            low = records(held.loc[[held["validation_loss"].idxmin()]])[0]
            said = f"validation loss {decimal(held['validation_loss'].iloc[0])} at first, "
            said += f"{decimal(low['validation_loss'])} at its best, step {whole(low['step'])}"
            best.append(f"{name} step {whole(low['step'])}")
        panels.append(
            Panel(fig, f"Losses of the training on {safe(name)}: {said}.", safe(name, 30))
        )
    if not panels:
        return None
    return Figure(
        "figure-repair-losses",
        "losses",
        "The training",
        panels,
        "Thin: the loss of each step on its own rows. Thick: the loss on rows held out from the training, of "
        "the pool and of harmless prompts. The weights with the lowest held-out loss are kept.",
        f"n = {counted(len(losses), 'step')} of {counted(len(panels), 'training')}; kept: "
        f"{listed(best) or 'not known'}; single runs, without an interval.",
        keys=[Key("thin control", "training"), Key("line direction", "validation")],
    )


def selection_table(chosen: pd.DataFrame) -> Table:
    """One row a selection: its size, its categories, and how many rows it shares with the first."""
    names = list(dict.fromkeys(chosen["selection"]))[:MAX_ROWS]
    first = set(chosen.loc[chosen["selection"] == names[0], "id"])
    rows = []
    for name in names:
        part = chosen[chosen["selection"] == name]
        sizes = part.loc[part["category"] != "", "category"].value_counts()
        largest = [f"{category} {whole(n)}" for category, n in sizes.head(5).items()]
        shared = Cell(ABSENT, number=True)
        if name != names[0]:
            shared = Cell(whole(part["id"].isin(first).sum()), number=True)
        rows.append(
            (
                str(name),
                Cell(whole(len(part)), number=True),
                Cell(whole(len(sizes)) if len(sizes) else ABSENT, number=True),
                ", ".join(largest) or ABSENT,
                Cell(span(part["priority"].min(), part["priority"].max()), number=True),
                shared,
            )
        )
    return Table(
        "The rows that were chosen",
        (
            *("selection", "rows", "categories", "largest categories", "priority"),
            "rows shared with the first",
        ),
        rows,
        "Priority: what the selection ranks by, from the least to the most of the rows chosen. Where "
        "selections share most of their rows, their repairs can hardly differ.",
        id="table-repair-selection",
        name="rows chosen",
    )


def rows_table(chosen: pd.DataFrame) -> Table:
    """The chosen rows by id, as ranked."""
    order = list(dict.fromkeys(chosen["selection"]))
    ranked = chosen.assign(place=chosen["selection"].map(order.index))
    ranked = ranked.sort_values(["place", "rank"], kind="stable")
    left = len(ranked) - MAX_IDS
    return Table(
        f"Chosen rows by id ({whole(min(len(ranked), MAX_IDS))} of {whole(len(ranked))})",
        ("id", "selection", "category", "rank", "priority"),
        [
            (
                Cell(str(row["id"])[:80], code=True),
                str(row["selection"]),
                str(row["category"]) or ABSENT,
                Cell(whole(row["rank"]), number=True),
                Cell(decimal(row["priority"], 3), number=True),
            )
            for row in records(ranked.head(MAX_IDS))
        ],
        f"{whole(left)} further rows stand in repair.selection." if left > 0 else "",
        folded=True,
    )
