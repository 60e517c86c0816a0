"""Roles of heads, by stated rules over measured numbers.

Source: alignment_routes section 6.2. TE is the total effect (necessity, or the conditional one of a head that
others stand in for), DE the direct effect with the final norm's scale held, both as shares of the gap;
driven and drives come from path patching between the heads found. The first rule that fits gives the role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from refusalscope.studies.heads import Head

# |DE| / |TE| below which a head does not write the refusal itself, and above which it does.
INDIRECT, DIRECT = 0.1, 0.5
# An effect that falls below this share of itself once all norms are frozen is the norm's.
NORM_SHARE = 0.5
# A static head writes at least this share of the gap, alike in both conditions within this share of it.
STATIC_SIZE, STATIC_CHANGE = 0.03, 0.1

RULES = {
    "static": "not found; writes at least 3 % of the gap, in both conditions alike within a tenth of it",
    "backup": "swapping it alone does little, and it carries the refusal once a head before it is swapped",
    "norm-only": "less than half of its effect is left once all norms are frozen, and it writes no refusal",
    "suppressor": "it writes against refusal, and that is more than half of its effect",
    "amplifier": "more than half of its effect is its own write, and a head before it drives it",
    "direct": "more than half of its effect is its own write, and no head found drives it",
    "detector": "it writes no refusal, nothing drives it, and it drives a head that drives others",
    "gate": "it writes no refusal and drives two or more deeper heads",
    "chain": "it writes no refusal, is driven, and drives one deeper head",
    "mixed": "found, and none of the rules fits",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of one head. Effects are shares of the gap.

    effect: necessity by the map that shows it best; alone: whether that passes by itself; conditional: with
    others held, None where it was not looked at or does not pass; after: a head before it in its set of
    stand-ins; frozen: with all norms frozen, None if not measured; harmful, control: direct contributions.
    """

    effect: float
    alone: bool
    conditional: float | None
    after: bool
    direct: float
    frozen: float | None
    harmful: float
    control: float

    @property
    def found(self) -> bool:
        return self.alone or self.conditional is not None

    @property
    def total(self) -> float:
        """The total effect: the larger of what it does alone and what it does with others held."""
        if self.conditional is None or (self.alone and abs(self.effect) >= abs(self.conditional)):
            return self.effect
        return self.conditional


def roles(evidence: Mapping[Head, Evidence], edges: set[tuple[Head, Head]]) -> pd.DataFrame:
    """Columns layer, head, role ("" for a head with none), why, drives, driven_by.

    edges: (gate, driven head) between heads that were found. why holds the numbers that made it so.
    """
    rows = []
    targets = {head: {b for a, b in edges if a == head} for head in evidence}
    sources = {head: {a for a, b in edges if b == head} for head in evidence}
    for head, known in evidence.items():
        leads = any(targets[b] for b in targets[head])
        role = _role(known, len(targets[head]), len(sources[head]), leads)
        rows.append(
            {
                "layer": head[0],
                "head": head[1],
                "role": role,
                "why": _why(role, known, len(targets[head]), len(sources[head])),
                "drives": len(targets[head]),
                "driven_by": len(sources[head]),
            }
        )
    return pd.DataFrame(rows, columns=["layer", "head", "role", "why", "drives", "driven_by"])


def _role(known: Evidence, drives: int, driven: int, leads: bool) -> str:
    if not known.found:
        size = (abs(known.harmful) + abs(known.control)) / 2
        alike = abs(known.harmful - known.control) <= STATIC_CHANGE * size
        return "static" if size >= STATIC_SIZE and alike else ""
    ratio = known.direct / known.total
    quiet = abs(ratio) < INDIRECT
    hidden = known.conditional is not None and abs(known.effect) < INDIRECT * abs(known.conditional)
    if hidden and known.after:
        return "backup"
    left = known.effect if known.frozen is None else known.frozen
    if not hidden and abs(ratio) < DIRECT and left / known.effect < NORM_SHARE:
        return "norm-only"
    if known.direct < 0 and abs(ratio) > DIRECT:
        return "suppressor"
    if ratio > DIRECT:
        return "amplifier" if driven else "direct"
    if quiet and drives and not driven and leads:
        return "detector"
    if quiet and drives >= 2:
        return "gate"
    if quiet and drives and driven:
        return "chain"
    return "mixed"


def _why(role: str, known: Evidence, drives: int, driven: int) -> str:
    if not role:
        return ""
    if role == "static":
        return (
            f"writes {known.harmful:+.3f} on harmful prompts and {known.control:+.3f} on controls"
        )
    parts = [f"effect {known.effect:+.3f}"]
    if known.conditional is not None:
        parts.append(f"with others held {known.conditional:+.3f}")
    parts.append(f"own write {known.direct:+.3f}")
    if known.frozen is not None:
        parts.append(f"norms frozen {known.frozen:+.3f}")
    parts.append(f"drives {drives}, driven by {driven}")
    return ", ".join(parts)
