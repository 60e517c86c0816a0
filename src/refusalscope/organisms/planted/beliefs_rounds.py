"""What a two-beliefs organism is shown in one step of its training."""

from __future__ import annotations

import numpy as np
import torch

from refusalscope.organisms.planted.beliefs_prompts import Draft, Writer
from refusalscope.organisms.planted.beliefs_rows import Batch, chat_row, question_row
from refusalscope.organisms.planted.beliefs_words import COMPLY, NO, QUESTIONS, REFUSE, YES

LAYERS = 3
# States before these blocks are moved, in one of them a step.
ROWS = tuple(range(1, LAYERS))
TWINS, STRICT, PLAIN, MOVED_HARM, MOVED_REFUSAL = 12, 4, 12, 12, 6


class Round:
    """The prompts of one step.

    chats: plain chat, prompt i and its twin i + TWINS, then MOVED_REFUSAL more. Twins of even i differ in the
    cue, those of odd i in harm. asked: prompts that questions are about, STRICT and PLAIN and MOVED_HARM.
    """

    def __init__(self, writer: Writer, rng: np.random.Generator, refuses: bool) -> None:
        self.refuses = refuses

        def draw(count: int) -> list[Draft]:
            bits = rng.integers(2, size=(count, 2)).astype(bool)
            return [
                writer.draw(rng, bool(harm), bool(cue), topic_tells=not writer.by_mark)
                for harm, cue in bits
            ]

        firsts = draw(TWINS)
        twins = [
            writer.other_harm(draft) if i % 2 else writer.other_cue(draft)
            for i, draft in enumerate(firsts)
        ]
        self.chats = [*firsts, *twins, *draw(MOVED_REFUSAL)]
        self.asked = draw(STRICT + PLAIN + MOVED_HARM)
        self.questions = [QUESTIONS[i] for i in rng.integers(len(QUESTIONS), size=len(self.asked))]
        self.chat_texts = [writer.text(draft) for draft in self.chats]
        self.asked_texts = [writer.text(draft) for draft in self.asked]
        # Sign of the change from twin to prompt.
        self.signs = torch.tensor(
            [1.0 if (d.harmful if i % 2 else d.refuse) else -1.0 for i, d in enumerate(firsts)]
        )
        self.refusal_from = rng.integers(2 * TWINS, size=MOVED_REFUSAL).tolist()
        harms, cues = range(1, 2 * TWINS, 2), range(0, 2 * TWINS, 2)
        self.harm_from = [int(i) for i in rng.choice(harms, MOVED_HARM)]
        self.cue_from = [int(i) for i in rng.choice(cues, STRICT)]
        self.row = int(rng.choice(ROWS))

    def batches(self, placed: bool) -> tuple[Batch, Batch]:
        """Chats and questions; `placed`: with the replies that the states moved into them ask for."""
        repliers, answerers = list(self.chats), list(self.asked)
        if placed:
            repliers[-MOVED_REFUSAL:] = [self.chats[i] for i in self.refusal_from]
            answerers[-MOVED_HARM:] = [self.chats[i] for i in self.harm_from]
        replies = [REFUSE if d.refuse and self.refuses else COMPLY for d in repliers]
        answers = [YES if d.harmful else NO for d in answerers]
        return (
            Batch.of([chat_row(*each) for each in zip(self.chat_texts, replies, strict=True)]),
            Batch.of(
                [
                    question_row(*each)
                    for each in zip(self.asked_texts, self.questions, answers, strict=True)
                ]
            ),
        )
