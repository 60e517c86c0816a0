"""From all latents to the few that carry refusal."""

from __future__ import annotations

import math

import pandas as pd

from refusalscope.report.content import Figure, Panel
from refusalscope.report.features_pool import Pool
from refusalscope.report.features_writes import followed, spread
from refusalscope.report.figures import figure
from refusalscope.report.numbers import finite, whole
from refusalscope.report.palette import LIGHT


def path_figure(
    pool: Pool | None,
    searched: float,
    members: pd.DataFrame,
    dormant: pd.DataFrame | None,
    *,
    both: bool,
) -> Figure:
    """How many latents are left at each step, writes from the search on where the set has such.

    searched: candidates of the search, NaN where none states it; both: latents that recognise harm were
    searched too.
    """
    steps: list[tuple[str, float, str]] = []
    if pool is not None:
        steps.append(("in the dictionaries", pool.n, "control"))
        if pool.kept is not None:
            steps.append(("kept in the pool", pool.kept, "control"))
        if pool.recognising is not None:
            steps.append(("of them recognise harm", pool.recognising, "harmful"))
    many = spread(members)
    steps.append(("writes searched" if many else "searched", searched, "control"))
    steps.append(
        ("writes in the set" if many else "in the set", members["write"].nunique(), "direction")
    )
    if dormant is not None:
        asleep = int(followed(dormant, members)["dormant"].sum())
        steps.append(("of them dormant", asleep, "direction"))
        steps.append(("reserves found", int(dormant["reserve"].sum()), "role_chain"))
    steps = [step for step in steps if finite(step[1])]
    said = "; ".join(f"{name} {whole(n)}" for name, n, _ in steps)
    name = str(members["set_id"].iloc[0])
    return Figure(
        "figure-features-path",
        "path to the set",
        "From all latents to the set",
        [Panel(_bars(steps), f"Number of latents at each step: {said}.")],
        "Each bar is a number of latents, on a scale of powers of ten. The pool keeps those that lie along "
        "the refusal direction or add most to the margin; the search takes out ever fewer of them as long as "
        f"the refusal still flips.{_recognising(pool, both)}{_writes(members)} Dormant members are active on "
        "no prompt without an edit; reserves lie outside the set and wake when it is taken out.",
        f"Set {name}; exact counts, no interval.",
    )


def _recognising(pool: Pool | None, both: bool) -> str:
    if pool is None or not pool.recognising:
        return ""
    n = f" Of the {whole(pool.kept)} latents kept, {whole(pool.recognising)} recognise harm rather than carry "
    n += "refusal out (their decoder rows lie nearer to the direction of harm than to that of refusal)"
    if both:
        return f"{n}; they were searched too."
    return (
        f"{n}; they were not searched: without them a model is blind to harm rather than willing."
    )


def _writes(members: pd.DataFrame) -> str:
    if not spread(members):
        return ""
    return (
        " From the search on the bars count writes: a write is a latent with those of other layers that show "
        f"the same write again, taken out together. The set has {whole(len(members))} latents."
    )


def _bars(steps: list[tuple[str, float, str]]) -> object:
    fig = figure(66 + 34 * len(steps), "how many")
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
