"""What every stage of the study works with: the patient, its dictionaries, the direction and the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from refusalscope.dictionary import Dictionary, DictionarySlice
from refusalscope.model import ChatModel, RefusalMargin, Rendered
from refusalscope.progress import Progress
from refusalscope.runs import Run
from refusalscope.stats.interval import Clusters
from refusalscope.studies.features.ablation import Latent, by_layer
from refusalscope.studies.features.settings import FeaturesSettings
from refusalscope.studies.features.writes import Write, WriteTrial
from refusalscope.studies.heads import clusters_of
from refusalscope.studies.subject import Subject, stage

# Dictionaries up to this size together are read into memory once.
HOLD_BYTES = 2**31


@dataclass(frozen=True)
class Direction:
    """A refusal direction: [d_model], as long as the mean difference, at the input of block `layer`.

    execution, recognition: mean differences there at the prompt's end, where refusal is decided, and at the
    instruction's, where harm is known and nothing is refused yet; [d_model] each.
    """

    vector: Tensor
    layer: int
    anchor: str
    execution: Tensor
    recognition: Tensor


@dataclass(frozen=True)
class Work:
    """A run, its patient and what is asked of it.

    refused, answered: rows of `subject.table` in the select split, harmful prompts that are refused by reply
    and margin, and harmless ones that are answered. unseen, unseen_harmless: the same of the report split.
    """

    run: Run
    subject: Subject
    margin: RefusalMargin
    dictionaries: Mapping[int, Dictionary]
    direction: Direction
    settings: FeaturesSettings
    progress: Progress
    refused: tuple[int, ...]
    answered: tuple[int, ...]
    unseen: tuple[int, ...]
    unseen_harmless: tuple[int, ...]

    @property
    def chat(self) -> ChatModel:
        return self.subject.chat

    def stage(self, table: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table, made and written where the run does not hold it yet."""
        return stage(self.run, self.chat, table, make)

    def prompts(self, rows: Sequence[int]) -> list[Rendered]:
        return self.subject.take(rows)

    def clusters(self, rows: Sequence[int]) -> Clusters:
        """Categories of the prompts, where there are enough of them to be resampled as clusters."""
        names = [self.subject.prompts[i].category for i in rows]
        return None if None in names else clusters_of([str(name) for name in names])

    def slices(self, latents: Sequence[Latent]) -> dict[int, DictionarySlice]:
        return {k: self.dictionaries[k].slice(sorted(v)) for k, v in by_layer(latents).items()}

    def trial(
        self, rows: Sequence[int], candidates: Sequence[Write], share: float = 1.0
    ) -> WriteTrial:
        return WriteTrial(
            self.chat,
            self.prompts(rows),
            candidates,
            self.slices([latent for write in candidates for latent in write]),
            self.margin,
            positions=self.settings.positions,
            share=share,
        )


def pose(
    run: Run,
    subject: Subject,
    margin: RefusalMargin,
    dictionaries: Mapping[int, Dictionary],
    direction: Direction,
    settings: FeaturesSettings,
    progress: Progress,
) -> Work:
    """Draw the prompts of every stage by the seed, and hold dictionaries in memory where they are small."""
    size = sum(8 * each.d_in * each.d_sae for each in dictionaries.values())
    if size <= HOLD_BYTES:
        dictionaries = {k: each.hold(subject.chat.device) for k, each in dictionaries.items()}
    rng = np.random.default_rng(settings.seed)
    table = subject.table

    def draw(split: str, label: str, most: int) -> tuple[int, ...]:
        rows = subject.pick(split, label)
        wanted = label == "harmful"
        agrees = [
            i
            for i in rows
            if bool(table["refused"].iloc[i]) == wanted
            and (table["refusal_margin"].iloc[i] > 0) == wanted
        ]
        return tuple(sorted(int(i) for i in rng.permutation(agrees)[:most]))

    return Work(
        *(run, subject, margin, dictionaries, direction, settings, progress),
        refused=draw("select", "harmful", settings.n_search),
        answered=draw("select", "harmless", settings.n_search),
        unseen=draw("report", "harmful", settings.n_report),
        unseen_harmless=draw("report", "harmless", settings.n_report),
    )
