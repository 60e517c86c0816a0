"""The tables of a routing run, made even: every column there, numbers finite or NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from refusalscope.report.tables import Row, RunLike, by_size, even, placed, records, usable

HEADS, GROUPS, DRIVE, CASCADE = (
    "routing.heads",
    "routing.groups",
    "routing.drive",
    "routing.cascade",
)

LAST_GATE = 'last-layer "gate"'

# Columns by table that are not numbers, and those whose absence is nothing but an absence.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "routing.gap": ("metric", "unit"),
    HEADS: ("map", "role", "why"),
    DRIVE: ("gate",),
    CASCADE: ("gate", "knockout"),
    GROUPS: ("kind", "name"),
    "routing.coverage": ("map", "layers", "note"),
    "routing.stability": ("measure",),
    "routing.metrics": ("metric", "unit"),
    "routing.dose": ("arm", "category", "language"),
    "routing.thresholds": ("arm", "category", "language"),
    "routing.cipher": ("wrapper", "arm"),
    "routing.contrast": ("wrapper", "side"),
    "routing.collapse": ("wrapper",),
    "routing.rescue": ("wrapper", "arm", "policy"),
    "routing.drift": ("first", "second"),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {
    HEADS: ("passes",),
    DRIVE: ("driven",),
    CASCADE: ("deeper",),
    GROUPS: ("hides",),
    "routing.thresholds": ("crossed",),
    "routing.contrast": ("kept",),
    "routing.collapse": ("collapsed",),
    "routing.moved": ("moved",),
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "routing.gap": ("n", "harmful", "control", "gap", "low", "high"),
    HEADS: (
        *("necessity", "necessity_low", "necessity_high"),
        *("sufficiency", "sufficiency_low", "sufficiency_high"),
        *("p_familywise", "p_sufficiency", "p_both", "p_equivalent", "donor_sd"),
        *("necessity_last", "necessity_all", "necessity_first", "necessity_second"),
        *("conditional", "dla", "dla_share", "direct", "frozen", "drives", "driven_by"),
    ),
    DRIVE: ("gate_layer", "gate_head", "drive", "low", "high", "p"),
    CASCADE: ("gate_layer", "contrast", "change", "low", "high", "held", "p"),
    GROUPS: ("start", "stop", "n_heads", "necessity", "low", "high", "largest", "summed"),
    "routing.coalitions": ("n_pro", "n_counter", "r_raw", "r_held", "p"),
    "routing.coverage": ("heads", "of"),
    "routing.stability": ("jaccard", "top"),
    "routing.metrics": ("necessity", "sufficiency", "p_familywise"),
    "routing.dose": (
        *("alpha", "n", "margin", "margin_low", "margin_high"),
        *("n_judged", "refused", "low", "high"),
    ),
    "routing.thresholds": (
        *("n", "alpha50", "alpha50_low", "alpha50_high", "behaviour_alpha50", "p_monotone"),
    ),
    "routing.cipher": (
        *("necessity", "necessity_low", "necessity_high", "dla", "dla_low", "dla_high"),
    ),
    "routing.contrast": (
        *("kappa3", "kappa4", "kappa4_low", "kappa4_high", "p_familywise", "plain"),
    ),
    "routing.collapse": (
        *("plain", "plain_low", "plain_high", "cipher", "cipher_low", "cipher_high"),
        *("change", "change_low", "change_high"),
    ),
    "routing.rescue": (
        "n",
        "refused",
        "rate",
        "low",
        "high",
        "margin",
        "margin_low",
        "margin_high",
    ),
    "routing.moved": ("first", "second", "change", "low", "high", "p_familywise"),
    "routing.drift": ("rbo", "null_mean", "null_low", "p", "n"),
}

# A change of a head's contrast is shown from this share of the largest contrast on.
LEAST_CONTRAST = 0.05

# What a position map is called in a sentence.
MAPS = {
    "last": "the last token",
    "suffix": "the template's tail",
    "right": "tokens from the end",
    "all": "all positions",
    "compat_left": "tokens from the start (as published)",
}


def routing_table(run: RunLike, name: str) -> pd.DataFrame | None:
    """A routing table with all its columns, or None when it is absent, empty or too narrow.

    Infinite numbers become NaN, absent texts "", absent flags False; rows without a place in the
    model are dropped. Rows of a head get `at`, its name, such as "L3.H1".
    """
    frame = usable(run, name)
    if frame is None:
        return None
    frame = even(frame, _NUMBERS[name], _TEXTS.get(name, ()), _FLAGS.get(name, ()))
    if "layer" in frame and "head" in frame:
        frame = placed(frame, ("layer", "head"))
        frame["at"] = [
            at(layer, head) for layer, head in zip(frame["layer"], frame["head"], strict=True)
        ]
    return None if frame.empty else frame.reset_index(drop=True)


def all_heads(run: RunLike) -> pd.DataFrame | None:
    """`routing.heads`, in which a gate of the last layer is called what it is: it drives nothing."""
    heads = routing_table(run, HEADS)
    if heads is None:
        return None
    late = (heads["role"] == "gate") & (heads["layer"] == n_layers(run, heads) - 1)
    return heads.assign(role=heads["role"].mask(late, LAST_GATE))


def at(layer: Any, head: Any) -> str:
    """The name of a head: "L3.H1"."""
    return f"L{int(layer)}.H{int(head)}"


def found(heads: pd.DataFrame | None) -> pd.DataFrame | None:
    """The heads of the route, largest necessity first: those that pass, and backups.

    A backup shows only when its partner is swapped too, so it cannot pass on its own. None without
    a table of heads.
    """
    if heads is None:
        return None
    mine = heads[heads["passes"] | (heads["role"] == "backup")]
    return by_size(mine, "necessity")


def group(groups: pd.DataFrame | None, kind: str) -> pd.DataFrame | None:
    """The measured groups of one kind, None when there is none."""
    if groups is None:
        return None
    rows = groups[(groups["kind"] == kind) & groups["necessity"].notna()]
    return None if rows.empty else rows


def telling(cascade: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cascade whose change can be read: a share of next to nothing says nothing."""
    size = cascade["contrast"].abs()
    least = LEAST_CONTRAST * size.max()
    return cascade[size.isna() | (size >= least)] if size.notna().any() else cascade


def main_gap(run: RunLike) -> Row | None:
    """The gap that shares are shares of: the first row of `routing.gap`."""
    gaps = routing_table(run, "routing.gap")
    return None if gaps is None else records(gaps)[0]


def n_layers(run: RunLike, heads: pd.DataFrame) -> int:
    """How many layers the model has; without a record of it, as many as the heads reach."""
    stated = (run.info.get("model") or {}).get("n_layers")
    reach = int(heads["layer"].max()) + 1
    return max(int(stated), reach) if isinstance(stated, int) else reach


def layers(row: Row) -> str:
    """The layers of a group: "layer 3", "layers 3 to 5", or "" for a group without bounds."""
    if pd.isna(row["start"]) or pd.isna(row["stop"]):
        return ""
    first, last = int(row["start"]), int(row["stop"]) - 1
    return f"layer {first}" if last <= first else f"layers {first} to {last}"
