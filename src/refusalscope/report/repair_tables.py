"""The tables of a repair run, made even: every column there, numbers finite or NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from refusalscope.report.tables import Row, RunLike, even, once, records, usable
from refusalscope.stats import Interval, mean_interval, wilson

SELECTION, LOSSES = "repair.selection", "repair.losses"
PROMPTS, EFFECTS = "repair.prompts", "repair.effects"
LOST, OTHER, HARMLESS = "harmful, lost refusal", "harmful, other", "harmless"
BEFORE = "before"
# What is measured before and after, as the study names it: the group and the column of repair.prompts.
RESTORED, KEPT, OVER = "refusal restored", "refusal of other harmful", "over-refusal"
MARGIN, CLIFF, KL = "margin of lost refusals", "cliff of lost refusals", "KL on harmless replies"
QUANTITIES: Mapping[str, tuple[str, str]] = {
    RESTORED: (LOST, "refused"),
    KEPT: (OTHER, "refused"),
    OVER: (HARMLESS, "refused"),
    CLIFF: (LOST, "cliff"),
    MARGIN: (LOST, "margin"),
    KL: (HARMLESS, "kl"),
}
RATES = (RESTORED, KEPT, OVER)

_TEXTS: Mapping[str, tuple[str, ...]] = {
    SELECTION: ("id", "category", "selection"),
    LOSSES: ("selection",),
    PROMPTS: ("id", "selection", "group", "label"),
    EFFECTS: ("selection", "quantity", "against"),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {PROMPTS: ("refused", "degenerate")}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    SELECTION: ("rank", "priority"),
    LOSSES: ("step", "loss", "validation_loss"),
    PROMPTS: ("margin", "cliff", "kl"),
    EFFECTS: (
        *("value", "low", "high", "before", "change", "change_low", "change_high"),
        *("n", "p", "beats", "beats_low", "beats_high"),
    ),
}


def repair_table(run: RunLike, name: str) -> pd.DataFrame | None:
    """A table of the repair with all its columns, or None when it is absent, empty or too narrow."""
    return once(run, name, lambda: _made_even(run, name))


def _made_even(run: RunLike, name: str) -> pd.DataFrame | None:
    frame = usable(run, name)
    if frame is None:
        return None
    frame = even(frame, _NUMBERS[name], _TEXTS[name], _FLAGS.get(name, ()))
    if name == LOSSES:
        frame = frame[frame["step"].notna()]
    if name == EFFECTS:
        frame = frame[frame["value"].notna()].drop_duplicates(["selection", "quantity"])
    return None if frame.empty else frame.reset_index(drop=True)


def main_selection(run: RunLike) -> str | None:
    """The selection that the run was asked for, or the first; None without effects."""
    effects = repair_table(run, EFFECTS)
    if effects is None:
        return None
    names = list(dict.fromkeys(effects["selection"]))
    asked = str((run.info.get("settings") or {}).get("rank_by"))
    return asked if asked in names else names[0]


def effect(run: RunLike, quantity: str, selection: str | None = None) -> Row | None:
    """What a selection, the main one by default, did to a quantity; None when it was not measured."""
    effects = repair_table(run, EFFECTS)
    name = main_selection(run) if selection is None else selection
    if effects is None:
        return None
    rows = effects[(effects["selection"] == name) & (effects["quantity"] == quantity)]
    return next(iter(records(rows)), None)


def before(run: RunLike, quantity: str) -> Interval | None:
    """The quantity before any repair with its interval; without an interval where its prompts are missing."""
    prompts, group = repair_table(run, PROMPTS), QUANTITIES[quantity]
    if prompts is not None:
        rows = prompts[(prompts["selection"] == BEFORE) & (prompts["group"] == group[0])]
        values = rows[group[1]].dropna().to_numpy(float)
        if len(values) and group[1] == "refused":
            return wilson(int(values.sum()), len(values))
        if len(values):
            return mean_interval(values, seed=0)
    row = effect(run, quantity)
    unknown = float("nan")
    return None if row is None else Interval(row["before"], unknown, unknown, _count(row["n"]))


def _count(n: Any) -> int:
    return int(n) if n == n else 0
