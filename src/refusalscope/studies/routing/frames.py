"""Rows of a table as heads, and as plain records."""

from __future__ import annotations

from typing import Any, cast

import pandas as pd

from refusalscope.studies.heads import Head


def heads_of(frame: pd.DataFrame) -> list[Head]:
    """(layer, head) of every row."""
    return list(zip(frame["layer"].astype(int), frame["head"].astype(int), strict=True))


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every row by column name."""
    return cast(list[dict[str, Any]], frame.to_dict("records"))
