"""What the model takes a request for, against what it is about to do with it."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Block, Cell, Figure, Key, Note, Panel, Section, Table
from refusalscope.report.figures import figure, safe
from refusalscope.report.numbers import NBSP, decimal, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, RunLike, records, usable, why_missing
from refusalscope.report.worries import shortcut_failed

# Name -> (side of delta_harmful, side of delta_refuse, what it means).
QUADRANTS = {
    "coherent harmful": (1, 1, "taken for harmful, about to refuse"),
    "suppressed refusal": (1, -1, "taken for harmful, about to answer"),
    "over-refusal": (-1, 1, "taken for harmless, about to refuse"),
    "coherent harmless": (-1, -1, "taken for harmless, about to answer"),
}


def belief(run: RunLike) -> Section | None:
    """The belief plane and the shortcuts; None when the run has neither table."""
    table, shortcuts = usable(run, "directions.belief"), usable(run, "directions.shortcuts")
    if table is None and shortcuts is None:
        return None
    blocks: list[Block] = []
    if table is not None:
        known = table.dropna(subset=["delta_harmful", "delta_refuse"])
        blocks += [plane_figure(known)] if len(known) else []
        blocks.append(quadrants_table(table))
    else:
        blocks.append(Note(why_missing(run, "directions.belief"), "missing"))
    if shortcuts is not None:
        blocks.append(shortcuts_table(shortcuts, "table-shortcuts"))
    return Section(
        "belief",
        "Belief and refusal",
        blocks,
        "Two scores of every prompt: does the model take the request for harmful (delta_harmful, "
        "read where the request ends), and is it about to refuse (delta_refuse, read where the "
        "reply begins)? Where they disagree, behaviour and belief have come apart.",
    )


def plane_figure(table: pd.DataFrame) -> Figure:
    """Each prompt by its two scores, both there; filled where it was refused."""
    fig = figure(
        460,
        "delta_harmful (right: taken for harmful)",
        "delta_refuse (up: about to refuse)",
    )
    judged = "refused" in table
    for label in ("harmless", "harmful"):
        for refused in (False, True):
            mine = table[table["label"] == label]
            mine = mine[mine["refused"].astype(bool) == refused] if judged else mine
            if mine.empty or (not judged and refused):
                continue
            fig.add_scatter(
                x=mine["delta_harmful"].tolist(),
                y=mine["delta_refuse"].tolist(),
                mode="markers",
                marker=_marker(label, refused),
                text=[_hover(row, judged) for row in records(mine)],
                hovertemplate="%{text}<extra></extra>",
            )
    reach = [
        1.25 * max(float(table[name].abs().max()), 1e-6)
        for name in ("delta_harmful", "delta_refuse")
    ]
    fig.update_xaxes(range=[-reach[0], reach[0]], zerolinewidth=1.5, nticks=7)
    fig.update_yaxes(range=[-reach[1], reach[1]], zerolinewidth=1.5, nticks=7)
    for name, (x, y, _) in QUADRANTS.items():
        corner(fig, name, x, y)
    counts = table["quadrant"].value_counts()
    said = ", ".join(f"{name} {int(counts.get(name, 0))}" for name in QUADRANTS)
    sizes = table["label"].value_counts()
    keys = [Key("dot harmful", "harmful"), Key("square harmless", "harmless")]
    if judged:
        keys = [
            Key("dot harmful", "harmful, refused"),
            Key("dot open harmful", "harmful, not refused"),
            Key("square harmless", "harmless, refused"),
            Key("square open harmless", "harmless, not refused"),
        ]
    return Figure(
        "figure-belief",
        "belief plane",
        "What it takes a request for, and what it is about to do",
        [Panel(fig, f"Each prompt by its two belief scores. Prompts per quadrant: {said}.")],
        "Each mark is one prompt. To the right: the model takes it for harmful; upwards: it is about "
        "to refuse. Filled marks were refused in fact. Bottom right, suppressed refusal, is where "
        "jailbreaks and weakened models show; top left, over-refusal, is where false alarms show.",
        f"n = {whole(sizes.get('harmful', 0))} harmful, {whole(sizes.get('harmless', 0))} harmless; "
        "report split; the centroids were fitted on the fit split; single prompts, so no intervals.",
        keys=keys,
    )


def _marker(label: str, refused: bool) -> dict:
    colour = LIGHT[label]
    return {
        "symbol": "circle" if label == "harmful" else "square",
        "size": 8,
        "opacity": 0.85,
        "color": colour if refused else LIGHT["surface"],
        "line": {"color": colour, "width": 1.6},
    }


def corner(fig: go.Figure, name: str, x: int, y: int) -> None:
    """Write the name of a quadrant into its corner: right where x > 0, above where y > 0."""
    fig.add_annotation(
        x=1.0 if x > 0 else 0.0,
        y=1.0 if y > 0 else 0.0,
        xref="paper",
        yref="paper",
        xanchor="right" if x > 0 else "left",
        yanchor="top" if y > 0 else "bottom",
        # On two lines, so that the corners of a narrow screen do not meet.
        text=f"<b>{name.replace(' ', '<br>')}</b>",
        align="right" if x > 0 else "left",
        showarrow=False,
        font={"size": 12, "color": LIGHT["muted"]},
    )


def _hover(row: Row, judged: bool) -> str:
    lines = [f"<b>{safe(row.get('id', 'prompt'))}</b>"]
    if pd.notna(row.get("category")):
        lines.append(f"{safe(row['label'])}, {safe(row['category'])}")
    else:
        lines.append(safe(row["label"]))
    if judged:
        lines.append("refused" if row["refused"] else "not refused")
    lines.append(
        f"delta_harmful {decimal(row['delta_harmful'], 3)}, "
        f"delta_refuse {decimal(row['delta_refuse'], 3)}"
    )
    return "<br>".join(lines)


def quadrants_table(table: pd.DataFrame) -> Table:
    """Prompts in each quadrant by label."""
    rows = []
    for name, (_, _, meaning) in QUADRANTS.items():
        mine = table[table["quadrant"] == name]
        harmful, harmless = mine[mine["label"] == "harmful"], mine[mine["label"] == "harmless"]
        row: list[str | Cell] = [Cell(name, strong=True), meaning]
        for part in (harmful, harmless):
            row.append(Cell(whole(len(part)), number=True))
            if "refused" in table:
                row.append(Cell(whole(part["refused"].sum()), number=True))
        rows.append(row)
    columns = ["quadrant", "meaning", "harmful"]
    columns += ["of them refused"] if "refused" in table else []
    columns += ["harmless"]
    columns += ["of them refused"] if "refused" in table else []
    return Table("Prompts in each quadrant, and how many were refused in fact", columns, rows)


def shortcuts_table(shortcuts: pd.DataFrame, id: str) -> Table:
    """The score under test and the cues beside it; those that do as well stand out."""
    rows = [
        (
            str(row["name"]),
            Cell(decimal(row["auroc"], 3), number=True),
            Cell(span(row["auroc_low"], row["auroc_high"], 3), number=True),
            Cell(str(row["verdict"]), strong=shortcut_failed(row["verdict"])),
        )
        for row in records(shortcuts)
    ]
    return Table(
        "Shortcuts: how well cues that are not harm tell the labels apart",
        ("cue", "AUROC", f"95{NBSP}% interval", "verdict"),
        rows,
        "AUROC is the chance that a harmful prompt scores above a harmless one; "
        "0.5 is guessing. A cue that does as well as the belief score means that the "
        "score may have learnt the cue. Cues were fitted on the fit split and scored on the report split.",
        id=id,
        name="shortcuts",
    )
