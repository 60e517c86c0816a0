"""The graded suite of routing organisms, O1 to O15, and the bars of the recommended method.

Source: ../shared/methods/planted_models.md section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOISES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.10)


@dataclass(frozen=True)
class Case:
    """One organism of the suite: its number on the page, and how it is built.

    barred: whether the bars of precision and recall hold for it.
    """

    organism: str
    variant: str
    options: Mapping[str, int] = field(default_factory=dict)
    noise: float = 0.01
    barred: bool = True

    @property
    def name(self) -> str:
        """The number with what sets this case apart, such as `O3 parts=4`."""
        words = [f"{name}={value}" for name, value in self.options.items()]
        if self.organism == "O15":
            words.append(f"noise={self.noise:.2f}")
        return " ".join([self.organism, *words])


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
    *(Case("O15", "base", noise=noise, barred=False) for noise in NOISES),
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
}
