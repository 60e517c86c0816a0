"""SQL over the tables of a run, shut off from everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset as ds

from refusalscope.errors import RunError
from refusalscope.runs.tables import reading

# Arrow reads the files, so DuckDB itself needs no access to any. The first setting also takes away
# the Python variables that DuckDB would otherwise accept as table names.
_SHUT = (
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


def query(files: Mapping[str, Path], statement: str) -> pd.DataFrame:
    """The result of one SELECT over Parquet `files` by table name; see `RunReader.sql`."""
    with duckdb.connect(":memory:") as connection:
        aliases = Counter(name.replace(".", "_") for name in files)
        for name, path in files.items():
            with reading(path):
                data = ds.dataset(path, format="parquet")
            connection.register(name, data)
            alias = name.replace(".", "_")
            if alias not in files and aliases[alias] == 1:
                connection.register(alias, data)
        for setting in _SHUT:
            connection.execute(setting)
        try:
            parsed = connection.extract_statements(statement)
            if [s.type for s in parsed] != [duckdb.StatementType.SELECT]:
                raise RunError(f"Expected one SELECT statement, got {statement.strip()!r}.")
            return connection.execute(parsed[0]).df()
        except duckdb.Error as error:
            # DuckDB's first line says what is wrong, the rest draws a caret under the statement.
            reason = str(error).splitlines()[0].rstrip(".")
            listed = ", ".join(files) or "none yet"
            raise RunError(f"The SQL statement failed: {reason}. Tables: {listed}.") from error
