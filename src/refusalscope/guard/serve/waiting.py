"""From the model's thread to the event loop: waiting for an answer while the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from refusalscope.guard.serve.engine import Engine, Event
from refusalscope.guard.serve.faults import HUNG_UP, Fault
from refusalscope.guard.serve.reply import Began, Ended, Order, Piece

T = TypeVar("T")


class Listener:
    """Hears what becomes of a chat request. `close` it in any case: a reply that nobody hears is stopped.

    Raises Fault 429 or 503 where the engine does not take the request.
    """

    def __init__(self, engine: Engine, order: Order, seconds: float) -> None:
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._until = self._loop.time() + seconds
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._job = engine.chat(order, self._deliver)

    def _deliver(self, event: Event) -> None:
        # The loop is closed only when the server was made to stop at once.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Began | Piece | Ended:
        """The next event. Raises the Fault that the engine met, or 503 when the time is up."""
        try:
            async with asyncio.timeout_at(self._until):
                event = await self._events.get()
        except TimeoutError:
            raise out_of_time() from None
        if isinstance(event, Fault):
            raise event
        return event

    async def began(self) -> Began:
        """The first event: what was read of the prompt."""
        event = await self.next()
        assert isinstance(event, Began)
        return event

    def close(self) -> None:
        self._engine.cancel(self._job)


class Streamed(StreamingResponse):
    """Server-sent events that stop the reply behind them when the client hangs up."""

    def __init__(self, events: AsyncIterator[str], listener: Listener) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listener.close()


async def answered(request: Request, work: Awaitable[T], seconds: float) -> T:
    """Wait for work unless the client hangs up (Fault 499) or the time is up (503); it is cancelled then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        done, _ = await asyncio.wait(
            {task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if task in done:
            return task.result()
        if gone in done:
            raise Fault(HUNG_UP, "the client hung up.", code="client_closed_request")
        raise out_of_time()
    finally:
        gone.cancel()
        task.cancel()


def out_of_time() -> Fault:
    return Fault(
        503, "the answer was not ready in time; send the request again later.", code="timeout"
    )


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
