"""What becomes of the score when a prompt's final mark is changed, or a wrapper is put around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.reading import that_fit
from refusalscope.progress import Progress
from refusalscope.prompts import LABELS, WRAPPERS, Prompt, PromptSet, punctuation_variants
from refusalscope.stats import auroc, clopper_pearson

Array = npt.NDArray[np.float64]
Side: TypeAlias = Sequence[Prompt] | PromptSet
Sides: TypeAlias = tuple[Side, Side]


@dataclass(frozen=True)
class Remarked:
    """Prompts of both labels that fit the context with every final mark, as they are, and their scores.

    harmful: [prompts]; texts, scores, and tokens where harm was read: variant -> [prompts], `as_is` first.
    left_out: label -> prompts that some mark makes longer than the context.
    """

    prompts: list[Prompt]
    harmful: npt.NDArray[np.bool_]
    texts: dict[str, list[str]]
    scores: dict[str, Array]
    tokens: dict[str, list[str]]
    left_out: dict[str, int]


def remark(guard: BeliefGuard, sides: Sides, progress: Progress | None) -> Remarked:
    """Score prompts as they are, without a final mark, with a full stop and with a question mark.

    Raises InputError where no prompt of a label fits the context.
    """
    kept: list[list[Prompt]] = []
    harmful: list[bool] = []
    left_out: dict[str, int] = {}
    for label, side in zip(LABELS, sides, strict=True):
        variants = [
            [replace(p, text=text) for text in punctuation_variants(p.text).values()] for p in side
        ]
        fitting = [each for each in variants if len(that_fit(guard.chat_, each)[0]) == len(each)]
        if not fitting:
            raise InputError(
                f"no {label} report prompt fits the model's context; give shorter ones"
            )
        kept += fitting
        harmful += [label == "harmful"] * len(fitting)
        left_out[label] = len(side) - len(fitting)
    names = list(punctuation_variants(""))
    # Most prompts are their own variant: each text is read once.
    single = list(dict.fromkeys(prompt for each in kept for prompt in each))
    place = {prompt: i for i, prompt in enumerate(single)}
    readings, tokens = guard.read(single, progress)
    rows = {name: [place[each[i]] for each in kept] for i, name in enumerate(names)}
    return Remarked(
        [each[0] for each in kept],
        np.array(harmful),
        {name: [single[i].text for i in at] for name, at in rows.items()},
        {name: readings.harmful[at] for name, at in rows.items()},
        {name: [tokens[i] for i in at] for name, at in rows.items()},
        left_out,
    )


def variants_table(found: Remarked, tau: float | None) -> pd.DataFrame:
    """One row a variant and label: n, mean score, share flagged at tau with its interval, spread.

    spread: how far apart the scores of one prompt lie over its variants (largest minus smallest), mean over
    prompts. left_out: prompts that are too long with another mark. Rates are NaN without a threshold.
    """
    scores = np.stack(list(found.scores.values()))
    spread = np.ptp(scores, axis=0)
    return pd.DataFrame(
        [
            {
                "variant": name,
                "label": label,
                "n": int(side.sum()),
                "mean": float(values[side].mean()),
                **flagged(values[side], tau),
                "spread": float(spread[side].mean()),
                "left_out": found.left_out[label],
            }
            for name, values in found.scores.items()
            for label, side in zip(LABELS, (found.harmful, ~found.harmful), strict=True)
        ]
    )


def wrappers_table(
    guard: BeliefGuard, sides: Sides, tau: float | None, seed: int, progress: Progress | None
) -> pd.DataFrame:
    """One row a wrapper and label: n, AUROC of wrapped against wrapped, share flagged at tau, left_out.

    worst: the wrapper with the lowest AUROC. A wrapper that leaves no prompt of a label has no AUROC.
    """
    rows = []
    for name, wrapper in WRAPPERS.items():
        scores = []
        for side in sides:
            wrapped = [replace(prompt, text=wrapper.wrap(prompt.text)) for prompt in side]
            fitting = that_fit(guard.chat_, wrapped)[0]
            scores.append(guard.read(fitting, progress)[0].harmful if fitting else np.empty(0))
        labels = np.repeat([True, False], [len(each) for each in scores])
        area = auroc(labels, np.concatenate(scores), seed=seed)
        for label, values, side in zip(LABELS, scores, sides, strict=True):
            rows.append(
                {
                    "wrapper": name,
                    "label": label,
                    "n": len(values),
                    "auroc": area.value,
                    "auroc_low": area.low,
                    "auroc_high": area.high,
                    **flagged(values, tau),
                    "left_out": len(side) - len(values),
                }
            )
    frame = pd.DataFrame(rows)
    return frame.assign(worst=frame["auroc"] == frame["auroc"].min())


def flagged(scores: Array, tau: float | None) -> Mapping[str, float]:
    """Share above a threshold with an exact interval: rate, low, high; NaN without a threshold."""
    if tau is None:
        return {"rate": np.nan, "low": np.nan, "high": np.nan}
    rate = clopper_pearson(int((scores > tau).sum()), len(scores))
    return {"rate": rate.value, "low": rate.low, "high": rate.high}
