"""Settings of the cliff study, with where each default comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refusalscope.studies.cliff.removal import Renorm, Where
from refusalscope.studies.presets import from_preset

PresetName = Literal["recommended", "yin2025"]
Some = Annotated[int, Field(ge=1)]


class CliffSettings(BaseModel):
    """What the cliff study does.

    Sources: (p) arXiv 2510.06036 by its text and public reviews, (c) its authors' code, (o) ours, to correct a
    known defect or where nothing is published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = Field("recommended", description="named set of settings")
    thinking_tokens: Some = Field(
        512,
        description="longest thinking that is generated where a prompt brings none; 8,192 in (c)",
    )
    probe: Literal["calibrated", "published"] = Field(
        "calibrated",
        description="refusal probe: two by two with a scale for each position class (o), or refused harmful "
        "against all harmless at the last closing token (c)",
    )
    nulls: Annotated[int, Field(ge=20)] = Field(
        20, description="probes of shuffled labels and of random directions, each (o)"
    )
    n_heads: Annotated[int, Field(ge=8)] = Field(
        64, description="traces of a kind that heads are measured on, at most (o); 1,000 in (c)"
    )
    stand_in: Literal["zero", "mean"] = Field(
        "zero",
        description="what a removed head leaves: nothing (c), or its mean over benign traces (o)",
    )
    rank_heads: Literal["contrast", "published"] = Field(
        "contrast",
        description="score by which heads are removed together: contrast with plateau and benign traces (o), "
        "or as published (c)",
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.03, 0.10), description="shares of all heads that are removed together (c)"
    )
    draws: Some = Field(20, description="random sets of heads beside each share (o)")
    where: Where = Field(
        "closing",
        description="tokens at which heads are removed: the closing ones (o), or all, which changes the "
        "thinking too (c)",
    )
    renorm: Renorm = Field(
        "none",
        description="rescale of what is left of a layer: none (o), per_token (o), official_batch (c), whose "
        "result depends on the prompts that run together",
    )
    floor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="smallest effect of a head that counts, as a share of the fall (o)"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="familywise error of the sign-flip test over all heads (o)"
    )
    n_flips: Annotated[int, Field(ge=100)] = Field(
        10_000, description="sign flips of that test (o)"
    )
    max_new_tokens: Some = Field(
        24, description="length of the replies that are judged (o); 4,096 in (c)"
    )
    judge: str = Field(
        "text",
        description="judge of the replies: text, phrases:PRESET, classifier:NAME, endpoint:MODEL",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of splits, probes, draws, flips and bootstraps"
    )


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "yin2025": {
        "probe": "published",
        "rank_heads": "published",
        "where": "all",
        "renorm": "official_batch",
    },
}


def preset(name: str, **changes: Any) -> CliffSettings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(CliffSettings, PRESETS, "cliff", name, changes)
