"""The tables of a belief study, made even: every column there, numbers finite or NaN."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from refusalscope.report.tables import RunLike, even, once, usable

CLUSTERS, POSITIONS, CUT = "belief.clusters", "belief.positions", "belief.template_cut"
PROMPTS, MARKS, SHORTCUTS = "belief.prompts", "belief.marks", "belief.shortcuts"
CATEGORIES, COSINES = "belief.categories", "belief.category_cosines"
JAILBREAKS, TUNED = "belief.jailbreaks", "belief.tuned"
STEERING, INVERSION = "belief.steering", "belief.inversion"
# As the study names them: clusters, behaviours, directions, and the run without an edit or wrapper.
CLUSTER_NAMES = ("harmful refused", "harmful accepted", "harmless refused", "harmless accepted")
# Clusters that behave against their label, by which belief can be told from behaviour.
AGAINST = ("harmful accepted", "harmless refused")
FULL, PUBLISHED = "full template", "template cut"
HARM, REFUSAL, NONE = "harm", "refuse", "none"
DIRECTIONS = {HARM: "harmfulness", REFUSAL: "refusal"}
LABELS = ("harmful", "harmless")

# What wrappers and fine-tuning can move, as a sentence has it.
QUANTITIES = {
    "refused": "the share refused",
    "delta_harmful": "the belief of harm",
    "delta_refuse": "the readiness to refuse",
}
# Rules of positions of the reply inversion, the published one of harmfulness first.
RULES = {"before_question": "tokens before the question", "all": "all tokens"}
# A cluster of fewer prompts earns no word, as the study has it.
ENOUGH = 8

_BOUNDS = ("", "_low", "_high")
_PUSHED = (
    *("layer", "sign", "scale", "scale_in_residual_norms", "seed", "n", "n_margin"),
    *("random_most", "p_random", "n_random"),
    *(f"{name}{end}" for name in ("margin", "margin_change", "change") for end in _BOUNDS),
)
_TEXTS: Mapping[str, tuple[str, ...]] = {
    CLUSTERS: ("position", "behaviour", "cluster"),
    POSITIONS: ("token", "behaviour", "cluster", "separates"),
    CUT: ("label",),
    PROMPTS: ("id", "label", "category", "quadrant"),
    MARKS: ("label", "mark"),
    SHORTCUTS: ("name", "verdict"),
    CATEGORIES: ("axis", "category", "reason", "harmless"),
    COSINES: ("axis", "a", "b", "harmless"),
    JAILBREAKS: ("wrapper", "label", "group", "quantity"),
    TUNED: ("label", "quantity", "centroids"),
    STEERING: ("direction", "positions", "label", "control"),
    INVERSION: ("direction", "positions", "label", "control"),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {
    PROMPTS: ("refused",),
    CATEGORIES: ("total", "unsteady"),
    STEERING: ("chosen",),
    INVERSION: ("chosen",),
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    CLUSTERS: ("layer", "n", "mean", "low", "high"),
    POSITIONS: ("position", "n", "mean", "low", "high", "first_layer", "last_layer"),
    CUT: (
        *("n", "refused_full", "refused_cut", "rate_full", "rate_cut"),
        *("low_full", "high_full", "low_cut", "high_cut"),
        *("change", "change_low", "change_high", "p", "garbled_cut"),
    ),
    PROMPTS: ("delta_harmful", "delta_refuse"),
    MARKS: ("n", "mean", "low", "high", "spread", "spread_low", "spread_high"),
    SHORTCUTS: ("auroc", "auroc_low", "auroc_high"),
    CATEGORIES: (
        *("n", "halves", "to_others_p", "shared_p"),
        *(f"{name}{end}" for name in ("to_others", "to_mean", "shared") for end in _BOUNDS),
        *(f"{name}_null{end}" for name in ("to_others", "shared") for end in _BOUNDS),
    ),
    COSINES: ("cosine", "low", "high"),
    JAILBREAKS: ("n", "value", "low", "high", "change", "change_low", "change_high", "p"),
    TUNED: (
        "n",
        *(f"{name}{end}" for name in ("before", "after", "change") for end in _BOUNDS),
        "p",
    ),
    STEERING: (
        *(*_PUSHED, "refused", "degenerate", "rate", "low", "high"),
        *("corrected", "corrected_low", "corrected_high"),
    ),
    INVERSION: (
        *(*_PUSHED, "n_valid", "invalid", "invalid_low", "invalid_high", "loose_no"),
        *("share_no", "low", "high", "n_both", "answer_mass"),
    ),
}
# What a row must have to be shown at all.
_PLACES: Mapping[str, tuple[str, ...]] = {
    CLUSTERS: ("layer", "n"),
    POSITIONS: ("position", "n"),
    PROMPTS: ("delta_harmful", "delta_refuse"),
    MARKS: ("mean",),
    SHORTCUTS: ("auroc",),
    COSINES: ("cosine",),
    JAILBREAKS: ("value",),
    TUNED: ("before", "after"),
    CUT: ("rate_full", "rate_cut"),
    STEERING: ("layer",),
    INVERSION: ("layer",),
}


def is_belief(run: RunLike) -> bool:
    """Whether the run is a belief study."""
    return run.info.get("command") == "belief" or CLUSTERS in run.tables()


def belief_table(run: RunLike, name: str) -> pd.DataFrame | None:
    """A table of the study with all its columns, or None when it is absent, empty or too narrow."""
    return once(run, name, lambda: _made_even(run, name))


def _made_even(run: RunLike, name: str) -> pd.DataFrame | None:
    frame = usable(run, name)
    if frame is None:
        return None
    frame = even(frame, _NUMBERS[name], _TEXTS[name], _FLAGS.get(name, ()))
    frame = frame.dropna(subset=list(_PLACES.get(name, ())))
    return None if frame.empty else frame.reset_index(drop=True)


def sorted_by(rows: pd.DataFrame) -> str:
    """The behaviour that sorts prompts into clusters: the published one, unless too few go against their label.

    rows: one position. Where no behaviour fills both such clusters, the published one is taken if it is there.
    """
    known = [name for name in (PUBLISHED, FULL) if (rows["behaviour"] == name).any()]
    full = [name for name in known if _filled(rows[rows["behaviour"] == name])]
    return next(iter([*full, *known]), FULL)


def _filled(rows: pd.DataFrame) -> bool:
    sizes = rows.groupby("cluster")["n"].min()
    return all(sizes.get(name, 0) >= ENOUGH for name in AGAINST)
