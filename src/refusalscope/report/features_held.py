"""Pairs of latents, each taken out besides nothing else, or besides the rest of the set."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.tables import Row, records

NOTHING, REST = "nothing", "the rest of the set"


def pair_names(row: Row) -> tuple[str, str]:
    """The two latents of a pair, in one order."""
    first, second = sorted((row["first"], row["second"]))
    return first, second


def one_a_pair(pairs: pd.DataFrame, held: str) -> pd.DataFrame:
    """One row a pair: that with `held` taken out besides where it was measured, else the other.

    pairs: of features.interactions. Without the column `held` nothing was taken out besides.
    """
    if pairs.empty:
        return pairs
    rest = pairs["held"] == REST
    wanted = rest if held == REST else ~rest
    # Whether it was measured counts before what was taken out besides.
    order = 2 * pairs["effect"].isna().astype(int) + (~wanted).astype(int)
    ranked = pairs.loc[order.sort_values(kind="stable").index]
    names = pd.Series([pair_names(row) for row in records(ranked)], ranked.index)
    return ranked[~names.duplicated()].sort_index()


def judged_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs that were taken out exactly, one row each: with the rest of the set out where that was run,
    so that no third latent stands in for the two."""
    return one_a_pair(pairs[pairs["effect"].notna()], REST)
