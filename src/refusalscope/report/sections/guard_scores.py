"""How good the scores are: the measures, the probability held against outcomes, and each row of the model."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import figure
from refusalscope.report.guard_tables import HARMFUL, basis, known_labels, metric
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.palette import LIGHT
from refusalscope.report.rules import MIN_N
from refusalscope.report.tables import Row, RunLike, records
from refusalscope.stats import wilson

BINS = 10
NAMES = {
    "auroc": ("AUROC", "a harmful prompt scores above a harmless one so often; 0.5 is guessing"),
    "auprc": ("AUPRC", "average precision; the share of harmful prompts is guessing"),
    "brier": ("Brier score", "mean squared error of the probability; 0 is best"),
    "ece": (
        "calibration error",
        "mean distance of probability and outcome; small samples overstate it",
    ),
}


def metrics_table(table: pd.DataFrame) -> Table:
    """Every measure with its interval and n."""
    return Table(
        "Measures of the score",
        ("measure", "value", f"95{NBSP}% interval", "n"),
        [_metric(row) for row in records(table)],
        "Recalls at a fixed rate of false alarms set their threshold on these prompts themselves, so they say "
        "what the score allows, not what a threshold set beforehand does; that stands with the operating "
        "points.",
        id="table-guard-metrics",
        name="measures of the score",
    )


def _metric(row: Row) -> tuple[str | Cell, ...]:
    name, meaning = NAMES.get(str(row["name"]), (str(row["name"]), ""))
    rate = row["name"].startswith(("recall", "tpr"))
    value = percent(row["value"]) if rate else decimal(row["value"], 3)
    bounds = rate_span(row["low"], row["high"]) if rate else span(row["low"], row["high"], 3)
    return (
        Cell(name, below=meaning),
        Cell(value, number=True),
        Cell(bounds, number=True),
        Cell(whole(row["n"]), number=True),
    )


def reliability_figure(run: RunLike, scores: pd.DataFrame) -> Figure | None:
    """Share of harmful prompts among those given about the same probability; None without labels or p."""
    known = known_labels(scores).dropna(subset=["p_harmful"])
    known = known[known["p_harmful"].between(0, 1)]
    if len(known) < MIN_N or known["label"].nunique() < 2:
        return None
    harmful = known["label"] == HARMFUL
    place = (known["p_harmful"] * BINS).astype(int).clip(upper=BINS - 1)
    rows = []
    for i in range(BINS):
        mine = place == i
        if not mine.any():
            continue
        share = wilson(int(harmful[mine].sum()), int(mine.sum()))
        rows.append((float(known.loc[mine, "p_harmful"].mean()), share))
    fig = figure(340, "probability of harm, mean of a bin", "harmful in fact")
    fig.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": LIGHT["control"], "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    fig.add_scatter(
        x=[p for p, _ in rows],
        y=[share.value for _, share in rows],
        mode="markers",
        marker={"color": LIGHT["harmful"], "size": 9},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [share.high - share.value for _, share in rows],
            "arrayminus": [share.value - share.low for _, share in rows],
            "color": LIGHT["harmful"],
            "thickness": 2,
            "width": 0,
        },
        text=[
            f"probability {decimal(p)}: {percent(share.value)} harmful<br>"
            f"({rate_span(share.low, share.high)}), n = {whole(share.n)}"
            for p, share in rows
        ],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )
    ends = {"range": [-0.02, 1.02], "tickformat": ".0%", "zeroline": False, "nticks": 6}
    fig.update_xaxes(ends)
    fig.update_yaxes(ends)
    errors = [
        f"{NAMES[name][0]} {decimal(row['value'], 3)}"
        for name in ("brier", "ece")
        if (row := metric(run, name)) is not None
    ]
    said = "; ".join(f"{percent(p)}: {percent(share.value)}" for p, share in rows)
    return Figure(
        "figure-guard-reliability",
        "probability and outcome",
        "Whether the probability of harm can be taken at its word",
        [Panel(fig, f"Share of harmful prompts by the probability they were given: {said}.")],
        "Prompts are put together by the probability that the guard gave them. On the dotted line as many of "
        "them are harmful as it said; below it the guard is too sure of harm, above it not sure enough. A "
        "probability belongs to the mix of prompts it was calibrated on: where harm is rarer, it is too high.",
        f"n = {whole(len(known))} prompts, {whole(harmful.sum())} harmful; {basis(run)}; {BINS} bins of "
        f"equal width, 95{NBSP}% Wilson intervals{''.join(f'; {each}' for each in errors)}.",
        keys=[Key("dot harmful", "a bin with its interval"), Key("dots control", "as it said")],
    )


def layers_figure(run: RunLike, layers: pd.DataFrame) -> Figure:
    """AUROC of the score of each row alone."""
    rows = layers.sort_values("row", kind="stable")
    fig = figure(300, "row (state after so many layers)", "AUROC")
    band = rows.dropna(subset=["low", "high"])
    if len(band):
        fig.add_scatter(
            x=[*band["row"], *band["row"][::-1]],
            y=[*band["high"].round(4), *band["low"].round(4)[::-1]],
            fill="toself",
            fillcolor=LIGHT["direction_fill"],
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
    fig.add_scatter(
        x=rows["row"].tolist(),
        y=rows["auroc"].round(4).tolist(),
        mode="lines+markers",
        line={"color": LIGHT["direction"], "width": 2},
        marker={"color": LIGHT["direction"], "size": 7 if len(rows) <= 40 else 4},
        text=[
            f"row {whole(row['row'])}: AUROC {decimal(row['auroc'], 3)}"
            + (f"<br>({span(row['low'], row['high'], 3)})" if finite(row["low"]) else "")
            for row in records(rows)
        ],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )
    fig.add_hline(y=0.5, line={"color": LIGHT["control"], "width": 1.5, "dash": "dot"})
    low = min(0.45, float(rows[["auroc", "low"]].min().min()) - 0.03)
    fig.update_yaxes(range=[low, 1.02], zeroline=False, nticks=6)
    fig.update_xaxes(zeroline=False, tickformat="d", **({"dtick": 1} if len(rows) <= 16 else {}))
    (best,), (worst,) = (
        records(rows.nlargest(1, "auroc")),
        records(rows.nsmallest(1, "auroc")),
    )
    said = (
        f"Highest at row {whole(best['row'])} ({decimal(best['auroc'], 3)}), lowest at row "
        f"{whole(worst['row'])} ({decimal(worst['auroc'], 3)})."
    )
    widest = band["high"].sub(band["low"]).max() if len(band) else float("nan")
    bands = (
        f"bands are 95{NBSP}% bootstrap intervals over prompts; the widest spans {decimal(widest, 3)}"
        if finite(widest)
        else "no interval was given"
    )
    return Figure(
        "figure-guard-layers",
        "row by row",
        "Where in the model the belief can be read",
        [Panel(fig, f"AUROC of the score of each of {len(rows)} rows. {said}")],
        f"The guard's score is the mean over these rows. {said} A row at 0.5 adds nothing but noise.",
        f"{basis(run)}, n = as in the measures of the score; {bands}.",
        keys=[Key("area direction", "AUROC with its interval"), Key("dots control", "guessing")],
    )
