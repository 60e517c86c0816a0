"""What the parts of the belief study share: the run with its centroids, belief of prompts, intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import ChatModel, Rendered
from refusalscope.progress import Progress
from refusalscope.runs import Run
from refusalscope.stats import (
    Interval,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_rates,
    wilson,
)
from refusalscope.studies.directions.belief import belief_rows, belief_scores
from refusalscope.studies.directions.belief_settings import BeliefSettings
from refusalscope.studies.directions.extract import Centroids, stack
from refusalscope.studies.subject import Subject, stage

# t_inst and t_post of the paper.
ENDS = ("instruction_last", "prompt_last")
AXES = ("delta_harmful", "delta_refuse")
# Prompts whose states are held at once.
AT_ONCE = 64


@dataclass(frozen=True)
class Work:
    """A run, its subject, and the centroids of the fit split that everything is measured by."""

    run: Run
    subject: Subject
    settings: BeliefSettings
    means: Centroids
    progress: Progress

    @property
    def chat(self) -> ChatModel:
        return self.subject.chat

    @property
    def rows(self) -> list[int]:
        """Rows that belief averages."""
        return belief_rows(self.settings.rows, self.chat.anatomy.n_layers)

    @property
    def report(self) -> list[int]:
        """The prompts of which everything is said."""
        return self.subject.pick("report")

    def stage(self, table: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return stage(self.run, self.chat, table, make)

    def interval(self, values: npt.ArrayLike, categories: Sequence[str | None]) -> Interval:
        """Mean with its bootstrap interval, over categories where there are several."""
        return mean_interval(
            values,
            by_category(categories),
            n_resamples=self.settings.n_resamples,
            seed=self.settings.seed,
        )


def by_category(categories: Sequence[str | None]) -> list[str | None] | None:
    """Clusters of a bootstrap: prompts of one category are not independent. None where they name too few."""
    names = list(categories)
    return names if len(set(names)) > 2 and None not in names else None


def estimate(work: Work, values: npt.NDArray[Any], categories: Sequence[str | None]) -> Interval:
    """Share of true values with Wilson's interval; mean of numbers with the bootstrap's."""
    if values.dtype == bool:
        return wilson(int(values.sum()), len(values))
    return work.interval(values, categories)


def change_columns(
    work: Work,
    after: npt.NDArray[Any],
    before: npt.NDArray[Any],
    categories: Sequence[str | None],
) -> dict[str, float]:
    """`change` of the same prompts, its bounds and p: Newcombe and McNemar of shares, else bootstrap, flips."""
    if after.dtype == bool:
        rate = paired_rates(after, before)
        value, low, high, p = rate.value, rate.low, rate.high, mcnemar(after, before).p
    else:
        found = paired_difference(
            after,
            before,
            by_category(categories),
            n_resamples=work.settings.n_resamples,
            seed=work.settings.seed,
        )
        value, low, high, p = found.value, found.low, found.high, found.p
    return {"change": value, "change_low": low, "change_high": high, "p": p}


def in_parts(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    anchors: Sequence[str],
    label: str,
    progress: Progress,
) -> Iterator[Tensor]:
    """States of all rows, some prompts at a time: [part, anchors, L+1, d_model] float32."""
    track = progress.track(label)
    for start in range(0, len(prompts), AT_ONCE):
        yield stack(chat, prompts[start : start + AT_ONCE], anchors, label)
        track(min(start + AT_ONCE, len(prompts)), len(prompts))


def fit_centroids(
    chat: ChatModel,
    harmful: Sequence[Rendered],
    harmless: Sequence[Rendered],
    progress: Progress,
) -> Centroids:
    """Class means at both ends, of harmful refused and harmless accepted prompts (section 3.2)."""
    means = []
    for prompts, name in ((harmful, "refused harmful"), (harmless, "accepted harmless")):
        total = torch.zeros((), dtype=torch.float64)
        for states in in_parts(chat, prompts, ENDS, f"centroid of {name} prompts", progress):
            total = total + states.double().sum(0)
        means.append((total / len(prompts)).float())
    (harm, refuse), (harmless_mean, accept) = means
    return Centroids(harm, harmless_mean, refuse, accept)


def believe(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    means: Centroids,
    rows: list[int],
    label: str,
    progress: Progress,
) -> pd.DataFrame:
    """delta_harmful, delta_refuse and quadrant of each prompt (Eq. 3 and 4), in order."""
    frames = [
        belief_scores(states[:, 0], states[:, 1], means, rows)
        for states in in_parts(chat, prompts, ENDS, label, progress)
    ]
    return pd.concat(frames, ignore_index=True)


def band_rows(
    band: tuple[int, int] | None, shares: tuple[float, float], n_layers: int
) -> list[int]:
    """Rows from the first to the last of a band, or at its shares of the depth, within 1..L-1.

    A band that lies beyond the model's layers gives the rows at its shares, like none.
    """
    inner = range(1, max(2, n_layers))
    named = [row for row in inner if band is not None and band[0] <= row <= band[1]]
    first, last = (min(max(round(share * n_layers), 1), inner[-1]) for share in shares)
    return named or list(range(first, last + 1))


def sample(rows: Sequence[int], most: int, seed: int) -> list[int]:
    """At most `most` of the rows, drawn by the seed, in their order."""
    drawn = np.random.default_rng(seed).permutation(np.asarray(rows, dtype=int))[:most]
    return sorted(drawn.tolist())
