"""What calibration gives a guard: thresholds with their promise, a probability, a floor of likeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.guard.reading import Prompts
from refusalscope.prompts import final_character_class
from refusalscope.stats import clopper_pearson
from refusalscope.stats.calibration import Method, Probability, fit_probability
from refusalscope.stats.thresholds import Rule, Threshold, fpr_threshold

if TYPE_CHECKING:
    from refusalscope.guard.readings import Readings

Array = npt.NDArray[np.float64]
# Share of the calibration prompts that are less like either class than the floor of likeness.
UNLIKE = 0.005


@dataclass(frozen=True)
class Rate:
    """How many prompts of a source and label are flagged, with an exact interval."""

    label: str
    source: str
    n: int
    flagged: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on delta_harmful for a target false-positive rate, and what it does source by source.

    categories: a threshold for the score of each category, by the same rule on the same harmless prompts.
    """

    name: str
    alpha: float
    rule: Rule
    confidence: float
    promise: str
    tau: float
    n: int
    flagged: int
    fpr: float
    fpr_low: float
    fpr_high: float
    categories: dict[str, float] = field(default_factory=dict)
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """Operating points, the probability of harm, and the readings that drift is measured against.

    reference: one row a calibration prompt: label, delta_harmful, delta_refuse, per_layer, t_inst_class (see
    `drift`).
    """

    points: tuple[OperatingPoint, ...]
    probability: Probability | None
    likeness_floor: float
    reference: pd.DataFrame


@dataclass(frozen=True)
class Side:
    """Prompts of one label, their readings, and the token where harm was read in each."""

    prompts: Prompts
    readings: Readings
    tokens: list[str]


def calibrate(
    harmless: Side,
    harmful: Side | None,
    *,
    fpr: Sequence[float],
    rule: Rule,
    confidence: float,
    method: Method,
    seed: int,
) -> Calibration:
    """Thresholds from the scores of harmless prompts; the probability where harmful ones are given too.

    Raises InputError, with the number that would be needed, for too few harmless prompts.
    """
    if not fpr:
        raise InputError("no false-positive rate was asked for; give one, such as 0.05")
    negative = harmless.readings
    points = []
    for alpha in fpr:
        found = fpr_threshold(negative.harmful, alpha, rule=rule, confidence=confidence)
        taus = {
            name: fpr_threshold(values, alpha, rule=rule, confidence=confidence).tau
            for name, values in negative.categories.items()
        }
        rates = _rates("harmless", harmless.prompts, found.flags(negative.harmful))
        if harmful is not None:
            rates += _rates("harmful", harmful.prompts, found.flags(harmful.readings.harmful))
        points.append(_point(found, taus, tuple(rates)))
    sides = [harmless] if harmful is None else [harmless, harmful]
    probability = None
    if harmful is not None:
        scores = np.concatenate([side.readings.harmful for side in sides])
        labels = np.repeat([False, True], [len(side.prompts) for side in sides])
        probability = fit_probability(scores, labels, method, seed=seed)
    likeness = np.concatenate([side.readings.likeness for side in sides])
    frames = [
        reading_frame(label, side.readings, side.tokens)
        for label, side in zip(("harmless", "harmful"), sides, strict=False)
    ]
    return Calibration(
        tuple(points),
        probability,
        float(np.quantile(likeness, UNLIKE)),
        pd.concat(frames, ignore_index=True),
    )


def reading_frame(label: str, readings: Readings, tokens: Sequence[str]) -> pd.DataFrame:
    """One row a prompt: label, delta_harmful, delta_refuse, per_layer (scores of the rows), t_inst_class."""
    return pd.DataFrame(
        {
            "label": label,
            "delta_harmful": readings.harmful,
            "delta_refuse": readings.refuse,
            "per_layer": readings.profile.tolist(),
            "t_inst_class": [final_character_class(token) for token in tokens],
        }
    )


def _point(found: Threshold, taus: dict[str, float], rates: tuple[Rate, ...]) -> OperatingPoint:
    return OperatingPoint(
        f"fpr={found.alpha:g}",
        found.alpha,
        found.rule,
        found.confidence,
        found.promise,
        found.tau,
        found.n,
        found.flagged,
        found.fpr.value,
        found.fpr.low,
        found.fpr.high,
        taus,
        rates,
    )


def _rates(label: str, prompts: Prompts, flagged: npt.NDArray[np.bool_]) -> list[Rate]:
    names = np.array([prompt.source or "unnamed" for prompt in prompts])
    found = []
    for name in ("all", *sorted(set(names))):
        inside = flagged if name == "all" else flagged[names == name]
        rate = clopper_pearson(int(inside.sum()), len(inside))
        found.append(
            Rate(label, str(name), rate.n, int(inside.sum()), rate.value, rate.low, rate.high)
        )
    return found
