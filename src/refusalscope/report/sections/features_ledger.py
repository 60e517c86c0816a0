"""The ledger of compensation: what the edit takes off the refusal axis, and what is written back."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.figures import figure
from refusalscope.report.numbers import NBSP, decimal, finite, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.features_values import ledger_table
from refusalscope.report.tables import Row, records

# Part of the ledger: colour, mark of the style sheet, meaning.
PARTS = {
    "removed": ("answers_2", "square answers", "taken off by the edit"),
    "heads": ("role_gate", "square role-gate", "written back by attention heads"),
    "mlp": ("role_amplifier", "square role-amplifier", "written back by MLPs"),
}
OF_WHICH = {
    "latents": ("role_chain", "square role-chain", "by latents that woke"),
    "rest": ("role_other", "square role-other", "by what no woken latent shows"),
}
TOKENS = {"last": "the last token", "instruction_last": "the last token of the request"}
# More tokens than this are in the numbers only.
MAX_TOKENS = 2


def ledger_figure(
    ledger: pd.DataFrame, compensation: pd.DataFrame | None, n: float
) -> Figure | None:
    """Amounts by layer, a panel a token, and of which woken latents; None when no amount is known.

    ledger, compensation: rows of the main set; n: prompts, NaN where unknown.
    """
    known = ledger[ledger["amount"].notna() & ledger["part"].isin([*PARTS, *OF_WHICH])]
    if known.empty:
        return None
    tokens = list(dict.fromkeys(known["position"]))
    tokens = sorted(tokens, key=lambda name: name != "last")
    panels = []
    for token in tokens[:MAX_TOKENS]:
        rows = known[known["position"] == token]
        if rows["part"].isin(PARTS).any():
            panels.append(_panel(rows, PARTS, _title("Removed and written back", token)))
    rows = known[known["position"] == tokens[0]]
    if rows["part"].isin(OF_WHICH).any():
        drawn = _panel(rows, OF_WHICH, _title("What is written back, by latents", tokens[0]))
        own = compensation
        if own is not None and tokens[0] in set(own["position"]):
            own = own[own["position"] == tokens[0]]
        if own is not None and own["amount"].notna().any():
            _put_back(drawn, own[own["amount"].notna()])
        panels.append(drawn)
    if not panels:
        return None
    shown = {**PARTS, **OF_WHICH}
    parts = set(known["part"])
    left = len(tokens) - MAX_TOKENS
    return Figure(
        "figure-features-ledger",
        "ledger",
        "What is taken away, and what is written back",
        panels,
        "Layer by layer, how far the edit pushes the stream along the refusal direction (below 0: less "
        "refusal) and how much heads and MLPs then write beyond what they write without an edit. Bars above 0 "
        "undo the edit. The dotted line is what heads and MLPs write back under random directions of the same "
        "norm. The last panel parts the same writing anew: what woken latents show of it, and the rest; its "
        "line is how much further the axis falls by that layer when nothing may wake.",
        f"{f'n = {whole(n)} prompts; ' if finite(n) else ''}means in units of the residual stream, the random "
        f"directions as their mean; intervals over prompts, 95{NBSP}%, in the hover and in the numbers."
        + (f" {whole(left)} further tokens stand in the numbers." if left > 0 else ""),
        keys=[
            *(Key(mark, meaning) for name, (_, mark, meaning) in shown.items() if name in parts),
            Key("dots", "written back under random directions"),
            *(
                [Key("bar", "what waking puts back by that layer")]
                if compensation is not None and parts & set(OF_WHICH)
                else []
            ),
        ],
        numbers=ledger_table(known),
    )


def _title(what: str, token: str) -> str:
    return f"{what}, at {TOKENS.get(token, token)}" if token else what


def _panel(rows: pd.DataFrame, parts: dict[str, tuple[str, str, str]], title: str) -> Panel:
    fig = figure(340, "layer", "change on the axis")
    for name, (role, _, _) in parts.items():
        mine = rows[rows["part"] == name].sort_values("layer")
        if mine.empty:
            continue
        fig.add_bar(
            x=mine["layer"].tolist(),
            y=mine["amount"].tolist(),
            marker={"color": LIGHT[role], "line": {"width": 0}},
            text=[_hover(row) for row in records(mine)],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    null = rows[rows["part"].isin([name for name in parts if name != "removed"])]
    by_layer = null[null["null"].notna()].groupby("layer")["null"].sum()
    if len(by_layer):
        fig.add_scatter(
            x=by_layer.index.tolist(),
            y=by_layer.tolist(),
            mode="lines+markers",
            line={"color": LIGHT["ink"], "width": 1.4, "dash": "dot"},
            marker={"color": LIGHT["ink"], "size": 3},
            hovertemplate="random directions %{y:.3f}<extra></extra>",
        )
    fig.update_layout(barmode="relative", bargap=0.25)
    last = int(rows["layer"].max())
    step = 1 << (last // 12).bit_length() if last >= 12 else 1
    fig.update_xaxes(
        tickvals=list(range(0, last + 1, step)), range=[-0.7, last + 0.7], zeroline=False
    )
    totals = rows.groupby("part")["amount"].sum()
    said = ", ".join(f"{name} {decimal(totals[name])}" for name in parts if name in totals)
    return Panel(fig, f"{title}: summed over layers {said}.", title)


def _put_back(panel: Panel, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("layer")
    panel.figure.add_scatter(
        x=rows["layer"].tolist(),
        y=rows["amount"].tolist(),
        mode="lines+markers",
        line={"color": LIGHT["ink"], "width": 2},
        marker={"color": LIGHT["ink"], "size": 5},
        text=[
            f"put back by layer {row['layer']}: {decimal(row['amount'], 3)} "
            f"({span(row['low'], row['high'], 3)})"
            for row in records(rows)
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(row: Row) -> str:
    name = {**PARTS, **OF_WHICH}[row["part"]][2]
    return "<br>".join(
        [
            f"<b>layer {row['layer']}</b>, {name}",
            f"{decimal(row['amount'], 3)} ({span(row['low'], row['high'], 3)})",
            f"random directions {decimal(row['null'], 3)}",
        ]
    )
