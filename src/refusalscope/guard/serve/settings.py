"""What a server may be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Blocking = Literal["off", "flag", "block"]
KEY_VARIABLE = "REFUSALSCOPE_API_KEY"


class ServeSettings(BaseModel):
    """Settings of a server of a guard.

    host, port: where it listens; another host than loopback needs a key in the environment variable
    REFUSALSCOPE_API_KEY.
    blocking: what a flagged chat meets: "off" nothing (scores are counted and logged), "flag" a verdict
    in the reply, "block" no answer. It is the floor: a request may ask for more, never for less.
    operating_point: name of the guard's threshold; the first without a name.
    max_body_bytes: of a request. max_inputs: texts of a moderation request. max_new_tokens: of a reply.
    queue: requests that may wait; one more is answered 429. concurrency: replies written at a time.
    batch_inputs, batch_wait_ms: texts scored in one forward, and how long a lone one waits for company.
    request_timeout_s: of a request from its first byte to the last of its answer. drain_s: what requests
    in flight are given when the server is told to stop.
    log_prompts: put the text of requests in the log. score_log: a file of one JSON line a scored prompt,
    without its text, for `guard drift`. card: the guard's card in HTML, shown at /card.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)
    blocking: Blocking = "flag"
    operating_point: str | None = None
    max_body_bytes: int = Field(1 << 20, ge=1)
    max_inputs: int = Field(64, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    queue: int = Field(128, ge=1)
    concurrency: int = Field(8, ge=1)
    batch_inputs: int = Field(64, ge=1)
    batch_wait_ms: float = Field(3.0, ge=0)
    request_timeout_s: float = Field(120.0, gt=0)
    drain_s: float = Field(60.0, gt=0)
    log_prompts: bool = False
    score_log: Path | None = None
    card: Path | None = None
