"""The published search for a minimal set: block greedy from several orders, and the intersection.

Preset `prakash2025` (arXiv 2509.09708) after secondary sources; the details are our reconstruction
(sae_features section 5). Known defect, kept on purpose: an intersection of sets that flip need not flip, so it
is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from refusalscope.errors import InputError
from refusalscope.studies.features.trial import Outcome, Trial

Reading = Literal["restore", "delta"]
READINGS: tuple[Reading, ...] = get_args(Reading)


@dataclass(frozen=True)
class BlockGreedy:
    """What the published search gives for one trial. tau is the score below which a run counts as flipped.

    nothing, everything: outcomes of the unedited run and of the whole pool. why_not: empty, or why the prompt
    is not flippable (no sets then). sets, scores, flipped: by order, what is left of the pool and what ablating
    it does. intersection: of the sets, with the score of a run of its own and whether it flips. evaluations:
    runs of the search, without the one of the intersection.
    """

    nothing: float
    everything: float
    why_not: str
    sets: tuple[frozenset[int], ...]
    scores: tuple[float, ...]
    flipped: tuple[bool, ...]
    intersection: frozenset[int]
    intersection_score: float
    intersection_flipped: bool
    evaluations: int


def block_greedy(
    trial: Trial,
    pool: Sequence[int],
    *,
    tau: float,
    block: int = 5,
    seeds: int = 3,
    reading: Reading = "restore",
    seed: int = 0,
) -> BlockGreedy:
    """Take blocks out of the ablated set, in `seeds` random orders, and intersect what is left of each.

    A score below `tau` is a flip here, whatever the trial calls one, so that tau can be swept. reading:
    `restore` drops a block when the run still flips without it; `delta` when the score rises by less than tau
    without it, which need not leave a set that flips. The orders go side by side, one call a block; runs:
    2 + seeds * ceil(pool / block). Raises InputError for an empty pool, a latent twice or an unknown reading.
    """
    if not pool or len(set(pool)) < len(pool):
        raise InputError("the pool needs at least one latent and none twice; mend the pool")
    if reading not in READINGS:
        raise InputError(f"there is no reading {reading!r}; choose one of {', '.join(READINGS)}")
    if block < 1 or seeds < 1:
        raise InputError(f"block ({block}) and seeds ({seeds}) must be 1 or more")
    whole = frozenset(pool)
    nothing, everything = (o.score for o in trial.flips([frozenset(), whole]))
    why_not = _why_not(nothing, everything, tau)
    if why_not:
        nan = float("nan")
        return BlockGreedy(nothing, everything, why_not, (), (), (), frozenset(), nan, False, 2)
    orders = [np.random.default_rng([seed, k]).permutation(list(pool)) for k in range(seeds)]
    kept, scores, used = [whole] * seeds, [everything] * seeds, 2
    for at in range(0, len(pool), block):
        without = [s - set(o[at : at + block].tolist()) for s, o in zip(kept, orders, strict=True)]
        found = trial.flips(without)
        used += seeds
        for k, outcome in enumerate(found):
            if _needless(outcome, scores[k], tau, reading):
                kept[k], scores[k] = without[k], outcome.score
    common = frozenset.intersection(*kept)
    score = trial.flips([common])[0].score
    flipped = tuple(value < tau for value in scores)
    return BlockGreedy(
        *(nothing, everything, "", tuple(kept), tuple(scores), flipped),
        *(common, score, score < tau, used),
    )


def _why_not(nothing: float, everything: float, tau: float) -> str:
    if nothing <= tau:
        return "it is not refused without an edit"
    if everything >= tau:
        return "ablating the whole pool does not flip it"
    return ""


def _needless(without: Outcome, score: float, tau: float, reading: Reading) -> bool:
    return without.score < tau if reading == "restore" else without.score - score < tau
