"""One minimal set: a prefix that flips, made 1-minimal by drops that were run, and run again by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refusalscope.studies.features.trial import Outcome, Runs

# Candidates, strongest first, given that the latents of the set are ablated already.
Repair = Callable[[frozenset[int]], Sequence[int]]


@dataclass(frozen=True)
class MinimalSet:
    """A set that flips. members: strongest first; outcome: of the run of its own that verified it.

    minimal: the set without any one of its members was run and does not flip. evaluations: runs that finding
    and proving this set took.
    """

    members: tuple[int, ...]
    outcome: Outcome
    minimal: bool
    evaluations: int


class Work:
    """One search over a counted trial."""

    def __init__(
        self,
        runs: Runs,
        order: tuple[int, ...],
        repair: Repair | None,
        batch: int,
        start: int | None,
    ) -> None:
        self.runs = runs
        self.repairs = 0
        self._order = order
        self._repair = repair
        self._batch = batch
        self._start = start

    def settle(self, held: tuple[int, ...], forbidden: frozenset[int]) -> MinimalSet | None:
        """A verified, 1-minimal set grown from `held` without a forbidden member; None where none flips."""
        self.runs.begin()
        while True:
            grown = self._flipping(held, forbidden)
            if grown is None:
                return None
            held = self._reduced(grown)
            outcome = self.runs.confirm(frozenset(held))
            if outcome.flipped:
                return MinimalSet(held, outcome, True, self.runs.since)

    def best_so_far(self) -> list[MinimalSet]:
        """The smallest set that flipped in the search that ran out, if its own run flips too."""
        best = self.runs.best
        if best is None:
            return []
        outcome = self.runs.confirm(best)
        known = {member: place for place, member in enumerate(self._order)}
        members = sorted(best, key=lambda i: (known.get(i, -1), i))
        last = MinimalSet(tuple(members), outcome, False, self.runs.since)
        return [last] if outcome.flipped else []

    def _flipping(self, held: tuple[int, ...], forbidden: frozenset[int]) -> tuple[int, ...] | None:
        """`held` and as few more candidates as flip, strongest first; None where no more are known."""
        base = held
        more = tuple(i for i in self._order if i not in forbidden and i not in held)
        first = not held and not forbidden
        n = self._prefix(held, more, self._start if first else None, halves=first)
        while n is None:
            held += more
            more = self._conditional(held, forbidden)
            if not more:
                return None
            n = self._prefix(held, more)
        # What was added last is needed; of what failed without it, less may be enough now.
        added, before = base + more[:n], held[len(base) :]
        return added + before[: self._prefix(added, before)]

    def _conditional(self, ablated: tuple[int, ...], forbidden: frozenset[int]) -> tuple[int, ...]:
        if self._repair is None:
            return ()
        self.repairs += 1
        known = forbidden.union(ablated)
        return tuple(i for i in dict.fromkeys(self._repair(frozenset(ablated))) if i not in known)

    def _prefix(
        self,
        held: tuple[int, ...],
        more: tuple[int, ...],
        start: int | None = None,
        *,
        halves: bool = False,
    ) -> int | None:
        """How many of `more` flip together with `held`, by bisection; None where all of them do not.

        halves: where all of them do not flip, a half, a quarter and so on are tried: an edit can go too far.
        """

        def flips(*lengths: int) -> list[bool]:
            return self.runs.ask([frozenset(held + more[:n]) for n in lengths])

        low, high = 0, len(more)
        none, everything = flips(low, high)
        if none:
            return 0
        if not everything:
            lengths = [high >> k for k in range(1, high.bit_length())] if halves else []
            flipping = [n for n, yes in zip(lengths, flips(*lengths), strict=True) if yes]
            if not flipping:
                return None
            high = min(flipping)
        # From a given start in doubling steps to the other side of the flip; otherwise by halves.
        given = start is not None and low < start < high
        n, step = (start or 0, 1) if given else (0, high)
        while high - low > 1:
            n = n if low < n < high else (low + high) // 2
            if flips(n)[0]:
                high, n = n, n - step
            else:
                low, n = n, n + step
            step *= 2
        return high

    def _reduced(self, members: tuple[int, ...]) -> tuple[int, ...]:
        """`members` without those that the flip does not need; each that stays was tried against the end set.

        Weakest first. A drop that flips makes every earlier answer one about another set, so those members are
        tried again, last. Where whole groups fall, larger ones are tried; where one does not, its first half.
        """
        kept, waiting, needed = list(members), list(reversed(members)), list[int]()
        group = 1
        while waiting:
            present = frozenset(kept)
            if group > 1:
                tried = waiting[:group]
                dropped = tried if self.runs.ask([present.difference(tried)])[0] else []
                group = 2 * group if dropped else group // 2
            else:
                tried = waiting[: self._batch]
                falls = self.runs.ask([present - {i} for i in tried])
                loose = [i for i, yes in zip(tried, falls, strict=True) if yes]
                needed += [i for i in tried if i not in loose]
                dropped = loose[:1]
                waiting = loose + waiting[self._batch :]
                group = 2 * len(tried) if len(loose) == len(tried) else max(1, len(loose) - 1)
            if dropped:
                kept = [i for i in kept if i not in dropped]
                waiting = [i for i in waiting if i not in dropped] + needed
                needed = []
        return tuple(kept)
