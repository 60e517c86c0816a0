"""What each cliff organism must show, for its truth record.

Values are means over seeds 0 to 29 (two_stage and within_thinking: 0 to 9) at noise .01 and comply bias
.125, measured with the probe of tests/organisms/cliff_oracle.py; a tolerance covers three standard
deviations over those seeds, and at least .003 on scores of the probe, .02 on published head scores and
.1 on logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from refusalscope.organisms.planted.cliff import INTENSITY
from refusalscope.organisms.planted.expected import Bound
from refusalscope.organisms.planted.recipe import Recipe
from refusalscope.organisms.planted.truth import Expected, Reading

Score = Literal["plateau", "final"]
HeadScore = Literal["head_published", "head_folded", "head_contrast", "head_ablation"]

UNSUPPRESSED, SUPPRESSED = Reading(group="unsuppressed"), Reading(group="suppressed")
BENIGN, PERSUADED = Reading(group="benign"), Reading(group="benign_persuaded")
UNSUPPRESSED_LATE, SUPPRESSED_LATE, BENIGN_LATE = (
    reading.model_copy(update={"staged": True}) for reading in (UNSUPPRESSED, SUPPRESSED, BENIGN)
)
UNSUPPRESSED_BEFORE, BENIGN_BEFORE = (
    reading.model_copy(update={"probe": "thinking"}) for reading in (UNSUPPRESSED, BENIGN)
)
WORD = tuple(SUPPRESSED.model_copy(update={"intensity": mark}) for mark in INTENSITY)

Scores = dict[tuple[Score, Reading], Bound]
# The probe's scores with nothing removed. What no variant changes:
UNMOVED: Scores = {
    ("plateau", UNSUPPRESSED): (0.99, 0.012),
    ("plateau", BENIGN): (0.005, 0.003),
    ("final", UNSUPPRESSED): (0.9955, 0.003),
    ("final", BENIGN): (0.0045, 0.003),
}
HELD: Bound = (0.987, 0.017)
GONE: Bound = (0.0003, 0.003)
CLIFF: Scores = {("plateau", SUPPRESSED): HELD, ("final", SUPPRESSED): GONE}
SCORES: dict[str, Scores] = {
    "base": {
        **UNMOVED,
        **CLIFF,
        ("plateau", PERSUADED): (0.004, 0.003),
        ("final", PERSUADED): GONE,
    },
    "graded": {
        **UNMOVED,
        ("plateau", SUPPRESSED): HELD,
        ("final", WORD[0]): (0.9955, 0.003),
        ("final", WORD[1]): (0.9945, 0.003),
        ("final", WORD[2]): (0.85, 0.2),
        ("final", WORD[3]): (0.11, 0.15),
        ("final", WORD[4]): (0.012, 0.016),
        ("final", WORD[5]): (0.002, 0.003),
        ("final", WORD[6]): GONE,
        ("final", WORD[7]): GONE,
    },
    # Each probe is right where it was fitted, and sees a cliff that is none from there.
    "template_shift": {
        ("plateau", UNSUPPRESSED): (1.0, 0.003),
        ("final", UNSUPPRESSED): (0.995, 0.003),
        ("plateau", BENIGN): (0.999, 0.003),
        ("final", BENIGN): (0.005, 0.003),
        ("plateau", UNSUPPRESSED_BEFORE): (0.995, 0.003),
        ("final", UNSUPPRESSED_BEFORE): (0.001, 0.003),
        ("plateau", BENIGN_BEFORE): (0.005, 0.003),
        ("final", BENIGN_BEFORE): (0.0, 0.003),
    },
    "two_stage": {
        **UNMOVED,
        **CLIFF,
        ("plateau", UNSUPPRESSED_LATE): (0.54, 0.3),
        ("final", UNSUPPRESSED_LATE): (0.726, 0.065),
        ("plateau", SUPPRESSED_LATE): (0.47, 0.35),
        ("final", SUPPRESSED_LATE): GONE,
        ("plateau", BENIGN_LATE): (0.005, 0.003),
        ("final", BENIGN_LATE): (0.0045, 0.003),
    },
    "within_thinking": {
        **UNMOVED,
        ("plateau", SUPPRESSED): GONE,
        ("final", SUPPRESSED): GONE,
    },
}
# The final score with all heads of a role removed.
REMOVED: dict[tuple[str, Reading], Bound] = {
    ("suppressor", SUPPRESSED): (0.9955, 0.004),
    ("suppressor", BENIGN): (0.005, 0.0045),
    ("static", SUPPRESSED): (0.016, 0.022),
    ("static", BENIGN): (0.114, 0.07),
}
# Scores of heads of a role on suppressed prompts.
HEADS: dict[tuple[HeadScore, str], Bound] = {
    ("head_published", "suppressor"): (-1.34, 0.095),
    ("head_published", "static"): (-0.99, 0.06),
    ("head_folded", "suppressor"): (-4.46, 0.33),
    ("head_folded", "static"): (-3.28, 0.22),
    ("head_contrast", "suppressor"): (-4.37, 0.23),
    ("head_contrast", "static"): (0.01, 0.1),
    ("head_ablation", "suppressor"): (-4.4, 0.31),
    ("head_ablation", "static"): (-3.61, 0.6),
}


def expected_cliff(variant: str, _: Mapping[str, int], recipe: Recipe) -> Iterator[Expected]:
    """The expected values of a cliff organism."""
    for (score, reading), bound in SCORES[variant].items():
        yield Expected(quantity=score, reading=reading, value=bound[0], tolerance=bound[1])
    if variant != "base":
        return
    for (role, reading), bound in REMOVED.items():
        yield _heads("final", role, reading, bound, recipe)
    for (head_score, role), bound in HEADS.items():
        yield _heads(head_score, role, SUPPRESSED, bound, recipe)


def _heads(
    quantity: Literal["final"] | HeadScore,
    role: str,
    reading: Reading,
    bound: Bound,
    recipe: Recipe,
) -> Expected:
    heads = tuple((head.layer, head.head) for head in recipe.heads if head.role == role)
    return Expected(
        quantity=quantity, heads=heads, reading=reading, value=bound[0], tolerance=bound[1]
    )
