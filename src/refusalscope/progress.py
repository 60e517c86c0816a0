"""Progress of long work, through one place: library code reports, only a front end shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Shows how far named pieces of work have come."""

    def track(self, label: str) -> Callable[[int, int], None]:
        """Start a piece of work; call the result with (done, total) as it goes on."""
        ...


class Silent:
    """Shows nothing: the default of every library call."""

    def track(self, label: str) -> Callable[[int, int], None]:
        return lambda done, total: None
