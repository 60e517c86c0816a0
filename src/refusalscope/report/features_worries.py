"""What can make a features run say more than it measured: dictionaries, budgets, BOS, missing nulls."""

from __future__ import annotations

import textwrap

import pandas as pd

from refusalscope.report.features_tables import (
    BASELINES,
    DORMANT,
    SETS,
    dormant_rows,
    features_table,
    main_arm,
    main_set,
    of_set,
    set_arm,
    sizes_of,
    stated_layers,
    value,
)
from refusalscope.report.features_writes import followed
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    listed,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.rules import HALF, MIN_N, STABLE, Statement
from refusalscope.report.tables import RunLike, records

# More degenerate replies than this and the set breaks the model rather than its refusal.
BROKEN = 0.10
# Fewer random draws than this are no null (the study makes as many or more).
MIN_DRAWS = 20


def features_worries(run: RunLike) -> list[Statement]:
    """The concerns of a features run, the gravest first; none for a run without its tables."""
    if not any(name.startswith("features.") for name in run.tables()):
        return []
    members = main_set(run)
    overshoot = of_set(features_table(run, "features.overshoot"), members)
    checks = [
        few_flips(run),
        overshoots(overshoot),
        misfits(features_table(run, "features.dictionaries")),
        broken(run),
        bos_alone(run),
        bos_differs(run),
        no_null(run) if members is not None else None,
        unsteady(features_table(run, "features.stability")),
        exhausted(features_table(run, "features.searches")),
        uncovered(features_table(run, "features.dictionaries"), stated_layers(run)),
        unverified(features_table(run, SETS)),
    ]
    return [check for check in checks if check is not None]


def few_flips(run: RunLike) -> Statement | None:
    """A set that flips the prompts it was searched on and few others."""
    arm = set_arm(run)
    if arm is None or not arm["flipped_low"] <= HALF or not arm["n_harmful"] >= MIN_N:
        return None
    interval = rate_span(arm["flipped_low"], arm["flipped_high"])
    text = f"the set was not shown to flip most prompts it was not searched on ({percent(arm['flipped'])}"
    tone = "bad" if arm["flipped_high"] < HALF else "watch"
    return Statement(f"{text}, interval {interval})", "", tone, ("figure-features-baselines",))


def overshoots(overshoot: pd.DataFrame | None) -> Statement | None:
    """Members whose decoder row claims more of the refusal axis than the model writes with them."""
    if overshoot is None:
        return None
    known = overshoot[overshoot["slope_high"].notna() & overshoot["claimed"].notna()]
    rows = known[known["slope_high"] < known["claimed"]]
    if rows.empty:
        return None
    worst = records(rows.loc[[(rows["claimed"] - rows["slope"]).idxmax()]])[0]
    text = f"{whole(len(rows))} of {counted(len(known), 'latent')} of the set claim more of the refusal axis "
    text += f"than the model writes with them ({worst['at']}: {decimal(worst['claimed'])} claimed, "
    text += f"{decimal(worst['slope'])} written), so taking them out also steers"
    return Statement(text, "", "bad", ("table-features-members",))


def misfits(dictionaries: pd.DataFrame | None) -> Statement | None:
    """Dictionaries that the study warned about."""
    if dictionaries is None:
        return None
    warned = dictionaries[dictionaries["warnings"].str.strip() != ""]
    if warned.empty:
        return None
    row = records(warned)[0]
    said = textwrap.shorten(row["warnings"], 160, placeholder="\u2026").rstrip(".")
    text = (
        f"{whole(len(warned))} of {whole(len(dictionaries))} dictionaries may not fit this model "
    )
    text += f"(layer {row['layer']}: {said})"
    return Statement(text, "", "watch", ("table-features-dictionaries",))


def broken(run: RunLike) -> Statement | None:
    """Replies that say nothing at all are neither refusals nor answers."""
    arm = set_arm(run)
    if arm is None or not arm["degenerate"] > BROKEN:
        return None
    text = f"{percent(arm['degenerate'])} of replies are degenerate with the set taken out"
    return Statement(text, "", "watch", ("table-features-baselines",))


