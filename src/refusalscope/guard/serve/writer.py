"""The forwards behind a reply: its prefill, in which the prompt's belief is read, and a token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from refusalscope.errors import InputError, ModelError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.prefill import StateReader, prefill
from refusalscope.guard.reading import user_turns
from refusalscope.guard.serve.faults import Fault, unforeseen
from refusalscope.guard.serve.reply import Began, Ended, Order, Piece, Reply
from refusalscope.model import Rendered
from refusalscope.model.anchors import render
from refusalscope.model.generate import end_tokens
from refusalscope.prompts import Prompt


class Writer:
    """Writes replies with the guard's model. reader: open on the model, with the guard's rows."""

    def __init__(
        self, guard: BeliefGuard, reader: StateReader, point: str | None, max_new_tokens: int
    ) -> None:
        self.guard, self.reader, self.point = guard, reader, point
        self.max_new_tokens = max_new_tokens
        chat = guard.chat_
        self.ends = end_tokens(chat.anatomy, chat.tokenizer)
        self.context = context_of(guard)

    def begin(self, order: Order) -> tuple[Reply, Began]:
        """Prefill a prompt. Raises Fault where the context has no room for prompt and reply."""
        chat = self.guard.chat_
        rendered = render(order.prompt, chat.tokenizer)
        limit = self._room(rendered, order.max_new_tokens)
        with self._clean_reader():
            found = prefill(self.guard, self.reader, order.prompt, rendered)
        belief = self.guard.belief(order.id, found.reading, found.token, self.point)
        reply = Reply(
            order,
            chat.tokenizer,
            self.guard.monitor_,
            ends=self.ends,
            limit=limit,
            logits=found.logits,
            cache=found.cache,
        )
        return reply, Began(belief, len(rendered))

    def step(self, reply: Reply) -> Iterator[Piece | Ended]:
        """One token more: what may leave, and the end where it is reached.

        A watched reply is read to its last token, so that none leaves without a score.
        """
        token = reply.choose()
        reason = "stop" if token is None else reply.reason_to_end()
        if token is not None and (reason is None or reply.watch is not None):
            self._read(reply, token)
            reason = reply.reason_to_end()
        if reason == "content_filter":
            piece = ""
        else:
            piece = reply.release() if reason is None else reply.rest()
        if piece:
            yield Piece(piece)
        if reason is not None:
            yield reply.ended(reason)

    def _room(self, rendered: Rendered, asked: int | None) -> int:
        limit = asked or self.max_new_tokens
        if self.context is None:
            return limit
        room = self.context - len(rendered)
        if room < (asked or 1):
            raise too_long(len(rendered), self.context, "messages", asked)
        return min(limit, room)

    def _read(self, reply: Reply, token: int) -> None:
        """Feed a token to the model: the logits of the next, and its own score where it is watched."""
        device = self.guard.chat_.device
        with self._clean_reader():
            if reply.watch is not None:
                self.reader.expect(torch.zeros(1, 1, dtype=torch.long, device=device))
            out = self.guard.chat_.model(
                input_ids=torch.tensor([[token]], device=device),
                past_key_values=reply.cache,
                use_cache=True,
            )
            if reply.watch is not None:
                reply.watch.step(self.reader.done()[0, 0])
        reply.logits = out.logits[0, -1]

    @contextmanager
    def _clean_reader(self) -> Iterator[None]:
        """After a forward that failed, the next one is not read in its place."""
        try:
            yield
        except Exception:
            if self.reader.states is not None:
                self.reader.done()
            raise


def fault_of(error: Exception, guard: BeliefGuard, prompts: Sequence[Prompt]) -> Fault:
    """What a client is told of a failure."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, InputError | ModelError):
        return _overlong(guard, prompts) or Fault(400, str(error), code="invalid_value")
    return unforeseen(error, "the model's thread")


def too_long(n: int, context: int, what: str, asked: int | None = None) -> Fault:
    """The answer to a request that does not fit the context."""
    wanted = f", and {asked} of a reply were asked for" if asked else ""
    return Fault(
        400,
        f"{what} is {n} tokens long{wanted}; the model takes {context} in all: shorten it.",
        code="context_length_exceeded",
        param=what,
    )


def context_of(guard: BeliefGuard) -> int | None:
    """Tokens the model takes, where its config says so."""
    return getattr(guard.chat_.model.config.get_text_config(), "max_position_embeddings", None)


def _overlong(guard: BeliefGuard, prompts: Sequence[Prompt]) -> Fault | None:
    """The fault of the first prompt that does not fit the context, if one does not."""
    context = context_of(guard)
    if context is None:
        return None
    for turn in (turn for prompt in prompts for turn in user_turns(prompt)):
        try:
            n = len(render(turn, guard.chat_.tokenizer))
        except (InputError, ModelError):
            continue
        if n > context:
            return too_long(n, context, turn.id)
    return None
