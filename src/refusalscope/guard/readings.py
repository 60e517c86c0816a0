"""What a guard reads of prompts, and what it says of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Readings:
    """Scores of prompts before any threshold: arrays over prompts.

    profile [prompts, rows]: score of each row. likeness: cosine to the nearer class mean. refuse is NaN where
    the guard has no refusal axis.
    """

    harmful: Array
    refuse: Array
    profile: Array
    likeness: Array
    categories: dict[str, Array]

    def of(self, part: slice) -> Readings:
        """The readings of some of the prompts."""
        return Readings(
            self.harmful[part],
            self.refuse[part],
            self.profile[part],
            self.likeness[part],
            {name: values[part] for name, values in self.categories.items()},
        )

    def at(self, i: int) -> Readings:
        """The reading of one prompt."""
        return self.of(slice(i, i + 1))


@dataclass(frozen=True)
class Belief:
    """What the model believes of one prompt (method page, section 13).

    delta_harmful, delta_refuse: the two axes, NaN for a refusal axis that the guard lacks; quadrant: their
    signs in words. p_harmful with its interval: None without a calibrated probability. flagged: delta_harmful
    is above `threshold`; None without an operating point. abstain: the states are unlike anything the guard was
    calibrated on. per_layer: score of each row. per_category: score of each category that the guard knows;
    flagged_categories: those above their own threshold (the promise is for `flagged` alone).
    """

    id: str
    delta_harmful: float
    delta_refuse: float
    quadrant: str | None
    p_harmful: float | None
    p_low: float | None
    p_high: float | None
    flagged: bool | None
    threshold: float | None
    abstain: bool
    per_layer: tuple[float, ...]
    per_category: dict[str, float]
    flagged_categories: tuple[str, ...]
    t_inst_token: str


def worst_turn(turns: Readings) -> tuple[Readings, int]:
    """A conversation's reading from those of its user turns in order, and which turn it is.

    Harm is that of the most harmful turn; whether the model is about to refuse is read at the end.
    """
    worst = int(turns.harmful.argmax())
    return replace(turns.at(worst), refuse=turns.refuse[-1:]), worst


def joined(blocks: Sequence[Readings]) -> Readings:
    """Readings of several blocks of prompts as one."""

    def whole(part: str) -> Array:
        return np.concatenate([getattr(block, part) for block in blocks])

    categories = {
        name: np.concatenate([block.categories[name] for block in blocks])
        for name in blocks[0].categories
    }
    return Readings(
        whole("harmful"), whole("refuse"), whole("profile"), whole("likeness"), categories
    )
