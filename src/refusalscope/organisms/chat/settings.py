"""The settings of the recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrainSettings(BaseModel):
    """Settings of the recipe. The defaults are those of the weights in the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 11
    own_rows: int = Field(120_000, ge=200, description="requests that the generator writes")
    harmless_share: float = Field(0.57, gt=0, lt=1, description="of the rows in a batch")
    shared_share: float = Field(0.2, ge=0, lt=1, description="of the rows, from shared/data")
    steps: int = Field(7000, ge=1)
    copy_steps: int = Field(1024, ge=0, description="first steps, of word salads only")
    batch_rows: int = Field(32, ge=2)
    learning_rate: float = Field(2e-3, gt=0, description="peak; linear warm-up, cosine to zero")
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1, description="on what the MLPs write")
    token_dropout: float = Field(0.1, ge=0, lt=1, description="request tokens replaced by unk")
    label_smoothing: float = Field(0.02, ge=0, lt=1, description="of the first reply token")
    reply_weight: float = Field(1.0, ge=0, description="of the loss on the rest of the reply")
    request_weight: float = Field(0.1, ge=0, description="of the loss on request tokens")
    request_sample: float = Field(0.2, ge=0, le=1, description="request tokens that have a loss")
    vocabulary: int = Field(5000, ge=400)
    width: int = Field(160, ge=16)
    layers: int = Field(5, ge=1)
    heads: int = Field(8, ge=1)
    mlp_width: int = Field(448, ge=16)
    balance_steps: int = Field(500, ge=0, description="last steps, that set the operating point")
    balance_share: float = Field(0.47, gt=0, lt=1, description="harmless_share of those steps")
    balance_rate: float = Field(4e-4, gt=0, description="their peak learning rate")
    held_out: float = Field(
        0.05, gt=0, lt=1, description="of a shared source; a fifth of it of our own rows"
    )
    threads: int = Field(2, ge=1)

    def balance(self) -> TrainSettings:
        """The second stage: a short run on another mix of labels, chosen on held-out rows."""
        return self.model_copy(
            update={
                "seed": self.seed + 100,
                "steps": self.balance_steps,
                "copy_steps": 0,
                "warmup_steps": min(20, self.balance_steps),
                "learning_rate": self.balance_rate,
                "harmless_share": self.balance_share,
            }
        )
