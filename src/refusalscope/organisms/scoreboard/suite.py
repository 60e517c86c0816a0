"""The suites, routing organisms O1 to O15, hydras, cliffs and two beliefs, and the bars of their methods.

Source: ../shared/methods/planted_models.md sections 3 to 5 and 7, sae_features.md section 15, refusal_cliff.md
section 13, harmfulness_and_refusal.md section 14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOISES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.10)


@dataclass(frozen=True)
class Case:
    """One organism of a suite: its number on the page, or its name, and how it is built.

    variant: empty for a family of set functions without a model. noise: of the weights, or of the attribution
    in such a family. barred: whether the bars of precision and recall hold for it. swept: whether cases differ
    in their noise.
    """

    organism: str
    variant: str
    options: Mapping[str, int] = field(default_factory=dict)
    noise: float = 0.01
    barred: bool = True
    swept: bool = False

    @property
    def name(self) -> str:
        """The number with what sets this case apart, such as `O3 parts=4`."""
        words = [f"{name}={value}" for name, value in self.options.items()]
        if self.swept:
            words.append(f"noise={self.noise:.2f}")
        return " ".join([self.organism, *words])


def _threshold(organism: str, noise: float, start: int) -> Case:
    return Case(organism, "", {"start": start}, noise=noise, barred=False, swept=True)


ROUTING: tuple[Case, ...] = (
    Case("O1", "base"),
    *(Case("O2", "backup", {"redundancy": n}) for n in (2, 3)),
    *(Case("O3", "split", {"parts": n}) for n in (1, 2, 4, 8)),
    Case("O4", "coalitions"),
    *(Case("O5", "chain", {"depth": n}) for n in (1, 2, 3, 4)),
    *(Case("O6", "dose", {"threshold": n}, barred=False) for n in (30, 60)),
    Case("O7", "cipher", barred=False),
    Case("O7'", "long_prefix", barred=False),
    Case("O8", "families", barred=False),
    *(Case("O9", "relocated", {"place": n}) for n in (0, 1, 2, 3)),
    Case("O10", "no_circuit", barred=False),
    Case("O11", "base", barred=False),
    Case("O12", "sibling"),
    Case("O13", "post_norm"),
    Case("O14", "rotated"),
    *(Case("O15", "base", noise=noise, barred=False, swept=True) for noise in NOISES),
)

# Threshold families: orders by an attribution of log-normal error `noise`, told where its sum says that the
# margin is gone (start=1) or not.
GOOD_ORDER, ROUGH_ORDER = "threshold", "threshold, rough"
FEATURES: tuple[Case, ...] = (
    *(Case(variant, variant) for variant in ("base", "partial", "chain", "control")),
    *(_threshold(GOOD_ORDER, noise, start=1) for noise in (0.0, 0.1)),
    *(_threshold(ROUGH_ORDER, noise, start=1) for noise in (0.5, 1.0)),
    *(_threshold(ROUGH_ORDER, noise, start=0) for noise in (0.1, 0.5)),
)

# Refusal falls where the thinking ends; and where it does not, or not there.
CLIFFS, NO_CLIFFS = ("base", "graded", "two_stage"), ("template_shift", "within_thinking")
CLIFF: tuple[Case, ...] = (
    *(Case(variant, variant) for variant in CLIFFS),
    *(Case(variant, variant, barred=False) for variant in NO_CLIFFS),
)

# Of the three only the first has two bits that a score must tell apart.
BELIEFS: tuple[Case, ...] = (
    Case("base", "base"),
    *(Case(variant, variant, barred=False) for variant in ("punctuation", "topic-only")),
)

# What the recommended method must reach, as means over seeds.
BARS = {
    "precision": 0.95,
    "recall": 0.95,
    "no head claimed in O10": 0.95,
    "rescue in O7": 0.95,
    "prefix moves necessity by": 0.05,
    "type-I error, low": 0.03,
    "type-I error, high": 0.07,
    "woken reserves found": 0.95,
    "latents called reserve in the twin": 0.05,
    "AUROC of planted pairs": 0.95,
    "forwards over block greedy's": 1 / 3,
    "precision at k of a ranking": 1.0,
    "AUROC of a planted bit": 0.95,
    "prompts in their planted quadrant": 0.95,
    "smallest quadrant": 0.15,
    "cosine of the two directions": 0.3,
    "correlation after fine-tuning": 0.95,
    "shift of the bit that was not trained": 0.1,
    "shift of the bit that was trained": -0.5,
    "chance, low": 0.4,
    "chance, high": 0.6,
}
