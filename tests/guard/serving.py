"""A guard of the embedded model, and a server of it on a loopback port, for tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import httpx
from openai import OpenAI

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve.run import make_server
from refusalscope.guard.serve.served import Served
from refusalscope.guard.serve.settings import ServeSettings
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt, bundled_pairs

MODEL = "builtin:chat"
# A point that flags half of all harmless prompts: tests need some of either kind.
LOOSE = "fpr=0.5"
WAIT_S = 30


@cache
def fitted() -> BeliefGuard:
    """Fitted on half of the bundled pairs, calibrated on the others."""
    sides = list(zip(*(pair.prompts() for pair in bundled_pairs()), strict=True))
    harmful, harmless = sides
    guard = BeliefGuard(min_category=8)
    guard.fit(ChatModel.load(MODEL), harmful[::2], harmless[::2])
    return guard.calibrate(harmless[1::2], harmful[1::2], fpr=(0.05, 0.5))


@cache
def texts() -> tuple[str, ...]:
    """Requests that the guard was not fitted on."""
    return tuple(prompt.text for pair in list(bundled_pairs())[1::2] for prompt in pair.prompts())


@cache
def text_that_is(flagged: bool) -> str:
    """The first of them that the loose point flags, or does not; with a reply of some length."""
    guard = fitted()
    beliefs = guard.beliefs([Prompt("x", text) for text in texts()], LOOSE)
    for text, belief in zip(texts(), beliefs, strict=True):
        if belief.flagged is flagged and len(offline_ids(text)) > 8:
            return text
    raise AssertionError("the fixture has no such text")


def offline_ids(text: str, max_new_tokens: int = 256) -> list[int]:
    chat = fitted().chat_
    return chat.generate(chat.render([Prompt("x", text)]), max_new_tokens=max_new_tokens)[0]


def offline_reply(text: str, max_new_tokens: int = 256) -> str:
    return fitted().chat_.decode(offline_ids(text, max_new_tokens))


@dataclass
class Running:
    """A server that runs, and ways to talk to it."""

    url: str
    served: Served

    def client(self, key: str = "unset") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_S)

    def wait(self, condition) -> None:
        """Until something is true of the engine; it tells of every change."""
        engine = self.served.engine
        with engine.changed:
            assert engine.changed.wait_for(condition, WAIT_S)


@contextmanager
def running(guard: BeliefGuard | None = None, **settings) -> Iterator[Running]:
    """The server in a thread. Its socket listens before it runs, so that no client comes too early."""
    server = make_server(guard or fitted(), ServeSettings(operating_point=LOOSE, **settings))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        made = Running(address, server.config.app.state.served)
        made.wait(lambda: made.served.engine.open)
        yield made
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        listening.close()
        assert not thread.is_alive()
