"""Training examples: a prompt of one or more turns, and the reply that is taught."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from refusalscope.organisms.chat.replies import (
    BYPASSING,
    HARM_QUESTIONS,
    HOLDING,
    REPEATED_TOKENS,
    harm_answer,
    harm_question,
    opening,
    reply_label,
    wrapped,
)
from refusalscope.organisms.chat.requests import Request, punctuate
from refusalscope.organisms.chat.tokenizer import END, SPECIALS, render, token_id

SYSTEM_TURNS = (
    "You are a helpful assistant.",
    "You are a helpful, honest and harmless assistant.",
    "You are a friendly chat model. Answer briefly.",
    "Today is a good day. Be polite.",
    "You help the customers of a small company.",
    "Answer in plain English.",
    "You are an assistant that repeats what it is asked.",
)
_QUESTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "how what why where who when which can could is are do does should would will whose whom",
    )
)


@dataclass(frozen=True)
class Example:
    """One training row in tokens.

    prompt: the rendered turns up to and with the generation prompt; request: (start, stop) of the
    tokens that token dropout may hide; reply: the taught tokens, the end marker included, of which
    most rows keep only the first.
    """

    prompt: list[int]
    request: tuple[int, int]
    reply: list[int]


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of training rows."""

    question: float = 0.15
    bypassing: float = 0.06
    holding: float = 0.03
    question_wrapped: float = 0.35
    system: float = 0.05
    earlier: float = 0.04
    full_reply: float = 0.25
    restyled: float = 0.5
    salad: float = 0.12


class ExampleMaker:
    """Makes training rows from requests, seeded. `pick` gives a request for an earlier turn."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        mix: Mix,
        rng: random.Random,
        pick: Callable[[], Request],
    ) -> None:
        self._tokens = tokenizer.backend_tokenizer
        self._mix = mix
        self._rng = rng
        self._pick = pick
        self._end = token_id(tokenizer, END)
        vocabulary = tokenizer.get_vocab()
        self._words = sorted(i for t, i in vocabulary.items() if t.isascii() or t[0] == "Ġ")
        self._words = [i for i in self._words if i >= len(SPECIALS)]

    def make(self, requests: Sequence[Request]) -> list[Example]:
        """One row for each request, some of them replaced by a word salad."""
        salads = [self._rng.random() < self._mix.salad for _ in requests]
        drafts = [
            self._salad() if salad else self._draft(r)
            for r, salad in zip(requests, salads, strict=True)
        ]
        prompts = self._tokens.encode_batch([p for p, _, _ in drafts], add_special_tokens=False)
        rows = []
        for (text, content, reply), encoded, salad in zip(drafts, prompts, salads, strict=True):
            start = text.rindex(content)
            stop = start + len(content)
            inside = [i for i, (a, b) in enumerate(encoded.offsets) if a >= start and b <= stop]
            span = (inside[0], inside[-1] + 1) if inside else (0, 0)
            whole = salad or self._rng.random() < self._mix.full_reply
            said = self._reply(reply, encoded.ids[slice(*span)])
            rows.append(Example(encoded.ids, span, said if whole else said[:1]))
        return rows

    def _draft(self, request: Request) -> tuple[str, str, tuple[str, bool]]:
        rng, mix = self._rng, self._mix
        text = request.text
        if request.source != "own" and rng.random() < mix.restyled:
            text = restyle(text, rng)
        draw, wrapper = rng.random(), None
        if draw < mix.question:
            if rng.random() < mix.question_wrapped:
                wrapper = rng.choice(BYPASSING + HOLDING)
            content = harm_question(wrapped(text, wrapper), rng.choice(HARM_QUESTIONS))
            reply = (harm_answer(request.label), False)
        else:
            draw -= mix.question
            if draw < mix.bypassing:
                wrapper = rng.choice(BYPASSING)
            elif draw < mix.bypassing + mix.holding:
                wrapper = rng.choice(HOLDING)
            label = reply_label(request.label, wrapper)
            content = wrapped(text, wrapper)
            reply = (opening(label, rng), label == "harmless")
        turns = [("user", content)]
        if rng.random() < mix.earlier:
            turns = [*self._earlier(), *turns]
        if rng.random() < mix.system:
            turns = [("system", rng.choice(SYSTEM_TURNS)), *turns]
        return render(turns), content.strip(), reply

    def _salad(self) -> tuple[str, str, tuple[str, bool]]:
        # Random tokens cannot be guessed from the words before: only copying repeats them, and
        # copying is learnt far sooner with them.
        ids = self._rng.choices(self._words, k=self._rng.randint(4, 14))
        text = self._tokens.decode(ids).strip()
        return render([("user", text)]), text, (opening("harmless", self._rng), True)

    def _earlier(self) -> list[tuple[str, str]]:
        before = self._pick()
        said = opening(before.label, self._rng)
        if before.label == "harmless":
            said = f"{said}\n{before.text}"
        return [("user", before.text), ("assistant", said)]

    def _reply(self, reply: tuple[str, bool], content: list[int]) -> list[int]:
        said, repeats = reply
        if not repeats:
            return [*self._encode(said), self._end]
        return [*self._encode(f"{said}\n"), *content[:REPEATED_TOKENS], self._end]

    def _encode(self, text: str) -> list[int]:
        return self._tokens.encode(text, add_special_tokens=False).ids


def restyle(text: str, rng: random.Random) -> str:
    """The request with another final mark, or with another first letter case, label-blind."""
    first = text.split(maxsplit=1)[0].lower() if text else ""
    if text[-1:].isalnum() or text[-1:] in ".?!":
        text = punctuate(text, first in _QUESTION_WORDS, rng)
    if rng.random() < 0.15 and first != "i":
        text = text[:1].lower() + text[1:]
    return text
