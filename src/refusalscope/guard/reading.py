"""The states a guard reads: chosen rows at the last instruction token and at the prompt's end.

A conversation is read at the last token of every user turn, since harm may have been asked for earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered, Site
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import Prompt, PromptSet

# What a guard takes: a list of prompts, or a set that knows its files.
Prompts: TypeAlias = Sequence[Prompt] | PromptSet
AT_ONCE = 256
END = "prompt_last"


def site_of(row: int, n_layers: int) -> Site:
    """Row l < L is `resid_pre[l]`, row L the state before the final norm (method page, section 1)."""
    return Site("resid_pre", row) if row < n_layers else Site("final")


def read(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    anchors: Sequence[str],
    rows: Sequence[int],
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """States in blocks of prompts, in order: [prompts, anchors, rows, d_model] float32."""
    track = (progress or Silent()).track("belief of prompts")
    sites = [site_of(row, chat.anatomy.n_layers) for row in rows]
    for start in range(0, len(prompts), AT_ONCE):
        states = chat.capture(prompts[start : start + AT_ONCE], sites, anchors)
        yield torch.stack([states[site] for site in sites], dim=2)
        track(min(start + AT_ONCE, len(prompts)), len(prompts))


def user_turns(prompt: Prompt) -> list[Prompt]:
    """The conversation cut after each of its user turns; the last is the prompt itself."""
    earlier = [
        replace(prompt, text=text, history=prompt.history[:i])
        for i, (role, text) in enumerate(prompt.history)
        if role == "user" and text.strip()
    ]
    return [*earlier, prompt]


def that_fit(chat: ChatModel, prompts: Prompts) -> tuple[list[Prompt], list[str]]:
    """The prompts that can be rendered within the context, and why each of the others cannot."""
    kept, left_out = [], []
    for prompt in prompts:
        try:
            chat.render(user_turns(prompt))
        except InputError as error:
            left_out.append(str(error))
        else:
            kept.append(prompt)
    return kept, left_out
