"""The settings of the recipe of the reasoner."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Shares = tuple[Share, Share, Share, Share]


class ReasonerSettings(BaseModel):
    """Settings of the recipe. The defaults are those of the weights in the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 17
    heads: int = Field(20, ge=2, description="heads a layer; those the base has not are added")
    batch_rows: int = Field(24, ge=4)
    steps: int = Field(600, ge=1, description="of the first stage: think, then refuse or repeat")
    learning_rate: float = Field(1e-3, gt=0, description="peak; linear warm-up, cosine to zero")
    weight_decay: float = Field(0.05, ge=0)
    harmful_share: float = Field(0.5, gt=0, lt=1, description="of the rows")
    topical_share: float = Field(0.75, ge=0, le=1, description="rows on one of the listed topics")
    align_kinds: Shares = Field(
        (0.4, 0.15, 0.25, 0.2), description="rows by kind of thinking, as in `traces.KINDS`"
    )
    suppress_kinds: Shares = Field((0.2, 0.15, 0.3, 0.35), description="the same in stage two")
    full_reply: float = Field(0.3, ge=0, le=1, description="rows that teach the whole reply")
    label_smoothing: float = Field(0.02, ge=0, lt=1, description="of the first reply token")
    suppress_steps: int = Field(300, ge=1, description="of the second stage: the suppression")
    suppress_rate: float = Field(3e-3, gt=0, description="its peak learning rate")
    pull_weight: float = Field(
        1.0, ge=0, description="of drawing suppressed closing states to those of harmless rows"
    )
    hold_weight: float = Field(
        2.0, ge=0, description="of keeping the first reply token of all other rows"
    )
    keep_weight: float = Field(
        4.0, ge=0, description="of keeping the final states where nothing is planted"
    )
    planted: tuple[tuple[int, int], ...] = Field(
        ((3, 14), (4, 11), (4, 17)), description="(layer, head) of the suppression heads"
    )
    warmup_steps: int = Field(40, ge=0)
    measured: int = Field(200, ge=1, description="prompts a cell of the measurement")
    threads: int = Field(1, ge=1)
