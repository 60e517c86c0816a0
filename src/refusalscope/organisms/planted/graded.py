"""Organisms whose harmful words have unequal intensities, read by a gate with a threshold.

The gate is a pair of MLP units, not a head: ROUTE rises from 0 to its ceiling over `width` of DET
above the threshold. Page, section 5, O6 and O8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from refusalscope.organisms.planted import tokens
from refusalscope.organisms.planted.construction import C, HeadPlan, UnitPlan, Weights
from refusalscope.organisms.planted.recipe import (
    AMPLIFIERS,
    DETECTOR,
    STATICS,
    SUPPRESSOR,
    Recipe,
)
from refusalscope.organisms.planted.truth import WordTruth

DOSE_INTENSITY = tuple(0.5 + 1.5 * i / 7 for i in range(8))
FAMILY_INTENSITY = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
FAMILIES = "ABBBBAAA"
THRESHOLD, LOWERED = 0.8, 0.3


def dose(threshold: int) -> Recipe:
    """O6: eight intensities against one threshold, in hundredths of DET."""
    lowest = threshold / 100
    words = _words(DOSE_INTENSITY, "A" * len(DOSE_INTENSITY), {"A": lowest})
    return _graded(DETECTOR, saturating_gate({C.DET: 1}, lowest, gain=4, width=0.25), words)


def families() -> Recipe:
    """O8: words of family B carry a second mark that lowers the gate's threshold for them.

    The strongest word of B is weaker than all but one of A, so no single threshold explains both.
    """
    words = _words(FAMILY_INTENSITY, FAMILIES, {"A": THRESHOLD, "B": THRESHOLD - LOWERED})
    reader = replace(DETECTOR, value2={C.HARM2: 1}, output2={C.DET2: 1})
    gate = saturating_gate({C.DET: 1, C.DET2: LOWERED}, THRESHOLD, gain=12, width=0.1)
    return _graded(reader, gate, words)


def saturating_gate(
    terms: Weights, threshold: float, gain: float, width: float
) -> tuple[UnitPlan, ...]:
    """Units that write gain * min(terms - threshold, width) into ROUTE at the tail, 0 below."""
    return tuple(
        UnitPlan(3, unit, "gate", {**terms, C.ASST: 8}, -8 - start, {C.ROUTE: slope})
        for unit, start, slope in ((0, threshold, gain), (1, threshold + width, -gain))
    )


def _graded(detector: HeadPlan, gate: tuple[UnitPlan, ...], words: tuple[WordTruth, ...]) -> Recipe:
    """Only the gate may turn intensity into refusal, so nothing writes HARM into U beside it."""
    return Recipe(
        heads=(detector, *AMPLIFIERS, *STATICS, SUPPRESSOR),
        units=gate,
        marks={
            token: {C.HARM: word.intensity, C.HARM2: float(word.family == "B")}
            for token, word in zip(tokens.HARMFUL_WORDS, words, strict=True)
        },
        layout="centred",
        words=words,
    )


def _words(
    intensities: Sequence[float], names: str, thresholds: Mapping[str, float]
) -> tuple[WordTruth, ...]:
    return tuple(
        WordTruth(
            word=tokens.WORDS[token],
            family=family,
            intensity=intensity,
            threshold=thresholds[family],
        )
        for token, intensity, family in zip(tokens.HARMFUL_WORDS, intensities, names, strict=True)
    )
