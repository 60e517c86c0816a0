"""What the searches ask, in batches and counted: does the refusal flip when these latents are ablated?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """Score of one edited run (lower is less refusal) and whether the refusal is gone in it."""

    score: float
    flipped: bool


class Trial(Protocol):
    """One prompt, or a pool of prompts, with its edit: the only thing a search knows of a model."""

    def flips(self, sets: Sequence[frozenset[int]]) -> list[Outcome]:
        """The outcome of ablating each of `sets`, in one batch of forwards."""
        ...


class OutOfForwards(Exception):
    """The budget is used up; a search catches it and hands back what it has."""


class Runs:
    """A trial that remembers its outcomes, counts its runs and stops at a budget.

    A set that was run once is not run again, except that `confirm` wants a call that held nothing else: a row's
    numbers can depend on its batch. `best` is the smallest flipping set since `begin`. One run of the budget is
    kept back for `confirm`.
    """

    def __init__(self, trial: Trial, max_forwards: int) -> None:
        self._trial = trial
        self._budget = max_forwards
        self._known: dict[frozenset[int], Outcome] = {}
        self._alone: set[frozenset[int]] = set()
        self.used = 0
        self._begun = 0
        self.best: frozenset[int] | None = None

    def begin(self) -> None:
        """A new search starts: neither the best set nor the runs of the one before are its own."""
        self.best, self._begun = None, self.used

    @property
    def since(self) -> int:
        """Runs since `begin`."""
        return self.used - self._begun

    def ask(self, sets: Sequence[frozenset[int]]) -> list[bool]:
        """Whether each of `sets` flips. Raises OutOfForwards rather than run part of a batch."""
        new = [members for members in dict.fromkeys(sets) if members not in self._known]
        if self.used + len(new) > self._budget - 1:
            raise OutOfForwards
        if new:
            self.used += len(new)
            self._known.update(zip(new, self._trial.flips(new), strict=True))
        if len(new) == 1:
            self._alone.update(new)
        flipped = [self._known[members].flipped for members in sets]
        for members, yes in zip(sets, flipped, strict=True):
            if yes and (self.best is None or len(members) < len(self.best)):
                self.best = members
        return flipped

    def confirm(self, members: frozenset[int]) -> Outcome:
        """The outcome of a run of `members` by itself; such a run replaces what a batch said."""
        if members not in self._alone:
            if self.used >= self._budget:
                raise OutOfForwards
            self.used += 1
            self._known[members] = self._trial.flips([members])[0]
            self._alone.add(members)
        return self._known[members]
