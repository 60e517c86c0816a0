"""Reading a run folder: the one code path of a run being written and of one that is finished."""

from __future__ import annotations

from pathlib import Path

import numpy.typing as npt
import pandas as pd

from refusalscope.errors import RunError
from refusalscope.runs.query import query
from refusalscope.runs.tables import read_arrays, read_frame


class RunReader:
    """The tables and arrays of the run folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tables(self) -> list[str]:
        """Names of the tables, sorted."""
        return _names(self.path / "tables", ".parquet")

    def arrays(self) -> list[str]:
        """Names of the array files, sorted."""
        return _names(self.path / "arrays", ".safetensors")

    def has_table(self, name: str) -> bool:
        """Whether the table is there, whole."""
        return name in self.tables()

    def has_array(self, name: str) -> bool:
        """Whether the array file is there, whole."""
        return name in self.arrays()

    def table(self, name: str) -> pd.DataFrame:
        """A table as a frame; RunError naming those there are when it is missing."""
        self._expect("table", name, self.tables())
        return read_frame(self.path / "tables" / f"{name}.parquet")

    def array(self, name: str) -> dict[str, npt.NDArray]:
        """The named arrays of one file; RunError naming those there are when it is missing."""
        self._expect("array", name, self.arrays())
        return read_arrays(self.path / "arrays" / f"{name}.safetensors")

    def sql(self, statement: str) -> pd.DataFrame:
        """The result of one SELECT over the tables, by DuckDB.

        A table with a dot in its name is quoted, "directions.belief", or written with an
        underscore, directions_belief. The statement sees the tables and nothing else: no file, no
        network.
        Raises RunError for a statement that is wrong or is not a SELECT.
        """
        return query({name: self._table_file(name) for name in self.tables()}, statement)

    def _table_file(self, name: str) -> Path:
        return self.path / "tables" / f"{name}.parquet"

    def _expect(self, kind: str, name: str, there: list[str]) -> None:
        if name not in there:
            listed = ", ".join(there) or "none yet"
            raise RunError(f"The run in {self.path} has no {kind} {name!r}; there are: {listed}.")


def _names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
