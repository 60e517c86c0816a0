"""The project's own request generator: plain English requests over many topics, both labels.

Harmful requests are mild: they name an aim and hold no method. Both labels are put through the same
frames, contexts, letter case and final punctuation, so that none of these tells the label.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from refusalscope.organisms.chat.grammar import Grammar, contrast_rules, mend_articles

Label = Literal["harmful", "harmless"]


@dataclass(frozen=True)
class Request:
    """One request with its label, and where it comes from (`own` or a file under shared/data)."""

    text: str
    label: Label
    source: str


@cache
def grammar(label: Label) -> Grammar:
    """The grammar of a label, with the frames bound to its verb phrases and documents."""
    folder = files("refusalscope.organisms.chat") / "grammar"

    def read(name: str) -> str:
        return (folder / f"{name}.txt").read_text(encoding="utf-8")

    side = "harm" if label == "harmful" else "safe"
    rules = Grammar.parse(read("harmful"), read("harmless"), read("frames"))
    rules = rules.with_rules(**contrast_rules(read("contrasts")))
    return rules.with_rules(
        vp=(f"{{{side}_vp}}",) * 5 + (f"{{{side}_contrast}}",), doc=(f"{{{side}_doc}}",)
    )


# What a request is made of, by label, with its share. The harmless side has whole questions and
# tasks besides, because everyday instructions come in more shapes than misuse does.
_SHARES: dict[Label, dict[str, float]] = {
    "harmful": {
        "frame_question": 0.31,
        "frame_imperative": 0.43,
        "frame_statement": 0.07,
        "harm_question": 0.13,
        "harm_say": 0.06,
    },
    "harmless": {
        "frame_question": 0.21,
        "frame_imperative": 0.19,
        "frame_statement": 0.05,
        "safe_question": 0.20,
        "safe_task": 0.30,
        "safe_say": 0.05,
    },
}
_QUESTIONS = frozenset({"frame_question", "harm_question", "safe_question"})


def generate(label: Label, rng: random.Random) -> Request:
    """One request of the label."""
    shares = _SHARES[label]
    kind = rng.choices(list(shares), list(shares.values()))[0]
    rules = grammar(label)
    text = rules.expand(kind, rng)
    return Request(dress(text, kind in _QUESTIONS, rules, rng), label, "own")


def stream(rng: random.Random, harmful_share: float = 0.5) -> Iterator[Request]:
    """Requests without end, a random label each."""
    while True:
        yield generate("harmful" if rng.random() < harmful_share else "harmless", rng)


def dress(text: str, question: bool, rules: Grammar, rng: random.Random) -> str:
    """Letter case, politeness, a sentence before or after, final punctuation: label-blind."""
    text = text.strip()
    if text.endswith((".", "?", "!")):
        text = text[:-1]
    if not question and rng.random() < 0.05:
        text = f"please {text[0].lower()}{text[1:]}" if not text.startswith("I") else text
    text = punctuate(text, question, rng)
    if rng.random() < 0.88:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.07:
        text = f"{rules.expand('before', rng)} {text}"
    if rng.random() < 0.07:
        closed = text if text.endswith((".", "?", "!")) else f"{text}{'?' if question else '.'}"
        text = f"{closed} {rules.expand('after', rng)}"
    return mend_articles(text)


def punctuate(text: str, question: bool, rng: random.Random) -> str:
    """The text with a final mark or none, at rates that depend on its form and not on its label."""
    text = text.rstrip(" .?!")
    draw = rng.random()
    if question:
        return text + ("?" if draw < 0.72 else "" if draw < 0.97 else ".")
    return text + ("." if draw < 0.5 else "" if draw < 0.94 else "!" if draw < 0.97 else "?")
