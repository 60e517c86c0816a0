"""The tables of a run as the report's sections want them: there and usable, or None."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import pandas as pd

Row = Mapping[str, Any]
Made = TypeVar("Made")


class RunLike(Protocol):
    """What the report reads of a run; `refusalscope.runs.open_run` gives one."""

    @property
    def info(self) -> dict[str, Any]:
        """run.json."""

    def tables(self) -> list[str]:
        """The names of the tables."""

    def table(self, name: str) -> pd.DataFrame:
        """A table as a frame."""


class Once:
    """A run while its page is made: what its sections share is made of the tables once, not by each.

    Nothing that was made may be changed. Tables as they were read are not held.
    """

    def __init__(self, run: RunLike) -> None:
        self.info = run.info
        self.tables = run.tables
        self.table = run.table
        self._made: dict[str, Any] = {}

    def made(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` gave the first time it was asked for under this name."""
        if name not in self._made:
            self._made[name] = make()
        return cast(Made, self._made[name])


def once(run: RunLike, name: str, make: Callable[[], Made]) -> Made:
    """`make`, or what it gave before for the same page."""
    return run.made(name, make) if isinstance(run, Once) else make()


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
    "features.dictionaries": ("layer",),
    "features.pool": ("layer", "latent"),
    "features.searches": ("search", "sets"),
    "features.sets": ("set_id", "layer", "latent"),
    "features.published": ("reading", "tau"),
    "features.members": ("layer", "latent", "frequency"),
    "features.stability": ("over", "jaccard"),
    "features.rounds": ("round", "layer", "latent"),
    "features.dormant": ("set_id", "layer", "latent", "in_set", "active_clean", "arm"),
    "features.waking": ("set_id", "arm", "null", "woken", "expected"),
    "features.clusters": ("set_id", "arm", "cluster", "layer", "latent"),
    "features.ledger": ("set_id", "layer", "part", "amount"),
    "features.compensation": ("set_id", "layer", "amount"),
    "features.values": ("set_id", "name", "value"),
    "features.overshoot": ("set_id", "layer", "latent", "claimed", "slope"),
    "features.interactions": (*("set_id", "layer_a", "latent_a", "layer_b", "latent_b", "effect"),),
    "features.contrast": ("inputs", "machine_accuracy"),
    "features.machine": ("inputs", "layer", "latent", "score"),
    "features.baselines": ("arm", "group", "strength", "change", "kl"),
    "cliff.verdict": ("name", "value", "verdict"),
    "cliff.prompts": ("id", "label", "cliff"),
    "cliff.trace": ("id", "position", "anchor", "score"),
    "cliff.curve": ("position", "n", "mean", "group"),
    "cliff.separation": ("position", "contrast", "auroc"),
    "cliff.probes": ("probe",),
    "cliff.heads": ("layer", "head", "effect"),
    "cliff.ablation": ("arm", "share", "n_heads", "group"),
    "cliff.behaviour": ("arm", "share", "group", "rate"),
    "repair.selection": ("id", "selection"),
    "repair.losses": ("selection", "step"),
    "repair.prompts": ("id", "selection", "group", "refused"),
    "repair.effects": ("selection", "quantity", "value"),
    "belief.prompts": ("label", "delta_harmful", "delta_refuse", "quadrant"),
    "belief.marks": ("label", "mark", "mean"),
    "belief.shortcuts": ("name", "auroc", "auroc_low", "auroc_high", "verdict"),
    "belief.clusters": ("position", "behaviour", "layer", "cluster", "mean"),
    "belief.positions": ("position", "behaviour", "cluster", "mean", "separates"),
    "belief.template_cut": ("label", "rate_full", "rate_cut"),
    "belief.categories": ("axis", "category"),
    "belief.category_cosines": ("axis", "a", "b", "cosine"),
    "belief.jailbreaks": ("wrapper", "label", "group", "quantity", "value"),
    "belief.tuned": ("label", "quantity", "centroids", "before", "after"),
    "belief.steering": ("direction", "layer", "control", "label"),
    "belief.inversion": ("direction", "positions", "layer", "control", "label"),
    "guard.scores": ("id", "label", "delta_harmful"),
    "guard.points": ("name", "set", "tau"),
    "guard.rates": ("point", "label", "kind", "name", "rate"),
    "guard.roc": ("fpr", "tpr"),
    "guard.metrics": ("name", "value"),
    "guard.layers": ("row", "auroc"),
    "guard.shortcuts": ("name", "auroc", "verdict"),
    "guard.verdict": ("name", "verdict"),
    "guard.sources": ("source", "auroc"),
    "guard.variants": ("variant", "label"),
    "guard.wrappers": ("wrapper", "label"),
    "guard.against": ("guard", "point", "tpr", "own_tpr"),
    "guard.monitor": ("kind", "n", "flagged"),
    "guard.augmented": ("label", "point", "when", "flagged"),
    "guard.drift": ("measure", "effect", "verdict"),
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


def even(
    frame: pd.DataFrame,
    numbers: Sequence[str],
    texts: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> pd.DataFrame:
    """A copy in which every named column is there: numbers finite or NaN, texts or "", flags or False."""
    frame = frame.copy()
    for column in numbers:
        frame[column] = finite_numbers(frame, column)
    for column in texts:
        frame[column] = frame[column].fillna("").astype(str) if column in frame else ""
    for column in flags:
        frame[column] = frame[column].eq(True) if column in frame else False
    return frame


def finite_numbers(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats; NaN where it is absent, infinite or no number."""
    if column not in frame:
        return pd.Series(np.nan, index=frame.index)
    values = pd.to_numeric(frame[column], errors="coerce").astype(float)
    return values.where(np.isfinite(values))


def placed(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The rows whose columns all hold a place in the model, as whole numbers from 0 on."""
    places = [finite_numbers(frame, column) for column in columns]
    known = np.logical_and.reduce([place >= 0 for place in places])
    frame = frame[known].copy()
    for column, values in zip(columns, places, strict=True):
        frame[column] = values[frame.index].astype(int)
    return frame


def by_size(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with the largest number in size first, whatever its sign; those without one last."""
    order = frame[column].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order]
