"""From screens to the circuit: the stages that find the heads, and the table of heads they end in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.stats import mean_interval
from refusalscope.studies.frozen_norms import measure_frozen
from refusalscope.studies.heads import WHOLE, Head, coverage, head_name
from refusalscope.studies.routing import heads as table_of_heads
from refusalscope.studies.routing.attribution import attribute
from refusalscope.studies.routing.drive import drive, drive_table
from refusalscope.studies.routing.frames import heads_of, rows_of
from refusalscope.studies.routing.interchange import swaps
from refusalscope.studies.routing.problem import state_metrics
from refusalscope.studies.routing.redundancy import conditional, window_units, windows
from refusalscope.studies.routing.screens import (
    EVERYWHERE,
    LAST,
    Screens,
    from_arrays,
    same_places,
    screen_all,
    to_arrays,
)
from refusalscope.studies.routing.significance import stability
from refusalscope.studies.routing.work import Work
from refusalscope.studies.subject import spending

SCREENS = "routing.screens"
# Found heads whose drive is measured at most, strongest first.
MAX_DRIVERS = 16
# Where the stream is nearly empty, as before the first layer's writes, a frozen norm multiplies a swap without
# end; a necessity of so many gaps says nothing of the head and is left out.
FROZEN_SENSE = 10.0
DRIVE_COLUMNS = (
    *("gate", "gate_layer", "gate_head", "layer", "head", "drive", "low", "high"),
    *("heard", "heard_low", "heard_high", "p", "driven"),
)


@dataclass(frozen=True)
class Circuit:
    """What was found. table: `routing.heads`; known: the heads found, strongest first."""

    screens: Screens
    windows: pd.DataFrame
    table: pd.DataFrame
    known: tuple[Head, ...]

    @property
    def found(self) -> pd.DataFrame:
        """The rows of the heads found, alone or with others held."""
        return self.table[self.table["passes"] | self.table["conditional"].notna()]


def find_circuit(work: Work) -> Circuit:
    """Screen, test, search for stand-ins, attribute, freeze, drive, and give roles."""
    screens = _screens(work)
    alike = {n for n in (LAST, EVERYWHERE) if same_places(work.problem, work.settings, n)}
    tested = work.stage(
        "routing.tests", lambda: table_of_heads.tests(screens, work.problem, work.settings)
    )
    work.stage("routing.gap", lambda: _gaps(work, screens))
    work.stage("routing.coverage", lambda: _coverage(work, screens, alike))
    work.stage("routing.stability", lambda: _stability(work, screens))
    profile = work.stage("routing.windows", lambda: _windows(work, screens))
    held = work.stage("routing.conditional", lambda: _held(work, screens, tested, profile))
    written = work.stage("routing.attribution", lambda: _written(work))
    best = table_of_heads.best_map(tested, work.settings.positions)
    passing = best[best["passes"]]
    alone = dict(zip(heads_of(best), best["necessity"], strict=True))
    hidden, _ = table_of_heads.stand_ins(held, alone)
    size = {head: abs(alone[head]) for head in heads_of(passing)}
    for head, effect in hidden.items():
        size[head] = max(size.get(head, 0.0), abs(effect))
    known = tuple(sorted(size, key=lambda head: -size[head]))
    shown = dict.fromkeys(known, work.settings.positions)
    shown |= dict(zip(heads_of(passing), passing["map"], strict=True))
    frozen = work.stage("routing.frozen", lambda: _frozen(work, screens, known, shown))
    driven = work.stage("routing.drive", lambda: _drives(work, known, shown, written))
    table = work.stage(
        "routing.heads",
        lambda: table_of_heads.assemble(
            tested,
            work.settings.positions,
            alike,
            table_of_heads.halves(screens, work.settings.seed),
            held,
            written,
            dict(zip(heads_of(frozen), frozen["frozen"], strict=True)),
            driven,
        ),
    )
    circuit = Circuit(screens, profile, table, known)
    _warn(work, circuit)
    return circuit


def _screens(work: Work) -> Screens:
    if SCREENS not in work.run.arrays():
        with spending(work.run, work.chat):
            found = screen_all(
                work.problem,
                work.units,
                state_metrics(work.subject, work.problem, work.settings),
                work.settings,
                work.progress.track,
            )
        work.run.write_array(SCREENS, to_arrays(found))
    return from_arrays(work.run.array(SCREENS), work.settings.positions)


def _gaps(work: Work, screens: Screens) -> pd.DataFrame:
    main = screens.first
    rows = []
    # A divergence from the clean run has no gap: it is 0 on both sides.
    for metric in sorted(set(main.harmful) - {"kl"}):
        sides = main.harmful[metric], main.control[metric]
        gap = mean_interval(sides[0] - sides[1], work.problem.categories, seed=work.settings.seed)
        rows.append(
            {
                "metric": metric,
                "unit": "projection" if metric == "probe" else "nats",
                "n": gap.n,
                "harmful": float(sides[0].mean()),
                "control": float(sides[1].mean()),
                "gap": gap.value,
                "low": gap.low,
                "high": gap.high,
            }
        )
    return pd.DataFrame(rows)


def _coverage(work: Work, screens: Screens, alike: set[str]) -> pd.DataFrame:
    n_layers = work.chat.anatomy.n_layers
    rows = []
    for name in dict.fromkeys((work.settings.positions, LAST, EVERYWHERE)):
        copied = name in alike and name not in screens.by_map
        found = screens.first if copied else screens.by_map.get(name)
        layers = sorted({unit[0][0] for unit in found.units}) if found else []
        rest = [f"L{n}" for n in range(n_layers) if n not in layers]
        note = coverage(work.chat.anatomy)
        if copied:
            note = f"names the same places as {work.settings.positions} in every pair"
        elif rest:
            note = f"not looked at: {', '.join(rest)}" if layers else "not looked at"
        rows.append(
            {
                "map": "all" if name == EVERYWHERE else name,
                "heads": len(found.units) if found else 0,
                "of": len(work.units),
                "layers": ", ".join(map(str, layers)),
                "note": note,
            }
        )
    return pd.DataFrame(rows)


def _stability(work: Work, screens: Screens) -> pd.DataFrame:
    top = max(1, min(10, len(work.units) // 2))
    found = stability(
        screens.first,
        "margin",
        top=top,
        categories=work.problem.categories,
        seed=work.settings.seed,
    )
    return pd.DataFrame(
        [{"measure": name, "jaccard": value, "top": top} for name, value in found.items()]
    )


def _windows(work: Work, screens: Screens) -> pd.DataFrame:
    return windows(
        work.chat,
        work.problem.partners,
        work.margin,
        screens.first,
        "margin",
        widest=min(work.settings.window, work.chat.anatomy.n_layers),
        positions=work.settings.positions,
        categories=work.problem.categories,
        seed=work.settings.seed,
    )


def _held(
    work: Work, screens: Screens, tested: pd.DataFrame, profile: pd.DataFrame
) -> pd.DataFrame:
    """The strongest heads held, one at a time, and the windows searched, left but for one head."""
    settings = work.settings
    layers = window_units(work.units, 1)
    sets = [
        tuple(h for n in range(row["start"], row["stop"]) for h in layers[n, n + 1])
        for row in rows_of(profile[profile["searched"]])
    ]
    best = table_of_heads.best_map(tested, settings.positions)
    strongest = best[best["passes"]].sort_values(
        "necessity", key=np.abs, ascending=False, kind="stable"
    )
    return conditional(
        work.chat,
        work.problem.partners,
        work.margin,
        [(head,) for head in heads_of(strongest.head(settings.held))],
        sets,
        screens.first.gap("margin"),
        units=work.units,
        positions=settings.positions,
        categories=work.problem.categories,
        floor=settings.floor,
        alpha=settings.alpha,
        n_flips=settings.n_flips,
        seed=settings.seed,
    )


def _written(work: Work) -> pd.DataFrame:
    harmful = [pair.harmful for pair in work.problem.pairs]
    control = [pair.control for pair in work.problem.pairs]
    first = attribute(work.chat, harmful, work.margin)
    second = attribute(work.chat, control, work.margin)
    held = attribute(work.chat, control, work.margin, scale=first.scale)
    return table_of_heads.contributions(first, second, held, work.units)


def _frozen(
    work: Work, screens: Screens, known: Sequence[Head], shown: dict[Head, str]
) -> pd.DataFrame:
    """Necessity of each head found with all norms frozen, by the map that shows it."""
    rows = []
    gap = screens.first.gap("margin")
    pairs = work.problem.partners
    for name in dict.fromkeys(shown.values()):
        members = [head for head in known if shown[head] == name]
        variants = swaps(work.chat, pairs, [(head,) for head in members], name)
        scores = measure_frozen(
            work.chat,
            [pair.harmful for pair in pairs],
            [[(), *mine] for mine in variants],
            work.margin,
        )
        lost = (scores[:, :1] - scores[:, 1:]).mean(axis=0) / gap
        rows += [
            {"layer": layer, "head": head, "frozen": float(value)}
            for (layer, head), value in zip(members, lost, strict=True)
            if abs(value) < FROZEN_SENSE
        ]
    return pd.DataFrame(rows, columns=["layer", "head", "frozen"])


def _drives(
    work: Work, known: Sequence[Head], shown: dict[Head, str], written: pd.DataFrame
) -> pd.DataFrame:
    last = work.chat.anatomy.n_layers - 1
    drivers = [head for head in known if head[1] != WHOLE and head[0] < last][:MAX_DRIVERS]
    track = work.progress.track("drives of the heads found")
    frames = []
    for number, head in enumerate(drivers):
        heard = drive(work.chat, work.problem.partners, work.margin, head, positions=shown[head])
        frames.append(
            drive_table(
                heard,
                head,
                float(written["gap"].iloc[0]),
                categories=work.problem.categories,
                alpha=work.settings.alpha,
                n_flips=work.settings.n_flips,
                seed=work.settings.seed,
            )
        )
        track(number + 1, len(drivers))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=DRIVE_COLUMNS)


def _warn(work: Work, circuit: Circuit) -> None:
    found = circuit.found
    if found.empty:
        work.run.warn(
            "No head passes the floor and the test, alone or with others held: no head circuit is claimed."
        )
        return
    hidden = found[found["conditional"].notna()]
    if len(hidden):
        named = ", ".join(head_name(head) for head in heads_of(hidden))
        work.run.warn(
            f"Redundancy: {named} carry the refusal with others held swapped, and little or nothing when "
            f"swapped alone, so single swaps underrate them."
        )
    top = heads_of(found)[int(found["effect"].abs().to_numpy().argmax())]
    if top[0] == work.chat.anatomy.n_layers - 1:
        work.run.warn(
            f"The head with the largest effect, {head_name(top)}, is in the last layer: nothing lies behind it "
            f"to drive, so it is no gate."
        )
