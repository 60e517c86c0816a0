"""The cliff methods that are scored: those that name suppressors, and those that rank prompts for repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refusalscope.errors import InputError
from refusalscope.organisms.planted import tokens
from refusalscope.organisms.scoreboard.bars import CONTRAST, METHOD, RANKING
from refusalscope.organisms.scoreboard.cliff_bench import SETTINGS, CliffBench
from refusalscope.organisms.scoreboard.methods import Claim
from refusalscope.stats import max_t_signflip
from refusalscope.studies.cliff import Probe, Trace, prompt_table, score_probes
from refusalscope.studies.cliff.contributions import (
    Contributions,
    contribution_table,
    contributions,
)
from refusalscope.studies.cliff.effects import ALIKE, head_effects
from refusalscope.studies.cliff.ranking import (
    READS,
    Pool,
    Ranking,
    SelectionSettings,
    priorities,
    selection_settings,
)
from refusalscope.studies.cliff.selection import select
from refusalscope.studies.heads import Unit

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# What every pooled prompt is said to have got for a reply: the scores alone decide, not the filter of refusals.
WITHHELD = tokens.WORDS[tokens.COMPLY]


@dataclass(frozen=True)
class Ranked:
    """Requests by how much they are said to need repair.

    priority [requests]: larger is taken first, NaN never. taken: ids of the first k. selected: ids of those
    that the selection as it ships takes, within its quota by category and without near-duplicates.
    """

    priority: Array
    taken: frozenset[str]
    selected: frozenset[str]


# Heads: the score of a claim is large where a head is said to suppress.


def recommended(bench: CliffBench) -> Claim:
    """The role that the study as it ships gives, by contrast and exact effect; none where it sees no cliff."""
    anatomy = bench.chat.anatomy
    score = np.zeros((anatomy.n_layers, anatomy.n_heads))
    heads = bench.tables.get("cliff.heads")
    if heads is not None:
        for row in heads[heads["role"] == "suppressor"].to_dict("records"):
            score[int(row["layer"]), int(row["head"])] = -row["effect"]
    return Claim(score, _where(score > 0), {})


def contrast(bench: CliffBench) -> Claim:
    """The contrast with plateau and benign traces alone, by the thresholds of the study and untested else."""
    cases, controls = (written(bench, side) for side in (bench.cases, bench.controls))
    table = contribution_table(cases, controls, seed=SETTINGS.seed)
    least = np.maximum(_least(cases, controls), ALIKE * table["direct"].abs())
    claimed = (table["contrast"] < -least) & (table["contrast_high"] < 0)
    return _claim(bench, cases.units, -table["contrast"].to_numpy(), claimed.to_numpy())


def exact_effect(bench: CliffBench) -> Claim:
    """The exact effect at the closing tokens alone, with the test and the floor of the study."""
    floor = _least(written(bench, bench.cases), written(bench, bench.controls))
    found = head_effects(bench.chat, bench.cases, bench.probe)
    effect = found.effect["probe"]
    p = max_t_signflip(effect, SETTINGS.n_flips, seed=SETTINGS.seed).p_familywise
    score = -effect.mean(0)
    return _claim(bench, found.units, score, (score > floor) & (p < SETTINGS.alpha))


def folded(bench: CliffBench) -> Claim:
    """Contributions through the final norm, without a contrast; as many heads as are planted."""
    cases = written(bench, bench.cases)
    return _lowest(bench, cases.units, cases.final)


def published(bench: CliffBench) -> Claim:
    """The published score of the study's probe; as many heads as are planted."""
    cases = written(bench, bench.cases)
    return _lowest(bench, cases.units, cases.published)


def as_published(bench: CliffBench) -> Claim:
    """The published score of the published probe over all requests; as many heads as are planted."""
    found = written(bench, bench.requests, bench.published_probe)
    return _lowest(bench, found.units, found.published)


HEADS: dict[str, Callable[[CliffBench], Claim]] = {
    METHOD: recommended,
    CONTRAST: contrast,
    "exact effect": exact_effect,
    "folded score": folded,
    "published score": published,
    "as published": as_published,
}


def written(bench: CliffBench, traces: list[Trace], probe: Probe | None = None) -> Contributions:
    return contributions(bench.chat, traces, probe or bench.probe)


def _least(cases: Contributions, controls: Contributions) -> float:
    """The floor of the study in logits: a share of the fall in cases beyond controls."""
    return SETTINGS.floor * abs(float(cases.fall.mean() - controls.fall.mean()))


def _lowest(bench: CliffBench, units: tuple[Unit, ...], values: Array) -> Claim:
    """The most negative heads by their means over traces, values [traces, units]."""
    score = -values.mean(0)
    k = len(bench.planted.truth.with_role("suppressor"))
    return _claim(bench, units, score, score >= np.sort(score)[-k])


def _claim(bench: CliffBench, units: tuple[Unit, ...], score: Array, claimed: Mask) -> Claim:
    anatomy = bench.chat.anatomy
    table, mask = np.zeros((2, anatomy.n_layers, anatomy.n_heads))
    for (place,), value, yes in zip(units, score, claimed, strict=True):
        table[place], mask[place] = value, yes
    return Claim(table, _where(mask > 0), {})


def _where(mask: Mask) -> frozenset[tuple[int, int]]:
    return frozenset((int(a), int(b)) for a, b in zip(*np.nonzero(mask), strict=True))


# Prompts


def ranked(bench: CliffBench, by: Ranking) -> Ranked:
    """As many requests of the report split as persuasion turned, or one, chosen without their replies."""
    shipped = selection_settings(
        rank_by=by, k=max(1, len(bench.lost)), seed=bench.planted.truth.seed
    )
    bare = shipped.model_copy(update={"quota": None, "duplicates": None})
    pool = _pool(bench, measured=by in READS)
    return Ranked(priorities(pool, bare), _taken(pool, bare), _taken(pool, shipped))


def _taken(pool: Pool, settings: SelectionSettings) -> frozenset[str]:
    """Ids of the selection; none where it finds nothing to repair."""
    try:
        return frozenset(pool.prompts[i].id for i in select(pool, settings).indices)
    except InputError:
        return frozenset()


def _pool(bench: CliffBench, measured: bool) -> Pool:
    traces = bench.requests
    prompts, replies = [trace.prompt for trace in traces], [WITHHELD] * len(traces)
    if not measured:
        return Pool(prompts, replies)
    logits = [each[0] for each in score_probes(bench.chat, traces, [bench.probe])]
    table = prompt_table(traces, logits, seed=SETTINGS.seed)
    plateau, p90, final = (
        table[name].to_numpy(float) for name in ("plateau", "plateau_p90", "final")
    )
    return Pool(prompts, replies, plateau, p90, final)


RANKINGS: dict[str, Ranking] = {
    f"{RANKING} ms_p90": "ms_p90",
    f"{RANKING} ms": "ms",
    f"{RANKING} final": "final",
    f"{RANKING} random": "random",
}
