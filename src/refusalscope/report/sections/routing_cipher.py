"""Behind a cipher: what the heads found still carry, and whether their output rescues refusal."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Figure, Key, Panel, Table
from refusalscope.report.figures import Dot, dot_plot
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    listed,
    p_value,
    share,
    share_span,
    span,
    whole,
)
from refusalscope.report.routing_tables import found
from refusalscope.report.tables import Row, by_size, records

MAX_HEADS = 14
MAX_WRAPPERS = 4
MAX_ROWS = 40
# arm -> (colour, symbol, name)
ARMS = {
    "plain": ("harmful", "circle", "plain"),
    "cipher": ("harmful", "circle-open", "through the cipher"),
    "benign": ("harmless", "circle", "control, plain"),
    "benign_cipher": ("harmless", "circle-open", "control, through the cipher"),
}


def cipher_figure(cipher: pd.DataFrame, heads: pd.DataFrame | None) -> Figure | None:
    """Necessity by arm of the heads found; None when no head has one."""
    known = cipher[cipher["necessity"].notna() & cipher["arm"].isin(list(ARMS))]
    if known.empty:
        return None
    wrappers = list(dict.fromkeys(known["wrapper"]))
    panels = [
        _panel(name, known[known["wrapper"] == name], heads) for name in wrappers[:MAX_WRAPPERS]
    ]
    arms = [arm for arm in ARMS if (known["arm"] == arm).any()]
    left = len(wrappers) - len(panels)
    return Figure(
        "figure-routing-cipher",
        "cipher arms",
        "What the heads found carry once the request is wrapped",
        panels,
        "Each row is a head: its necessity on plain prompts and on the same prompts through the "
        "cipher, as shares of the plain gap. A head whose hollow dot falls to 0 no longer hears the "
        "request; one that keeps its place works behind the cipher too. The control arms "
        "show what the wrapping does by itself.",
        f"{listed(wrappers[:MAX_WRAPPERS]) or 'one wrapper'}; at most {MAX_HEADS} heads each; "
        f"intervals over pairs, 95{NBSP}%."
        + (f" {left} further wrappers stand in routing.cipher." if left > 0 else ""),
        keys=[
            Key(f"dot {'open ' if symbol.endswith('open') else ''}{role}", name)
            for role, symbol, name in (ARMS[arm] for arm in arms)
        ],
        numbers=_numbers(cipher, heads),
    )


def _panel(wrapper: str, rows: pd.DataFrame, heads: pd.DataFrame | None) -> Panel:
    names = _chosen(rows, heads)
    arms = [arm for arm in ARMS if (rows["arm"] == arm).any()]
    dots, said = [], []
    for y, name in enumerate(names):
        mine = rows[rows["at"] == name]
        for row in records(mine):
            role, symbol, words = ARMS[row["arm"]]
            place = arms.index(row["arm"])
            aside = 0.0 if len(arms) == 1 else 0.44 * (place / (len(arms) - 1) - 0.5)
            value = row["necessity"]
            low, high = (
                row[c] if finite(row[c]) else value for c in ("necessity_low", "necessity_high")
            )
            hover = f"<b>{name}</b>, {words}<br>necessity {share(value)}"
            hover += f" ({share_span(low, high)})<br>DLA {decimal(row['dla'], 3)}"
            hover += f" ({span(row['dla_low'], row['dla_high'], 3)})"
            dots.append(Dot(y + aside, value, low, high, role, hover, symbol, 8))
            said.append(f"{name} {words} {share(value)}")
    fig = dot_plot(dots, names, "necessity, share of the plain gap", rate=False)
    fig.update_xaxes(tickformat=".0%", nticks=5, tickangle=0)
    return Panel(fig, f"{wrapper or 'Cipher'}: {', '.join(said)}.", wrapper or "Cipher")


def _chosen(rows: pd.DataFrame, heads: pd.DataFrame | None) -> list[str]:
    """The heads found that have a row here; without any, those of the largest plain necessity."""
    route = found(heads)
    here = set(rows["at"])
    named = [] if route is None else [name for name in route["at"] if name in here]
    if not named:
        plain = rows[rows["arm"] == "plain"]
        source = plain if len(plain) else rows
        named = list(dict.fromkeys(by_size(source, "necessity")["at"]))
    kept = set(named[:MAX_HEADS])
    places = rows[rows["at"].isin(kept)].sort_values(["layer", "head"], kind="stable")
    return list(dict.fromkeys(places["at"]))


def _numbers(cipher: pd.DataFrame, heads: pd.DataFrame | None) -> Table:
    route = found(heads)
    named = set() if route is None else set(route["at"])
    rows = cipher[cipher["at"].isin(named)] if cipher["at"].isin(named).any() else cipher
    shown = records(rows.head(4 * MAX_ROWS))
    return Table(
        "Necessity and direct attribution by arm",
        (
            "wrapper",
            "arm",
            "head",
            "necessity",
            "95 % interval",
            "DLA (logits)",
            "interval of the DLA",
        ),
        [
            (
                str(row["wrapper"]),
                ARMS[row["arm"]][2] if row["arm"] in ARMS else str(row["arm"]),
                row["at"],
                Cell(share(row["necessity"]), number=True),
                Cell(share_span(row["necessity_low"], row["necessity_high"]), number=True),
                Cell(decimal(row["dla"], 3), number=True),
                Cell(span(row["dla_low"], row["dla_high"], 3), number=True),
            )
            for row in shown
        ],
        folded=True,
    )


def collapse_table(collapse: pd.DataFrame) -> Table:
    """Which heads lose their necessity behind a wrapper: signed means, paired change."""
    return Table(
        "Change of necessity from plain to cipher",
        (
            *("wrapper", "head", "plain", "95 % interval", "cipher", "95 % interval"),
            *("change", "95 % interval", "finding"),
        ),
        [
            (
                str(row["wrapper"]),
                row["at"],
                *_nats(row, "plain"),
                *_nats(row, "cipher"),
                *_estimate(row, "change"),
                Cell("collapsed", strong=True) if row["collapsed"] else "not shown to collapse",
            )
            for row in records(_largest(collapse, "change"))
        ],
        _left(collapse, "routing.collapse")
        + "Necessities in nats. Means are signed: averages of absolute values hide heads that "
        "change direction.",
    )


def contrast_table(contrast: pd.DataFrame) -> Table:
    """Heads by cipher contrast: three arms as published, four arms with the wrapped control."""
    kept = contrast[contrast["kept"]]
    listed_rows = kept if len(kept) else contrast
    return Table(
        "Heads by cipher contrast",
        (
            *("wrapper", "head", "three arms", "four arms", "95 % interval", "p familywise"),
            *("plain", "side"),
        ),
        [
            (
                str(row["wrapper"]),
                row["at"],
                Cell(decimal(row["kappa3"], 3), number=True),
                Cell(decimal(row["kappa4"], 3), number=True),
                Cell(span(row["kappa4_low"], row["kappa4_high"], 3), number=True),
                Cell(p_value(row["p_familywise"]), number=True),
                Cell(decimal(row["plain"], 3), number=True),
                str(row["side"]),
            )
            for row in records(_largest(listed_rows, "kappa4"))
        ],
        _left(listed_rows, "routing.contrast")
        + f"{whole(len(kept))} of {whole(len(contrast))} heads kept. The fourth arm, the control through the "
        "cipher, takes away what the wrapping does to any prompt.",
        folded=True,
    )


def _nats(row: Row, name: str) -> tuple[Cell, Cell]:
    return (
        Cell(decimal(row[name]), number=True),
        Cell(span(row[f"{name}_low"], row[f"{name}_high"]), number=True),
    )


def _estimate(row: Row, name: str) -> tuple[Cell, Cell]:
    interval = share_span(row[f"{name}_low"], row[f"{name}_high"])
    return Cell(share(row[name]), number=True), Cell(interval, number=True)


def _largest(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    return by_size(frame, column).head(MAX_ROWS)


def _left(frame: pd.DataFrame, name: str) -> str:
    left = len(frame) - MAX_ROWS
    return f"{whole(left)} further rows stand in {name}. " if left > 0 else ""
