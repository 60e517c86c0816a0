"""Minimal sets: the fewest latents whose ablation flips the refusal, each set run again and proven minimal.

Preset `recommended` of sae_features section 5 (our reconstruction): bisection on the prefix of an attribution
order, then a pass that leaves no member whose loss still flips. Nothing here assumes that more ablation means
more flip: every claim about a returned set rests on runs of that set and of it without each member.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refusalscope.errors import InputError
from refusalscope.studies.features.one_set import MinimalSet, Repair, Work
from refusalscope.studies.features.trial import OutOfForwards, Runs, Trial


@dataclass(frozen=True)
class Search:
    """What a search found. evaluations: all runs of the trial; repairs: calls of the repair hook.

    already_flipped: nothing is refused without an edit. exhausted: `max_forwards` ended the search. complete:
    no other set could be reached by forbidding members of the found ones (a proof for monotone trials only).
    """

    sets: tuple[MinimalSet, ...]
    evaluations: int
    repairs: int
    already_flipped: bool
    exhausted: bool
    complete: bool


def minimal_sets(
    trial: Trial,
    order: Sequence[int],
    *,
    max_forwards: int,
    n_sets: int = 1,
    start: int | None = None,
    seed: int = 0,
    repair: Repair | None = None,
    batch: int = 4,
) -> Search:
    """Up to `n_sets` distinct 1-minimal flipping sets, within `max_forwards` runs of the trial.

    order: candidates by attribution, strongest first. start: length of the prefix to try first, such as where
    the summed attribution says that the margin is gone; the middle without it. repair: asked for more
    candidates, conditional on the set ablated so far, where no prefix of `order` flips. batch: single drops
    tried in one call; more means fewer calls and a few more runs. First come sets without a member in common,
    then those that avoid one member of each set found (Reiter's hitting-set tree; the seed orders its
    branches). When the runs end before a minimal set is found, the smallest set that flipped is run once more
    and returned with `minimal` False. Raises InputError for fewer than three runs, no candidate, or one twice.
    """
    _check(order, max_forwards, n_sets, batch)
    work = Work(Runs(trial, max_forwards), tuple(order), repair, batch, start)
    rng = np.random.default_rng(seed)
    return _searched(work, lambda found: _enumerate(work, found, n_sets, rng))


def mended_set(
    trial: Trial,
    stored: Sequence[int],
    order: Sequence[int] = (),
    *,
    max_forwards: int,
    repair: Repair | None = None,
    batch: int = 4,
) -> Search:
    """A stored set, verified and 1-minimal again in this trial (another dtype, another batch).

    Where it no longer flips, candidates of `order` and then of `repair` are added until it does.
    Raises InputError as `minimal_sets` does.
    """
    _check(stored, max_forwards, 1, batch)
    work = Work(Runs(trial, max_forwards), tuple(dict.fromkeys(order)), repair, batch, None)

    def mend(found: list[MinimalSet]) -> bool:
        mended = work.settle(tuple(stored), frozenset())
        found += [mended] if mended is not None else []
        return False

    return _searched(work, mend)


def _searched(work: Work, fill: Callable[[list[MinimalSet]], bool]) -> Search:
    """What `fill` finds before the runs end; it says whether there is no more to find."""
    found: list[MinimalSet] = []
    already = complete = exhausted = False
    try:
        already = work.runs.ask([frozenset()])[0]
        complete = already or fill(found)
    except OutOfForwards:
        exhausted = True
        found += [] if found else work.best_so_far()
    return Search(tuple(found), work.runs.used, work.repairs, already, exhausted, complete)


def _check(order: Sequence[int], max_forwards: int, n_sets: int, batch: int) -> None:
    if not order or len(set(order)) < len(order):
        raise InputError("a search needs at least one candidate and none twice; mend the order")
    if max_forwards < 3:
        raise InputError(
            f"max_forwards is {max_forwards}, but nothing, everything and the set found must each be run: "
            f"give 3 or more"
        )
    if n_sets < 1 or batch < 1:
        raise InputError(f"n_sets ({n_sets}) and batch ({batch}) must be 1 or more")


def _enumerate(work: Work, found: list[MinimalSet], n_sets: int, rng: np.random.Generator) -> bool:
    """Fill `found`; whether the tree was walked to its end."""
    forbidden: frozenset[int] = frozenset()
    while len(found) < n_sets:
        apart = work.settle((), forbidden)
        if apart is None:
            break
        found.append(apart)
        forbidden = forbidden.union(apart.members)
    queue = deque([frozenset[int]()] if found else [])
    seen = set(queue)
    while queue and len(found) < n_sets:
        forbidden = queue.popleft()
        label = next((s for s in found if forbidden.isdisjoint(s.members)), None)
        if label is None:
            label = work.settle((), forbidden)
            if label is None:
                continue
            found.append(label)
        for member in rng.permutation(label.members):
            child = forbidden | {int(member)}
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return not queue
