"""A chat reply on the wire: in one piece, or as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from refusalscope.guard.serve.categories import applied_types, result
from refusalscope.guard.serve.faults import Fault
from refusalscope.guard.serve.reply import Began, Ended, Order, Piece
from refusalscope.guard.serve.served import Served
from refusalscope.guard.serve.waiting import Listener
from refusalscope.guard.serve.wire import ChatRequest
from refusalscope.guard.serve.wire_replies import (
    ChatReply,
    Choice,
    Inline,
    InputVerdict,
    NoVerdict,
    OutputVerdict,
    Said,
    Usage,
    Verdicts,
    Watched,
)

INPUT_WITHHELD = (
    "The request was not answered: the guard takes it for harmful "
    "(delta_harmful {score:.4f}, above the threshold {threshold:.4f})."
)
OUTPUT_WITHHELD = "The reply was stopped: the guard takes it for harmful."
# The category of a verdict over a reply: of the whole, none of OpenAI's 13.
REPLY = "harmful_reply"


class Answer:
    """What is said of one chat request. shown: verdicts stand in the reply."""

    def __init__(
        self, served: Served, body: ChatRequest, order: Order, began: Began, shown: bool
    ) -> None:
        self.served, self.body, self.order = served, body, order
        self.began, self.shown = began, shown
        self.created = int(time.time())

    async def whole(self, listener: Listener) -> ChatReply:
        """The reply at once; one that the guard stopped is withheld altogether."""
        text = ""
        while isinstance(event := await listener.next(), Piece):
            text += event.text
        assert isinstance(event, Ended)
        refusal = self._withheld(event)
        said = Said(content=text if refusal is None else "", refusal=refusal)
        return ChatReply(
            id=self.order.id,
            created=self.created,
            model=self.served.chat_name,
            choices=[Choice(message=said, finish_reason=event.reason)],
            usage=self._usage(event),
            moderation=self._inline(event),
        )

    async def stream(self, listener: Listener) -> AsyncIterator[str]:
        """Server-sent events: the verdict on the input first, pieces, the end with both verdicts, the usage."""
        yield self._chunk({"role": "assistant", "content": ""}, inline=self._inline(None))
        try:
            while isinstance(event := await listener.next(), Piece):
                yield self._chunk({"content": event.text})
        except Fault as fault:
            yield _event(fault.body())
            return
        assert isinstance(event, Ended)
        refusal = self._withheld(event)
        delta = {} if refusal is None else {"refusal": refusal}
        yield self._chunk(delta, event.reason, self._inline(event))
        if self._tells_usage:
            yield _event(self._head() | {"choices": [], "usage": self._usage(event).model_dump()})
        yield "data: [DONE]\n\n"

    @property
    def _tells_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and options.include_usage

    def _chunk(
        self, delta: dict[str, Any], reason: str | None = None, inline: Inline | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        chunk = self._head() | {"choices": [choice]}
        if self._tells_usage:
            chunk["usage"] = None
        if inline is not None:
            chunk["moderation"] = inline.model_dump()
        return _event(chunk)

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.order.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.served.chat_name,
        }

    def _usage(self, ended: Ended) -> Usage:
        prompt, reply = self.began.prompt_tokens, ended.tokens
        return Usage(prompt_tokens=prompt, completion_tokens=reply, total_tokens=prompt + reply)

    def _withheld(self, ended: Ended) -> str | None:
        """Why a reply was withheld, in words; None for one that was not. Counts both."""
        meters = self.served.meters
        meters.tokens.inc(ended.tokens)
        if ended.reason != "content_filter":
            return None
        meters.blocked.labels("output" if ended.alarm else "input").inc()
        belief = self.began.belief
        if ended.alarm:
            return OUTPUT_WITHHELD
        return INPUT_WITHHELD.format(score=belief.delta_harmful, threshold=belief.threshold)

    def _inline(self, ended: Ended | None) -> Inline | None:
        """Both verdicts, before (None) or after the reply; None where they are not to be shown."""
        if not self.shown:
            return None
        served = self.served
        found = result(self.began.belief, served.point.alpha, served.card)
        verdict = InputVerdict(model=served.guard_name, **found.model_dump())
        return Inline(
            input=Verdicts(model=served.guard_name, results=[verdict]), output=self._output(ended)
        )

    def _output(self, ended: Ended | None) -> Verdicts | NoVerdict:
        monitor, name = self.served.guard.monitor_, self.served.guard_name
        if monitor is None:
            return NoVerdict(code="no_monitor", message="this guard has no reply monitor")
        if ended is None:
            return NoVerdict(code="pending", message="the reply is still to be written")
        if ended.peak is None:
            return NoVerdict(code="no_reply", message="there is no reply to judge")
        scores = {REPLY: min(max(ended.peak, 0.0), 1.0)}
        verdict = OutputVerdict(
            model=name,
            flagged=ended.alarm,
            categories={REPLY: ended.alarm},
            category_scores=scores,
            category_applied_input_types=applied_types(scores),
            latent=Watched(peak=ended.peak, threshold=monitor.tau),
        )
        return Verdicts(model=name, results=[verdict])


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
