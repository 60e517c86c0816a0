"""Long work in pieces, so that a killed run loses one piece and not the whole table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from refusalscope.errors import RunError
from refusalscope.runs.files import disk_errors, write_atomic
from refusalscope.runs.tables import frame_to_bytes, read_frame

# File systems take names of 255 bytes.
_LONGEST = 200


class Shards:
    """The pieces of one table, each a file under RUN/partial/NAME. Made by `Run.shards`.

    ```
    shards = run.shards("directions.candidates")
    for key in keys:
        if not shards.done(key):
            shards.write(key, compute(key), cost={"forwards": 12})
    run.write_table("directions.candidates", shards.collect())
    ```
    """

    def __init__(
        self, folder: Path, check: Callable[[pd.DataFrame], None], wrote: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._check = check
        self._wrote = wrote
        self._keys: dict[str, None] = {}

    def done(self, key: str) -> bool:
        """Whether the shard is there, whole. Also fixes the place of `key` in `collect`."""
        self._keys.setdefault(key)
        return self._path(key).is_file()

    def write(self, key: str, frame: pd.DataFrame, cost: Mapping[str, int] | None = None) -> None:
        """Store the shard and its cost in one atomic step; an earlier shard of `key` is replaced.

        cost: forwards, token_layers, tokens spent on this shard alone.
        """
        self._check(frame)
        self._wrote()
        self._keys.setdefault(key)
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(key), frame_to_bytes(frame, cost or {}))

    def collect(self) -> pd.DataFrame:
        """All shards as one frame, in the order in which their keys were first named here.

        Keys that this process did not name are left out. Raises RunError when none was named, or
        a named one is not done.
        """
        missing = [key for key in self._keys if not self._path(key).is_file()]
        if missing or not self._keys:
            what = f"{missing[0]!r} is not done" if missing else "no shard was named"
            raise RunError(f"The shards of {self._folder.name} cannot be collected: {what}.")
        frames = [read_frame(self._path(key)) for key in self._keys]
        # An empty shard may carry columns without a type; it must not decide the type of the rest.
        filled = [frame for frame in frames if len(frame)] or frames[:1]
        return pd.concat(filled, ignore_index=True)

    def _path(self, key: str) -> Path:
        name = quote(key, safe=" []()=,")
        if len(name) > _LONGEST:
            name = name[:100] + "~" + hashlib.sha256(key.encode()).hexdigest()
        return self._folder / f"{name}.parquet"
