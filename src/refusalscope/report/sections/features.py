"""The features sections: the set, what wakes, interactions, and all arms beside each other."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Block, Note, Section
from refusalscope.report.features_pool import read_pool
from refusalscope.report.features_tables import (
    BASELINES,
    DORMANT,
    SETS,
    arms_at_full,
    dormant_rows,
    features_table,
    main_set,
    of_set,
    pooled_searches,
    set_arm,
    stated_layers,
)
from refusalscope.report.sections.features_arms import arms_table, published_table
from refusalscope.report.sections.features_baselines import baselines_figure
from refusalscope.report.sections.features_contrast import contrast_table, machine_table
from refusalscope.report.sections.features_dictionaries import dictionaries_table
from refusalscope.report.sections.features_layers import set_figure, shown_writes
from refusalscope.report.sections.features_ledger import ledger_figure
from refusalscope.report.sections.features_members import (
    members_table,
    searches_table,
    sets_table,
    stability_table,
)
from refusalscope.report.sections.features_pairs import (
    pairs_figure,
    pairs_table,
)
from refusalscope.report.sections.features_path import path_figure
from refusalscope.report.sections.features_values import (
    RANK,
    clusters_table,
    values_table,
    waking_table,
)
from refusalscope.report.sections.features_waking import rounds_table, woken_figure
from refusalscope.report.tables import RunLike, why_missing

PAIRS, LEDGER = "features.interactions", "features.ledger"


def features(run: RunLike) -> Section | None:
    """Path, set, members, sets, searches, dictionaries; None for a run without features tables."""
    if not _is_features(run):
        return None
    members, dormant = main_set(run), dormant_rows(run)
    blocks: list[Block] = []
    if members is not None:
        blocks += _set_blocks(run, members, dormant)
    else:
        blocks.append(_no_set(run))
    for name, make in (
        ("features.searches", searches_table),
        (SETS, sets_table),
        ("features.stability", stability_table),
        ("features.dictionaries", dictionaries_table),
    ):
        table = features_table(run, name)
        if table is not None:
            blocks.append(make(table))
        elif name != SETS:
            blocks.append(_missing(run, name))
    return Section(
        "features",
        "The latents that carry refusal",
        blocks,
        "A sparse autoencoder (a dictionary) writes the model's state as a sum of few latents out of many. The "
        "study searches the smallest set of latents whose removal makes the refusal disappear.",
    )


def _set_blocks(run: RunLike, members: pd.DataFrame, dormant: pd.DataFrame | None) -> list[Block]:
    asked = {(int(row), int(latent)) for row, latent in members[["layer", "latent"]].to_numpy()}
    if dormant is not None:
        behind = dormant.loc[dormant["reserve"], ["layer", "latent"]]
        asked |= {(int(layer), int(latent)) for layer, latent in behind.to_numpy()}
    pool = read_pool(run, asked)
    searches = pooled_searches(run)
    searched = float("nan") if searches is None else float(searches["candidates"].max())
    both = (run.info.get("settings") or {}).get("part") == "both"
    blocks: list[Block] = [path_figure(pool, searched, members, dormant, both=both)]
    if pool is None:
        blocks.append(_missing(run, "features.pool"))
    drawn = set_figure(members, dormant, pool, stated_layers(run))
    text = "What each member is worth was not measured, so the set is not drawn over layers."
    blocks.append(drawn or Note(text, "missing"))
    latents = shown_writes(members, dormant, pool)
    overshoot = of_set(features_table(run, "features.overshoot"), members)
    blocks.append(members_table(latents, features_table(run, "features.members"), overshoot))
    return blocks


def _no_set(run: RunLike) -> Note:
    searches = pooled_searches(run)
    why = "" if searches is None else next((text for text in searches["why"] if text), "")
    if SETS in run.tables() and why:
        return Note(f"No set was found: {why}.", "missing")
    return _missing(run, SETS)


def features_waking(run: RunLike) -> Section | None:
    """Dormant members, reserves and the ledger; None when no table speaks of them."""
    names = (DORMANT, "features.waking", LEDGER, "features.values", "features.rounds")
    if not _is_features(run) or all(features_table(run, name) is None for name in names):
        return None
    members = main_set(run)

    def own(name: str) -> pd.DataFrame | None:
        return of_set(features_table(run, name), members)

    dormant, values, ledger, clusters = (
        own(name) for name in (DORMANT, "features.values", LEDGER, "features.clusters")
    )
    n = float("nan") if values is None else float(values.loc[values["name"] != RANK, "n"].max())
    drawn = None if dormant is None else woken_figure(dormant, n)
    nothing = "No latent outside the set woke and was compared with chance."
    blocks: list[Block] = [
        drawn or (_missing(run, DORMANT) if dormant is None else Note(nothing, "missing"))
    ]
    waking = own("features.waking")
    blocks += [] if waking is None else [waking_table(waking)]
    blocks += [] if values is None else [values_table(values)]
    moved = None if ledger is None else ledger_figure(ledger, own("features.compensation"), n)
    empty = "The ledger of this run holds no amount that could be drawn."
    blocks.append(moved or (_missing(run, LEDGER) if ledger is None else Note(empty, "missing")))
    rounds = features_table(run, "features.rounds")
    blocks += [] if rounds is None else [rounds_table(rounds)]
    blocks += [] if clusters is None else [clusters_table(clusters)]
    return Section(
        "features-waking",
        "What wakes",
        blocks,
        "With the set taken out the model may fall back on latents that were silent before. Any edit wakes "
        "latents, so those that count wake more often than under random edits, and matter.",
    )


def features_pairs(run: RunLike) -> Section | None:
    """Interactions and the contrast; None when the run has neither."""
    names = (PAIRS, "features.contrast", "features.machine")
    pairs, contrast, machine = (features_table(run, name) for name in names)
    if pairs is None and contrast is None and machine is None:
        return None
    members = main_set(run)
    blocks: list[Block] = []
    own = of_set(pairs, members)
    if own is None:
        blocks.append(_missing(run, PAIRS))
    else:
        drawn = pairs_figure(own, set() if members is None else set(members["at"]))
        blocks.append(drawn or Note("No interaction of this run could be drawn.", "missing"))
        blocks.append(pairs_table(own))
    blocks += [] if contrast is None else [contrast_table(contrast)]
    blocks += [] if machine is None else [machine_table(machine)]
    return Section(
        "features-pairs",
        "Interactions",
        blocks,
        "Whether latents add up, stand in for each other, or need each other.",
    )


def features_baselines(run: RunLike) -> Section | None:
    """All arms and the published search; None for a run without features tables."""
    if not _is_features(run):
        return None
    arms, rows = features_table(run, BASELINES), arms_at_full(run)
    blocks: list[Block] = []
    if arms is None:
        blocks.append(_missing(run, BASELINES))
    else:
        drawn = baselines_figure(arms, set_arm(run))
        blocks.append(drawn or Note("No arm has both a margin and a KL to draw.", "missing"))
    blocks += [] if rows is None else [arms_table(rows)]
    published = features_table(run, "features.published")
    blocks += [] if published is None else [published_table(published)]
    return Section(
        "features-baselines",
        "Baselines",
        blocks,
        "The set beside other ways to take refusal away, on prompts that nothing was fitted or searched on.",
    )


def _is_features(run: RunLike) -> bool:
    named = run.info.get("command") == "features"
    return named or any(name.startswith("features.") for name in run.tables())


def _missing(run: RunLike, name: str) -> Note:
    return Note(why_missing(run, name), "missing")
