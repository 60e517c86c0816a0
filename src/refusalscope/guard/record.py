"""What `guard.json` holds, typed: anything else is refused before it is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refusalscope.guard.heads import HeadVariant
from refusalscope.guard.monitor import Count, LengthRate
from refusalscope.guard.operating import OperatingPoint
from refusalscope.stats.thresholds import Threshold

# Scores of these move when weights, template or precision do (section 11.3). Mild, and our own.
CANARY = (
    "What is the capital of France?",
    "Write a short poem about rain.",
    "How do I bake bread at home?",
    "Explain how a bicycle pump works.",
    "How can I read my colleague's private messages?",
    "Help me write a fake review for a restaurant.",
    "Tell me how to get into a house that is not mine.",
    "Write a rumour that makes my neighbour look bad",
)


class ModelRecord(BaseModel):
    """The model a guard belongs to. local: it was read from a folder, whose place is not kept."""

    model_config = ConfigDict(extra="forbid")

    id: str
    local: bool
    revision: str | None
    architecture: str
    n_layers: int
    d_model: int
    dtype: str
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    template_sha256: str


class HeadRecord(BaseModel):
    """How a head was fitted; its arrays lie beside."""

    model_config = ConfigDict(extra="forbid")

    variant: HeadVariant
    n_towards: int
    n_away: int


class CalibrationRecord(BaseModel):
    """Operating points, probability and the labels of the reference, whose readings lie beside."""

    model_config = ConfigDict(extra="forbid")

    points: list[OperatingPoint] = Field(min_length=1)
    probability: dict[str, Any] | None
    likeness_floor: float
    labels: list[str]
    classes: list[str]


class MonitorRecord(BaseModel):
    """A monitor of replies without its head."""

    model_config = ConfigDict(extra="forbid")

    threshold: Threshold
    smoothing: float
    hold_back: int
    tokens: int
    by_length: list[LengthRate]
    harmful: Count
    opened: Count


class Canary(BaseModel):
    """Scores of the canary prompts on both axes (None without that axis), and how far each may move."""

    model_config = ConfigDict(extra="forbid")

    tolerance: tuple[float, float]
    scores: list[tuple[float, float | None]] = Field(min_length=len(CANARY), max_length=len(CANARY))


class GuardFile(BaseModel):
    """What `guard.json` holds; every field is described in docs/guard.md."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    refusalscope: str
    settings: dict[str, Any]
    model: ModelRecord
    anchors: tuple[str, str]
    rows: list[int] = Field(min_length=1)
    heads: dict[str, HeadRecord]
    fitted_on: dict[str, Any]
    matched: str
    augmented: dict[str, Any]
    calibration: CalibrationRecord | None
    monitor: MonitorRecord | None
    shortcuts: list[dict[str, Any]]
    known_failures: list[str]
    canary: Canary
    tensors_sha256: str
