"""What one call of the command line shares: where it prints, whether it is quiet, its progress bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass
class Session:
    quiet: bool = False
    debug: bool = False
    out: Console = field(default_factory=Console)
    err: Console = field(default_factory=lambda: Console(stderr=True))


SESSION = Session()


class Bars:
    """Progress bars with time left, on standard error; nothing under --quiet.

    A context manager: bars are drawn while it is open. It is what library code calls a Progress.
    """

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=SESSION.err,
            disable=SESSION.quiet,
        )

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        # Stopping bars that never started would still print an empty line.
        if self._bars.tasks:
            self._bars.stop()

    def track(self, label: str) -> Callable[[int, int], None]:
        task: list[TaskID] = []

        def advance(done: int, total: int) -> None:
            if not task:
                # Started late: an error before any work leaves no empty line above its message.
                self._bars.start()
                task.append(self._bars.add_task(label, total=total))
            self._bars.update(task[0], completed=done, total=total)

        return advance
