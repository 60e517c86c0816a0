"""The features study: the latents whose ablation flips refusal, proven minimal, and set against others.

The margin and the direction come from the fit split; pool, sets, dormant latents and interactions from the
select split; all arms are compared on the report split, which no stage before has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from refusalscope.dictionary import Dictionary, check
from refusalscope.errors import InputError
from refusalscope.progress import Progress, Silent
from refusalscope.runs import Run
from refusalscope.studies.features.ablation import Latent
from refusalscope.studies.features.arms import (
    Arm,
    by_components,
    by_gradients,
    candidates,
    directions,
    find_pool,
    latent_arm,
    random_arms,
    ranked_by_machines,
    rankings,
)
from refusalscope.studies.features.as_published import search_published, search_ranked
from refusalscope.studies.features.baselines import compare_arms, measure_arms
from refusalscope.studies.features.following import follow
from refusalscope.studies.features.machines import rank_latents
from refusalscope.studies.features.searching import latents_of, search_sets
from refusalscope.studies.features.settings import FeaturesSettings
from refusalscope.studies.features.together import Masked, interactions, run_masks
from refusalscope.studies.features.work import Direction, Work, pose
from refusalscope.studies.features.writes import Write, writes
from refusalscope.studies.subject import Subject, spending

SEARCHES = {
    "bisection": search_sets,
    "block_greedy": search_published,
    "top_attribution": search_ranked,
}
# Fewer refused or answered prompts than this show nothing.
ENOUGH = 8
# Refusals whose opening the margin knows, of all refusals.
COVERAGE = 0.95


def run_features(
    run: Run,
    subject: Subject,
    dictionaries: Mapping[int, Dictionary],
    direction: Direction,
    settings: FeaturesSettings,
    progress: Progress | None = None,
) -> None:
    """Run the study and write its tables; finished stages of a resumed run are not redone.

    Where the model gives too few refusals, or no set flips them, the study says so in a warning, and what was
    possible is kept.
    """
    if subject.margin is None:
        run.warn("The features study was left out: refusals and replies could not be told apart.")
        return
    work = pose(
        run, subject, subject.margin, dictionaries, direction, settings, progress or Silent()
    )
    if not _enough(work):
        return
    _coverage(work)
    work.stage("features.dictionaries", lambda: _dictionaries(work))
    _warn_of_misfits(work)
    table = work.stage("features.pool", lambda: find_pool(work))
    searched = candidates(work, table)
    main, members = "", list[Latent]()
    if searched:
        SEARCHES[settings.search](work, searched)
        main, members = _main_set(work)
    else:
        run.warn(
            "No latent of the pool carries refusal out, so no set was searched; take part=both, keep more "
            "with pool_k, or give dictionaries of later layers."
        )
    if members:
        _about_set(work, main, members, table)
    if not run.has_table("features.arms"):
        with spending(run, work.chat):
            arms = [*directions(work), *rankings(work, table), *_others(work, table)]
        if members:
            arms += _of_set(work, main, members, table)
        # Not a stage: each arm keeps what it spent.
        run.write_table("features.arms", measure_arms(work, arms))
    measured = run.table("features.arms")
    work.stage(
        "features.baselines", lambda: compare_arms(measured, f"set {main}", seed=settings.seed)
    )


def _warn_of_misfits(work: Work) -> None:
    table = work.run.table("features.dictionaries")
    amiss = table[table["warnings"] != ""]
    if len(amiss):
        first = amiss.iloc[0]
        work.run.warn(
            f"{len(amiss)} of {len(table)} dictionaries do not fit well; that of layer {first['layer']}: "
            f"{first['warnings']}."
        )


def _others(work: Work, table: pd.DataFrame) -> list[Arm]:
    """The arms that a run may have to do without."""
    found = [by_gradients(work, table)]
    try:
        found.append(by_components(work, work.run.table("features.dictionaries")))
    except InputError as error:
        work.run.warn(f"The PCA dictionary was left out: {error}.")
    return [arm for arm in found if arm is not None]


def _enough(work: Work) -> bool:
    groups = {
        "refuses only {} harmful prompts of the select split": work.refused,
        "answers only {} harmless prompts of the select split": work.answered,
        "refuses only {} harmful prompts of the report split": work.unseen,
        "answers only {} harmless prompts of the report split": work.unseen_harmless,
    }
    for what, rows in groups.items():
        if len(rows) < ENOUGH:
            work.run.warn(
                f"The features study was left out: the model {what.format(len(rows))}, {ENOUGH} are "
                f"needed; give more prompts, or a model that refuses."
            )
            return False
    return True


def _coverage(work: Work) -> None:
    table = work.subject.table
    refused = table[(table["label"] == "harmful") & table["refused"]]
    known = float((refused["refusal_margin"] > 0).mean())
    if known < COVERAGE:
        work.run.warn(
            f"The refusal margin is above 0 on {known:.0%} of the refused prompts, so the sets speak of "
            f"these alone; give more prompts to learn how refusals open."
        )


def _dictionaries(work: Work) -> pd.DataFrame:
    prompts = work.prompts([*work.refused, *work.answered])
    rows: list[dict[str, Any]] = []
    for layer, dictionary in work.dictionaries.items():
        fit = check(dictionary, work.chat, prompts, seed=work.settings.seed)
        rows.append(
            {
                "layer": layer,
                # A run may be shown to others, and where a folder lies is nothing to them.
                "name": path.name if (path := Path(dictionary.name)).is_dir() else dictionary.name,
                "architecture": dictionary.architecture,
                "d_sae": dictionary.d_sae,
                "l0": fit.l0.value,
                "l0_low": fit.l0.low,
                "l0_high": fit.l0.high,
                "l0_special": fit.l0_special,
                "explained": fit.explained_variance.value,
                "explained_low": fit.explained_variance.low,
                "explained_high": fit.explained_variance.high,
                "norm_ratio": fit.norm_ratio,
                "dead_share": fit.dead_share,
                "warnings": "; ".join(fit.warnings),
            }
        )
    return pd.DataFrame(rows)


def _main_set(work: Work) -> tuple[str, list[Latent]]:
    """The set that the later stages are about: the smallest verified one of all prompts together."""
    table = work.run.table("features.sets")
    pooled = table[
        (table["prompt_id"] == "") & ~table["set_id"].astype(str).str.startswith("half/")
    ]
    verified = pooled[pooled["verified"].astype(bool)]
    if work.settings.search != "bisection" and verified.empty and len(pooled):
        work.run.warn(
            "No set of the published search flips enough of the refused prompts; what follows is about the "
            "one that flips most."
        )
        verified = pooled[pooled["flipped"] == pooled["flipped"].max()]
    if verified.empty:
        work.run.warn(
            "No set of the pool's latents flips enough of the refused prompts, so dormant latents and "
            "interactions were left out; keep more latents with pool_k, give dictionaries of more layers, "
            "or lower share."
        )
        return "", []
    first = verified.sort_values(["size", "set_id", "place"], kind="stable")["set_id"].iloc[0]
    return str(first), latents_of(table, str(first))


def _about_set(work: Work, main: str, members: Sequence[Latent], table: pd.DataFrame) -> None:
    """Dormant latents, interactions and machines of the main set."""
    settings, run = work.settings, work.run
    writes_of = _writes(work, main)
    follow(work, main, writes_of)
    own, masked_writes = _masked(work, writes_of, table)
    trial = work.trial(work.refused, masked_writes)
    masked: Masked | None = None
    needs = settings.n_masks > 0 and not (
        run.has_table("features.interactions") and run.has_table("features.machine")
    )
    if needs:
        with spending(run, work.chat):
            masked = run_masks(work, trial)
    work.stage("features.interactions", lambda: interactions(work, main, own, masked, trial))
    if not run.has_table("features.machine"):
        with spending(run, work.chat):
            contrast, machine = rank_latents(work, members, masked)
        run.write_table("features.contrast", contrast)
        run.write_table("features.machine", machine)


def _of_set(work: Work, main: str, members: Sequence[Latent], table: pd.DataFrame) -> list[Arm]:
    """The arms that come of the main set: itself, its like, the machines' rankings, and random latents."""
    run, sets = work.run, work.run.table("features.sets")
    others = [
        name
        for name in sets.loc[sets["prompt_id"] == "", "set_id"].unique()
        if name != main and name.startswith("pool/")
    ]
    arms = [latent_arm(work, f"set {main}", "set", members)]
    arms += [latent_arm(work, f"set {name}", "set", latents_of(sets, name)) for name in others]
    arms += ranked_by_machines(work, members, run.table("features.machine"))
    try:
        arms += random_arms(work, members, table)
    except InputError as error:
        run.warn(f"The random matched latents were left out: {error}.")
    return arms


def _writes(work: Work, set_id: str) -> list[Write]:
    """The writes of a set, strongest first."""
    sets = work.run.table("features.sets")
    mine = sets[sets["set_id"] == set_id].sort_values("place")
    return [tuple(_latents(part)) for _, part in mine.groupby("write", sort=True)]


def _masked(work: Work, own: Sequence[Write], table: pd.DataFrame) -> tuple[list[int], list[Write]]:
    """What goes under the masks, and which of it is the set: then what it wakes, and the pool's strongest."""
    dormant = work.run.table("features.dormant")
    woken = dormant[~dormant["in_set"] & (dormant["q"] < 0.05) & (dormant["effect"] > 0)]
    others = _latents(woken.sort_values("effect", ascending=False))
    found, taken = list(own), {latent for write in own for latent in write}
    for write in [*writes(others, work.dictionaries), *candidates(work, table)]:
        if taken.isdisjoint(write):
            found.append(write)
            taken.update(write)
    return list(range(len(own))), found[: max(work.settings.n_masked, len(own))]


def _latents(table: pd.DataFrame) -> list[Latent]:
    return [(int(a), int(b)) for a, b in zip(table["layer"], table["latent"], strict=True)]
