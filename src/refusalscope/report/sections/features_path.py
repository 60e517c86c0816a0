"""From all latents to the few that carry refusal, and where those lie in the model."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from refusalscope.report.content import Figure, Key, Panel
from refusalscope.report.features_pool import Pool
from refusalscope.report.figures import figure
from refusalscope.report.numbers import NBSP, counted, decimal, finite, percent, span, whole
from refusalscope.report.palette import LIGHT
from refusalscope.report.tables import Row, records

# What a member's place upwards can say, the best first: column, axis, whether it has an interval.
HEIGHTS = (
    ("effect", "margin it holds up (nats)"),
    ("cosine", "cosine with the refusal direction"),
    ("attribution", "attribution (nats)"),
)
# Steps by which latents of one layer stand apart, and how far apart the first and last may be.
APART, WIDEST = 0.11, 0.7


def path_figure(
    pool: Pool | None,
    searched: float,
    members: pd.DataFrame,
    dormant: pd.DataFrame | None,
) -> Figure:
    """How many latents are left at each step; `searched` is NaN where no search states it."""
    steps: list[tuple[str, float, str]] = []
    if pool is not None:
        steps.append(("in the dictionaries", pool.n, "control"))
        if pool.kept is not None:
            steps.append(("kept in the pool", pool.kept, "control"))
    steps += [("searched", searched, "control"), ("in the set", len(members), "direction")]
    if dormant is not None:
        mine = dormant[dormant["in_set"]]
        steps.append(("of them dormant", int(mine["dormant"].sum()), "direction"))
        steps.append(("reserves found", int(dormant["reserve"].sum()), "role_chain"))
    steps = [step for step in steps if finite(step[1])]
    said = "; ".join(f"{name} {whole(n)}" for name, n, _ in steps)
    name = str(members["set_id"].iloc[0])
    return Figure(
        "figure-features-path",
        "path to the set",
        "From all latents to the set",
        [Panel(_bars(steps), f"Number of latents at each step: {said}.")],
        "Each bar is a number of latents, on a scale of powers of ten. The pool "
        "keeps those that lie along the refusal direction; the search takes out ever fewer of them as long as "
        "the refusal still flips. Dormant members are active on no prompt without an edit; reserves lie "
        "outside the set and wake when it is taken out.",
        f"Set {name}; exact counts, no interval.",
    )


def _bars(steps: list[tuple[str, float, str]]) -> object:
    fig = figure(66 + 34 * len(steps), "latents")
    top = max([math.log10(max(n, 1)) for _, n, _ in steps], default=1.0)
    for y, (name, n, role) in enumerate(steps):
        # Thick lines: a count of none is a label without a bar.
        if n > 0:
            fig.add_scatter(
                x=[0.5, n],
                y=[y, y],
                mode="lines",
                line={"color": LIGHT[role], "width": 16},
                text=[f"<b>{whole(n)}</b> {name}"] * 2,
                hovertemplate="%{text}<extra></extra>",
            )
        fig.add_annotation(
            x=math.log10(max(n, 0.5)),
            y=y,
            text=f"<b>{whole(n)}</b>",
            showarrow=False,
            xanchor="left",
            xshift=5,
            font={"size": 12, "color": LIGHT["ink"]},
        )
    last = math.ceil(top)
    step = 1 if last < 4 else 2
    fig.update_xaxes(
        type="log",
        range=[math.log10(0.5), max(top, 1.0) * 1.22 + 0.1],
        tickvals=[10**i for i in range(0, last + 1, step)],
        ticktext=[whole(10**i) for i in range(0, last + 1, step)],
        tickangle=0,
        zeroline=False,
    )
    fig.update_yaxes(
        tickvals=list(range(len(steps))),
        ticktext=[name for name, _, _ in steps],
        tickfont={"color": LIGHT["ink"], "size": 12},
        range=[len(steps) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
        ticklabelstandoff=6,
    )
    return fig


def set_figure(
    members: pd.DataFrame, dormant: pd.DataFrame | None, pool: Pool | None, n_layers: int | None
) -> Figure | None:
    """Each member and reserve at its layer; None when nothing is known of any but its name."""
    frame = shown_latents(members, dormant, pool)
    column, axis = next(
        (each for each in HEIGHTS if frame.loc[frame["in_set"], each[0]].notna().any()), ("", "")
    )
    if not column:
        return None
    drawn = frame[frame[column].notna()]
    last = max(int(frame["layer"].max()), (n_layers or 1) - 1)
    fig = figure(360, "layer", axis)
    kinds = {
        "active": ("direction", "circle"),
        "dormant": ("direction", "circle-open"),
        "reserve": ("role_chain", "diamond"),
    }
    places = _apart(drawn)
    for state, (role, symbol) in kinds.items():
        rows = drawn[drawn["state"] == state]
        if rows.empty:
            continue
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
        is_open = symbol.endswith("-open")
        fig.add_scatter(
            x=places[rows.index].tolist(),
            y=rows[column].tolist(),
            mode="markers",
            marker={
                "symbol": symbol.removesuffix("-open"),
                "size": 10,
                "color": LIGHT["surface"] if is_open else LIGHT[role],
                "line": {"color": LIGHT[role], "width": 2},
            },
            text=[_hover(row) for row in records(rows)],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
            **bounds,
        )
    fig.add_hline(y=0, line={"color": LIGHT["axis"], "width": 1}, layer="below")
    step = 1 << (last // 12).bit_length() if last >= 12 else 1
    fig.update_xaxes(
        range=[-0.6, last + 0.6], tickvals=list(range(0, last + 1, step)), zeroline=False
    )
    n_dormant = int((frame["state"] == "dormant").sum())
    n_reserves = int((frame["state"] == "reserve").sum())
    best = records(drawn.loc[[drawn[column].idxmax()]])[0]
    n_set = int(frame["in_set"].sum())
    alt = f"{counted(n_set, 'member')} of the set over {last + 1} layers, {n_dormant} dormant, and "
    alt += f"{counted(n_reserves, 'reserve')}; the highest is {best['at']} with {decimal(best[column])}."
    missing = int(frame[column].isna().sum())
    return Figure(
        "figure-features-set",
        "the set over layers",
        "Where the set lies",
        [Panel(fig, alt)],
        _reads(column),
        f"{counted(n_set, 'member')} in {counted(members['layer'].nunique(), 'layer')}, "
        f"{counted(n_reserves, 'reserve')}"
        + (f"; {counted(missing, 'latent')} without a value not drawn" if missing else "")
        + (f"; lines are intervals over prompts, 95{NBSP}%." if column == "effect" else "."),
        keys=[
            Key("dot direction", "member, active without an edit"),
            *([Key("dot open direction", "dormant member")] if n_dormant else []),
            *([Key("diamond role-chain", "reserve outside the set")] if n_reserves else []),
        ],
    )


def _reads(column: str) -> str:
    if column == "effect":
        return (
            "Each mark is a latent at its layer (from input, left, to output). Height: for a member, the "
            "refusal margin that stays when all of the set but this latent is taken out, beyond that with the "
            "whole set out; for a reserve, the margin that goes when it is taken out as well. A member near 0 "
            "is hardly needed by itself. Latents of one layer stand beside each other."
        )
    what = "how far its decoder row points along the refusal direction" * (column == "cosine")
    what = what or "what a gradient says that it adds to the refusal margin"
    return (
        f"Each mark is a latent at its layer (from input, left, to output). Height: {what}; what each member "
        "is worth was not measured. Latents of one layer stand beside each other."
    )


def shown_latents(
    members: pd.DataFrame, dormant: pd.DataFrame | None, pool: Pool | None
) -> pd.DataFrame:
    """The members in order and then the reserves, with what dormant and pool tables say of them.

    Columns: at, layer, latent, in_set, state (active, dormant, reserve, or not looked at), and the numbers of
    both tables, NaN where unknown.
    """
    columns = ("active_clean", "woken", "null", "effect", "effect_low", "effect_high")
    known = {} if dormant is None else {row["at"]: row for row in records(dormant)}
    reserves = [] if dormant is None else records(dormant[dormant["reserve"]])
    in_set = set(members["at"])
    rows = []
    for row in [*records(members), *(row for row in reserves if row["at"] not in in_set)]:
        own, pooled = known.get(row["at"]), pool.of.get(row["at"]) if pool is not None else None
        state = "active"
        if row["at"] not in in_set:
            state = "reserve"
        elif own is not None and own["dormant"]:
            state = "dormant"
        rows.append(
            {
                **{name: row[name] for name in ("at", "layer", "latent")},
                "in_set": row["at"] in in_set,
                "state": state,
                **{name: np.nan if own is None else own[name] for name in columns},
                **{
                    name: np.nan if pooled is None else pooled[name]
                    for name in ("cosine", "attribution")
                },
            }
        )
    return pd.DataFrame(rows)


def _apart(frame: pd.DataFrame) -> pd.Series:
    """Where each latent stands: at its layer, latents of one layer side by side."""
    x = frame["layer"].astype(float)
    for _, rows in frame.groupby("layer"):
        step = min(APART, WIDEST / max(len(rows) - 1, 1))
        x[rows.index] += step * (np.arange(len(rows)) - (len(rows) - 1) / 2)
    return x


def _hover(row: Row) -> str:
    lines = [f"<b>{row['at']}</b>, {'reserve' if row['state'] == 'reserve' else row['state']}"]
    if finite(row["effect"]):
        lines.append(
            f"holds up {decimal(row['effect'])} nats ({span(row['effect_low'], row['effect_high'])})"
        )
    if finite(row["active_clean"]):
        lines.append(f"active without an edit on {percent(row['active_clean'])}")
    if finite(row["cosine"]):
        lines.append(f"cosine {decimal(row['cosine'])}")
    return "<br>".join(lines)
