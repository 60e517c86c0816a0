"""The table of heads, put together from what the stages of the study measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.studies.heads import WHOLE, Head, Unit
from refusalscope.studies.routing.attribution import Attribution
from refusalscope.studies.routing.frames import heads_of, rows_of
from refusalscope.studies.routing.problem import Problem
from refusalscope.studies.routing.redundancy import STAND_IN, TIMES_ALONE
from refusalscope.studies.routing.roles import Evidence, roles
from refusalscope.studies.routing.screens import EVERYWHERE, LAST, Screens, together
from refusalscope.studies.routing.settings import RoutingSettings
from refusalscope.studies.routing.significance import significance

Array = npt.NDArray[np.float64]


def tests(screens: Screens, problem: Problem, settings: RoutingSettings) -> pd.DataFrame:
    """The significance of every head under every map, all in one familywise test; see `significance`."""
    frame = significance(
        together(screens, "margin"),
        "margin",
        categories=problem.categories,
        floor=settings.floor,
        alpha=settings.alpha,
        n_flips=settings.n_flips,
        seed=settings.seed,
    )
    maps = [name for name, found in screens.by_map.items() for _ in found.units]
    main = screens.first
    spread = main.necessity["margin"].mean(axis=0).std(axis=0) / abs(main.gap("margin"))
    frame["donor_sd"] = np.concatenate([spread, np.full(len(frame) - len(spread), np.nan)])
    return frame.drop(columns=["unit", "size"]).assign(map=maps)


def contributions(
    harmful: Attribution, control: Attribution, held: Attribution, units: Sequence[Unit]
) -> pd.DataFrame:
    """What every unit writes towards refusal itself.

    harmful, control: attributed as they are; held: controls under the harmful prompts' final scale. Columns:
    layer, head, harmful, control, dla (their difference, logits), dla_share (of the sum of sizes), direct
    (the difference with the scale held, as a share of the gap of the logit difference).
    """
    gap = float((harmful.total - control.total).mean())

    def of(found: Attribution, unit: Unit) -> float:
        layer, head = unit[0]
        if head == WHOLE:
            return float(found.mixer[:, layer].mean())
        return float(found.heads[:, layer, head].mean())

    rows = []
    for unit in units:
        values = [of(found, unit) for found in (harmful, control, held)]
        rows.append(
            {
                "layer": unit[0][0],
                "head": unit[0][1],
                "harmful": values[0],
                "control": values[1],
                "dla": values[0] - values[1],
                "direct": (values[0] - values[2]) / gap,
                "gap": gap,
            }
        )
    frame = pd.DataFrame(rows)
    frame["dla_share"] = frame["dla"].abs() / frame["dla"].abs().sum()
    return frame


def best_map(tested: pd.DataFrame, main: str) -> pd.DataFrame:
    """One row a unit: the main map where the unit passes under it, else the map where it passes best.

    A unit that passes nowhere has its row of the main map.
    """
    ranked = tested.assign(
        first=tested["map"] == main, size=tested["necessity"].abs(), order=range(len(tested))
    )
    ranked["rank"] = 2 * (ranked["passes"] & ranked["first"]) + 1 * ranked["passes"]
    ranked["rank"] += 0.5 * ranked["first"] * ~ranked["passes"]
    ranked = ranked.sort_values(["rank", "size"], ascending=False, kind="stable")
    chosen = ranked.drop_duplicates(["layer", "head"]).sort_values("order")
    return chosen.drop(columns=["first", "size", "order", "rank"]).reset_index(drop=True)


def halves(screens: Screens, seed: int) -> tuple[Array, Array]:
    """Necessity of the main map's units on two random halves of the pairs, as shares of the whole gap."""
    main = screens.first
    by_pair = main.necessity["margin"].mean(axis=1) / main.gap("margin")
    order = np.random.default_rng(seed).permutation(len(by_pair))
    cut = len(order) // 2
    return by_pair[order[:cut]].mean(axis=0), by_pair[order[cut:]].mean(axis=0)


def stand_ins(
    held: pd.DataFrame, alone: Mapping[Head, float]
) -> tuple[dict[Head, float], set[Head]]:
    """Heads that carry the refusal only, or far more, with others held: their effect then, and the later ones.

    held: the table of `redundancy.conditional`; alone: necessity of every head swapped by itself. A later one
    has another such head before it in the same window, or stands in for a head that was held itself.
    """
    passing = held[held["passes"]]
    value: dict[Head, float] = {}
    where: dict[Head, int] = {}
    for head, row in zip(heads_of(passing), rows_of(passing), strict=True):
        size = abs(row["necessity"])
        if size < STAND_IN or size < TIMES_ALONE * abs(alone[head]):
            continue
        if size > abs(value.get(head, 0.0)):
            value[head], where[head] = float(row["necessity"]), int(row["window"])
    later = {
        head
        for head in value
        if where[head] < 0 or any(where[o] == where[head] and o[0] < head[0] for o in value)
    }
    return value, later


def assemble(
    tested: pd.DataFrame,
    main: str,
    alike: Collection[str],
    split: tuple[Array, Array],
    held: pd.DataFrame,
    written: pd.DataFrame,
    frozen: Mapping[Head, float],
    driven: pd.DataFrame,
) -> pd.DataFrame:
    """The table `routing.heads`: one row a head (or whole mixer), with its numbers and its role.

    alike: maps that name the same places as the main one, and so were not run.
    """
    best = best_map(tested, main).set_index(["layer", "head"])
    by_map = {name: part.set_index(["layer", "head"]) for name, part in tested.groupby("map")}
    table = by_map[main].copy()
    table["passes"] = best["passes"]
    table["map"] = main
    for column, name in (("necessity_last", LAST), ("necessity_all", EVERYWHERE)):
        other = by_map[main] if name in alike else by_map.get(name)
        table[column] = np.nan if other is None else other["necessity"].reindex(table.index)
    table["shown_by"] = best["map"].where(best["passes"], "")
    table["effect"] = best["necessity"]
    table["necessity_first"], table["necessity_second"] = split
    alone = dict(zip(best.index, best["necessity"], strict=True))
    conditional, after = stand_ins(held, alone)
    table["conditional"] = pd.Series(conditional, dtype=float).reindex(table.index)
    written = written.set_index(["layer", "head"])
    table = table.join(written[["harmful", "control", "dla", "dla_share", "direct"]])
    table["frozen"] = pd.Series(frozen, dtype=float).reindex(table.index)
    gap = float(written["gap"].iloc[0])
    evidence = {
        head: Evidence(
            effect=row["effect"],
            alone=bool(row["passes"]),
            conditional=conditional.get(head),
            after=head in after,
            direct=row["direct"],
            frozen=frozen.get(head),
            harmful=row["harmful"] / gap,
            # Under the harmful prompts' final scale, as `direct` is: two norms would make a constant write two.
            control=row["harmful"] / gap - row["direct"],
        )
        for head, row in zip(heads_of(table.reset_index()), rows_of(table), strict=True)
    }
    known = {head for head, one in evidence.items() if one.found}
    edges = {
        ((row["gate_layer"], row["gate_head"]), (row["layer"], row["head"]))
        for row in rows_of(driven[driven["driven"].astype(bool)])
    }
    edges = {(a, b) for a, b in edges if a in known and b in known}
    cast = roles(evidence, edges).set_index(["layer", "head"])
    return table.join(cast).reset_index()
