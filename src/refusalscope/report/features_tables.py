"""The tables of a features run, made even: every column there, numbers finite or NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.tables import Row, RunLike, even, once, placed, records, usable

SETS, DORMANT, BASELINES = "features.sets", "features.dormant", "features.baselines"
# What the sets of halves of the prompts are called.
HALVES = "half/"

# The convention of the study: a latent is a reserve when it wakes beyond chance at this rate of false
# discovery and the lower bound of what it writes back passes this many nats.
WAKES, MATTERS = 0.05, 0.1

_TEXTS: Mapping[str, tuple[str, ...]] = {
    "features.dictionaries": ("name", "architecture", "warnings"),
    "features.searches": ("search", "prompt_id", "why"),
    SETS: ("set_id", "prompt_id", "by"),
    "features.published": ("prompt_id", "reading", "why_not"),
    "features.stability": ("over",),
    DORMANT: ("set_id", "arm"),
    "features.waking": ("set_id", "arm", "null"),
    "features.clusters": ("set_id", "arm"),
    "features.ledger": ("set_id", "part", "position"),
    "features.compensation": ("set_id", "position"),
    "features.values": ("set_id", "name"),
    "features.overshoot": ("set_id",),
    "features.interactions": ("set_id", "kind", "held"),
    "features.contrast": ("inputs",),
    "features.machine": ("inputs",),
    BASELINES: ("arm", "group"),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "features.searches": ("exhausted", "complete"),
    SETS: ("verified", "minimal"),
    "features.published": ("intersection_flipped",),
    DORMANT: ("in_set",),
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "features.dictionaries": (
        *("layer", "d_sae", "l0", "l0_low", "l0_high", "l0_special", "norm_ratio", "dead_share"),
        *("explained", "explained_low", "explained_high"),
    ),
    "features.searches": ("n_prompts", "share", "candidates", "sets", "forwards", "repairs"),
    SETS: ("place", "write", "forwards", "flipped"),
    "features.published": (*("tau", "sizes_mean", "intersection_size", "evaluations"),),
    "features.members": ("frequency", "low", "high", "n_sets"),
    "features.stability": ("n_sets", "jaccard", "lowest", "core"),
    "features.rounds": ("round", "effect", "margin", "flipped"),
    DORMANT: (*("active_clean", "woken", "null", "q", "effect", "effect_low", "effect_high"),),
    "features.waking": ("woken", "expected", "excess", "low", "high", "p"),
    "features.clusters": ("cluster",),
    "features.ledger": ("layer", "amount", "low", "high", "null"),
    "features.compensation": ("layer", "amount", "low", "high"),
    "features.values": ("value", "low", "high", "n", "p"),
    "features.overshoot": ("claimed", "slope", "slope_low", "slope_high"),
    "features.interactions": (
        *("moment", "moment_low", "moment_high", "effect", "low", "high"),
        *("alone_a", "alone_b", "both", "n"),
    ),
    "features.contrast": (
        *("n_latents", "machine_accuracy", "machine_low", "machine_high"),
        *("probe_accuracy", "probe_low", "probe_high"),
    ),
    "features.machine": ("score", "place", "probe_weight", "probe_place"),
    BASELINES: (
        *("n_latents", "draws", "strength", "n_harmful", "n_harmless"),
        *("margin", "change", "change_low", "change_high", "ratio"),
        *("flipped", "flipped_low", "flipped_high", "kl", "kl_low", "kl_high"),
        *("ce", "ce_low", "ce_high", "refused", "refused_low", "refused_high"),
        *("degenerate", "over_refused", "beats", "beats_low", "beats_high"),
        *("p_random", "equal_kl"),
    ),
}


def latent_name(layer: Any, latent: Any) -> str:
    """The name of a latent: "L16/46368"."""
    return f"L{int(layer)}/{int(latent)}"


def features_table(run: RunLike, name: str) -> pd.DataFrame | None:
    """A table of the study with all its columns, or None when it is absent, empty or too narrow.

    Not for features.pool. Rows without a place in the model are dropped; rows of a latent get `at`, its
    name, and rows of a pair `first` and `second`. features.sets comes without the sets of halves of the
    prompts, which only say how stable the others are, and with a number of the write for every latent.
    """
    return once(run, name, lambda: _made_even(run, name))


def _made_even(run: RunLike, name: str) -> pd.DataFrame | None:
    frame = usable(run, name)
    if frame is None:
        return None
    frame = even(frame, _NUMBERS[name], _TEXTS.get(name, ()), _FLAGS.get(name, ()))
    for at, layer, latent in (
        ("at", "layer", "latent"),
        ("first", "layer_a", "latent_a"),
        ("second", "layer_b", "latent_b"),
    ):
        if layer in frame and latent in frame:
            frame = placed(frame, (layer, latent))
            pairs = zip(frame[layer], frame[latent], strict=True)
            frame[at] = [latent_name(*pair) for pair in pairs]
    if "layer" in frame and "latent" not in frame:
        frame = placed(frame, ("layer",))
    if name == SETS:
        frame = frame[~frame["set_id"].str.startswith(HALVES)]
        # A latent without a number is a write of its own.
        alone = pd.Series(-1.0 - np.arange(len(frame)), frame.index)
        frame = frame.assign(write=frame["write"].fillna(alone))
    return None if frame.empty else frame.reset_index(drop=True)


def main_set(run: RunLike) -> pd.DataFrame | None:
    """The latents of the set that the page speaks about, strongest first; None without any set.

    The smallest verified pooled set of those that were looked into further, so that its size, its dormant
    members and its baselines are of one set; without pooled sets, the smallest of the others.
    """
    return once(run, "the main set", lambda: _main_set(run))


def _main_set(run: RunLike) -> pd.DataFrame | None:
    sets = features_table(run, SETS)
    if sets is None:
        return None
    sizes = sizes_of(sets)
    sizes = sizes[sizes["pooled"]] if sizes["pooled"].any() else sizes
    sizes = sizes[sizes["verified"]] if sizes["verified"].any() else sizes
    dormant, arms = features_table(run, DORMANT), features_table(run, BASELINES)
    looked = set() if dormant is None else set(dormant["set_id"])
    looked |= set() if arms is None else {arm.removeprefix("set ") for arm in arms["arm"]}
    known = sizes[sizes["set_id"].isin(looked)]
    name = (known if len(known) else sizes).iloc[0]["set_id"]
    return sets[sets["set_id"] == name].sort_values("place", kind="stable").reset_index(drop=True)


def sizes_of(sets: pd.DataFrame) -> pd.DataFrame:
    """One row a set, the smallest first: set_id, n (writes), latents, layers, pooled, what its rows share."""
    shared = ["set_id", "prompt_id", "by", "verified", "minimal", "flipped", "forwards"]
    sizes = sets.drop_duplicates("set_id")[shared]
    members = sets.groupby("set_id")
    return (
        sizes.assign(
            n=sizes["set_id"].map(members["write"].nunique()),
            latents=sizes["set_id"].map(members.size()),
            layers=sizes["set_id"].map(members["layer"].nunique()),
            pooled=sizes["prompt_id"] == "",
        )
        .sort_values("n", kind="stable")
        .reset_index(drop=True)
    )


def of_set(frame: pd.DataFrame | None, members: pd.DataFrame | None) -> pd.DataFrame | None:
    """The rows of the main set; without a set, or rows of it, those of the first set in the table."""
    if frame is None or frame.empty:
        return None
    name = members["set_id"].iloc[0] if members is not None else None
    if name not in set(frame["set_id"]):
        name = frame["set_id"].iloc[0]
    return frame[frame["set_id"] == name].reset_index(drop=True)


def main_arm(dormant: pd.DataFrame) -> str:
    """The arm that headlines use: BOS left out of edit and read, where the run has it."""
    arms = set(dormant["arm"])
    return "no_bos" if "no_bos" in arms else str(dormant["arm"].iloc[0])


def dormant_rows(run: RunLike, arm: str | None = None) -> pd.DataFrame | None:
    """`features.dormant` of the main set in one arm (the main one), with `dormant` and `reserve`."""
    rows = of_set(features_table(run, DORMANT), main_set(run))
    if rows is None:
        return None
    rows = rows[rows["arm"] == (main_arm(rows) if arm is None else arm)].reset_index(drop=True)
    return marked(rows) if len(rows) else None


def marked(rows: pd.DataFrame) -> pd.DataFrame:
    """dormant: a member that no prompt activates without an edit; reserve: wakes beyond chance and matters."""
    beyond = (rows["q"] < WAKES) & (rows["effect_low"] > MATTERS)
    return rows.assign(
        dormant=rows["in_set"] & (rows["active_clean"] == 0), reserve=~rows["in_set"] & beyond
    )


def set_arm(run: RunLike, members: pd.DataFrame | None = None) -> Row | None:
    """The row of `features.baselines` of the main set with its latents taken out whole; None without it."""
    arms, members = features_table(run, BASELINES), main_set(run) if members is None else members
    if arms is None:
        return None
    mine = arms[arms["group"] == "set"]
    if members is not None:
        mine = mine[mine["arm"] == f"set {members['set_id'].iloc[0]}"]
    return full_strength(mine)


def full_strength(rows: pd.DataFrame) -> Row | None:
    """The row of an arm that takes its latents out whole, or the strongest where none does."""
    rows = rows[rows["change"].notna() & rows["strength"].notna()]
    if rows.empty:
        return None
    whole = rows[np.isclose(rows["strength"], 1.0)]
    return records(whole if len(whole) else rows.nlargest(1, "strength"))[0]


def arms_at_full(run: RunLike) -> pd.DataFrame | None:
    """One row an arm of `features.baselines`, at full strength, in the order of the table."""
    return once(run, "arms at full strength", lambda: _arms_at_full(run))


def _arms_at_full(run: RunLike) -> pd.DataFrame | None:
    arms = features_table(run, BASELINES)
    if arms is None:
        return None
    rows = [full_strength(part) for _, part in arms.groupby("arm", sort=False)]
    known = [row for row in rows if row is not None]
    return pd.DataFrame(known) if known else None


def value(run: RunLike, name: str) -> Row | None:
    """One of the named values of the main set, None when it was not measured."""
    values = of_set(features_table(run, "features.values"), main_set(run))
    if values is None:
        return None
    rows = values[(values["name"] == name) & values["value"].notna()]
    return next(iter(records(rows)), None)


def pooled_searches(run: RunLike) -> pd.DataFrame | None:
    """The rows of `features.searches` over all prompts at once."""
    searches = features_table(run, "features.searches")
    if searches is None:
        return None
    rows = searches[searches["search"] == "pool"]
    return rows if len(rows) else None


def stated_layers(run: RunLike) -> int | None:
    """How many layers run.json says the model has."""
    stated = (run.info.get("model") or {}).get("n_layers")
    return stated if isinstance(stated, int) else None
