"""The four clusters of harm and refusal, and how they score at both positions (arXiv 2507.11878, Eq. 2).

A prompt's behaviour is taken for each position: after the full template for t_post, and without the
template's tokens for t_inst, where more harmful prompts are accepted (section 3.2, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from refusalscope.judge.behaviour import reply
from refusalscope.model import Rendered
from refusalscope.studies.directions.belief import profile
from refusalscope.studies.directions.belief_work import ENDS, Work, believe, in_parts

CLUSTERS = ("harmful refused", "harmful accepted", "harmless refused", "harmless accepted")
# A cluster of fewer prompts is named, and nothing is concluded from it.
ENOUGH = 8
FULL, CUT = "full template", "template cut"
# The column of `belief.prompts` that names the cluster by what the model does.
COLUMNS = {FULL: "cluster", CUT: "cluster_cut"}
# Positions with the behaviours they are read by: the published one first.
BEHAVIOURS = {"t_inst": (CUT, FULL), "t_post": (FULL,)}


def without_template(prompts: Sequence[Rendered]) -> list[Rendered]:
    """The prompts cut right after the last instruction token; `text` stays that of the whole prompt."""
    found = []
    for prompt in prompts:
        last = prompt.instruction[1]
        anchors = {name: at for name, at in prompt.anchors.items() if at <= last}
        anchors["prompt_last"] = last
        ids = prompt.ids[: last + 1]
        found.append(replace(prompt, ids=ids, n_prompt=last + 1, anchors=anchors))
    return found


def cluster_of(label: str, refused: bool, verdict: str | None) -> str | None:
    """The cluster of a prompt; None for a reply that neither refused nor answered (garbled, no label)."""
    if refused:
        return f"{label} refused"
    return f"{label} accepted" if verdict == "compliance" else None


def prompt_frame(work: Work) -> pd.DataFrame:
    """The table `belief.prompts`: one row a report prompt.

    Behaviour and cluster after the full template and, as `_cut`, without it; both deltas and the quadrant.
    """
    subject, report = work.subject, work.report
    prompts = [subject.prompts[i] for i in report]
    said = reply(
        work.chat,
        prompts,
        without_template(subject.take(report)),
        subject.judge,
        work.settings.max_new_tokens,
        progress=work.progress.track("replies without the template's end"),
    )
    names = ["id", "label", "category", "refused", "verdict"]
    table = subject.table.iloc[report][names].reset_index(drop=True)
    table["refused_cut"] = said.refused
    table["verdict_cut"] = [judgement.label for judgement in said.judgements]
    for end in ("", "_cut"):
        columns = (table["label"], table[f"refused{end}"], table[f"verdict{end}"])
        table[f"cluster{end}"] = [cluster_of(*row) for row in zip(*columns, strict=True)]
    belief = believe(
        work.chat, subject.take(report), work.means, work.rows, "belief", work.progress
    )
    return pd.concat([table, belief], axis=1)


def cluster_table(work: Work, prompts: pd.DataFrame) -> pd.DataFrame:
    """The table `belief.clusters`: mean s_l of each cluster by position, behaviour and layer.

    prompts: the table `belief.prompts`. Layer 0 is the identity of the token; at t_post it is 0 for all.
    """
    means = work.means
    sides = ((means.harm, means.harmless), (means.refuse, means.accept))
    parts = [
        torch.stack([profile(states[:, k], *side) for k, side in enumerate(sides)], dim=1)
        for states in in_parts(
            work.chat, work.subject.take(work.report), ENDS, "scores by layer", work.progress
        )
    ]
    scores = torch.cat(parts).double().numpy()
    frames = []
    for k, (position, behaviours) in enumerate(BEHAVIOURS.items()):
        for behaviour in behaviours:
            for layer in range(scores.shape[2]):
                part = score_clusters(work, scores[:, k, layer], prompts, behaviour)
                frames.append(part.assign(position=position, layer=layer))
    table = pd.concat(frames, ignore_index=True)
    return table[["position", "behaviour", "layer", "cluster", "n", "mean", "low", "high"]]


def score_clusters(
    work: Work, scores: npt.NDArray[np.float64], prompts: pd.DataFrame, behaviour: str
) -> pd.DataFrame:
    """Mean of the scores [prompts] of each cluster by a behaviour; a NaN stands for a prompt without one."""
    rows: list[dict[str, Any]] = []
    for cluster in CLUSTERS:
        mine = (prompts[COLUMNS[behaviour]] == cluster).to_numpy() & np.isfinite(scores)
        found = work.interval(scores[mine], prompts["category"][mine].tolist())
        bounds = {"mean": found.value, "low": found.low, "high": found.high}
        rows.append({"behaviour": behaviour, "cluster": cluster, "n": found.n, **bounds})
    return pd.DataFrame(rows)


def thin_clusters(prompts: pd.DataFrame) -> list[str]:
    """A sentence for each behaviour by which a cluster has too few prompts to conclude from."""
    said = []
    for behaviour, column in COLUMNS.items():
        counts = prompts[column].value_counts()
        thin = [
            f"{counts.get(name, 0)} {name}" for name in CLUSTERS if counts.get(name, 0) < ENOUGH
        ]
        if thin:
            said.append(
                f"By what the model does after the prompt ({behaviour}), the report split has "
                f"{', '.join(thin)} prompts; nothing is concluded of fewer than {ENOUGH}, so give more "
                f"such prompts."
            )
    return said
