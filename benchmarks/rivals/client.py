"""The other end of `worker`: start one way in its own environment, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BENCHMARKS = Path(__file__).resolve().parent.parent


class Skipped(Exception):
    """This way cannot run here; the message says why."""


class Failed(Exception):
    """This way broke; the message is the last line it wrote."""


class Worker:
    """A running worker process. Use as a context manager: it ends with the block."""

    def __init__(self, name: str, python: Path, module: str, folder: Path, threads: int) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        keep = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", "rivals.worker", module, str(folder), str(threads)],
                cwd=BENCHMARKS,
                env={**keep, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def hear(self) -> dict[str, Any]:
        """The next answer. Raises Skipped or Failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text().strip().splitlines()
            raise Failed(said[-1] if said else f"it ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "skipped" in answer:
            raise Skipped(answer["skipped"])
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """Send "count" or "time" and wait for the answer. Raises Skipped or Failed."""
        assert self.process.stdin is not None
        # A worker that died has said why: `hear` finds it.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
