"""The replies on the wire, in the shape of OpenAI's moderations, chat completions and errors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

AppliedTypes = dict[str, list[Literal["text", "image"]]]


class Latent(BaseModel):
    """What the guard itself says of an input; what OpenAI's fields have no place for.

    per_layer: score of each row of the model. per_category: score of each category, None where the guard
    knows none; OpenAI's keys are mapped from the guard's own. card: where the guard's card can be read.
    """

    delta_harmful: float
    delta_refuse: float | None
    quadrant: str | None
    p_harmful: float | None
    p_low: float | None
    p_high: float | None
    threshold: float
    fpr_target: float
    abstain: bool
    t_inst_token: str
    per_layer: list[float]
    per_category: dict[str, float | None]
    card: str | None


class ModerationResult(BaseModel):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: AppliedTypes
    latent: Latent


class ModerationReply(BaseModel):
    id: str
    model: str
    results: list[ModerationResult]


class InputVerdict(ModerationResult):
    type: Literal["moderation_result"] = "moderation_result"
    model: str


class Watched(BaseModel):
    """The highest smoothed score of the reply's tokens, and the threshold for whole replies."""

    peak: float
    threshold: float


class OutputVerdict(BaseModel):
    type: Literal["moderation_result"] = "moderation_result"
    model: str
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: AppliedTypes
    latent: Watched


class Verdicts(BaseModel):
    type: Literal["moderation_results"] = "moderation_results"
    model: str
    results: list[InputVerdict] | list[OutputVerdict]


class NoVerdict(BaseModel):
    type: Literal["error"] = "error"
    code: str
    message: str


class Inline(BaseModel):
    """Verdicts inside a chat reply."""

    input: Verdicts
    output: Verdicts | NoVerdict


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


FinishReason = Literal["stop", "length", "content_filter"]


class Choice(BaseModel):
    index: Literal[0] = 0
    message: Said
    finish_reason: FinishReason
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    moderation: Inline | None = None


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: ErrorBody


class ModelEntry(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]
