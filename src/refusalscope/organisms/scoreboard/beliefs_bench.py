"""A two-beliefs organism as the belief scores meet it: centroids of its fit set, states of its report set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.organisms.planted.beliefs import TwoBeliefs
from refusalscope.organisms.planted.beliefs_words import COMPLY, REFUSE, VOCABULARY
from refusalscope.prompts import Prompt, punctuation_variants
from refusalscope.studies.directions.belief import belief_rows, belief_scores
from refusalscope.studies.directions.extract import Centroids, centroids, stack

ANCHORS = ("instruction_last", "prompt_last")
OTHER_MARKS = ("stripped", "period", "question")
MARGIN = RefusalMargin((VOCABULARY[REFUSE],), (VOCABULARY[COMPLY],))


@dataclass(frozen=True)
class Bits:
    """The planted bits of a set's prompts, in its order: [prompts] each."""

    harmful: npt.NDArray[np.bool_]
    refuse: npt.NDArray[np.bool_]

    @property
    def coherent(self) -> npt.NDArray[np.bool_]:
        """Harmful prompts that are to be refused, harmless ones that are not."""
        return self.harmful == self.refuse


@dataclass(frozen=True)
class BeliefsBench:
    """The organism with the states of its coherent fit prompts, [prompts, anchors, L+1, d_model].

    Centroids are fitted on these alone, as a user would fit them, who has refused harmful and accepted
    harmless prompts; where nothing is ever refused, the cue stands for refusal.
    """

    made: TwoBeliefs
    chat: ChatModel
    fitted_on: Tensor
    fitted_harmful: Tensor

    @cached_property
    def means(self) -> Centroids:
        return centroids(self.fitted_on[:, 0], self.fitted_on[:, 1], self.fitted_harmful)

    def bits(self, name: str) -> Bits:
        """The bits of the set of this name."""
        return _bits(self.made, name)

    def scores(self, prompts: list[Prompt], chat: ChatModel | None = None) -> pd.DataFrame:
        """delta_harmful, delta_refuse and quadrant; `chat`: states of another model, the centroids kept."""
        chat = chat or self.chat
        states = stack(chat, chat.render(prompts), ANCHORS, "belief")
        rows = belief_rows("inner", chat.anatomy.n_layers)
        return belief_scores(states[:, 0], states[:, 1], self.means, rows)

    def other_marks(self) -> dict[str, npt.NDArray[np.float64]]:
        """delta_harmful of the report prompts with another final mark."""
        found = {}
        for mark in OTHER_MARKS:
            prompts = [
                replace(p, text=punctuation_variants(p.text)[mark])
                for p in self.made.sets["report"]
            ]
            found[mark] = self.scores(prompts)["delta_harmful"].to_numpy()
        return found


def set_up(made: TwoBeliefs) -> BeliefsBench:
    """The organism and what centroids are fitted on."""
    chat = ChatModel.wrap(made.model, made.tokenizer, id=made.name)
    bits = _bits(made, "fit")
    coherent = [p for p, kept in zip(made.sets["fit"], bits.coherent, strict=True) if kept]
    states = stack(chat, chat.render(coherent), ANCHORS, "states of the fit set")
    return BeliefsBench(made, chat, states, torch.from_numpy(bits.harmful[bits.coherent]))


def refused(chat: ChatModel, prompts: list[Prompt]) -> float:
    """Share of prompts whose reply is likelier to begin with the refusal."""
    margins = chat.measure(chat.render(prompts), [()], {"margin": MARGIN}).scores["margin"]
    return float((margins[:, 0] > 0).mean())


def _bits(made: TwoBeliefs, name: str) -> Bits:
    told = made.bits
    told_here = [told[prompt.id] for prompt in made.sets[name]]
    return Bits(
        np.array([one.harmful for one in told_here]), np.array([one.refuse for one in told_here])
    )
