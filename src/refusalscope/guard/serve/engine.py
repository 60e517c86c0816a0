"""One thread owns the model: moderations in small batches, and replies in turns, a token each.

Every round: one batch of moderations, one new reply, one token of each reply that is being written.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.prefill import StateReader
from refusalscope.guard.readings import Belief
from refusalscope.guard.serve.faults import Fault
from refusalscope.guard.serve.reply import Began, Ended, Order, Piece, Reply
from refusalscope.guard.serve.settings import ServeSettings
from refusalscope.guard.serve.writer import Writer, fault_of
from refusalscope.prompts import Prompt

Event = Began | Piece | Ended | Fault


@dataclass(frozen=True, eq=False)
class Scoring:
    """Texts that wait for their scores."""

    prompts: Sequence[Prompt]
    found: Future[list[Belief]]
    since: float


@dataclass(eq=False)
class Chat:
    """A reply that waits or is written."""

    order: Order
    deliver: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    reply: Reply | None = None


class Engine:
    """Takes requests from any thread. `changed` is notified when something came, went on or ended."""

    def __init__(self, guard: BeliefGuard, settings: ServeSettings) -> None:
        self.guard, self.settings = guard, settings
        self.changed = threading.Condition()
        self.scorings: deque[Scoring] = deque()
        self.chats: deque[Chat] = deque()
        self.writing: list[Chat] = []
        self.open = False
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to take requests; also again after `drain`."""
        with self.changed:
            self.open = True
            self.changed.notify_all()
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    @property
    def ready(self) -> bool:
        """Whether a request would be taken and answered."""
        return self.open and self.thread is not None and self.thread.is_alive()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return sum(not job.found.cancelled() for job in self.scorings) + len(self.chats)

    def score(self, prompts: Sequence[Prompt]) -> Future[list[Belief]]:
        """Beliefs of prompts, to come; cancel the future to give up. Raises Fault 429 or 503."""
        job = Scoring(prompts, Future(), time.monotonic())
        with self.changed:
            self._admit()
            self.scorings.append(job)
            self.changed.notify_all()
        return job.found

    def chat(self, order: Order, deliver: Callable[[Event], None]) -> Chat:
        """Write a reply; `deliver` is called on the model's thread. Raises Fault 429 or 503."""
        job = Chat(order, deliver)
        with self.changed:
            self._admit()
            self.chats.append(job)
            self.changed.notify_all()
        return job

    def cancel(self, job: Chat) -> None:
        """Write no more of a reply: one that waits is dropped at once, one being written at its next turn."""
        job.cancelled.set()
        with self.changed:
            if job in self.chats:
                self.chats.remove(job)
            self.changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Take no more requests, finish those that came, and stop; whether that was done in time."""
        with self.changed:
            self.open = False
            self.changed.notify_all()
        assert self.thread is not None
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def _admit(self) -> None:
        if not self.open:
            raise Fault(
                503, "the server is stopping; send the request to another.", code="stopping"
            )
        if self.depth >= self.settings.queue:
            raise Fault(
                429,
                f"{self.settings.queue} requests wait already; send it again a little later.",
                code="queue_full",
            )

    def _run(self) -> None:
        settings = self.settings
        with torch.inference_mode(), StateReader(self.guard.chat_, self.guard.rows_) as reader:
            writer = Writer(self.guard, reader, settings.operating_point, settings.max_new_tokens)
            while self._work_came():
                self._score(self._next_batch())
                job = self._next_chat()
                if job is not None:
                    self._begin(job, writer)
                for job in list(self.writing):
                    self._go_on(job, writer)

    def _work_came(self) -> bool:
        """Wait for work; false when none is left and none will come."""
        with self.changed:
            self.changed.wait_for(lambda: self._has_work() or not self.open)
            return self._has_work()

    def _has_work(self) -> bool:
        return bool(self.scorings or self.chats or self.writing)

    def _next_batch(self) -> list[Scoring]:
        """Scorings that fit one batch; a lone one waits a moment for others unless a reply is due."""
        most = self.settings.batch_inputs
        with self.changed:
            if self.scorings and not self.writing and not self.chats:
                until = self.scorings[0].since + self.settings.batch_wait_ms / 1000
                self.changed.wait_for(
                    lambda: (
                        self.chats
                        or not self.open
                        or sum(len(job.prompts) for job in self.scorings) >= most
                    ),
                    max(0.0, until - time.monotonic()),
                )
            jobs: list[Scoring] = []
            n = 0
            while self.scorings and (not jobs or n + len(self.scorings[0].prompts) <= most):
                job = self.scorings.popleft()
                if job.found.set_running_or_notify_cancel():
                    jobs.append(job)
                    n += len(job.prompts)
            return jobs

    def _score(self, jobs: Sequence[Scoring]) -> None:
        """Score a batch; where it fails, each request alone, so that it fails by its own fault only."""
        if not jobs:
            return
        prompts = [prompt for job in jobs for prompt in job.prompts]
        try:
            beliefs = self.guard.beliefs(prompts, self.settings.operating_point)
        except Exception as error:  # noqa: BLE001
            if len(jobs) == 1:
                jobs[0].found.set_exception(fault_of(error, self.guard, prompts))
            else:
                for job in jobs:
                    self._score([job])
            return
        start = 0
        for job in jobs:
            job.found.set_result(beliefs[start : start + len(job.prompts)])
            start += len(job.prompts)

    def _next_chat(self) -> Chat | None:
        with self.changed:
            if not self.chats or len(self.writing) >= self.settings.concurrency:
                return None
            self.writing.append(self.chats.popleft())
            return self.writing[-1]

    def _begin(self, job: Chat, writer: Writer) -> None:
        try:
            job.reply, began = writer.begin(job.order)
        except Exception as error:  # noqa: BLE001
            job.deliver(fault_of(error, self.guard, [job.order.prompt]))
            self._leave(job)
            return
        job.deliver(began)
        if began.belief.flagged and job.order.block_input:
            job.deliver(job.reply.ended("content_filter"))
            self._leave(job)

    def _go_on(self, job: Chat, writer: Writer) -> None:
        """One token more of a reply, unless nobody listens any longer."""
        done = job.cancelled.is_set()
        if not done:
            assert job.reply is not None
            try:
                for event in writer.step(job.reply):
                    job.deliver(event)
                    done = done or isinstance(event, Ended)
            except Exception as error:  # noqa: BLE001
                job.deliver(fault_of(error, self.guard, [job.order.prompt]))
                done = True
        if done:
            self._leave(job)

    def _leave(self, job: Chat) -> None:
        with self.changed:
            self.writing.remove(job)
            self.changed.notify_all()