def bos_alone(run: RunLike) -> Statement | None:
    """An edit of the first token alone that lowers the margin clearly."""
    clean, alone = value(run, "margin, clean"), value(run, "margin, BOS alone")
    if clean is None or alone is None or not alone["high"] < clean["low"]:
        return None
    text = (
        f"the same edit at BOS alone already lowers the margin from {decimal(clean['value'])} to "
    )
    text += f"{decimal(alone['value'])}{NBSP}nats (interval {span(alone['low'], alone['high'])})"
    return Statement(text, "", "watch", ("table-features-values",))


def bos_differs(run: RunLike) -> Statement | None:
    """Dormant members or reserves that are others once BOS is part of edit and read."""
    every, without = dormant_rows(run, "all"), dormant_rows(run, "no_bos")
    if every is None or without is None:
        return None
    parts = []
    members = main_set(run)
    asleep = [followed(rows, members) for rows in (every, without)]
    names = {
        "dormant members": [set(rows.loc[rows["dormant"], "at"]) for rows in asleep],
        "reserves": [set(rows.loc[rows["reserve"], "at"]) for rows in (every, without)],
    }
    for name, (one, other) in names.items():
        if one != other:
            parts.append(f"{whole(len(one))} {name} against {whole(len(other))} without it")
    if not parts:
        return None
    text = f"with BOS edited and read too the run finds {listed(parts)}"
    return Statement(text, "", "watch", ("figure-features-woken",))


def no_null(run: RunLike) -> Statement | None:
    """Claims without the control that they need."""
    missing = []
    arms = features_table(run, BASELINES)
    if arms is not None:
        random = arms[arms["group"] == "random"]
        draws = random["draws"].max()
        if random.empty:
            missing.append("no random latents stand beside the set")
        elif draws < MIN_DRAWS:
            missing.append(f"only {whole(draws)} draws of random latents stand beside the set")
    dormant = of_set(features_table(run, DORMANT), main_set(run))
    if dormant is not None:
        woken = dormant[~dormant["in_set"] & (dormant["arm"] == main_arm(dormant))]
        if len(woken) and woken["null"].isna().all():
            missing.append("what wakes was not compared with random directions")
    if not missing:
        return None
    return Statement("; ".join(missing), "", "watch", ("figure-features-baselines",))


def unsteady(stability: pd.DataFrame | None) -> Statement | None:
    """Sets that another sample or search would not have given."""
    if stability is None:
        return None
    low = [row for row in records(stability) if row["jaccard"] < STABLE]
    if not low:
        return None
    worst = min(low, key=lambda row: row["jaccard"])
    core = f", {whole(worst['core'])} latents in all of them" if finite(worst["core"]) else ""
    text = f"sets differ over {worst['over'] or 'repeats'} (Jaccard {decimal(worst['jaccard'])}{core}), "
    text += "so a set found is one of several"
    return Statement(text, "", "watch", ("table-features-stability",))


def exhausted(searches: pd.DataFrame | None) -> Statement | None:
    """Searches that ran out of forwards: smaller sets may exist."""
    if searches is None or not searches["exhausted"].any():
        return None
    n = int(searches["exhausted"].sum())
    text = f"{whole(n)} of {whole(len(searches))} searches ran out of their budget, so smaller or further "
    return Statement(f"{text}sets may exist", "", "watch", ("table-features-searches",))


def uncovered(dictionaries: pd.DataFrame | None, n_layers: int | None) -> Statement | None:
    """Layers without a dictionary, whose latents nothing could see."""
    if dictionaries is None or n_layers is None:
        return None
    left = n_layers - dictionaries["layer"].nunique()
    if left <= 0:
        return None
    text = f"{whole(left)} of {whole(n_layers)} layers have no dictionary, so their latents were not looked at"
    return Statement(text, "", "watch", ("table-features-dictionaries",))


def unverified(sets: pd.DataFrame | None) -> Statement | None:
    """Sets that no run proved to flip, or to need all of their members."""
    if sets is None:
        return None
    each = sizes_of(sets)
    n = int((~(each["verified"] & each["minimal"])).sum())
    if not n:
        return None
    text = f"{whole(n)} of {whole(len(each))} sets were not proven to flip with every member needed"
    return Statement(text, "", "watch", ("table-features-sets",))
