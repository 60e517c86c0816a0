"""Where prompts in wrappers lie on the plane of both beliefs (arXiv 2507.11878, section 5.1, figure 6).

Harmful and harmless prompts are put into every wrapper, so that a shift that the frame alone makes is seen
on both. "none" is the same prompts without a wrapper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.judge.behaviour import reply
from refusalscope.model import Rendered
from refusalscope.progress import Silent
from refusalscope.prompts import Prompt
from refusalscope.prompts.wrappers import Wrapper
from refusalscope.stats.interval import NAN
from refusalscope.studies.directions.belief import QUADRANTS
from refusalscope.studies.directions.belief_work import (
    AXES,
    Work,
    believe,
    change_columns,
    estimate,
    sample,
)

PLAIN = "none"
GROUPS = ("all", "refused", "accepted")


def wrapped_prompts(work: Work, wrappers: Sequence[Wrapper]) -> pd.DataFrame:
    """The table `belief.wrapped`: one row a prompt and wrapper, with behaviour and belief.

    A wrapped prompt that the model cannot take (too long) is left out, with a warning.
    """
    subject, settings = work.subject, work.settings
    chosen = [
        row
        for label in ("harmful", "harmless")
        for row in sample(subject.pick("report", label), settings.n_wrapped, settings.seed)
    ]
    track = work.progress.track("prompts in wrappers")
    frames = [_read(work, PLAIN, [subject.prompts[i] for i in chosen], subject.take(chosen))]
    for number, wrapper in enumerate(wrappers):
        kept, rendered = [], []
        for row in chosen:
            prompt = replace(subject.prompts[row], text=wrapper.wrap(subject.prompts[row].text))
            try:
                rendered += work.chat.render([prompt])
            except InputError:
                continue
            kept.append(prompt)
        if len(kept) < len(chosen):
            work.run.warn(
                f"{len(chosen) - len(kept)} of {len(chosen)} prompts are too long for the model in the wrapper "
                f"{wrapper.name!r} and were left out of it; give shorter prompts."
            )
        if kept:
            frames.append(_read(work, wrapper.name, kept, rendered))
        track(number + 1, len(wrappers))
    return pd.concat(frames, ignore_index=True)


def _read(
    work: Work, wrapper: str, prompts: Sequence[Prompt], rendered: Sequence[Rendered]
) -> pd.DataFrame:
    said = reply(
        work.chat,
        prompts,
        rendered,
        work.subject.judge,
        work.settings.max_new_tokens,
    )
    table = pd.DataFrame(
        {
            "wrapper": wrapper,
            "id": [prompt.id for prompt in prompts],
            "label": [prompt.label for prompt in prompts],
            "category": [prompt.category for prompt in prompts],
            "refused": said.refused,
            "verdict": [judgement.label for judgement in said.judgements],
        }
    )
    belief = believe(work.chat, rendered, work.means, work.rows, wrapper, Silent())
    return pd.concat([table, belief], axis=1)


def jailbreak_table(work: Work, wrapped: pd.DataFrame) -> pd.DataFrame:
    """The table `belief.jailbreaks`: one row a wrapper, label, group of prompts and quantity.

    group: all prompts, or those that the model refused or accepted in that wrapper. quantity: refused (all
    only), both deltas, and the share of each quadrant (Wilson). `change` is from the same prompts without a
    wrapper: of shares by Newcombe with McNemar's p, of deltas by bootstrap with p of the sign-flip test. It is
    for all prompts only, as the others are other prompts there.
    """
    plain = wrapped[wrapped["wrapper"] == PLAIN].set_index("id")
    not_compared = dict.fromkeys(("change", "change_low", "change_high", "p"), NAN)
    rows: list[dict[str, Any]] = []
    for (wrapper, label), part in wrapped.groupby(["wrapper", "label"], sort=False):
        before = plain.loc[part["id"]]
        for group in GROUPS:
            mine = _members(part, group)
            for quantity, values in _quantities(part).items():
                if quantity == "refused" and group != "all":
                    continue
                row = {"wrapper": wrapper, "label": label, "group": group, "quantity": quantity}
                found = estimate(work, values[mine], part["category"][mine].tolist())
                row |= {"n": found.n, "value": found.value, "low": found.low, "high": found.high}
                row |= not_compared
                if group == "all" and wrapper != PLAIN:
                    plainly = _quantities(before)[quantity]
                    row |= change_columns(work, values, plainly, part["category"].tolist())
                rows.append(row)
    return pd.DataFrame(rows)


def _members(part: pd.DataFrame, group: str) -> npt.NDArray[np.bool_]:
    masks = {
        "all": pd.Series(True, part.index),
        "refused": part["refused"].astype(bool),
        "accepted": ~part["refused"].astype(bool) & (part["verdict"] == "compliance"),
    }
    return masks[group].to_numpy(dtype=bool)


def _quantities(part: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Values of each prompt by the name of the quantity; a share's are true or false."""
    found = {"refused": part["refused"].to_numpy(dtype=bool)}
    deltas = {axis: part[axis].to_numpy(dtype=float) for axis in AXES}
    shares = {name: (part["quadrant"] == name).to_numpy() for name in QUADRANTS.values()}
    return found | deltas | shares
