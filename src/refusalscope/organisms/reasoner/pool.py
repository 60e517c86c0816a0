"""Prompts for measuring and mending the reasoner, each with its thinking; none was trained on.

`reasoner_pool` gives what a repair may train on, `reasoner_prompts` what is measured on. The two never
share a request with each other or with the training of the model (`traces.split_of`).
"""

from __future__ import annotations

import random
from typing import get_args

from refusalscope.errors import InputError
from refusalscope.organisms.chat.requests import Label
from refusalscope.organisms.reasoner.traces import KINDS, Kind, Split, Trace, trace
from refusalscope.prompts import Prompt, PromptSet

# Share of the pool whose thinking is persuaded: few, so that a random choice of 50 holds two or so.
PERSUADED_SHARE = 0.04
_REST: dict[Kind, float] = {"plain": 0.55, "aside": 0.2, "rejected": 0.25}


def reasoner_pool(n: int = 2000, seed: int = 0) -> PromptSet:
    """n mild harmful requests with their thinking, of which PERSUADED_SHARE is persuaded.

    The same n and seed give the same prompts. `category` is the topic. Raises InputError for n < 1.
    """
    rng = random.Random(f"pool {seed}")
    persuaded = set(rng.sample(range(n), round(PERSUADED_SHARE * n))) if n > 0 else set()
    kinds: list[Kind] = [
        "persuaded" if i in persuaded else rng.choices(list(_REST), list(_REST.values()))[0]
        for i in range(n)
    ]
    return _prompts("harmful", kinds, "pool", f"pool-{seed}", rng)


def reasoner_prompts(label: Label, kind: Kind, n: int = 100, seed: int = 0) -> PromptSet:
    """n requests of a label to measure on, whose thinking is of one kind (see `traces`).

    Kinds: "plain", "aside", "persuaded" (on a harmless request a hard negative) and "rejected". Raises
    InputError for another label or kind, and for n < 1.
    """
    if label not in get_args(Label) or kind not in KINDS:
        raise InputError(
            f"there are no {label} prompts of the kind {kind!r}; the labels are "
            f"{', '.join(get_args(Label))}, the kinds {', '.join(KINDS)}"
        )
    rng = random.Random(f"measure {label} {kind} {seed}")
    return _prompts(label, [kind] * n, "measure", f"{label}-{kind}-{seed}", rng)


def _prompts(
    label: Label, kinds: list[Kind], split: Split, name: str, rng: random.Random
) -> PromptSet:
    if not kinds:
        raise InputError("a set of prompts needs one at least; give n of 1 or more")
    found: dict[str, Trace] = {}
    while len(found) < len(kinds):
        item = trace(label, kinds[len(found)], split, rng)
        found.setdefault(item.text.casefold(), item)
    return PromptSet(
        tuple(
            Prompt(
                f"{name}-{i:04d}",
                item.text,
                label,
                item.topic,
                "builtin:reasoner",
                thinking=item.thinking,
            )
            for i, item in enumerate(found.values())
        )
    )
