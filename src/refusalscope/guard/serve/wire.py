"""The requests on the wire, in the shape of OpenAI's moderations and chat completions.

A field that would change the reply and is not supported is refused, never passed over in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

# A text with something in it; the pattern is ECMA's too, for readers of the description.
Text = Annotated[str, StringConstraints(pattern=r"\S")]

# What clients send by habit, and the value at which it asks for nothing.
NEUTRAL: dict[str, Any] = {
    "top_p": 1,
    "n": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
}
# Book-keeping of OpenAI's own service; it says nothing about the reply.
BOOKKEEPING = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str
    detail: str | None = None


class ImagePart(Strict):
    """Known, so that it can be turned down in words: the guard reads text alone."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ModerationRequest(Strict):
    """Texts to score: one, several, or the parts of one. `model` may be any name."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Part], Field(min_length=1)]
    )
    model: str | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1)]


class Mode(Strict):
    mode: Literal["score", "block"]


class Policy(Strict):
    input: Mode | None = None
    output: Mode | None = None


class Moderated(Strict):
    """What the request asks of the guard; the server's own setting is the least that it gets."""

    model: str
    policy: Policy | None = None


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    """A conversation whose last message is the user's.

    temperature: 0, the default, is greedy. seed: of the draw above 0.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    moderation: Moderated | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_habits(cls, given: Any) -> Any:
        """Leave out what asks for nothing."""
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None
            and name not in BOOKKEEPING
            and not (name in NEUTRAL and value == NEUTRAL[name])
        }

    @field_validator("messages")
    @classmethod
    def _ends_with_the_user(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return messages

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []
