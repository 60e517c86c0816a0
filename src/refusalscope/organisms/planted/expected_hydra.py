"""What each hydra must show, for its truth record.

Values are means over seeds 0 to 9 at noise .01 and comply bias .3, measured by the hook loop of
tests/organisms/oracle.py; a tolerance covers three standard deviations over those seeds, and at least
.02. How far the tail opens the units differs by seed, and with it every margin and axis (harmful 1.6 to
4.5), so what an ablation does is given as a share. Which sets of latents are enough to flip a prompt
follows the margin: it differs by seed too, and is not given here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from refusalscope.organisms.planted.expected import NOTHING, Bound
from refusalscope.organisms.planted.hydra import BACKUPS, PARTIAL_ETA, PRIMARIES
from refusalscope.organisms.planted.recipe import Recipe
from refusalscope.organisms.planted.truth import EditMode, Expected

MARGIN_HARMFUL: Bound = (2.87, 2.8)
MARGIN_HARMLESS: Bound = (-2.39, 0.21)

ONE, TWO, ALL = ("P1",), ("P1", "P2"), tuple(PRIMARIES)
RESERVE = tuple(BACKUPS)
BOTH = (*ALL, *RESERVE)
EVERY = (*BOTH, "C")
Ablation = tuple[tuple[str, ...], EditMode]

# Share of the gap that the harmful prompts keep.
KEPT: dict[str, dict[Ablation, Bound]] = {
    "base": {
        (ONE, "live"): (0.96, 0.045),
        (TWO, "live"): (0.982, 0.045),
        (ALL, "live"): (0.994, 0.05),
        (BOTH, "live"): (0.009, 0.025),
        (BOTH, "clean_mask"): (0.994, 0.05),
        (ONE, "no_wake"): (0.69, 0.03),
        (ALL, "no_wake"): (0.002, 0.025),
    },
    "partial": {
        (ONE, "live"): (0.798, 0.03),
        (TWO, "live"): (0.613, 0.035),
        (ALL, "live"): (0.421, 0.04),
        (BOTH, "live"): (0.009, 0.025),
        (BOTH, "clean_mask"): (0.421, 0.04),
        (ONE, "no_wake"): (0.689, 0.03),
        (ALL, "no_wake"): (0.002, 0.025),
    },
    # Decoder overshoot: less than nothing is left where a row claims what the model never wrote.
    "partial overclaim": {
        (ALL, "live"): (0.421, 0.04),
        (BOTH, "live"): (-0.588, 0.04),
        (BOTH, "clean_mask"): (0.421, 0.04),
        (ALL, "no_wake"): (-0.604, 0.04),
    },
    "chain": {
        (ONE, "live"): (0.979, 0.03),
        (ALL, "live"): (0.99, 0.045),
        (BOTH, "live"): (0.957, 0.065),
        (EVERY, "live"): (0.008, 0.035),
        (EVERY, "clean_mask"): (0.99, 0.045),
        (ALL, "no_wake"): (0.001, 0.03),
    },
    "control": {
        (ONE, "live"): (0.688, 0.03),
        (TWO, "live"): (0.353, 0.03),
        (ALL, "live"): (0.002, 0.025),
        (BOTH, "live"): (0.002, 0.025),
        (BOTH, "clean_mask"): (0.002, 0.025),
        (ONE, "no_wake"): (0.688, 0.03),
        (ALL, "no_wake"): (0.002, 0.025),
    },
}
COMPENSATION: dict[str, dict[tuple[str, ...], Bound]] = {
    "base": {ONE: (0.285, 0.065), ALL: (1.009, 0.05), BOTH: (0.0, NOTHING)},
    "partial": {ONE: (0.114, 0.03), ALL: (0.403, 0.025), BOTH: (0.0, NOTHING)},
    # What the dictionary claims was compensated, not what the model did.
    "partial overclaim": {ALL: (1.007, 0.06)},
    "chain": {ALL: (1.005, 0.045), BOTH: (0.979, 0.065), EVERY: (0.0, NOTHING)},
    "control": {ONE: (0.0, NOTHING), ALL: (0.0, NOTHING)},
}


def expected_hydra(variant: str, options: Mapping[str, int], _: Recipe) -> Iterator[Expected]:
    """The expected values of a hydra; margins and the no-op alone for an eta that was not measured."""
    yield Expected(quantity="margin_harmful", value=MARGIN_HARMFUL[0], tolerance=MARGIN_HARMFUL[1])
    yield Expected(
        quantity="margin_harmless", value=MARGIN_HARMLESS[0], tolerance=MARGIN_HARMLESS[1]
    )
    # Silent latents have nothing to zero.
    yield _ablation("margin_kept", RESERVE, "live", (1.0, NOTHING))
    if options.get("eta", PARTIAL_ETA) != PARTIAL_ETA:
        return
    table = "partial overclaim" if options.get("overclaim") else variant
    for (latents, mode), bound in KEPT[table].items():
        yield _ablation("margin_kept", latents, mode, bound)
    for latents, bound in COMPENSATION[table].items():
        yield _ablation("compensation", latents, "live", bound)


def _ablation(
    quantity: Literal["margin_kept", "compensation"],
    latents: tuple[str, ...],
    mode: EditMode,
    bound: Bound,
) -> Expected:
    return Expected(
        quantity=quantity, latents=latents, mode=mode, value=bound[0], tolerance=bound[1]
    )
