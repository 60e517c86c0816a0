"""Another guard's scores beside this one's, at the same false-positive rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.guard.operating import OperatingPoint
from refusalscope.guard.same_rate import matched_flags, share_flagged
from refusalscope.prompts.files import read_table
from refusalscope.stats import fdr_bh, paired_difference


def read_scores(path: Path | str) -> pd.DataFrame:
    """Scores of other guards: columns id, score (larger is more harmful), guard (a name; else the file's).

    Raises InputError for a missing column or a score that is no number.
    """
    table = read_table(path)
    missing = {"id", "score"} - set(table.columns)
    if missing:
        raise InputError(
            f"{path} has no column {sorted(missing)[0]!r}; scores of another guard need id and score, and may "
            f"have guard"
        )
    rows = []
    for line, row in table.rows:
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            score = np.nan
        if not np.isfinite(score):
            raise InputError(
                f"{path}, line {line}: the score {row['score']!r} is not a number; mend it"
            )
        name = row.get("guard") or table.name
        rows.append({"id": str(row["id"]), "score": score, "guard": str(name)})
    return pd.DataFrame(rows)


def against_table(
    points: Sequence[OperatingPoint], scores: pd.DataFrame, others: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """Recall of other guards at this guard's own false-positive rate on the same prompts, paired.

    Only prompts that both scored are used. fpr: the rate of both. other_fpr: the highest rate up to it that a
    threshold of the other guard has by itself; where it is lower, tpr is interpolated over tied scores
    (`matched_flags`). p_adjusted: Benjamini-Hochberg over all rows. Raises InputError where a guard scored no
    prompt of a label.
    """
    found, tests = [], []
    for name, theirs in others.groupby("guard", sort=True):
        both = scores.merge(theirs[["id", "score"]].drop_duplicates("id"), on="id")
        bad = (both["label"] == "harmful").to_numpy()
        n_harmful, n_harmless = int(bad.sum()), int((~bad).sum())
        if n_harmful < 1 or n_harmless < 1:
            raise InputError(
                f"the scores of {name} are for {n_harmful} of the harmful and {n_harmless} of the harmless "
                "prompts; give scores by the same ids for both"
            )
        other = both["score"].to_numpy(dtype=float)
        own = both["delta_harmful"].to_numpy(dtype=float)
        for point in points:
            mine = (own > point.tau).astype(float)
            allowed = int(mine[~bad].sum())
            its, alone = matched_flags(other, ~bad, allowed)
            theirs_rate, own_rate = share_flagged(its[bad]), share_flagged(mine[bad])
            gap = paired_difference(mine[bad], its[bad], seed=seed)
            tests.append(gap.p)
            found.append(
                {
                    "guard": name,
                    "point": point.name,
                    "alpha": point.alpha,
                    "fpr": allowed / n_harmless,
                    "other_fpr": alone / n_harmless,
                    "n": n_harmful,
                    "tpr": theirs_rate.value,
                    "low": theirs_rate.low,
                    "high": theirs_rate.high,
                    "own_tpr": own_rate.value,
                    "own_low": own_rate.low,
                    "own_high": own_rate.high,
                    "difference": gap.value,
                    "difference_low": gap.low,
                    "difference_high": gap.high,
                    "p": gap.p,
                }
            )
    return pd.DataFrame(found).assign(p_adjusted=fdr_bh(tests))
