"""The pool of candidate latents, which can have millions of rows: read once, and cut to what is shown."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import pandas as pd

from refusalscope.report.features_tables import latent_name
from refusalscope.report.tables import Row, RunLike, even, finite_numbers, records, usable

NUMBERS = ("cosine", "cosine_recognition", "attribution", "contrastive")

# What the study calls the part of a latent that tells harm apart.
RECOGNISES = "recognition"


@dataclass(frozen=True)
class Pool:
    """n: latents of all dictionaries; kept: those that the pool took, recognising: those of them that recognise
    harm rather than carry refusal out, None where not recorded; of: the rows asked for, by name."""

    n: int
    kept: int | None
    recognising: int | None
    of: dict[str, Row]


def read_pool(run: RunLike, places: Set[tuple[int, int]]) -> Pool | None:
    """The counts of features.pool and its rows of `places`, (layer, latent); None without the table."""
    frame = usable(run, "features.pool")
    if frame is None:
        return None
    n = len(frame)
    taken = frame["kept"].eq(True) if "kept" in frame else None
    kept = None if taken is None else int(taken.sum())
    recognising = None
    if taken is not None and "part" in frame and frame["part"].notna().any():
        recognising = int((taken & (frame["part"] == RECOGNISES)).sum())
    asked = pd.DataFrame(sorted(places), columns=["layer", "latent"])
    for column in ("layer", "latent"):
        frame = frame[finite_numbers(frame, column).isin(asked[column])]
    rows = even(frame, (*NUMBERS, "layer", "latent"))
    own = [row for row in records(rows) if (row["layer"], row["latent"]) in places]
    return Pool(
        n, kept, recognising, {latent_name(row["layer"], row["latent"]): row for row in own}
    )
