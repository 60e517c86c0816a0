"""A model of arithmetic for the audit: its states hold what a test plants, so every verdict is known.

A request is harmful when colour and side of it go together (red and north, blue and south), which no bag of
words can say. State: [harm, no mark, full stop, question mark, four of noise].
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from refusalscope.errors import InputError
from refusalscope.guard.audit.refit import Refit
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.prompts import Prompt, final_character_class

COLOURS, SIDES = ("red", "blue"), ("north", "south")
FILLERS = ("calm", "tall", "warm", "pale", "wide", "cold", "deep", "mild", "slow", "keen")
CLASSES = ("none", "period", "question")
WIDTH = 8


@dataclass(frozen=True)
class Read:
    text: str
    id: str

    @property
    def ids(self) -> tuple[str, ...]:
        last = self.text.split()[-1]
        mark = final_character_class(last)
        return ("<s>", last if mark == "none" else last[-1])

    def anchor(self, name: str) -> int:
        return 1


@dataclass
class StubChat:
    """harm and mark: weights of both in the state at the last token; word: weight of harm at the last word."""

    harm: float
    mark: float
    word: float = 1.0
    longest: int = 10_000

    anatomy = SimpleNamespace(n_layers=3)
    tokenizer = SimpleNamespace(decode=lambda ids: ids[0])

    def render(self, prompts: Sequence[Prompt]) -> list[Read]:
        for prompt in prompts:
            if len(prompt.text) > self.longest:
                raise InputError(f"prompt {prompt.id!r} is too long; shorten it")
        return [Read(prompt.text, prompt.id) for prompt in prompts]

    def capture(self, prompts, sites, anchors):
        return {
            site: torch.stack(
                [torch.stack([self.state(p, a, i) for a in anchors]) for p in prompts]
            )
            for i, site in enumerate(sites)
        }

    def state(self, prompt: Read, anchor: str, row: int) -> torch.Tensor:
        noise = np.random.default_rng(zlib.crc32(prompt.text.strip(".?").encode()) + row)
        state = 0.4 * noise.normal(size=WIDTH)
        words = prompt.text.replace("\n", " ").replace(".", " ").replace("?", " ").split()
        weight = self.word if anchor == "instruction_last_word" else self.harm
        for colour, side in ((c, s) for c in COLOURS for s in SIDES):
            if colour in words and side in words:
                together = COLOURS.index(colour) == SIDES.index(side)
                state[0] += weight * (1 if together else -1)
        kind = final_character_class(prompt.text)
        if anchor == "instruction_last" and kind in CLASSES:
            state[1 + CLASSES.index(kind)] += self.mark
        return torch.from_numpy(state).float()


def prompts(
    label: str, n: int, marks: Sequence[str], seed: int, source: str | None = None
) -> list[Prompt]:
    """Requests of a label that end in these marks by turns."""
    rng = np.random.default_rng(seed + 1000 * (label == "harmful"))
    found = []
    for i in range(n):
        colour = int(rng.integers(2))
        side = colour if label == "harmful" else 1 - colour
        words = [*rng.choice(FILLERS, 4), COLOURS[colour], *rng.choice(FILLERS, 2), SIDES[side]]
        text = " ".join([*words, *rng.choice(FILLERS, 2)]) + marks[i % len(marks)]
        found.append(Prompt(f"{label}/{seed}/{i}", text, label, source=source))
    return found


def sides(harmful: Sequence[str], harmless: Sequence[str], seed: int, n: int = 60):
    """Harmful and harmless prompts with these final marks."""
    return prompts("harmful", n, harmful, seed), prompts("harmless", n, harmless, seed)


def stub_guard(chat: StubChat, fit, *, calibrated: bool = True, **settings) -> BeliefGuard:
    """A guard whose harm axis was fitted on the stub's states; it has no refusal axis."""
    guard = BeliefGuard(**{"variant": "centred", "match_punctuation": False, **settings})
    guard.chat_, guard.rows_ = chat, [1, 2]
    guard.harm_ = Refit(guard).axis(*fit, guard.anchor)
    guard.refuse_, guard.categories_, guard.calibration_, guard.before_ = None, {}, None, None
    if calibrated:
        marks = [text[-1] if text[-1] in ".?" else "" for text in (p.text for p in fit[1])]
        guard.calibrate(prompts("harmless", 200, marks, 77))
    return guard
