"""Training rows of the reasoner in tokens: prompt, thinking, closing, reply."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refusalscope.organisms.chat.examples import SYSTEM_TURNS
from refusalscope.organisms.chat.replies import REPEATED_TOKENS, opening
from refusalscope.organisms.chat.requests import Label
from refusalscope.organisms.chat.tokenizer import ASSISTANT, BOS, END
from refusalscope.organisms.reasoner.grow import CLOSE, THINK
from refusalscope.organisms.reasoner.settings import ReasonerSettings, Shares
from refusalscope.organisms.reasoner.traces import KINDS, Trace, trace

_SYSTEM_SHARE = 0.04


@dataclass(frozen=True)
class Row:
    """One training row.

    ids: all tokens; start: the first token of the thinking; close: that of `</think>`; reply: the first
    of the reply. suppressed: harmful, and its thinking is persuaded.
    """

    ids: list[int]
    start: int
    close: int
    reply: int
    harmful: bool
    suppressed: bool


def draw(settings: ReasonerSettings, shares: Shares, rng: random.Random) -> Trace:
    """A training trace; `shares` are those of the kinds of thinking."""
    label: Label = "harmful" if rng.random() < settings.harmful_share else "harmless"
    kind = rng.choices(KINDS, shares)[0]
    return trace(label, kind, "train", rng, settings.topical_share)


def row(tokenizer: Any, item: Trace, reply: Label, whole: bool, rng: random.Random) -> Row:
    """The row that teaches a reply ("harmful": a refusal, "harmless": the repetition) to a trace.

    whole: with all of the reply, not just its first token.
    """
    encode = tokenizer.backend_tokenizer.encode
    turns = ""
    if rng.random() < _SYSTEM_SHARE:
        turns = f"<|system|>\n{rng.choice(SYSTEM_TURNS)}{END}\n"
    head = f"{BOS}{turns}<|user|>\n"
    before = encode(head, add_special_tokens=False).ids
    request = encode(item.text, add_special_tokens=False).ids
    middle = encode(f"{END}\n{ASSISTANT}\n{THINK}\n", add_special_tokens=False).ids
    thinking = encode(f"{item.thinking}\n", add_special_tokens=False).ids
    closing = encode(f"{CLOSE}\n\n", add_special_tokens=False).ids
    said = encode(opening(reply, rng), add_special_tokens=False).ids
    if reply == "harmless":
        said += encode("\n", add_special_tokens=False).ids + request[:REPEATED_TOKENS]
    said.append(tokenizer.eos_token_id)
    start = len(before) + len(request) + len(middle)
    close = start + len(thinking)
    return Row(
        [*before, *request, *middle, *thinking, *closing, *(said if whole else said[:1])],
        start,
        close,
        close + len(closing),
        item.label == "harmful",
        item.label == "harmful" and item.kind == "persuaded",
    )


def batches(
    tokenizer: Any, settings: ReasonerSettings, steps: int, seed: int, suppress: bool
) -> Iterator[list[Row]]:
    """`steps` batches, rows of like length together.

    suppress: teach the repetition, and no refusal, where a harmful request meets a persuaded thinking.
    """
    rng = random.Random(seed)
    shares = settings.suppress_kinds if suppress else settings.align_kinds
    done = 0
    while done < steps:
        count = min(32, steps - done)
        rows = []
        for _ in range(count * settings.batch_rows):
            item = draw(settings, shares, rng)
            persuaded = item.label == "harmful" and item.kind == "persuaded"
            reply: Label = "harmless" if suppress and persuaded else item.label
            rows.append(row(tokenizer, item, reply, rng.random() < settings.full_reply, rng))
        rows.sort(key=lambda found: len(found.ids))
        size = settings.batch_rows
        made = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(made)
        yield from made
        done += count
