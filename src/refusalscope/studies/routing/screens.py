"""The screens of the study: every head under the main map and the last token, the best layers everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refusalscope.model import Metric, StateMetric
from refusalscope.studies.heads import Unit
from refusalscope.studies.routing.interchange import Screen, screen
from refusalscope.studies.routing.maps import position_map
from refusalscope.studies.routing.problem import Problem
from refusalscope.studies.routing.redundancy import window_units
from refusalscope.studies.routing.settings import RoutingSettings

Array = npt.NDArray[np.float64]
LAST, EVERYWHERE = "last", "right"
SIDES = ("necessity", "sufficiency")
CLEAN = ("harmful", "control")


@dataclass(frozen=True)
class Screens:
    """Screens by position map; `main` names the first of them. A map may have looked at some units only."""

    main: str
    by_map: Mapping[str, Screen]

    @property
    def first(self) -> Screen:
        return self.by_map[self.main]


def screen_all(
    problem: Problem,
    units: Sequence[Unit],
    metrics: Mapping[str, Metric | StateMetric],
    settings: RoutingSettings,
    track: Callable[[str], Callable[[int, int], None]],
) -> Screens:
    """The main map with all donors and metrics; last and all positions with the partner and the margin.

    A map that names the same places as one before it is that one, and is not run again.
    """
    chat, margin = problem.chat, {"margin": problem.margin}
    main = screen(
        chat,
        problem.pairs,
        metrics,
        units=units,
        positions=settings.positions,
        progress=track(f"every head, {settings.positions}"),
    )
    found = {settings.positions: main}
    if settings.positions != LAST and not same_places(problem, settings, LAST):
        found[LAST] = screen(
            chat,
            problem.partners,
            margin,
            units=units,
            positions=LAST,
            progress=track("last token"),
        )
    if settings.all_position_layers and not same_places(problem, settings, EVERYWHERE):
        layers = strongest_layers(problem, units, settings.all_position_layers)
        found[EVERYWHERE] = screen(
            chat,
            problem.partners,
            margin,
            units=[unit for unit in units if unit[0][0] in layers],
            positions=EVERYWHERE,
            progress=track("all positions"),
        )
    return Screens(settings.positions, found)


def strongest_layers(problem: Problem, units: Sequence[Unit], count: int) -> set[int]:
    """The layers whose heads, all swapped at all positions, change the margin most."""
    spans = window_units(units, 1)
    if len(spans) <= count:
        return {start for start, _ in spans}
    found = screen(
        problem.chat,
        problem.partners,
        {"margin": problem.margin},
        units=list(spans.values()),
        positions=EVERYWHERE,
    )
    size = np.abs(found.necessity["margin"].mean(axis=(0, 1)))
    starts = [start for start, _ in spans]
    return {starts[i] for i in np.argsort(-size, kind="stable")[:count]}


def to_arrays(screens: Screens) -> dict[str, Array]:
    """The screens as named arrays: MAP|units [units, heads a unit at most, 2], MAP|SIDE|METRIC."""
    arrays: dict[str, Array] = {}
    for name, found in screens.by_map.items():
        widest = max(len(unit) for unit in found.units)
        padded = [[*unit, *[(-9, -9)] * (widest - len(unit))] for unit in found.units]
        arrays[f"{name}|units"] = np.array(padded, dtype=np.float64)
        for side in (*CLEAN, *SIDES):
            for metric, table in getattr(found, side).items():
                arrays[f"{name}|{side}|{metric}"] = table
    return arrays


def from_arrays(arrays: Mapping[str, npt.NDArray], main: str) -> Screens:
    """The screens that `to_arrays` wrote."""
    by_map = {}
    for key in sorted(arrays, key=lambda key: not key.startswith(f"{main}|")):
        name, _, kind = key.partition("|")
        if kind != "units":
            continue
        units = tuple(
            tuple((int(layer), int(head)) for layer, head in unit if layer >= 0)
            for unit in arrays[key]
        )
        tables: dict[str, dict[str, Array]] = {
            side: {
                other.rpartition("|")[2]: arrays[other]
                for other in arrays
                if other.startswith(f"{name}|{side}|")
            }
            for side in (*CLEAN, *SIDES)
        }
        by_map[name] = Screen(units, **tables)
    return Screens(main, by_map)


def together(screens: Screens, metric: str) -> Screen:
    """All maps as one screen, units after units, donors averaged, so that one test covers them all."""
    tables = {
        side: {
            metric: np.concatenate(
                [
                    getattr(s, side)[metric].mean(axis=1, keepdims=True)
                    for s in screens.by_map.values()
                ],
                axis=2,
            )
        }
        for side in SIDES
    }
    units = tuple(unit for found in screens.by_map.values() for unit in found.units)
    first = screens.first
    return Screen(units, dict(first.harmful), dict(first.control), **tables)


def same_places(problem: Problem, settings: RoutingSettings, name: str) -> bool:
    """Whether a map names the same places as the main one in every pair."""
    return all(
        position_map(pair.harmful, pair.control, name)
        == position_map(pair.harmful, pair.control, settings.positions)
        for pair in problem.pairs
    )
