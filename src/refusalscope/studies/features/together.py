"""Stage 3 of the study: which latents act together, by random masks and by the exact two by two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.studies.features.ablation import Latent
from refusalscope.studies.features.interactions import (
    Moments,
    Pair,
    corner_sets,
    pair_moments,
    random_masks,
    two_by_two,
)
from refusalscope.studies.features.work import Work
from refusalscope.studies.features.writes import WriteTrial

COLUMNS = [
    *("set_id", "layer_a", "latent_a", "layer_b", "latent_b", "held", "moment", "moment_low"),
    *("moment_high", "effect", "low", "high", "alone_a", "alone_b", "both", "n", "kind"),
]
NOTHING, REST = "nothing", "the rest of the set"


@dataclass(frozen=True)
class Masked:
    """Runs under random masks. names: the writes, by their strongest latents; prompts: of each run.

    masks: [runs, writes]; change: [runs], in nats.
    """

    names: tuple[Latent, ...]
    masks: npt.NDArray[np.bool_]
    change: npt.NDArray[np.float64]
    prompts: npt.NDArray[np.intp]

    def moments(self, seed: int) -> Moments:
        return pair_moments(self.masks, self.change, self.prompts, seed=seed)


def run_masks(work: Work, trial: WriteTrial) -> Masked:
    """The trial's candidates under masks of density 1/2, spread evenly over its prompts."""
    n, count = len(trial.prompts), len(trial.writes)
    each = -(-work.settings.n_masks // n)
    masks = random_masks(
        n * each, count, seed=np.random.default_rng([work.settings.seed, 2])
    ).reshape(n, each, count)
    variants = [
        [(), *(trial.variant(np.flatnonzero(mask).tolist()) for mask in mine)] for mine in masks
    ]
    found = work.chat.measure(
        trial.prompts,
        variants,
        {"margin": trial.metric},
        progress=work.progress.track("random ablation masks"),
    ).scores["margin"]
    change = found[:, 1:] - found[:, :1]
    return Masked(
        tuple(write[0] for write in trial.writes),
        masks.reshape(-1, count),
        change.ravel(),
        np.repeat(np.arange(n), each),
    )


def interactions(
    work: Work, set_id: str, own: Sequence[int], masked: Masked | None, trial: WriteTrial
) -> pd.DataFrame:
    """The table `features.interactions` of the strongest pairs under the masks, and of the set's own.

    own: numbers of the set's members in the trial. A write is named by its strongest latent.
    Each pair is run with nothing else ablated, and a pair of members besides with the rest of the set ablated:
    what the two are to each other once no third stands in for them.
    """
    moments = masked.moments(work.settings.seed) if masked is not None else None
    pairs = _pairs(moments, own, work.settings.n_pairs)
    rest = {pair: frozenset(own).difference(pair) for pair in pairs if set(pair) <= set(own)}
    contexts = [(NOTHING, pair, frozenset[int]()) for pair in pairs]
    contexts += [(REST, pair, held) for pair, held in rest.items() if held]
    if not contexts:
        return pd.DataFrame(columns=COLUMNS)
    corners = [corner_sets(pair, held) for _, pair, held in contexts]
    sets = list(dict.fromkeys(corner for four in corners for corner in four))
    margins = trial.margins(sets)
    at = {members: k for k, members in enumerate(sets)}
    scores = np.stack([margins[:, [at[corner] for corner in four]] for four in corners], axis=1)
    table = two_by_two(
        scores,
        [pair for _, pair, _ in contexts],
        floor=work.settings.pair_floor,
        clusters=work.clusters(work.refused),
        seed=work.settings.seed,
    )
    names = np.array([write[0] for write in trial.writes])
    first, second = names[table["first"]], names[table["second"]]
    moment = _moment(moments, table)
    return table.assign(
        set_id=set_id,
        layer_a=first[:, 0],
        latent_a=first[:, 1],
        layer_b=second[:, 0],
        latent_b=second[:, 1],
        held=[context for context, _, _ in contexts],
        moment=moment[0],
        moment_low=moment[1],
        moment_high=moment[2],
        alone_a=table["alone_first"],
        alone_b=table["alone_second"],
    )[COLUMNS]


def _pairs(moments: Moments | None, own: Sequence[int], most: int) -> list[Pair]:
    """Pairs whose moment is not 0, the largest first, then pairs of the set; `most` of each."""
    found: list[Pair] = []
    if moments is not None:
        first, second = np.triu_indices(len(moments.main), 1)
        values = moments.pair[first, second]
        sure = (moments.pair_low[first, second] > 0) | (moments.pair_high[first, second] < 0)
        order = np.argsort(-np.abs(np.where(sure, values, 0)), kind="stable")[:most]
        found = [(int(first[k]), int(second[k])) for k in order if sure[k]]
    inside: list[Pair] = [(a, b) for a, b in combinations(sorted(own), 2)]
    return found + [pair for pair in inside if pair not in found][:most]


def _moment(moments: Moments | None, table: pd.DataFrame) -> npt.NDArray[np.float64]:
    if moments is None:
        return np.full((3, len(table)), np.nan)
    a, b = table["first"].to_numpy(), table["second"].to_numpy()
    return np.stack([each[a, b] for each in (moments.pair, moments.pair_low, moments.pair_high)])
