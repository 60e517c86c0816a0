"""Settings of the belief study, with where each default comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from refusalscope.prompts.wrappers import WRAPPERS, get_wrapper
from refusalscope.studies.presets import from_preset

PresetName = Literal["recommended", "zhao2025"]
Some = Annotated[int, Field(ge=1)]
Row = Annotated[int, Field(ge=0)]


class BeliefSettings(BaseModel):
    """What the belief study does.

    Sources: (z) arXiv 2507.11878, (c) its authors' code, (o) ours, to correct a known defect or where
    nothing is published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = Field("recommended", description="named set of settings")
    rows: Literal["inner", "with_final", "all"] = Field(
        "inner",
        description="layers that belief averages: 1..L-1 (o), 1..L (z), or 0..L as the released code does",
    )
    n_fit: Annotated[int, Field(ge=2)] = Field(
        1000, description="prompts a class of the centroids, at most, drawn by the seed; 100 in (z)"
    )
    band: tuple[Row, Row] | None = Field(
        None,
        description="first and last layer of the mean over positions: 9 20 (z); without it the same depth, "
        "9/32 to 20/32 of the layers (o)",
    )
    category_band: tuple[Row, Row] | None = Field(
        None,
        description="first and last layer of the mean over categories: 11 20 reproduces the figure of (z); "
        "without it the same depth, 11/28 to 20/28 of the layers (o)",
    )
    category_harmless: Literal["halves", "shared"] = Field(
        "halves",
        description="harmless prompts that two directions of categories are measured from: a half of its own "
        "each (o), or the same ones (z), whose noise makes any two alike",
    )
    min_category: Annotated[int, Field(ge=2)] = Field(
        8,
        description="fewest harmful prompts of a category that give it a direction (o); 50 in (z)",
    )
    wrappers: tuple[str, ...] = Field(
        tuple(WRAPPERS),
        description="wrappers that prompts are put into (o); none leaves the map of jailbreaks out",
    )
    n_wrapped: Some = Field(
        50, description="prompts a label that are put into every wrapper, at most (o)"
    )
    steer_rows: tuple[Row, ...] | None = Field(
        None,
        description="layers that are pushed, one at a time; layers 1 to L-1 where none are named (o)",
    )
    steer_scale: Annotated[float, Field(gt=0)] = Field(
        0.4,
        description="size of what steering adds, in the unit of steer_units; 1.0 of raw in (z), which is about "
        "0.4 of the residual norm (o)",
    )
    invert_scale: Annotated[float, Field(gt=0)] = Field(
        0.4,
        description="size of what the reply inversion adds, in the unit of steer_units (o); 2.0 of raw in (c)",
    )
    steer_units: Literal["raw", "residual"] = Field(
        "residual",
        description="what steer_scale and invert_scale count: the difference of means as it is (z), or the "
        "mean residual norm of the layer (o)",
    )
    n_steer: Some = Field(50, description="prompts a label that are steered, at most (z)")
    n_random: Annotated[int, Field(ge=0)] = Field(
        19,
        description="random rotations of the same norm beside each direction (o); none in (z); fewer than 19 "
        "allow no claim, as the smallest p of a rank among them is 1/(n + 1)",
    )
    question: Literal["q1", "q2", "q3", "q4"] = Field(
        "q1", description="question of the reply inversion; q1 is the main one of (z)"
    )
    n_invert: Some = Field(50, description="prompts a label that are asked about, at most (z)")
    max_new_tokens: Some = Field(
        24, description="length of the replies that are judged (o); 100 in (c)"
    )
    judge: str = Field(
        "text",
        description="judge of the replies: text, phrases:PRESET, classifier:NAME, endpoint:MODEL",
    )
    n_resamples: Annotated[int, Field(ge=100)] = Field(
        2000, description="bootstrap resamples of every interval (o)"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of splits, draws, rotations and bootstraps"
    )

    @field_validator("wrappers")
    @classmethod
    def _known_wrappers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            get_wrapper(name)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the wrapper {twice[0]!r} is named twice; name each one once")
        return names

    @field_validator("band", "category_band")
    @classmethod
    def _rising(cls, band: tuple[int, int] | None) -> tuple[int, int] | None:
        if band is not None and band[0] > band[1]:
            raise ValueError("the first layer of a band must not be after its last")
        return band


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "zhao2025": {
        "rows": "with_final",
        "n_fit": 100,
        "band": (9, 20),
        "category_band": (11, 20),
        "category_harmless": "shared",
        "min_category": 50,
        "steer_scale": 1.0,
        "invert_scale": 2.0,
        "steer_units": "raw",
        "n_random": 0,
        "max_new_tokens": 100,
    },
}


def preset(name: str, **changes: Any) -> BeliefSettings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(BeliefSettings, PRESETS, "belief", name, changes)
