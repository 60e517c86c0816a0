"""Settings of the routing study, with where each default comes from."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from refusalscope.prompts.wrappers import get_wrapper
from refusalscope.studies.presets import from_preset
from refusalscope.studies.routing.maps import require_map

PresetName = Literal["recommended", "frank2026"]
MetricName = Literal["nll", "probe", "kl"]
Count = Annotated[int, Field(ge=0)]


class RoutingSettings(BaseModel):
    """What the routing study does.

    Sources: (p) arXiv 2604.04385, (c) its authors' code, (o) ours, to correct a known defect. The fields
    candidates, interchanged and project_out act in the published procedure alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = Field("recommended", description="named set of settings")
    procedure: Literal["exact", "published"] = Field(
        "exact", description="every head by the exact screen (o), or the procedure as published (c)"
    )
    positions: str = Field(
        "suffix",
        description="position map of the main screen: last, suffix (suffix+2: two content tokens more), right "
        "(all positions from the end), span:FROM..TO between two anchors (o), or compat_left (c)",
    )
    donors: Annotated[int, Field(ge=1)] = Field(
        3, description="donors a prompt: its partner, then others of its category (o); 1 in (c)"
    )
    metrics: tuple[MetricName, ...] = Field(
        ("nll", "probe", "kl"), description="scores beside the refusal margin (o); nll alone in (c)"
    )
    floor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="smallest effect that counts, as a share of the gap (o)"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="familywise error of the sign-flip test over all heads and maps (o)"
    )
    n_flips: Annotated[int, Field(ge=100)] = Field(
        10_000, description="sign flips of that test (p)"
    )
    all_position_layers: Count = Field(
        12,
        description="layers, strongest first, whose heads are also swapped at all positions (o)",
    )
    window: Annotated[int, Field(ge=1)] = Field(
        3, description="widest window of layers searched for heads that stand in for each other (o)"
    )
    held: Count = Field(
        3,
        description="found heads that are held swapped, one at a time, while all others are screened (o)",
    )
    n_gates: Count = Field(3, description="heads whose cascade is measured at most (o)")
    knockouts: tuple[Literal["swap", "mean", "zero"], ...] = Field(
        ("swap", "zero"), description="how a gate is taken out in the cascade (o); zero in (c)"
    )
    null_heads: Annotated[int, Field(ge=1)] = Field(
        24, description="heads of like depth that are taken out in a gate's place (o); 10 in (c)"
    )
    detection_layer: int | None = Field(
        None, description="layer whose signal the dose scales; the earliest good one without it (o)"
    )
    alphas: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5),
        description="doses in units of the mean residual norm (o); 0 to 50 in raw units in (c); "
        "none leaves the dose out",
    )
    judged_alphas: tuple[float, ...] = Field(
        (0.0, 0.2, 0.5, 1.0), description="doses at which replies are generated and judged (o)"
    )
    wrappers: tuple[str, ...] = Field(
        ("letter_cipher",),
        description="wrappers under which the circuit is tested again (p); none leaves it out",
    )
    candidates: Annotated[int, Field(ge=1)] = Field(
        20, description="heads that direct attribution picks (c)"
    )
    interchanged: Annotated[int, Field(ge=1)] = Field(
        10, description="candidates that are interchanged (c)"
    )
    project_out: float = Field(
        5.0,
        description="strength of the published ablation; 1 would remove, 5 inverts fourfold (c)",
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(
        24, description="length of the replies that are judged (o); 200 in (c)"
    )
    judge: str = Field(
        "text",
        description="judge of the replies: text, phrases:PRESET, classifier:NAME, endpoint:MODEL",
    )
    seed: int = Field(0, description="seed of splits, donors, flips and bootstraps; 42 in (c)")

    @field_validator("positions")
    @classmethod
    def _known_map(cls, name: str) -> str:
        require_map(name)
        return name

    @field_validator("wrappers")
    @classmethod
    def _known_wrappers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            get_wrapper(name)
        return names

    @field_validator("alphas")
    @classmethod
    def _rising(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if alphas and (alphas[0] != 0 or any(a >= b for a, b in pairwise(alphas))):
            raise ValueError("the doses must start at 0 and rise")
        return alphas

    @model_validator(mode="after")
    def _doses_can_be_given(self) -> RoutingSettings:
        if len(self.alphas) == 1:
            raise ValueError("alphas needs a dose above 0; add one, or give none to leave it out")
        strange = [a for a in self.judged_alphas if self.alphas and a not in self.alphas]
        if strange:
            raise ValueError(
                f"the dose {strange[0]:g} of judged_alphas is none of alphas; add it there"
            )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "frank2026": {
        "procedure": "published",
        "positions": "compat_left",
        "donors": 1,
        "metrics": ("nll",),
        "knockouts": ("zero",),
        "alphas": (),
        "wrappers": (),
        "seed": 42,
    },
}


def preset(name: str, **changes: Any) -> RoutingSettings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(RoutingSettings, PRESETS, "routing", name, changes)
