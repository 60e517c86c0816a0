"""What every stage of the study works with, and how it keeps what it made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.progress import Progress
from refusalscope.runs import Run
from refusalscope.studies.heads import WHOLE, Head, Unit
from refusalscope.studies.routing.problem import Problem
from refusalscope.studies.routing.settings import RoutingSettings
from refusalscope.studies.subject import Subject, stage


@dataclass(frozen=True)
class Work:
    """A run, its patient with the problem posed, the units that are screened, and the settings."""

    run: Run
    subject: Subject
    problem: Problem
    settings: RoutingSettings
    units: tuple[Unit, ...]
    progress: Progress

    @property
    def chat(self) -> ChatModel:
        return self.subject.chat

    @property
    def margin(self) -> RefusalMargin:
        return self.problem.margin

    def stage(self, table: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table, made and written where the run does not hold it yet."""
        return stage(self.run, self.chat, table, make)

    def bystanders(self, head: Head, known: Sequence[Head]) -> list[Head]:
        """Heads of like depth (a layer up or down) that are not in the circuit, drawn by the seed."""
        near = [
            unit[0]
            for unit in self.units
            if abs(unit[0][0] - head[0]) <= 1
            and unit[0][0] < self.chat.anatomy.n_layers - 1
            and unit[0][1] != WHOLE
            and unit[0] != head
            and unit[0] not in known
        ]
        order = np.random.default_rng(self.settings.seed).permutation(len(near))
        return [near[i] for i in order[: self.settings.null_heads]]
