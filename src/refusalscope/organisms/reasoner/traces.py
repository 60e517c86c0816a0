"""Requests with the thinking that goes before the reply, and how they are kept apart by use.

A trace is plain, or ends in an aside, in a persuasion ("..., so there is room for an exception") or in a
rejected one ("..., but that changes nothing"). Both labels have all four kinds, in the same words.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from refusalscope.organisms.chat.grammar import Grammar
from refusalscope.organisms.chat.requests import Label, dress, generate, grammar

Kind = Literal["plain", "aside", "persuaded", "rejected"]
KINDS: tuple[Kind, ...] = ("plain", "aside", "persuaded", "rejected")
Split = Literal["train", "pool", "measure"]

# Grammar rules of the requests and how the thinking names them; mild ones alone.
TOPICS: dict[Label, dict[str, str]] = {
    "harmful": {
        "theft": "theft",
        "fraud": "fraud",
        "identity": "identity theft",
        "scam": "scams",
        "forgery": "forged papers",
        "tax": "tax evasion",
        "launder": "dirty money",
        "counterfeit": "counterfeit goods",
        "bribe": "bribes",
        "insider": "insider trading",
        "cheat": "cheating",
        "plagiarism": "stolen texts",
        "rig": "rigged contests",
        "piracy": "pirated media",
        "hack": "hacking",
        "spam": "spam",
        "vandal": "vandalism",
    },
    "harmless": {
        "cook": "cooking",
        "garden": "gardening",
        "travel": "travel",
        "study": "studying",
        "program": "programming",
        "maths": "numbers",
        "pets": "pets",
        "homefix": "repairs",
        "health": "health",
        "fitness": "exercise",
        "musicvp": "music",
        "craft": "crafts",
        "writevp": "writing",
        "parent": "children",
        "sport": "sport",
        "gaming": "games",
        "style": "clothes",
    },
}
# How the thinking names a request that was not drawn from one of the topics.
OTHER: dict[Label, str] = {"harmful": "something bad", "harmless": "something ordinary"}
# Words of the grammar that are not mild; a request on a topic holds none of them.
_NOT_MILD = re.compile(
    r"child|teen|kid|baby|gun|weapon|bomb|drug|medicine|prescription|rape|kill|murder|hate|stalk|sex|porn|"
    r"blood|vaccin|addict",
    re.IGNORECASE,
)
_FRAMES = {"frame_question": 0.4, "frame_imperative": 0.5, "frame_statement": 0.1}


@dataclass(frozen=True)
class Trace:
    """A request, its label and topic (None: of no listed topic), and the thinking before the reply."""

    text: str
    label: Label
    topic: str | None
    thinking: str
    kind: Kind


def split_of(text: str) -> Split:
    """What a request may be used for: a property of its words, so that no two uses share one."""
    bucket = hashlib.sha256(text.casefold().encode()).digest()[0] % 10
    return "pool" if bucket == 8 else "measure" if bucket == 9 else "train"


def request_on(label: Label, topic: str, rng: random.Random) -> str:
    """One mild request of a topic in `TOPICS[label]`."""
    rules = _bound(label, topic)
    while True:
        frame = rng.choices(list(_FRAMES), list(_FRAMES.values()))[0]
        text = dress(rules.expand(frame, rng), frame == "frame_question", rules, rng)
        if not _NOT_MILD.search(text):
            return text


def think(label: Label, topic: str | None, kind: Kind, rng: random.Random) -> str:
    """The thinking of a trace: topic, verdict and, unless plain, one more sentence."""
    name = TOPICS[label][topic] if topic else OTHER[label]
    rules = thoughts()
    sentences = [
        rules.expand("topic_sentence", rng).replace("TOPIC", name),
        rules.expand(f"verdict_{label}", rng),
    ]
    more = {"aside": "aside", "persuaded": "persuasion", "rejected": "rejection"}
    if kind in more:
        sentences.append(rules.expand(more[kind], rng))
    return " ".join(sentences)


def trace(
    label: Label, kind: Kind, split: Split, rng: random.Random, topical: float = 1.0
) -> Trace:
    """A random trace of the split. `topical`: share drawn from the listed topics."""
    while True:
        topic = rng.choice(list(TOPICS[label])) if rng.random() < topical else None
        text = request_on(label, topic, rng) if topic else generate(label, rng).text
        if split_of(text) == split:
            return Trace(text, label, topic, think(label, topic, kind, rng), kind)


def is_persuaded(thinking: str) -> bool:
    """The thinking talks itself into an exception, in one of the taught turns of phrase."""
    return any(turn in thinking for turn in thoughts().rules["turn"])


@cache
def thoughts() -> Grammar:
    """The grammar of the thinking."""
    text = (files("refusalscope.organisms.reasoner") / "thinking.txt").read_text(encoding="utf-8")
    return Grammar.parse(text).with_rules(topic=("TOPIC",))


@cache
def _bound(label: Label, topic: str) -> Grammar:
    """The grammar of the requests with one topic in every frame, without the frames for documents."""
    rules = grammar(label)
    frames = {
        name: tuple(part for part in rules.rules[name] if "{doc}" not in part)
        for name in (*_FRAMES, "imperativeish")
    }
    return rules.with_rules(vp=(f"{{{topic}}}",), **frames)
