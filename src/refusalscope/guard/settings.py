"""Settings of a guard's fit, with where each default comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refusalscope.guard.belief_guard import Anchor
from refusalscope.guard.heads import HeadVariant
from refusalscope.stats.calibration import Method
from refusalscope.stats.thresholds import Rule
from refusalscope.studies.presets import from_preset

PresetName = Literal["recommended", "zhao2025"]
Rate = Annotated[float, Field(gt=0, lt=1)]


class GuardSettings(BaseModel):
    """How a belief guard is fitted and calibrated.

    Sources: (z) arXiv 2507.11878 and its authors' code; (o) ours, to correct a known defect or because a guard
    in use needs it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = Field("recommended", description="named set of settings")
    variant: HeadVariant = Field(
        "lda",
        description="difference of cosines to two centroids (z), the same with their midpoint taken off (o), "
        "or weighed by the shrunk covariance (o)",
    )
    rows: Literal["inner", "with_final", "all"] = Field(
        "inner",
        description="layers averaged: 1..L-1 (o), 1..L (z), or 0..L as in the authors' code (z)",
    )
    anchor: Anchor = Field(
        "instruction_last",
        description="where harm is read: last token of the request (z), or last word (o)",
    )
    match_punctuation: bool = Field(
        True, description="make final marks alike in both classes before fitting (o)"
    )
    min_category: Annotated[int, Field(ge=8)] = Field(
        50, description="harmful fit prompts that a category needs for a score of its own (o)"
    )
    n_prompts: Annotated[int, Field(ge=32)] = Field(
        4000, description="prompts a label at most, drawn by the seed (o)"
    )
    fpr: tuple[Rate, ...] = Field(
        (0.05,), min_length=1, description="false-positive rates that thresholds are set for (o)"
    )
    rule: Rule = Field(
        "learn_then_test",
        description="the rate holds at the confidence (learn_then_test) or on average (conformal) (o)",
    )
    confidence: Rate = Field(0.95, description="confidence of the promise of learn_then_test (o)")
    probability: Method = Field(
        "auto", description="Platt's curve, isotonic from 1,000 prompts on, or one by name (o)"
    )
    monitor: bool = Field(True, description="fit a monitor of streamed replies too (o)")
    reply_tokens: Annotated[int, Field(ge=4)] = Field(
        256, description="longest reply that the monitor's threshold is set for (o)"
    )
    hold_back: Annotated[int, Field(ge=0)] = Field(
        4, description="tokens of a stream kept back while those after them are scored (o)"
    )
    judge: str = Field(
        "text", description="judge of the fit prompts' replies: text, phrases:PRESET, ..."
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(
        24, description="length of the replies that are judged (o)"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of splits, draws and bootstrap")


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "zhao2025": {"variant": "centroid", "rows": "with_final", "match_punctuation": False},
}


def preset(name: str, **changes: Any) -> GuardSettings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(GuardSettings, PRESETS, "guard", name, changes)
