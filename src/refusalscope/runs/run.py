"""A run folder opened for writing: create, resume, store, finish."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from refusalscope.errors import RunError
from refusalscope.runs.cost import total
from refusalscope.runs.files import (
    disk_errors,
    remove_temporary,
    write_atomic,
)
from refusalscope.runs.folder import LOG, hold, holds_run
from refusalscope.runs.manifest import (
    FILE,
    OWN,
    demand_equal,
    new_manifest,
    other_software,
    plain,
    read_manifest,
    write_manifest,
)
from refusalscope.runs.reader import RunReader
from refusalscope.runs.shards import Shards
from refusalscope.runs.tables import (
    arrays_to_bytes,
    check_name,
    frame_to_bytes,
    read_cost,
    refuse_text,
)


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def refuse_occupied(folder: Path, *, resumable: bool = True) -> None:
    """Raises RunError where `folder` holds a run already: to be asked before long work starts."""
    if (folder / FILE).is_file():
        manifest = read_manifest(folder)
        raise RunError(
            f"{folder} already holds a run of {manifest.get('command')!r} started "
            f"{manifest.get('started')}: choose another --out"
            + (", or pass --resume to go on." if resumable else ".")
        )


class Run(RunReader):
    """The run being written in `path`. Made by `Run.create`.

    Everything stored is whole or absent at any moment, and is on the disk before a call
    returns. The cost is kept beside the table, array or shard that the work went into, so a stage
    that a resume repeats counts once, and work lost with a killed process does not count.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        log: BinaryIO | None,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__(path)
        self._manifest = manifest
        self._log = log
        self._clock = clock
        self._since = clock()
        self._seconds = float(manifest["cost"]["seconds"])
        self._pending = total([])
        self._written: set[str] = set()
        if log is not None:
            # A run given up in the middle lets go of its folder when it is collected.
            weakref.finalize(self, log.close)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        command: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        resume: bool = False,
        keep_text: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> Run:
        """Start a run in a new or empty folder, or go on with the one there.

        settings, inputs: plain values that decide the result (hashes of model, template and data
        among the inputs); a resume demands that they and `keep_text` be equal to those of the run.
        With `resume` and nothing to resume, the run starts. A finished run comes back with
        `finished` true: there is nothing to do, and every write to it raises.

        Raises RunError when the folder holds another run and `resume` is not given, holds something
        that is not a run, cannot be written, is being written by another process, or when the
        resume differs (the first difference is named).
        """
        folder = Path(path)
        must_match = {
            "settings": plain(settings, "settings"),
            "inputs": plain(inputs, "inputs"),
            "keep_text": keep_text,
        }
        held = holds_run(folder)
        if held:
            manifest = read_manifest(folder)
            if not resume:
                refuse_occupied(folder)
            demand_equal(folder, manifest, must_match)
            if manifest["status"] == "finished":
                run = cls(folder, manifest, None, clock)
                # A process killed at the very end of `finish` leaves them.
                run._remove_leftovers()
                return run
        log = hold(folder)
        # Read again under the lock: a process that just let go of the folder may have gone on.
        if held:
            manifest = read_manifest(folder)
        else:
            manifest = new_manifest(command, _stamp(clock()), must_match)
        run = cls(folder, manifest, log, clock)
        run._forget_lost_costs()
        # run.json before the folders: without it a run cut off here could not be told from a
        # folder of somebody else's.
        run._save()
        with disk_errors(folder):
            remove_temporary(folder)
            for name in ("tables", "arrays"):
                (folder / name).mkdir(exist_ok=True)
        run.log("resumed" if held else f"started: {command}")
        change = other_software(manifest)
        if change:
            run.warn(f"The run was resumed with other software: {change}.")
        return run

    @property
    def info(self) -> dict[str, Any]:
        """run.json as it stands, as a copy."""
        return copy.deepcopy(self._manifest)

    @property
    def finished(self) -> bool:
        """Whether `finish` was reached, now or before a resume."""
        return self._manifest["status"] == "finished"

    @property
    def keep_text(self) -> bool:
        """Whether tables may hold prompts and replies."""
        return self._manifest["keep_text"]

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Store the columns of `frame` as table `name`; the index is not kept.

        Raises RunError for a wrong name, or for text in the table of a run without `keep_text`.
        """
        self._check_frame(check_name(name), frame)
        self._store(f"tables/{name}", f"{name}.parquet", frame_to_bytes(frame))

    def write_array(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store named tensors or NumPy arrays as one file; bfloat16 is kept as float32."""
        check_name(name)
        self._store(f"arrays/{name}", f"{name}.safetensors", arrays_to_bytes(arrays))

    def shards(self, name: str) -> Shards:
        """The resumable pieces of table `name`; see `Shards`. They go when the run is finished."""
        self._demand_running()
        check = partial(self._check_frame, check_name(name))
        return Shards(self.path / "partial" / name, check, self._demand_running)

    def add_cost(self, *, forwards: int = 0, token_layers: int = 0, tokens: int = 0) -> None:
        """Count work done in this process; it is kept with the next table or array written.

        Shards carry their own cost, so what is given to `Shards.write` is not given here too.
        """
        self._demand_running()
        spent = {"forwards": forwards, "token_layers": token_layers, "tokens": tokens}
        self._pending = total([self._pending, spent])

    def warn(self, text: str) -> None:
        """Keep a warning for the reader of the report, once however often it is given."""
        self._demand_running()
        if text not in self._manifest["warnings"]:
            self._manifest["warnings"].append(text)
            self._save()
            self.log(f"warning: {text}")

    def update(self, **keys: Any) -> None:
        """Set further keys of run.json, such as model, sources or seeds."""
        self._demand_running()
        own = sorted(set(keys) & set(OWN))
        if own:
            raise RunError(f"run.json's {own[0]!r} is kept by the run itself and cannot be set.")
        self._manifest.update(plain(keys, "further keys"))
        self._save()

    def log(self, text: str) -> None:
        """Add a line to log.txt, with the time."""
        self._demand_running()
        assert self._log is not None
        with disk_errors(self.path / LOG):
            self._log.write(f"{_stamp(self._clock())} {text}\n".encode())

    def finish(self) -> None:
        """Mark the run as finished and remove its shards. A second call does nothing."""
        if self.finished:
            return
        assert self._log is not None
        self.log("finished")
        shards = {f"shards/{name}": cost for name, cost in self._shard_costs().items()}
        other = {"other": self._pending} if any(self._pending.values()) else {}
        # Written before it is believed: a disk that is full here leaves the run unfinished, and
        # run.json takes over the cost of the shards in the same step that marks it as finished.
        done = {
            **self._manifest,
            "status": "finished",
            "finished": _stamp(self._clock()),
            "cost_by": {**self._manifest["cost_by"], **shards, **other},
        }
        done["cost"] = self._total_cost(done["cost_by"].values())
        write_manifest(self.path, done)
        self._manifest = done
        self._remove_leftovers()
        self._log.close()

    def _store(self, key: str, filename: str, data: bytes) -> None:
        self._demand_running()
        # A stage repeated after a resume replaces its cost; one process writing twice adds.
        ledger = self._manifest["cost_by"]
        earlier = [ledger[key]] if key in self._written and key in ledger else []
        spent = total([*earlier, self._pending])
        ledger.pop(key, None)
        if any(spent.values()):
            ledger[key] = spent
        # The cost first: a cost without its file is dropped on resume, a file without its cost
        # could not be told from free work.
        self._save()
        write_atomic(self.path / key.split("/")[0] / filename, data)
        self._written.add(key)
        self._pending = total([])

    def _save(self) -> None:
        costs = [*self._manifest["cost_by"].values(), *self._shard_costs().values()]
        self._manifest["cost"] = self._total_cost(costs)
        write_manifest(self.path, self._manifest)

    def _total_cost(self, costs: Iterable[Mapping[str, int]]) -> dict[str, Any]:
        elapsed = max(0.0, (self._clock() - self._since).total_seconds())
        return {**total(costs), "seconds": round(self._seconds + elapsed, 3)}

    def _shard_costs(self) -> dict[str, dict[str, int]]:
        folders = sorted((self.path / "partial").glob("*"))
        return {f.name: total(read_cost(p) for p in sorted(f.glob("*.parquet"))) for f in folders}

    def _forget_lost_costs(self) -> None:
        there = {f"tables/{name}" for name in self.tables()}
        there |= {f"arrays/{name}" for name in self.arrays()}
        ledger = self._manifest["cost_by"]
        self._manifest["cost_by"] = {k: v for k, v in ledger.items() if k in there}

    def _check_frame(self, name: str, frame: pd.DataFrame) -> None:
        if not self.keep_text:
            refuse_text(name, frame)

    def _demand_running(self) -> None:
        if self.finished:
            raise RunError(f"The run in {self.path} is finished and cannot be changed.")

    def _remove_leftovers(self) -> None:
        with disk_errors(self.path):
            remove_temporary(self.path)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.path / "partial")


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def whole_or_absent(run: Run) -> Iterator[None]:
    """Remove the run where its work is broken off: for commands that could not go on with it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(run.path)
        raise
