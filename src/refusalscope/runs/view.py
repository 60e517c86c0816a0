"""A run folder opened for reading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refusalscope.errors import RunError
from refusalscope.runs.files import disk_errors
from refusalscope.runs.manifest import FILE, read_manifest
from refusalscope.runs.reader import RunReader


class RunView(RunReader):
    """What a run holds: `info` (run.json), tables, arrays, SQL. Made by `open_run`."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        super().__init__(path)
        self.info = info

    def __repr__(self) -> str:
        return (
            f"RunView({str(self.path)!r}, {self.info.get('status')}, {len(self.tables())} tables)"
        )


def open_run(path: str | os.PathLike[str]) -> RunView:
    """Open a run folder for reading; a run still being written shows what is finished of it.

    Raises RunError for a missing folder, one that is not a run, or an unreadable run.json.
    """
    folder = Path(path)
    with disk_errors(folder, "read"):
        if not folder.is_dir():
            kind = "a file, not a folder" if folder.exists() else "not there"
            raise RunError(f"Cannot open the run {folder}: it is {kind}.")
        if not (folder / FILE).is_file():
            raise RunError(f"{folder} is not a run: it has no {FILE}.")
    return RunView(folder, read_manifest(folder))
