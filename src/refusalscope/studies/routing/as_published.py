"""The published procedure in a run folder: the tables of preset `frank2026`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.studies.heads import head_name
from refusalscope.studies.routing.frames import heads_of
from refusalscope.studies.routing.problem import REPLY_TOKENS
from refusalscope.studies.routing.published import published
from refusalscope.studies.routing.work import Work
from refusalscope.studies.subject import spending


def run_published(work: Work) -> None:
    """Write `routing.candidates`, `.ablation`, `.cascade`, `.gap`, `.heads` as the paper gives them.

    `routing.heads` has the interchanged candidates only, without test or role: the procedure has neither.
    Changes of the cascade are shares here, not percent, and p is the gate's rank in the knockout null.
    """
    if work.run.has_table("routing.heads"):
        return
    settings = work.settings
    controls = [pair.control for pair in work.problem.pairs]
    with spending(work.run, work.chat):
        replies = work.chat.generate(controls, max_new_tokens=REPLY_TOKENS)
        if not all(replies):
            work.run.warn(
                "A control's reply is empty, so the published procedure, which scores the controls' "
                "replies, was left out."
            )
            return
        found = published(
            work.chat,
            work.problem.partners,
            work.margin,
            [tuple(reply) for reply in replies],
            n_candidates=settings.candidates,
            n_interchange=settings.interchanged,
            alpha=settings.project_out,
            seed=settings.seed,
            progress=work.progress.track("the published procedure"),
        )
    swapped = found.interchange
    work.run.write_table("routing.candidates", found.candidates)
    work.run.write_table("routing.ablation", found.ablation)
    work.run.write_table("routing.cascade", _cascade(found.cascade, found.rank_p))
    gap = float(swapped["gap"].iloc[0])
    work.run.write_table(
        "routing.gap",
        pd.DataFrame([{"metric": "nll", "unit": "nats", "n": len(controls), "gap": gap}]).assign(
            harmful=np.nan, control=np.nan, low=np.nan, high=np.nan
        ),
    )
    n = len(work.units)
    work.run.write_table(
        "routing.coverage",
        pd.DataFrame(
            [
                {
                    "map": settings.positions,
                    "heads": len(swapped),
                    "of": n,
                    "layers": ", ".join(map(str, sorted(set(swapped["layer"])))),
                    "note": "candidates picked by direct attribution; no other head was looked at",
                }
            ]
        ),
    )
    work.run.warn(
        "This is the procedure as published: activations are copied from the left, so that with a shorter "
        "donor the last token is never swapped; run --preset recommended beside it before you conclude."
    )
    work.run.write_table("routing.heads", _heads(work, swapped, found.candidates))


def _heads(work: Work, swapped: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    dla = dict(zip(heads_of(candidates), candidates["dla"], strict=True))
    return pd.DataFrame(
        {
            "layer": swapped["layer"],
            "head": swapped["head"],
            "necessity": swapped["necessity_share"] / 100,
            "necessity_low": np.nan,
            "necessity_high": np.nan,
            "sufficiency": swapped["sufficiency_share"] / 100,
            "sufficiency_low": np.nan,
            "sufficiency_high": np.nan,
            "p_familywise": np.nan,
            "dla": [dla.get(head, np.nan) for head in heads_of(swapped)],
            "passes": False,
            "map": work.settings.positions,
            "role": "",
        }
    )


def _cascade(changes: pd.DataFrame, p: float) -> pd.DataFrame:
    frame = changes.assign(change=changes["change"] / 100, low=np.nan, high=np.nan, p=p)
    gates = frame["gate"]
    named = [gate if isinstance(gate, str) else head_name(gate) for gate in gates]
    layers = [int(name[1:].split(".H")[0]) for name in named]
    heads = [int(name.split(".H")[1]) for name in named]
    return frame.assign(
        gate=named,
        gate_layer=layers,
        gate_head=heads,
        knockout="zero",
        deeper=frame["layer"] > pd.Series(layers, index=frame.index),
    )
