"""Files that are either whole or absent, and disk failures told in one sentence."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refusalscope.errors import RunError

_TEMPORARY = ".tmp"

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space, then go on with --resume",
    errno.EDQUOT: "the disk quota is used up; free some space, then go on with --resume",
    errno.EACCES: "permission was denied; make the folder writable or choose another --out",
    errno.EPERM: "permission was denied; make the folder writable or choose another --out",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another --out",
}


@contextmanager
def disk_errors(path: Path, action: str = "write") -> Iterator[None]:
    """Turn an OSError about `path` into a RunError of one sentence."""
    try:
        yield
    except OSError as error:
        unknown = f"{error.strerror or error}; check the disk and --out"
        cause = _CAUSES.get(error.errno or 0, unknown)
        raise RunError(f"Cannot {action} {path}: {cause}.") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new, whole.

    The temporary file stands in the same folder, because a rename is atomic only within one file
    system. Raises RunError, with the old file untouched and no temporary file left, when the disk
    is full or the folder cannot be written.
    """
    with disk_errors(path):
        temporary = path.parent / f".{secrets.token_hex(8)}{_TEMPORARY}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            # Also on Ctrl-C. After the rename there is nothing left under this name.
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; a no-op where folders cannot be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether `path` is a temporary file of `write_atomic`, left by a killed process."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes left anywhere under `folder`."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)
