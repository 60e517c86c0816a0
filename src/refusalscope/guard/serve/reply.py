"""One reply as it is written: the next token, the text that may leave, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refusalscope.guard.monitor import ReplyMonitor
from refusalscope.guard.readings import Belief
from refusalscope.guard.serve.wire_replies import FinishReason
from refusalscope.prompts import Prompt

UNFINISHED = "�"


@dataclass(frozen=True)
class Order:
    """A chat request as the engine takes it.

    max_new_tokens: as asked for; None is as many as the server and the context allow. watch: score the
    reply's tokens. block_input, block_output: say nothing to a flagged request, stop at an alarm.
    """

    id: str
    prompt: Prompt
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    watch: bool = False
    block_input: bool = False
    block_output: bool = False


@dataclass(frozen=True)
class Began:
    """The prompt was read: before any word of the reply."""

    belief: Belief
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """More of the reply; joined, the pieces are the reply to the byte."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The reply is done. peak: highest smoothed score of its tokens; None where they were not watched."""

    reason: FinishReason
    tokens: int
    peak: float | None
    alarm: bool


class Reply:
    """A reply between two of its tokens.

    logits [vocab] and cache: what the next token follows from. limit: tokens it may have. ends: ids that end
    it. Its text is the whole of its tokens decoded together, outer blanks stripped, as `ChatModel.decode`.
    """

    def __init__(
        self,
        order: Order,
        tokenizer: Any,
        monitor: ReplyMonitor | None,
        *,
        ends: Sequence[int],
        limit: int,
        logits: Tensor,
        cache: Any,
    ) -> None:
        self.order, self.tokenizer = order, tokenizer
        self.ends, self.limit, self.logits, self.cache = ends, limit, logits, cache
        self.watch = monitor.start() if monitor is not None and order.watch else None
        self.hold_back = monitor.hold_back if monitor is not None and order.block_output else 0
        self.ids: list[int] = []
        self.sent = ""
        self._drawn = torch.Generator(device=logits.device)
        if order.seed is None:
            self._drawn.seed()
        else:
            self._drawn.manual_seed(order.seed)

    def choose(self) -> int | None:
        """Take the next token from the logits; None where it ends the reply."""
        if self.order.temperature == 0:
            token = int(self.logits.argmax())
        else:
            # In double and from the highest down: a temperature next to zero is then greedy, not NaN.
            logits = self.logits.double()
            weights = torch.softmax((logits - logits.max()) / self.order.temperature, -1)
            token = int(torch.multinomial(weights, 1, generator=self._drawn))
        if token in self.ends:
            return None
        self.ids.append(token)
        return token

    def reason_to_end(self) -> FinishReason | None:
        """Why nothing may follow the last token; None where something may."""
        if self.watch is not None and self.watch.alarm and self.order.block_output:
            return "content_filter"
        text = self._decoded(len(self.ids))
        if any(stop in text for stop in self.order.stops):
            return "stop"
        return "length" if len(self.ids) >= self.limit else None

    def release(self) -> str:
        """What may leave now: all but the tokens held back, and what later tokens may yet change."""
        text = self._decoded(max(0, len(self.ids) - self.hold_back))
        text = text[: len(text) - max((_begun(text, stop) for stop in self.order.stops), default=0)]
        return self._send(text.rstrip(UNFINISHED))

    def rest(self) -> str:
        """What is left to say at the end of a reply that no alarm has stopped."""
        text = self._decoded(len(self.ids))
        cuts = [text.index(stop) for stop in self.order.stops if stop in text]
        return self._send(text[: min(cuts, default=len(text))])

    def ended(self, reason: FinishReason) -> Ended:
        peak = float(self.watch.highest) if self.watch is not None and self.ids else None
        alarm = self.watch is not None and self.watch.alarm
        return Ended(reason, len(self.ids), peak, alarm)

    def _decoded(self, n: int) -> str:
        """The first n tokens decoded together: a character may be several tokens, a blank part of one."""
        return self.tokenizer.decode(
            self.ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _send(self, text: str) -> str:
        piece = text.strip()[len(self.sent) :]
        self.sent += piece
        return piece


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop string may have begun with."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
