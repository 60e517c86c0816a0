"""Which folders a run may take, and holding one against other processes."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import BinaryIO

from refusalscope.errors import RunError
from refusalscope.runs.files import disk_errors, is_temporary
from refusalscope.runs.manifest import FILE

try:
    import fcntl
except ImportError:  # not a POSIX system: two writers at once are then not detected
    fcntl = None  # type: ignore[assignment]

LOG = "log.txt"


def holds_run(folder: Path) -> bool:
    """Make the folder when it is missing, and say whether it holds a run.

    Raises RunError when it holds something else, is a file, or cannot be made.
    """
    with disk_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file: choose a folder as --out.")
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE).is_file():
            return True
        if not all(_left_at_birth(path) for path in folder.iterdir()):
            raise RunError(
                f"{folder} is not empty and is not a run: "
                "choose another --out, or give an empty folder."
            )
        return False


def hold(folder: Path) -> BinaryIO:
    """The run's log, opened for adding; through it the folder is held until it closes.

    Raises RunError when another process holds the folder.
    """
    with disk_errors(folder):
        # Unbuffered: a line that a full disk refused must not come back when the file is closed.
        log = open(folder / LOG, "ab", buffering=0)  # noqa: SIM115
    if fcntl is None:
        return log
    try:
        # A record lock: it goes with the process, however that ends.
        fcntl.lockf(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; the run is then unguarded, not impossible.
        if error.errno in (errno.EACCES, errno.EAGAIN):
            log.close()
            raise RunError(
                f"Another process is writing the run in {folder}: "
                "wait for it to end, or choose another --out."
            ) from error
    return log


def _left_at_birth(path: Path) -> bool:
    """Whether an entry is what a run leaves that was killed before its first run.json."""
    return is_temporary(path) or (path.name == LOG and path.stat().st_size == 0)
