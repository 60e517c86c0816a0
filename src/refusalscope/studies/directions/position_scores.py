"""Scores of the four clusters token by token, and what the template's end does to refusal.

Figure 14 and table 1 of arXiv 2507.11878: only t_inst should have accepted harmful prompts above 0 and
refused harmless ones below. Centroids are fitted at each position by the fit split. After t_inst prompts are
sorted by what the model does after the full template; up to it by what it does without, as published, and by
the former too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import ChatModel, Rendered, Site
from refusalscope.stats import mcnemar, paired_rates, wilson
from refusalscope.studies.directions.belief import profile
from refusalscope.studies.directions.belief_work import AT_ONCE, Work, band_rows
from refusalscope.studies.directions.clusters import BEHAVIOURS, ENOUGH, score_clusters
from refusalscope.studies.directions.extract import rows as all_rows

BEFORE = 2
BAND = (9 / 32, 20 / 32)


def position_table(
    work: Work, prompts: pd.DataFrame, fit: Sequence[int], harmful: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    """The table `belief.positions`; prompts: `belief.prompts`; fit, harmful: rows of the centroids.

    `position` 0 is t_inst, positive ones are the tokens after it, and `separates` says whether accepted
    harmful prompts lie above 0 and refused harmless ones below: "yes" by their intervals, "by mean", "no", or
    "unknown" where one of the two clusters is too small.
    """
    subject, chat = work.subject, work.chat
    n_after = min(prompt.n_template for prompt in subject.rendered)
    positions = list(range(-BEFORE, n_after + 1))
    band = band_rows(work.settings.band, BAND, chat.anatomy.n_layers)
    means = _means(chat, subject.take(fit), harmful, positions, band)
    scores = np.concatenate(
        [
            torch.where(there, profile(states, *means).mean(-1), torch.nan).double().numpy()
            for states, there in _states(chat, subject.take(work.report), positions, band)
        ]
    )
    frames = []
    for k, position in enumerate(positions):
        for behaviour in BEHAVIOURS["t_inst" if position <= 0 else "t_post"]:
            part = score_clusters(work, scores[:, k], prompts, behaviour)
            token = _token(chat, subject.rendered[0], position)
            frames.append(part.assign(position=position, token=token, separates=_separates(part)))
    table = pd.concat(frames, ignore_index=True).assign(first_layer=band[0], last_layer=band[-1])
    order = ["position", "token", "behaviour", "cluster", "n", "mean", "low", "high", "separates"]
    return table[[*order, "first_layer", "last_layer"]]


def _means(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    harmful: npt.NDArray[np.bool_],
    positions: Sequence[int],
    band: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Centroids at each position, harmful refused and harmless accepted: [positions, band, d_model] each."""
    found = []
    for side in (harmful, ~harmful):
        mine = [prompt for prompt, is_mine in zip(prompts, side, strict=True) if is_mine]
        total, n = torch.zeros(()), torch.zeros(())
        for states, there in _states(chat, mine, positions, band):
            total = total + torch.where(there[..., None, None], states.double(), 0.0).sum(0)
            n = n + there.sum(0)[:, None, None]
        found.append((total / n).float())
    return found[0], found[1]


def _states(
    chat: ChatModel, prompts: Sequence[Rendered], positions: Sequence[int], band: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """States [part, positions, band, d_model] and which of them exist [part, positions], in parts.

    A short instruction has no token two before its last.
    """
    sites: list[Site] = [all_rows(chat.anatomy.n_layers)[row] for row in band]
    names = [f"t_inst{position:+d}" for position in positions]
    for start in range(0, len(prompts), AT_ONCE):
        part, there = [], []
        for prompt in prompts[start : start + AT_ONCE]:
            first, last = prompt.instruction
            at = {name: last + p for name, p in zip(names, positions, strict=True)}
            there.append([index >= first for index in at.values()])
            at = {name: max(index, first) for name, index in at.items()}
            part.append(replace(prompt, anchors={**prompt.anchors, **at}))
        states = chat.capture(part, sites, names)
        yield torch.stack([states[site] for site in sites], dim=2), torch.tensor(there)


def _separates(part: pd.DataFrame) -> str:
    """Whether accepted harmful prompts score above 0 and refused harmless ones below, at one position."""
    at = part.set_index("cluster")
    accepted, refused = at.loc["harmful accepted"], at.loc["harmless refused"]
    if min(accepted["n"], refused["n"]) < ENOUGH:
        return "unknown"
    if accepted["low"] > 0 > refused["high"]:
        return "yes"
    return "by mean" if accepted["mean"] > 0 > refused["mean"] else "no"


def _token(chat: ChatModel, prompt: Rendered, position: int) -> str | None:
    """The template's token at a position; None within the instruction, where every prompt has its own."""
    if position <= 0:
        return None
    return chat.tokenizer.decode([prompt.ids[prompt.instruction[1] + position]])


def cut_table(prompts: pd.DataFrame) -> pd.DataFrame:
    """The table `belief.template_cut`: refusal with and without the template's end, by label (table 1).

    `change` is the share with the template less that without, paired (Newcombe), and p McNemar's.
    `garbled_cut`: share of the replies without the template that neither refused nor answered.
    """
    rows: list[dict[str, Any]] = []
    for label, part in prompts.groupby("label", sort=True):
        full, cut = (part[name].to_numpy(dtype=bool) for name in ("refused", "refused_cut"))
        change = paired_rates(full, cut)
        row: dict[str, Any] = {"label": label, "n": len(part)}
        for name, refused in (("full", full), ("cut", cut)):
            rate = wilson(int(refused.sum()), len(refused))
            row |= {f"refused_{name}": int(refused.sum()), f"rate_{name}": rate.value}
            row |= {f"low_{name}": rate.low, f"high_{name}": rate.high}
        row |= {"change": change.value, "change_low": change.low, "change_high": change.high}
        row |= {"p": mcnemar(full, cut).p, "garbled_cut": float(part["cluster_cut"].isna().mean())}
        rows.append(row)
    return pd.DataFrame(rows)
