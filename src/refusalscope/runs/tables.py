"""Tables and arrays as bytes and back: Parquet and safetensors, never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from refusalscope.errors import RunError
from refusalscope.runs.files import disk_errors

_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_COST = b"refusalscope.cost"

# Columns that hold what a model or a user wrote, kept only with keep_text.
_TEXT_COLUMNS = ("text", "prompt", "reply", "response", "completion", "generation")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow, safetensors or the disk raise about the file `path` into a RunError."""
    try:
        with disk_errors(path, "read"):
            try:
                yield
            except OSError as error:
                # Arrow reports a broken file as an OSError too, but without a number.
                if error.errno is None:
                    raise pa.ArrowInvalid(str(error)) from error
                raise
    except (pa.ArrowException, SafetensorError) as error:
        raise RunError(
            f"{path} is damaged and cannot be read ({_one_line(error)}): "
            "remove it and go on with --resume, or run again with another --out."
        ) from error


def check_name(name: str) -> str:
    """`name` itself; RunError unless it is a table or array name such as `directions.belief`."""
    if not _NAME.fullmatch(name):
        raise RunError(
            f"{name!r} is not a table or array name: expected lower-case words of letters, digits "
            "and underscores, joined by dots, such as directions.belief."
        )
    return name


def refuse_text(name: str, frame: pd.DataFrame) -> None:
    """RunError when `frame` holds free text, which a run stores only with keep_text."""
    for column in _TEXT_COLUMNS:
        if column in frame and pd.api.types.infer_dtype(frame[column], skipna=True) == "string":
            raise RunError(
                f"Table {name} holds text in its column {column!r}, and this run stores scores "
                "only: leave the column out, or start the run with --keep-text."
            )


def frame_to_bytes(frame: pd.DataFrame, cost: Mapping[str, int] | None = None) -> bytes:
    """Parquet bytes of the columns of `frame`, the same for equal frames; the index is not kept."""
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise RunError(f"A table cannot be stored as Parquet: {_one_line(error)}.") from error
    if cost is not None:
        metadata = {**(table.schema.metadata or {}), _COST: json.dumps(dict(cost)).encode()}
        table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def read_frame(path: Path) -> pd.DataFrame:
    """The frame of a Parquet file; RunError when it cannot be read."""
    with reading(path):
        return pq.read_table(path, partitioning=None).to_pandas()


def read_cost(path: Path) -> dict[str, int]:
    """The cost that `frame_to_bytes` put into the file."""
    with reading(path):
        metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata.get(_COST, b"{}"))


def arrays_to_bytes(arrays: Mapping[str, Any]) -> bytes:
    """safetensors bytes of named tensors or arrays, on any device; bfloat16 is kept as float32."""
    return save({key: _as_numpy(key, value) for key, value in arrays.items()})


def read_arrays(path: Path) -> dict[str, npt.NDArray]:
    """The named arrays of a safetensors file; RunError when it cannot be read."""
    with reading(path):
        return load_file(path)


def _as_numpy(key: str, value: Any) -> npt.NDArray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its values exactly.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise RunError(f"Array {key!r} has the type {array.dtype}, expected numbers.")
    # asarray with order="C" and not ascontiguousarray, which turns a scalar into a row.
    return np.asarray(array, order="C")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
