"""An estimate with its interval, and the checks that every statistic makes of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from refusalscope.errors import InputError

Seed: TypeAlias = int | np.random.Generator
Clusters: TypeAlias = Sequence[object] | npt.NDArray | None


@dataclass(frozen=True)
class Interval:
    """An estimate, the bounds of its confidence interval, and the number of rows behind it.

    `low` and `high` are NaN when the data carry an estimate but no interval (a single row);
    all three are NaN when they carry no estimate either.
    """

    value: float
    low: float
    high: float
    n: int


NAN = float("nan")


def numbers(values: npt.ArrayLike, name: str, ndim: int = 1) -> npt.NDArray[np.float64]:
    """`values` as float64 of `ndim` dimensions; raises InputError for another shape or NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise InputError(f"{name} has {array.ndim} dimensions, expected {ndim}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InputError(
            f"{name} holds {bad} values that are not finite of {array.size}; "
            "drop or mend those rows before asking for a statistic"
        )
    return array


def cluster_codes(clusters: Clusters, n: int) -> npt.NDArray[np.intp]:
    """Cluster number 0..C-1 of each of `n` rows; every row its own cluster when None."""
    if clusters is None:
        return np.arange(n)
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise InputError(f"clusters has shape {labels.shape}, expected one label for {n} rows")
    return np.unique(labels, return_inverse=True)[1]
