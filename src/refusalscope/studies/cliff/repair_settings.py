"""Settings of a repair: which rows of a pool are trained on, how, and what they are compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from refusalscope.studies.cliff.ranking import SelectionSettings
from refusalscope.studies.cliff.training import TrainSettings
from refusalscope.studies.cliff.training_file import Loss

Some = Annotated[int, Field(ge=1)]
# Of the rankings of a pool all but the oracle: what is suppressed is known of organisms alone.
RankBy = Literal["ms_p90", "ms", "final", "random", "rule", "judge"]


class RankSettings(BaseModel):
    """How rows of a pool are chosen. Sources: (p) arXiv 2510.06036, (c) its authors' code, (o) ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank_by: RankBy = Field(
        "ms_p90",
        description="ranking of the pool: misalignment with the 90th percentile (o) or the maximum (p) of the "
        "thinking, final score (c), random, rule, or judge",
    )
    k: Some = Field(50, description="rows to train on; 700 of about 40,000 in (p)")
    floor: float | None = Field(0.2, description="misalignment at or below it needs no repair (o)")
    quota: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.25, description="largest share of the rows from one category (o)"
    )
    loss: Loss = Field(
        "response", description="tokens that are taught: response, or tail+response (o)"
    )
    thinking_tokens: Some = Field(
        512, description="longest thinking that is generated where a prompt brings none (o)"
    )
    max_new_tokens: Some = Field(24, description="length of the replies that are judged (o)")
    judge: str = Field(
        "text",
        description="judge of the replies: text, phrases:PRESET, classifier:NAME, endpoint:MODEL",
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of splits, probe, draws and training"
    )

    def selection(self, rank_by: RankBy) -> SelectionSettings:
        return SelectionSettings(
            rank_by=rank_by, k=self.k, floor=self.floor, quota=self.quota, seed=self.seed
        )


class RepairSettings(RankSettings):
    """What a repair does with them, and what it is compared with; sources as in `RankSettings`."""

    against: RankBy | None = Field(
        "random", description="another ranking, trained alike and measured on the same prompts (o)"
    )
    weights: Literal["auto", "full", "lora"] = Field(
        "auto", description="all weights of a small model, a LoRA adapter of a large one (o)"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-4,
        description="peak; a high one repairs with any rows, at a cost to harmless replies (o)",
    )
    epochs: Some = Field(8, description="passes over the rows (o)")
    general_per_repair: Annotated[float, Field(ge=0)] = Field(
        2.0, description="harmless rows with the model's own replies, for each row of repair (o)"
    )
    max_over_refusal: Annotated[float, Field(ge=0)] = Field(
        0.03, description="rise of over-refusal beyond which nothing is exported (o)"
    )

    def training(self) -> TrainSettings:
        return TrainSettings(
            weights=self.weights,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            general_per_repair=self.general_per_repair,
            seed=self.seed,
        )
