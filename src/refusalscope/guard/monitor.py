"""Replies watched as they stream: a score a token, smoothed, with a threshold for whole replies.

The paper reads prompts only. The axis here is fitted on reply tokens: the model goes along with harmful and
with harmless requests, the same opening put into its mouth, and what comes after the opening tells harm from
no harm (method page, section 11.2). A threshold for a token would be passed by every long reply, so it is set
on the highest smoothed score of whole benign replies, and promises for replies up to their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.guard.heads import Head, require_finite
from refusalscope.guard.reading import Prompts, site_of
from refusalscope.model import Rendered
from refusalscope.model.clean import PAD
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import Prompt
from refusalscope.stats import clopper_pearson
from refusalscope.stats.thresholds import Rule, Threshold, fpr_threshold

if TYPE_CHECKING:
    from refusalscope.guard.belief_guard import BeliefGuard

Array = npt.NDArray[np.float64]
OPENING = "Sure, here is"
OPENED = "opened"
# Share of the past in a smoothed score: about four tokens count.
SMOOTHING = 0.75
HOLD_BACK = 4
TOKENS = 256
# Replies read together; replies of a class that the axis is fitted on, and tokens of each.
AT_ONCE, FITTED, TOKENS_FITTED = 32, 200, 8


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
class Count:
    """Replies of a kind that pass the threshold, with an exact interval."""

    n: int
    flagged: int
    low: float
    high: float


@dataclass(frozen=True)
class ReplyMonitor:
    """An axis over reply tokens and the threshold of its highest smoothed score.

    hold_back: tokens that are kept back while what follows them is scored. tokens: the longest reply that the
    threshold was set on; it promises nothing for longer ones. by_length: benign calibration replies in thirds
    of their length. harmful, opened: calibration replies to harmful and to harmless requests with the opening
    put into the model's mouth; the second tells whether the opening alone alarms.
    """

    head: Head
    threshold: Threshold
    smoothing: float
    hold_back: int
    tokens: int
    by_length: tuple[LengthRate, ...]
    harmful: Count
    opened: Count

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
        """Smoothed score after a token whose states are [rows, d_model]. Raises GuardError if not finite."""
        states = states[None].float().cpu()
        require_finite(states)
        score = float(self.monitor.head.score(states)[0])
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

    Greedy replies of up to `max_new_tokens`. The axis takes at most 200 replies of a class and eight tokens of
    each, drawn by the guard's seed. Raises InputError for too few harmless calibration prompts, with the number
    needed, and where the model says nothing.
    """
    progress, rng = progress or Silent(), np.random.default_rng(guard.seed)

    def said(prompts: Prompts, opening: str) -> list[Rendered]:
        return _replies(guard, list(prompts), opening, max_new_tokens, progress)

    opened = [said(list(side)[:FITTED], OPENING) for side in fit]
    classes = [
        torch.cat([_some(states, one, rng) for one, states in each_reply(guard, replies)])
        for replies in opened
    ]
    head = Head.fit(guard.variant, *classes)

    def peaks(replies: list[Rendered]) -> Array:
        return np.array([_peak(head, states) for _, states in each_reply(guard, replies)])

    own = said(calibration[1], "")
    benign = peaks(own)
    threshold = fpr_threshold(benign, fpr, rule=rule, confidence=confidence)
    harmful, harmless = (_count(peaks(said(side, OPENING)) > threshold.tau) for side in calibration)
    lengths = np.array([len(one) - one.n_prompt for one in sorted(own, key=len)])
    by_length = _by_length(lengths, benign > threshold.tau)
    return ReplyMonitor(
        head, threshold, SMOOTHING, hold_back, max_new_tokens, by_length, harmful, harmless
    )


def _count(flagged: npt.NDArray[np.bool_]) -> Count:
    rate = clopper_pearson(int(flagged.sum()), len(flagged))
    return Count(rate.n, int(flagged.sum()), rate.low, rate.high)


def _some(states: Tensor, reply: Rendered, rng: np.random.Generator) -> Tensor:
    """A few tokens of a reply after its opening, which both classes share; of a short one, its last."""
    after = states[reply.anchors[OPENED] - reply.n_prompt :]
    after = after if len(after) else states[-1:]
    return after[np.sort(rng.permutation(len(after))[:TOKENS_FITTED])]


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
    prompts: list[Prompt],
    opening: str,
    max_new_tokens: int,
    progress: Progress,
) -> list[Rendered]:
    """The model's greedy replies, begun for it with an opening; replies without a token are left out.

    The anchor `opened` is where its own words begin.
    """
    chat = guard.chat_
    track = progress.track("replies to watch")
    begun = [chat.with_reply(one, opening) if opening else one for one in chat.render(prompts)]
    said = chat.generate(begun, max_new_tokens=max_new_tokens, progress=track)
    whole = [
        replace(
            one.with_reply([*one.ids[one.n_prompt :], *ids]),
            anchors={**one.anchors, OPENED: len(one)},
        )
        for one, ids in zip(begun, said, strict=True)
    ]
    found = [one for one in whole if len(one) > one.n_prompt]
    if not found:
        raise InputError(
            "the model replied with nothing to every prompt, so there is no reply to learn from; give others"
        )
    return found


def each_reply(
    guard: BeliefGuard, replies: Sequence[Rendered]
) -> Iterator[tuple[Rendered, Tensor]]:
    """Teacher-forced replies by length, each with the states of its tokens: [tokens, rows, d_model] float32."""
    chat = guard.chat_
    sites = [site_of(row, chat.anatomy.n_layers) for row in guard.rows_]
    order = sorted(replies, key=len)
    for at in range(0, len(order), AT_ONCE):
        part = order[at : at + AT_ONCE]
        start, stop = min(one.n_prompt for one in part), len(part[-1])
        # Attention is causal: what stands on the right of a reply changes nothing in it.
        padded = [
            one.with_reply([*one.ids[one.n_prompt :], *[PAD] * (stop - len(one))]) for one in part
        ]
        states = chat.capture(padded, sites, [(place,) for place in range(start, stop)])
        stacked = torch.stack([states[site] for site in sites], dim=2)
        for one, block in zip(part, stacked, strict=True):
            yield one, block[one.n_prompt - start : len(one) - start]
