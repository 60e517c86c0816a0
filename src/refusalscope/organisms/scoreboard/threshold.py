"""The searches on set functions with a known answer, without a model: how many runs a set costs.

The family of sae_features section 5: log-normal weights that sum to 1, and a set flips once it holds more than
60 % of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from refusalscope.organisms.scoreboard.bars import FORWARDS, NO_LARGER
from refusalscope.organisms.scoreboard.runner import Measured, check_rows
from refusalscope.organisms.scoreboard.suite import Case
from refusalscope.studies.features import BlockGreedy, Outcome, block_greedy, minimal_sets

INSTANCES, COUNT, SPREAD, SHARE = 100, 320, 1.5, 0.6
MAX_RUNS = 1000


class Threshold:
    """A `Trial` over COUNT weights; its score is the mass that is left. runs: sets run so far."""

    def __init__(self, seed: int) -> None:
        weights = np.random.default_rng(seed).lognormal(0, SPREAD, COUNT)
        self.weights = weights / weights.sum()
        self.runs = 0

    def flips(self, sets: Sequence[frozenset[int]]) -> list[Outcome]:
        """Whether more than SHARE of the mass is taken out, for each set."""
        self.runs += len(sets)
        left = [1 - float(self.weights[sorted(members)].sum()) for members in sets]
        return [Outcome(score, score < 1 - SHARE) for score in left]

    def order(self, noise: float, seed: int) -> tuple[list[int], int]:
        """By an attribution with log-normal error, and where its sum says that enough is taken out."""
        rng = np.random.default_rng([seed, 1])
        guess = self.weights * np.exp(noise * rng.standard_normal(COUNT))
        order = np.argsort(-guess)
        start = int((guess[order].cumsum() < SHARE * guess.sum()).sum()) + 1
        return order.tolist(), start


def measure_threshold(case: Case, methods: Sequence[str]) -> Measured:
    """Both searches on INSTANCES instances, numbered as seeds; block greedy as published, smallest of its sets.

    Its intersection is run as well: in the score, `flipped` is whether that one flips, and `claimed` its size.
    """
    rows, checks = [], []
    for seed in range(INSTANCES):
        ours = Threshold(seed)
        order, start = ours.order(case.noise, seed)
        given = start if case.options["start"] else None
        (found,) = minimal_sets(ours, order, max_forwards=MAX_RUNS, start=given).sets
        greedy = _greedy(seed)
        verified = found.minimal and found.outcome.flipped
        smallest = min(len(members) for members in greedy.sets)
        made = {
            "recommended": (len(found.members), verified, ours.runs),
            "as published": (
                len(greedy.intersection),
                greedy.intersection_flipped,
                greedy.evaluations,
            ),
        }
        rows += [_row(case, seed, method, *made[method]) for method in methods if method in made]
        found_checks = {
            FORWARDS: ours.runs / greedy.evaluations,
            NO_LARGER: float(verified and len(found.members) <= smallest),
        }
        checks.append(check_rows(case, seed, found_checks))
    return pd.DataFrame(rows), pd.concat(checks, ignore_index=True)


@cache
def _greedy(seed: int) -> BlockGreedy:
    """The published search knows no attribution, so that one run serves every order."""
    return block_greedy(Threshold(seed), range(COUNT), tau=1 - SHARE, seed=seed)


def _row(
    case: Case, seed: int, method: str, claimed: int, flipped: bool, runs: int
) -> dict[str, object]:
    nan = float("nan")
    return {
        "organism": case.organism,
        "case": case.name,
        "seed": seed,
        "method": method,
        "barred": case.barred,
        "policy": 1.0,
        "precision": nan,
        "recall": nan,
        "claimed": claimed,
        "flipped": float(flipped),
        "runs": runs,
    }
