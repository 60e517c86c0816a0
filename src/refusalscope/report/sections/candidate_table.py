"""The best candidate directions in numbers, and what each filter dropped."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import decimal, percent, whole
from refusalscope.report.tables import Row, records

# How many candidates the table lists.
BEST = 10

REASONS = {
    "late layer": "layer too late",
    "kl": "changes harmless replies too much (KL)",
    "induce": "adding it does not induce refusal",
    "nan": "no score",
}


def candidate_table(candidates: pd.DataFrame) -> Table:
    """The chosen candidate and the best others that passed the filters; without any, the nearest."""
    kept = candidates[flagged(candidates, "kept")]
    chosen = flagged(candidates, "chosen")
    listed = kept if len(kept) else candidates.dropna(subset=["bypass"])
    order = listed.assign(first=~chosen.loc[listed.index]).sort_values(
        ["first", "bypass"], kind="stable"
    )
    rows = [
        (
            Cell(str(row["anchor"]), code=True),
            Cell(whole(row["layer"]), number=True),
            Cell(decimal(row["bypass"]), number=True),
            Cell(decimal(row["induce"]), number=True),
            Cell(decimal(row["kl"], 3), number=True),
            Cell(percent(row.get("stability")), number=True),
            Cell(decimal(row.get("cosine_to_chosen")), number=True),
            Cell(state(row), strong=bool(row["chosen"])),
        )
        for row in records(order.head(BEST))
    ]
    caption = "The best candidate directions"
    if not len(kept):
        how = "one was chosen by a looser rule" if chosen.any() else "the nearest"
        caption = f"No candidate passed the filters; {how}"
    return Table(
        f"{caption} (select split)",
        (
            *("anchor", "layer", "bypass", "induce", "KL (nats)"),
            *("chosen in resamples", "cosine to chosen", "state"),
        ),
        rows,
        _note(candidates, len(kept)),
        id="table-candidates",
        name="best candidates",
    )


def _note(candidates: pd.DataFrame, n_kept: int) -> str:
    dropped = candidates[~flagged(candidates, "kept")]
    counts = dropped["reason"].value_counts() if "reason" in dropped else pd.Series(dtype=int)
    reasons = ", ".join(
        f"{count} {REASONS.get(str(name), str(name))}" for name, count in counts.items()
    )
    note = f"{n_kept} of {len(candidates)} candidates passed the filters"
    note += f" (dropped: {reasons})" if reasons else ""
    if not flagged(candidates, "chosen").any():
        return f"{note}."
    ties = int((flagged(candidates, "tie") & ~flagged(candidates, "chosen")).sum())
    tied = "none ties" if not ties else "1 ties" if ties == 1 else f"{ties} tie"
    note += f"; {tied} with the chosen one."
    return f"{note} A cosine near 1 to the chosen one means the same direction, read elsewhere."


def flagged(candidates: pd.DataFrame, column: str) -> pd.Series:
    """A column of flags; nothing is flagged where the run has no such column."""
    if column not in candidates:
        return pd.Series(False, index=candidates.index)
    return candidates[column].astype(bool)


def state(row: Row) -> str:
    """What became of a candidate, in words."""
    reason = str(row.get("reason") or "")
    why = REASONS.get(reason, reason or "by a filter")
    if row["chosen"]:
        return "chosen" if row["kept"] else f"chosen by a looser rule, else dropped: {why}"
    if not row["kept"]:
        return f"dropped: {why}"
    return "tie" if row.get("tie") else "kept"
