"""The tables of a run as the report's sections want them: there and usable, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import pandas as pd

Row = Mapping[str, Any]


class RunLike(Protocol):
    """What the report reads of a run; `refusalscope.runs.open_run` gives one."""

    @property
    def info(self) -> dict[str, Any]:
        """run.json."""

    def tables(self) -> list[str]:
        """The names of the tables."""

    def table(self, name: str) -> pd.DataFrame:
        """A table as a frame."""


# The columns that the report cannot do without, of each table it reads. Further ones are used where
# they are there.
NEEDED: dict[str, tuple[str, ...]] = {
    "prompts": ("label", "refusal_margin"),
    "behaviour.rates": ("label", "category", "n", "refused", "rate", "low", "high"),
    "directions.candidates": ("anchor", "layer", "bypass", "induce", "kl", "kept", "chosen"),
    "directions.belief": ("label", "delta_harmful", "delta_refuse", "quadrant"),
    "directions.geometry": ("layer", "cosine", "low", "high"),
    "directions.interventions": (
        *("intervention", "control", "label", "n", "refused", "rate", "low", "high"),
    ),
    "judge.summary": ("label_name", "n", "share"),
    "judge.agreement": ("source", "n", "undecided", "accuracy", "f1", "kappa", "question"),
    "judge.confusion": ("source", "human", "judge", "n"),
    "directions.shortcuts": ("name", "auroc", "auroc_low", "auroc_high", "verdict"),
    "routing.gap": ("metric", "gap"),
    "routing.heads": ("layer", "head", "necessity", "passes"),
    "routing.drive": ("gate", "layer", "head", "drive"),
    "routing.cascade": ("gate", "layer", "head", "change"),
    "routing.groups": ("kind", "necessity"),
    "routing.coalitions": ("r_raw", "r_held"),
    "routing.coverage": ("map", "heads", "of"),
    "routing.stability": ("measure", "jaccard"),
    "routing.metrics": ("metric", "layer", "head", "necessity"),
    "routing.dose": ("arm", "alpha", "category", "margin"),
    "routing.thresholds": ("arm", "category", "alpha50"),
    "routing.cipher": ("wrapper", "arm", "layer", "head", "necessity"),
    "routing.contrast": ("wrapper", "layer", "head", "kappa4"),
    "routing.collapse": ("wrapper", "layer", "head", "change"),
    "routing.rescue": ("wrapper", "arm", "rate"),
    "routing.moved": ("layer", "head", "first", "second", "change"),
    "routing.drift": ("rbo", "first", "second"),
}


def usable(run: RunLike, name: str) -> pd.DataFrame | None:
    """The table with the rows of the report split, or None when it is absent, empty or too narrow.

    Only rows that no stage fitted or selected on are shown, so a table with a `split` column is cut
    to its `report` rows.
    """
    if name not in run.tables():
        return None
    frame = run.table(name)
    if any(column not in frame for column in NEEDED[name]):
        return None
    if "split" in frame:
        frame = frame[frame["split"] == "report"]
    return None if frame.empty else frame.reset_index(drop=True)


def why_missing(run: RunLike, name: str) -> str:
    """One sentence for a table that `usable` did not give."""
    if name not in run.tables():
        return f"This run holds no table {name}, so this part could not be drawn."
    frame = run.table(name)
    lacking = [column for column in NEEDED[name] if column not in frame]
    if lacking:
        return f"The table {name} of this run lacks the column {lacking[0]}."
    if frame.empty:
        return f"The table {name} of this run is empty."
    return f"The table {name} of this run has no rows of the report split."


def records(frame: pd.DataFrame) -> list[Row]:
    """The rows of a frame, each by column name."""
    return cast(list[Row], frame.to_dict("records"))


def chosen_candidate(candidates: pd.DataFrame | None) -> Row | None:
    """The chosen row of `directions.candidates`, None when there is none."""
    if candidates is None:
        return None
    return next(iter(records(candidates[candidates["chosen"].astype(bool)])), None)
