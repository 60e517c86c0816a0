"""Set functions with a known answer, and the slow searches over them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from refusalscope.studies.features import Outcome

PRIMARY, BACKUP, SECOND = (0, 1, 2), (3, 4), 5
HYDRA = [{3, 4, 0, 1}, {3, 4, 0, 2}, {3, 4, 1, 2}, {3, 0, 1, 2}, {4, 0, 1, 2}]


class Counted:
    """A trial over `score(set)`, where a score below `tau` flips; it keeps what it was asked."""

    def __init__(self, score: Callable[[frozenset[int]], float], tau: float = 0.0):
        self.score, self.tau = score, tau
        self.calls: list[list[frozenset[int]]] = []

    def flips(self, sets):
        self.calls.append(list(sets))
        scores = [self.score(members) for members in sets]
        return [Outcome(value, value < self.tau) for value in scores]

    @property
    def runs(self):
        return sum(len(call) for call in self.calls)


def boolean(flips: Callable[[frozenset[int]], bool]) -> Counted:
    return Counted(lambda members: -1.0 if flips(members) else 1.0)


def threshold(seed: int, count: int = 320, share: float = 0.6) -> tuple[Counted, np.ndarray]:
    """The threshold family of sae_features section 5, and its weights, which sum to 1."""
    weights = np.random.default_rng(seed).lognormal(0, 1.5, count)
    weights /= weights.sum()
    return Counted(lambda members: 1 - weights[sorted(members)].sum(), tau=1 - share), weights


def hydra_axis(
    members: frozenset[int] | set[int], eta: float = 1.0, *, chain: bool = False
) -> float:
    """The refusal axis of the hydra organism with these latents ablated (planted_models section 4)."""
    a, late = 0.34, 0.02
    primaries = sum(2 * a for i in PRIMARY if i not in members)
    drive = max(a - late - primaries / 6, 0.0)
    backups = sum(3.2 * drive for i in BACKUP if i not in members)
    axis = primaries + eta * backups
    if chain and SECOND not in members:
        axis += 6.4 * max(a - late - primaries / 6 - backups / 6, 0.0)
    return axis


def hydra_margin(members: frozenset[int] | set[int], eta: float = 1.0, *, chain: bool = False):
    """Its margin, which is linear in the axis: 1.59 with nothing ablated, -2.34 with all of it gone."""
    return 1.92 * hydra_axis(members, eta, chain=chain) - 2.34


def minimal(flips: Callable[[frozenset[int]], bool], pool) -> set[frozenset[int]]:
    """Every flipping set of `pool` without a flipping proper subset, by trying all of them."""
    found: set[frozenset[int]] = set()
    for size in range(len(pool) + 1):
        for members in map(frozenset, combinations(pool, size)):
            if flips(members) and not any(smaller < members for smaller in found):
                found.add(members)
    return found


def one_minimal(flips: Callable[[frozenset[int]], bool], members: frozenset[int]) -> bool:
    return flips(members) and not any(flips(members - {i}) for i in members)
