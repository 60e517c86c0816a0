"""What follows the ablation of a set: dormant members, what wakes, what is written back, and the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import DictionarySlice, latent_variant
from refusalscope.errors import InputError
from refusalscope.model import Metric, OpeningProbability, Variant
from refusalscope.stats import mean_interval
from refusalscope.stats.interval import NAN
from refusalscope.studies.features.ablation import Latent, by_layer
from refusalscope.studies.features.attribution import latent_effects, slices_of
from refusalscope.studies.features.clusters import clusters as group_by_decoder
from refusalscope.studies.features.clusters import effective_rank, unit_rows
from refusalscope.studies.features.dormant import ARMS, Waking, dormant, dormant_value, waking
from refusalscope.studies.features.ledger import Members, Pieces, compensation, ledger
from refusalscope.studies.features.overshoot import overshoot
from refusalscope.studies.features.work import Work
from refusalscope.studies.features.writes import Write
from refusalscope.studies.frozen_norms import measure_frozen
from refusalscope.studies.subject import spending

# Woken latents whose effect is run exactly: those with the largest conditional attribution.
EXACT = 40
# False discovery rate at which a latent counts as woken.
SURE = 0.05

VALUE_COLUMNS = ["set_id", "name", "value", "low", "high", "n", "p"]


def follow(work: Work, set_id: str, writes: Sequence[Write]) -> None:
    """Write features.dormant, .waking, .ledger, .compensation, .values, .overshoot and .clusters of one set."""
    named = by_layer(latent for write in writes for latent in write)
    run, rows, settings = work.run, work.refused, work.settings
    prompts, clusters = work.prompts(rows), work.clusters(rows)
    pieces = {layer: each.slice() for layer, each in work.dictionaries.items()}
    # Without a BOS token both arms are one and the same.
    arms = ARMS if all("bos" in prompt.anchors for prompt in prompts) else ("no_bos",)
    common = (work.chat, prompts, named, pieces)
    track = work.progress.track("what the set's ablation wakes")
    if not run.has_table("features.waking"):
        with spending(run, work.chat):
            runs = {arm: _waking(work, named, pieces, arm) for arm in arms}
            found = dormant(
                *common,
                work.margin,
                set_id=set_id,
                arms=arms,
                runs=runs,
                parts=writes,
                exact=_strongest(work, named),
                clusters=clusters,
                seed=settings.seed,
            )
        run.write_table("features.dormant", found)
        counts = [
            each.counts(seed=settings.seed, clusters=clusters).assign(arm=arm)
            for arm, each in runs.items()
        ]
        table = pd.concat(counts, ignore_index=True).assign(set_id=set_id)
        run.write_table("features.waking", table)
    woken = run.table("features.dormant")
    woken = woken[~woken["in_set"] & (woken["q"] < SURE)]
    work.stage("features.clusters", lambda: group_by_decoder(woken, work.dictionaries))
    track(1, 4)
    unit = work.direction.vector / work.direction.vector.norm()
    work.stage(
        "features.ledger",
        lambda: ledger(
            *common,
            unit,
            set_id=set_id,
            draws=settings.draws,
            clusters=clusters,
            seed=settings.seed,
        ),
    )
    track(2, 4)
    work.stage(
        "features.compensation",
        lambda: compensation(*common, unit, set_id=set_id, clusters=clusters, seed=settings.seed),
    )
    track(3, 4)
    work.stage("features.values", lambda: _values(work, set_id, named, pieces, woken))
    work.stage(
        "features.overshoot",
        lambda: overshoot(
            work.chat,
            prompts,
            named,
            work.dictionaries,
            unit,
            set_id=set_id,
            clusters=clusters,
            seed=settings.seed,
        ),
    )
    track(4, 4)


def _waking(work: Work, members: Members, pieces: Pieces, arm: str) -> Waking:
    """What the set wakes, against random directions alone where a layer has too few latents to stand in."""
    prompts, settings = work.prompts(work.refused), work.settings
    woken = partial(
        waking,
        work.chat,
        prompts,
        members,
        pieces,
        arm=arm,
        draws=settings.draws,
        seed=settings.seed,
    )
    try:
        return woken()
    except InputError as error:
        work.run.warn(f"What the set wakes was not set against random latents: {error}.")
        return woken(nulls=("directions",))


def _strongest(work: Work, members: Mapping[int, Sequence[int]]) -> set[Latent]:
    """Latents with the largest conditional attribution of either sign in the run without the set."""
    total: dict[int, Tensor] = {}
    slices = slices_of(work.dictionaries, members)
    for prompt in work.prompts(work.refused):
        found = latent_effects(
            work.chat,
            prompt,
            work.margin,
            work.dictionaries,
            ablated=members,
            slices=slices,
            positions=work.settings.positions,
        )
        total = {layer: each + total.get(layer, 0) for layer, each in found.items()}
    layers = [layer for layer, each in total.items() for _ in each]
    latents = [latent for each in total.values() for latent in range(len(each))]
    order = torch.cat(list(total.values())).abs().argsort(descending=True)[:EXACT]
    return {(layers[k], latents[k]) for k in order.tolist()}


def _values(
    work: Work,
    set_id: str,
    members: Mapping[int, Sequence[int]],
    pieces: Mapping[int, DictionarySlice],
    woken: pd.DataFrame,
) -> pd.DataFrame:
    """Margins and opening probabilities of the clean and ablated runs, and what dormant members are worth."""
    prompts, clusters = work.prompts(work.refused), work.clusters(work.refused)
    positions, seed = work.settings.positions, work.settings.seed

    def ablated(where: str) -> Variant:
        return latent_variant(pieces, members, positions=where)

    variants: dict[str, Variant] = {"clean": (), "set ablated": ablated(positions)}
    if all("bos" in prompt.anchors for prompt in prompts):
        variants["BOS alone"] = ablated("bos")
    metrics: dict[str, Metric] = {
        "margin": work.margin,
        "P(refusal opening)": OpeningProbability(work.margin.refuse),
    }
    scores = work.chat.measure(prompts, list(variants.values()), metrics).scores
    columns = {
        f"{metric}, {name}": values[:, k]
        for metric, values in scores.items()
        for k, name in enumerate(variants)
    }
    frozen = measure_frozen(
        work.chat, prompts, [[variants["set ablated"]]] * len(prompts), work.margin
    )
    columns["margin, norms frozen"] = frozen[:, 0]
    rows = []
    for name, column in columns.items():
        found = mean_interval(column, clusters, seed=seed)
        rows.append((set_id, name, found.value, found.low, found.high, found.n, NAN))
    worth = dormant_value(
        work.chat, prompts, members, pieces, work.margin, clusters=clusters, seed=seed
    )
    rows.append((set_id, "dormant value", worth.value, worth.low, worth.high, worth.n, worth.p))
    asleep = woken[woken["arm"] == "no_bos"]
    if len(asleep):
        names = list(zip(asleep["layer"].tolist(), asleep["latent"].tolist(), strict=True))
        rank = effective_rank(unit_rows(names, work.dictionaries))
        rows.append((set_id, "effective rank of woken rows", rank, NAN, NAN, len(names), NAN))
    return pd.DataFrame(rows, columns=VALUE_COLUMNS)
