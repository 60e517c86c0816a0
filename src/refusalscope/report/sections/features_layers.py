"""Where the set lies: its members and the reserves behind it over the layers of the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.features_pool import Pool
from refusalscope.report.features_writes import FOLLOWED, followed, spread
from refusalscope.report.figures import figure
from refusalscope.report.numbers import NBSP, counted, decimal, finite, percent, span
from refusalscope.report.palette import LIGHT
from refusalscope.report.sections.features_rows import ROWS_READ, rows_panels
from refusalscope.report.tables import Row, records

# What is known of a member, the best first: column, axis.
HEIGHTS = (
    ("effect", "margin it holds up (nats)"),
    ("cosine", "cosine with the refusal direction"),
    ("attribution", "attribution (nats)"),
)
POOLED = ("cosine", "cosine_recognition", "attribution", "contrastive")
# Steps by which latents of one layer stand apart, and how far apart the first and last may be.
APART, WIDEST = 0.11, 0.7
KINDS = {
    "active": ("direction", "circle"),
    "dormant": ("direction", "circle-open"),
    "reserve": ("role_chain", "diamond"),
}


def set_figure(
    members: pd.DataFrame, dormant: pd.DataFrame | None, pool: Pool | None, n_layers: int | None
) -> Figure | None:
    """Each member and reserve at its layers; None when nothing is known of any but its name.

    A set of single latents is one panel, height against layer. Where a write has several latents each write is
    a row: its layers in one panel, what it holds up in another.
    """
    frame = shown_writes(members, dormant, pool)
    column, axis = next(
        (each for each in HEIGHTS if frame.loc[frame["in_set"], each[0]].notna().any()), ("", "")
    )
    if not column:
        return None
    last = max(max(max(layers) for layers in frame["layers"]), (n_layers or 1) - 1)
    many = spread(members)
    drawn = frame[frame[column].notna()].reset_index(drop=True)
    # A row stands for a write whether or not its worth is known.
    rows = frame if many else drawn
    panels = rows_panels(frame, column, axis, last) if many else [_panel(drawn, column, axis, last)]
    n_dormant = int((rows["state"] == "dormant").sum())
    n_reserves = int((rows["state"] == "reserve").sum())
    silent = n_dormant or any(0.0 in active for active in rows["active"])
    missing = len(frame) - len(drawn)
    intervals = f"; lines are intervals over prompts, 95{NBSP}%." if column == "effect" else "."
    return Figure(
        "figure-features-set",
        "the set over layers",
        "Where the set lies",
        panels,
        (ROWS_READ if many else "") + _reads(column, many),
        f"{_members(members)}, {counted(n_reserves, 'reserve')}"
        + (f"; {counted(missing, 'value')} not known" if missing else "")
        + intervals,
        keys=[
            Key("dot direction", "member, active without an edit"),
            *(
                [Key("dot open direction", "dormant" if many else "dormant member")]
                if silent
                else []
            ),
            *([Key("diamond role-chain", "reserve outside the set")] if n_reserves else []),
        ],
    )


def _members(members: pd.DataFrame) -> str:
    layers = counted(members["layer"].nunique(), "layer")
    if spread(members):
        n = counted(members["write"].nunique(), "member")
        return f"{n}, each a write ({counted(len(members), 'latent')} over {layers})"
    return f"{counted(len(members), 'member')} in {layers}"


def _panel(drawn: pd.DataFrame, column: str, axis: str, last: int) -> Panel:
    fig = figure(360, "layer", axis)
    places = _apart(drawn)
    for state, (role, symbol) in KINDS.items():
        rows = drawn[drawn["state"] == state]
        if len(rows):
            _marks(fig, rows, places[rows.index], column, role, symbol)
    fig.add_hline(y=0, line={"color": LIGHT["axis"], "width": 1}, layer="below")
    step = 1 << (last // 12).bit_length() if last >= 12 else 1
    fig.update_xaxes(
        range=[-0.6, last + 0.6], tickvals=list(range(0, last + 1, step)), zeroline=False
    )
    best = records(drawn.loc[[drawn[column].idxmax()]])[0]
    states = drawn["state"].value_counts()
    alt = f"{counted(int(drawn['in_set'].sum()), 'member')} of the set over {last + 1} layers, "
    alt += f"{states.get('dormant', 0)} dormant, and {counted(int(states.get('reserve', 0)), 'reserve')}; "
    return Panel(fig, f"{alt}the highest is {best['at']} with {decimal(best[column])}.")


def _marks(
    fig: go.Figure, rows: pd.DataFrame, x: pd.Series, column: str, role: str, symbol: str
) -> None:
    bounds = {}
    if column == "effect":
        up = (rows["effect_high"] - rows["effect"]).clip(lower=0).fillna(0)
        down = (rows["effect"] - rows["effect_low"]).clip(lower=0).fillna(0)
        bounds["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": up.tolist(),
            "arrayminus": down.tolist(),
            "color": LIGHT[role],
            "thickness": 1.6,
            "width": 0,
        }
    fig.add_scatter(
        x=x.tolist(),
        y=rows[column].tolist(),
        mode="markers",
        marker={
            "symbol": symbol.removesuffix("-open"),
            "size": 10,
            "color": LIGHT["surface"] if symbol.endswith("-open") else LIGHT[role],
            "line": {"color": LIGHT[role], "width": 2},
        },
        text=[_hover(row) for row in records(rows)],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
        **bounds,
    )


def _reads(column: str, many: bool) -> str:
    first = "" if many else "Each mark is a latent at its layer (from input, left, to output). "
    height = "The other panel" if many else "Height"
    beside = "" if many else " Latents of one layer stand beside each other."
    if column == "effect":
        return (
            f"{first}{height}: for a member, the refusal margin that stays when all of the set but this member "
            "is taken out, beyond that with the whole set out; for a reserve, the margin that goes when it is "
            f"taken out as well. A member near 0 is hardly needed by itself.{beside}"
        )
    what = "how far its decoder row points along the refusal direction" * (column == "cosine")
    what = what or "what a gradient says that it adds to the refusal margin"
    return f"{first}{height}: {what}; what each member is worth was not measured.{beside}"


def shown_writes(
    members: pd.DataFrame, dormant: pd.DataFrame | None, pool: Pool | None
) -> pd.DataFrame:
    """The writes of the set in order, each by its strongest latent, and then the reserves.

    Columns: at, layer, latent, in_set, state (active, dormant, or reserve), names, layers and active (of every
    latent of the write, the strongest first; active without an edit, share of prompts), active_clean (of the
    most active), and the numbers of both tables, NaN where unknown.
    """
    known = {} if dormant is None else {row["at"]: row for row in records(dormant)}
    found = None if dormant is None else followed(dormant, members)
    rows = []
    for number, part in members.groupby("write", sort=False):
        own = None if found is None or number not in found.index else found.loc[number]
        state = "dormant" if own is not None and own["dormant"] else "active"
        numbers = {
            name: np.nan if own is None else own[name] for name in (*FOLLOWED, "active_clean")
        }
        rows.append(_shown(part, known, pool, True, state) | numbers)
    reserves = None if dormant is None else dormant[dormant["reserve"]]
    if reserves is not None:
        for at, part in reserves[~reserves["at"].isin(members["at"])].groupby("at", sort=False):
            numbers = {name: known[at][name] for name in (*FOLLOWED, "active_clean")}
            rows.append(_shown(part, known, pool, False, "reserve") | numbers)
    return pd.DataFrame(rows)


def _shown(
    part: pd.DataFrame, known: dict[str, Row], pool: Pool | None, in_set: bool, state: str
) -> dict[str, object]:
    first = records(part)[0]
    pooled = None if pool is None else pool.of.get(first["at"])
    names = list(part["at"])
    return {
        **{name: first[name] for name in ("at", "layer", "latent")},
        "in_set": in_set,
        "state": state,
        "names": names,
        "layers": list(part["layer"]),
        "active": [known[name]["active_clean"] if name in known else np.nan for name in names],
        **{name: np.nan if pooled is None else pooled[name] for name in POOLED},
    }


def _apart(frame: pd.DataFrame) -> pd.Series:
    """Where each latent stands: at its layer, latents of one layer side by side."""
    x = frame["layer"].astype(float)
    for _, rows in frame.groupby("layer"):
        step = min(APART, WIDEST / max(len(rows) - 1, 1))
        x[rows.index] += step * (np.arange(len(rows)) - (len(rows) - 1) / 2)
    return x


def _hover(row: Row) -> str:
    lines = [f"<b>{row['at']}</b>, {row['state']}"]
    if finite(row["effect"]):
        lines.append(
            f"holds up {decimal(row['effect'])} nats ({span(row['effect_low'], row['effect_high'])})"
        )
    if finite(row["active_clean"]):
        lines.append(f"active without an edit on {percent(row['active_clean'])}")
    if finite(row["cosine"]):
        lines.append(f"cosine {decimal(row['cosine'])}")
    if finite(row["contrastive"]):
        lines.append(f"contrastive attribution {decimal(row['contrastive'])} nats")
    return "<br>".join(lines)
