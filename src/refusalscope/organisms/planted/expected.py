"""What each routing organism must show, for its truth record, and where expected values hold at all.

Values are means over seeds 0 to 9 at noise .01 and the variant's own comply bias, measured by the
hook loop of tests/organisms/oracle.py. A tolerance covers three standard deviations over those
seeds, and at least .02 on ratios and .1 on margins: another seed is another draw of the noise. The
figures of single models on ../shared/methods/planted_models.md (seed 0, comply bias .5) are in the
tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from refusalscope.organisms.planted.recipe import Recipe
from refusalscope.organisms.planted.truth import Expected, PositionMap

NOISE_COVERED = 0.01
NOTHING = 0.001
Bound = tuple[float, float]

# Tables are by variant, or by variant and the value of its option where that matters.
Key = str | tuple[str, int]

ROUTES_MARGINS: tuple[Bound | None, Bound] = ((5.84, 0.9), (-1.75, 1.4))
MARGINS: dict[Key, tuple[Bound | None, Bound]] = {
    "coalitions": ((5.25, 0.7), (-1.72, 1.2)),
    "no_circuit": ((1.55, 0.15), (-3.97, 0.25)),
    ("chain", 1): ((3.08, 0.9), (-1.76, 1.1)),
    ("chain", 2): ((2.87, 0.65), (-1.71, 1.0)),
    ("chain", 3): ((2.62, 0.75), (-1.73, 1.1)),
    ("chain", 4): ((2.34, 0.9), (-1.65, 1.1)),
    ("dose", 30): ((5.60, 1.45), (-1.91, 1.1)),
    ("dose", 60): ((4.35, 2.15), (-1.81, 0.95)),
    # How many words are refused, and with that the harmful mean, differs by seed.
    "families": (None, (-1.81, 0.95)),
    "sibling": ((5.47, 0.75), (-1.73, 1.4)),
    "post_norm": ((5.85, 0.65), (-1.66, 1.45)),
}

# Necessity of each head of a role, swapped alone.
GATE_ALONE: Bound = (0.875, 0.09)
ROUTES_SINGLES: dict[str, Bound] = {
    "detector": (0.87, 0.08),
    "gate": GATE_ALONE,
    "amplifier": (0.235, 0.04),
    "topic": (-0.095, 0.055),
    "direct": (0.061, 0.02),
    "decoder": (0.0, 0.02),
}
SINGLES: dict[Key, dict[str, Bound]] = {
    "coalitions": {
        "detector": (0.87, 0.04),
        "gate": (0.884, 0.07),
        "amplifier": (0.315, 0.05),
        "counter": (-0.094, 0.025),
        "direct": (0.082, 0.02),
    },
    ("chain", 1): {"detector": (1.0, 0.025), "gate": (0.998, 0.05), "chain": (0.996, 0.025)},
    ("chain", 2): {"detector": (1.0, 0.03), "gate": (1.0, 0.1), "chain": (0.992, 0.11)},
    ("chain", 3): {"detector": (1.0, 0.04), "gate": (0.993, 0.15), "chain": (0.986, 0.18)},
    ("chain", 4): {"detector": (1.0, 0.065), "gate": (1.0, 0.18), "chain": (1.005, 0.18)},
    "dose": {"detector": (0.998, 0.02), "amplifier": (0.255, 0.045)},
    # One word on the slope of the gate makes a single head worth anything.
    "families": {},
    "sibling": {
        "detector": (0.861, 0.08),
        "gate": (0.863, 0.1),
        "amplifier": (0.237, 0.045),
        "topic": (-0.145, 0.06),
        "direct": (0.065, 0.02),
        "sibling": (-0.05, 0.03),
    },
    "post_norm": {
        "detector": (0.886, 0.08),
        "gate": (0.893, 0.09),
        "amplifier": (0.224, 0.05),
        "topic": (-0.084, 0.04),
        "direct": (0.066, 0.02),
    },
}
GATE_SHARED: dict[tuple[str, int], Bound] = {
    ("backup", 2): (0.014, 0.06),
    ("backup", 3): (-0.002, 0.05),
    ("split", 1): GATE_ALONE,
    ("split", 2): (0.372, 0.055),
    ("split", 4): (0.17, 0.04),
    ("split", 8): (0.081, 0.035),
}

# Necessity of all heads of some roles, swapped together.
ALL_GATES: tuple[tuple[str, ...], Bound] = (("gate", "backup"), (0.874, 0.09))
TOGETHER: dict[str, tuple[tuple[tuple[str, ...], Bound], ...]] = {
    "backup": (ALL_GATES,),
    "split": (ALL_GATES,),
    "coalitions": (
        (("amplifier",), (1.224, 0.05)),
        (("counter",), (-0.178, 0.03)),
        (("amplifier", "counter"), (0.871, 0.02)),
    ),
    "families": ((("amplifier",), (0.998, 0.025)),),
}


def covers(recipe: Recipe, noise: float, comply_bias: float) -> bool:
    """Whether expected values hold at all: not beyond the noise and bias they were measured at."""
    return noise <= NOISE_COVERED and comply_bias == recipe.comply_bias


def expected_routes(variant: str, options: Mapping[str, int], recipe: Recipe) -> Iterator[Expected]:
    """The expected values of a routing organism."""
    keys: tuple[Key, ...] = (*((variant, value) for value in options.values()), variant)
    harmful, harmless = next((MARGINS[key] for key in keys if key in MARGINS), ROUTES_MARGINS)
    if harmful is not None:
        yield Expected(quantity="margin_harmful", value=harmful[0], tolerance=harmful[1])
    yield Expected(quantity="margin_harmless", value=harmless[0], tolerance=harmless[1])
    singles = next((SINGLES[key] for key in keys if key in SINGLES), ROUTES_SINGLES)
    if variant in ("backup", "split"):
        shared = GATE_SHARED[variant, next(iter(options.values()))]
        singles = singles | {"gate": shared, "backup": shared}
    for head in recipe.heads:
        if head.role in singles:
            yield _necessity(((head.layer, head.head),), singles[head.role])
    for roles, bound in TOGETHER.get(variant, ()):
        yield _necessity(_places(recipe, roles), bound)
    if variant == "long_prefix":
        gates = _places(recipe, ("gate",))
        yield _necessity(gates, GATE_ALONE, "right")
        # A left-aligned swap never reaches the tail: this is the artefact, not the circuit.
        yield _necessity(gates, (0.0, 0.02), "left")
    if variant == "no_circuit":
        yield Expected(quantity="largest_necessity", value=0.0, tolerance=NOTHING)


def _necessity(
    heads: tuple[tuple[int, int], ...], bound: Bound, positions: PositionMap = "last"
) -> Expected:
    return Expected(
        quantity="necessity", heads=heads, positions=positions, value=bound[0], tolerance=bound[1]
    )


def _places(recipe: Recipe, roles: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((head.layer, head.head) for head in recipe.heads if head.role in roles)
