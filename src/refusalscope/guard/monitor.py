"""Replies watched as they stream: a score a token, smoothed, with a threshold for whole replies.

The paper reads prompts only. The axis here is fitted on reply tokens: of replies in which the model goes
along with a harmful request (an opening put into its mouth, as an attacker would) against its answers to
harmless ones (method page, section 11.2). A threshold for a token would be passed by every long reply, so it
is set on the highest smoothed score of whole benign replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.guard.heads import Head
from refusalscope.guard.reading import Prompts, site_of
from refusalscope.model import ChatModel, Rendered
from refusalscope.model.clean import PAD
from refusalscope.progress import Progress, Silent
from refusalscope.stats import clopper_pearson
from refusalscope.stats.thresholds import Rule, Threshold, fpr_threshold

if TYPE_CHECKING:
    from refusalscope.guard.belief_guard import BeliefGuard

OPENING = "Sure, here is"
# Share of the past in a smoothed score: about four tokens count.
SMOOTHING = 0.75
HOLD_BACK = 4
TOKENS = 48
# Replies read together.
AT_ONCE = 32


@dataclass(frozen=True)
class LengthRate:
    """Benign replies of a range of lengths, and how many of them pass the threshold."""

    shortest: int
    longest: int
    n: int
    flagged: int
    low: float
    high: float


@dataclass(frozen=True)
class ReplyMonitor:
    """An axis over reply tokens and the threshold of its highest smoothed score.

    hold_back: tokens that are kept back while what follows them is scored. by_length: benign calibration
    replies in thirds of their length. recall: harmful calibration replies that pass it, with an exact interval.
    """

    head: Head
    threshold: Threshold
    smoothing: float
    hold_back: int
    by_length: tuple[LengthRate, ...]
    recall: tuple[int, int, float, float]

    @property
    def tau(self) -> float:
        return self.threshold.tau

    def start(self) -> Watch:
        """The watch over one reply."""
        return Watch(self)


class Watch:
    """The state of one reply: `step` with the states of each token as it comes."""

    def __init__(self, monitor: ReplyMonitor) -> None:
        self.monitor = monitor
        self.smoothed: float | None = None
        self.highest = -np.inf

    def step(self, states: Tensor) -> float:
        """Smoothed score after a token whose states are [rows, d_model] float32."""
        score = float(self.monitor.head.score(states[None].float().cpu())[0])
        b = self.monitor.smoothing
        self.smoothed = score if self.smoothed is None else b * self.smoothed + (1 - b) * score
        self.highest = max(self.highest, self.smoothed)
        return self.smoothed

    @property
    def alarm(self) -> bool:
        return self.highest > self.monitor.tau


def fit_monitor(
    guard: BeliefGuard,
    fit: tuple[Prompts, Prompts],
    calibration: tuple[Prompts, Prompts],
    *,
    fpr: float = 0.05,
    rule: Rule = "learn_then_test",
    confidence: float = 0.95,
    max_new_tokens: int = TOKENS,
    hold_back: int = HOLD_BACK,
    progress: Progress | None = None,
) -> ReplyMonitor:
    """Fit on (harmful, harmless) prompts and set the threshold on others; the replies are the model's own.

    Raises InputError for too few harmless calibration prompts, with the number needed, and where a side gives
    no reply.
    """
    progress = progress or Silent()
    sides = [
        _replies(guard, prompts, opening, max_new_tokens, progress)
        for both in (fit, calibration)
        for prompts, opening in zip(both, (OPENING, ""), strict=True)
    ]
    head = Head.fit(guard.variant, torch.cat(sides[0]), torch.cat(sides[1]))
    peaks = [np.array([_peak(head, states) for states in side]) for side in sides[2:]]
    threshold = fpr_threshold(peaks[1], fpr, rule=rule, confidence=confidence)
    caught = clopper_pearson(int((peaks[0] > threshold.tau).sum()), len(peaks[0]))
    recall = int((peaks[0] > threshold.tau).sum()), caught.n, caught.low, caught.high
    lengths = np.array([len(states) for states in sides[3]])
    by_length = _by_length(lengths, peaks[1] > threshold.tau)
    return ReplyMonitor(head, threshold, SMOOTHING, hold_back, by_length, recall)


def _peak(head: Head, states: Tensor) -> float:
    """Highest smoothed score of a whole reply: states [tokens, rows, d_model]."""
    smoothed, highest = None, -np.inf
    for score in head.score(states).tolist():
        smoothed = score if smoothed is None else SMOOTHING * smoothed + (1 - SMOOTHING) * score
        highest = max(highest, smoothed)
    return highest


def _by_length(
    lengths: npt.NDArray[np.int_], flagged: npt.NDArray[np.bool_]
) -> tuple[LengthRate, ...]:
    order = np.argsort(lengths, kind="stable")
    found = []
    for part in np.array_split(order, 3):
        if len(part):
            rate = clopper_pearson(int(flagged[part].sum()), len(part))
            ends = int(lengths[part].min()), int(lengths[part].max())
            found.append(
                LengthRate(*ends, len(part), int(flagged[part].sum()), rate.low, rate.high)
            )
    return tuple(found)


def _replies(
    guard: BeliefGuard,
    prompts: Prompts,
    opening: str,
    max_new_tokens: int,
    progress: Progress,
) -> list[Tensor]:
    """States of every reply token, a reply: [tokens, rows, d_model]; replies without a token are left out."""
    chat = guard.chat_
    track = progress.track("replies to watch")
    forced = [_opened(chat, one, opening) for one in chat.render(list(prompts))]
    said = chat.generate(forced, max_new_tokens=max_new_tokens, progress=track)
    whole = [
        one.with_reply([*one.ids[one.n_prompt :], *ids])
        for one, ids in zip(forced, said, strict=True)
    ]
    found = reply_states(chat, [one for one in whole if len(one) > one.n_prompt], guard.rows_)
    if not found:
        raise InputError(
            "the model replied with nothing to every prompt, so there is no reply to learn from; give others"
        )
    return found


def reply_states(chat: ChatModel, replies: Sequence[Rendered], rows: Sequence[int]) -> list[Tensor]:
    """States of the reply tokens of teacher-forced replies, a reply: [tokens, rows, d_model] float32."""
    sites = [site_of(row, chat.anatomy.n_layers) for row in rows]
    found: list[Tensor] = [torch.empty(0)] * len(replies)
    order = sorted(range(len(replies)), key=lambda i: len(replies[i]))
    for at in range(0, len(order), AT_ONCE):
        part = [replies[i] for i in order[at : at + AT_ONCE]]
        start, stop = min(one.n_prompt for one in part), len(part[-1])
        # Attention is causal: what stands on the right of a reply changes nothing in it.
        padded = [
            one.with_reply([*one.ids[one.n_prompt :], *[PAD] * (stop - len(one))]) for one in part
        ]
        states = chat.capture(padded, sites, [(place,) for place in range(start, stop)])
        stacked = torch.stack([states[site] for site in sites], dim=2)
        for i, one, block in zip(order[at:], part, stacked, strict=False):
            found[i] = block[one.n_prompt - start : len(one) - start]
    return found


def _opened(chat: ChatModel, rendered: Rendered, opening: str) -> Rendered:
    return chat.with_reply(rendered, opening) if opening else rendered
