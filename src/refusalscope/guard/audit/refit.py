"""The harm axis fitted again: on fewer sources, or at another token, and scored as the guard scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refusalscope.guard.belief_guard import Anchor, BeliefGuard
from refusalscope.guard.heads import Head
from refusalscope.guard.matching import match_marks
from refusalscope.guard.reading import read, user_turns
from refusalscope.progress import Progress
from refusalscope.prompts import Prompt

Array = npt.NDArray[np.float64]


class Refit:
    """Harm axes by the guard's own settings. States are remembered, so that a prompt is read once an anchor.

    The refusal axis is left alone: it needs replies, and harm is scored without it.
    """

    def __init__(self, guard: BeliefGuard, progress: Progress | None = None) -> None:
        self.guard = guard
        self.progress = progress
        self.known: dict[tuple[Anchor, Prompt], Tensor] = {}

    def axis(self, harmful: Sequence[Prompt], harmless: Sequence[Prompt], anchor: Anchor) -> Head:
        """The axis that the guard would have learnt from these prompts at this anchor."""
        guard = self.guard
        if guard.match_punctuation:
            harmful, harmless, _ = match_marks(harmful, harmless, guard.seed)
        return Head.fit(guard.variant, self.states(harmful, anchor), self.states(harmless, anchor))

    def scores(self, axis: Head, prompts: Sequence[Prompt], anchor: Anchor) -> Array:
        """Score of each prompt: [prompts]; of a conversation, that of its most harmful user turn."""
        turns = [user_turns(prompt) for prompt in prompts]
        found = axis.score(self.states([turn for each in turns for turn in each], anchor))
        starts = np.cumsum([0, *map(len, turns[:-1])])
        return np.maximum.reduceat(found.double().numpy(), starts)

    def states(self, prompts: Sequence[Prompt], anchor: Anchor) -> Tensor:
        """States at the anchor: [prompts, rows, d_model] float32."""
        new = [p for p in dict.fromkeys(prompts) if (anchor, p) not in self.known]
        chat = self.guard.chat_
        if new:
            blocks = read(chat, chat.render(new), [anchor], self.guard.rows_, self.progress)
            for prompt, state in zip(new, torch.cat(list(blocks))[:, 0], strict=True):
                self.known[anchor, prompt] = state
        return torch.stack([self.known[anchor, prompt] for prompt in prompts])
