"""What the circuit is: groups and coalitions, cascades of its gates, and every head by the other metrics."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.studies.heads import WHOLE, head_name
from refusalscope.studies.routing.cascade import cascade
from refusalscope.studies.routing.find import Circuit
from refusalscope.studies.routing.frames import heads_of, rows_of
from refusalscope.studies.routing.groups import coalitions, groups
from refusalscope.studies.routing.interchange import Screen, screen
from refusalscope.studies.routing.problem import nll, with_replies
from refusalscope.studies.routing.significance import significance
from refusalscope.studies.routing.work import Work

# Roles of heads that pass the decision on, the likeliest gates first.
ROUTERS = ("gate", "chain", "detector", "mixed", "backup")
WRITERS = ("amplifier", "direct", "suppressor")
CASCADE_COLUMNS = (
    *("gate", "gate_layer", "gate_head", "knockout", "layer", "head", "contrast"),
    *("change", "low", "high", "held", "p", "deeper"),
)
METRIC_COLUMNS = ("metric", "unit", "layer", "head", "necessity", "sufficiency", "p_familywise")


def describe_circuit(work: Work, circuit: Circuit) -> None:
    """Write `routing.groups`, `routing.coalitions`, `routing.cascade` and `routing.metrics`."""
    found = circuit.found[circuit.found["head"] != WHOLE]
    writers = found[found["role"].isin(WRITERS)]
    pro, counter = writers[writers["direct"] > 0], writers[writers["direct"] < 0]
    named = {
        "found": found,
        "routers": found[found["role"].isin(ROUTERS)],
        "pro": pro,
        "counter": counter,
    }
    work.stage("routing.groups", lambda: _groups(work, circuit, named))
    if len(pro) and len(counter):
        work.stage(
            "routing.coalitions",
            lambda: coalitions(
                work.chat,
                work.problem.partners,
                work.margin,
                heads_of(pro),
                heads_of(counter),
                seed=work.settings.seed,
            ),
        )
    work.stage("routing.cascade", lambda: _cascades(work, circuit))
    work.stage("routing.metrics", lambda: _metrics(work, circuit))


def routers(circuit: Circuit) -> pd.DataFrame:
    """Heads that could be gates, the likeliest first: by role, then by the size of what they do."""
    rows = circuit.table[circuit.table["role"].isin(ROUTERS) & (circuit.table["head"] != WHOLE)]
    size = rows[["effect", "conditional"]].abs().max(axis=1)
    order = rows["role"].map({role: i for i, role in enumerate(ROUTERS)})
    ranked = rows.assign(order=order, size=size)
    return ranked.sort_values(["order", "size"], ascending=[True, False], kind="stable")


def _groups(work: Work, circuit: Circuit, named: dict[str, pd.DataFrame]) -> pd.DataFrame:
    hidden = circuit.table[circuit.table["conditional"].notna()]["layer"]
    rows = rows_of(circuit.windows)
    spans = circuit.windows.assign(
        kind="window",
        name=[f"L{row['start']}-L{row['stop'] - 1}" for row in rows],
        hides=[
            bool(row["searched"] and hidden.between(row["start"], row["stop"] - 1).any())
            for row in rows
        ],
    )
    sets = {name: tuple(heads_of(rows)) for name, rows in named.items() if len(rows)}
    if not sets:
        return spans
    frame = groups(
        work.chat,
        work.problem.partners,
        work.margin,
        sets,
        positions=work.settings.positions,
        categories=work.problem.categories,
        seed=work.settings.seed,
    )
    frame = frame.assign(kind=frame["name"], start=np.nan, stop=np.nan, searched=False, hides=False)
    return pd.concat([frame, spans], ignore_index=True)


def _cascades(work: Work, circuit: Circuit) -> pd.DataFrame:
    """Knockouts of the strongest heads that could be gates, against other heads of like depth."""
    ranked = routers(circuit)
    gates = heads_of(ranked[ranked["layer"] < work.chat.anatomy.n_layers - 1])
    frames = [
        cascade(
            work.chat,
            work.problem.partners,
            work.margin,
            gate,
            knockout=knockout,
            null=work.bystanders(gate, circuit.known),
            seed=work.settings.seed,
            progress=work.progress.track(f"cascade of {head_name(gate)}, {knockout}"),
        ).assign(gate=head_name(gate), knockout=knockout)
        for gate in gates[: work.settings.n_gates]
        for knockout in work.settings.knockouts
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=CASCADE_COLUMNS)


def _metrics(work: Work, circuit: Circuit) -> pd.DataFrame:
    """Every head by the other metrics: shares of their gap, or nats where there is none (KL)."""
    main = circuit.screens.first
    frames = [_by_metric(work, main, metric) for metric in sorted(set(main.harmful) - {"margin"})]
    if "nll" in work.settings.metrics:
        frames += _reply_metric(work)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=METRIC_COLUMNS)


def _reply_metric(work: Work) -> list[pd.DataFrame]:
    pairs = with_replies(work.problem)
    if pairs is None:
        work.run.warn(
            "A control's reply is empty, so the NLL of the controls' replies was left out."
        )
        return []
    found = screen(
        work.chat,
        pairs,
        {"nll": nll()},
        units=work.units,
        positions=work.settings.positions,
        policy="prompt_only",
        progress=work.progress.track("every head, reply NLL"),
    )
    return [_by_metric(work, found, "nll")]


def _by_metric(work: Work, found: Screen, metric: str) -> pd.DataFrame:
    if metric == "kl":
        frame = pd.DataFrame(
            {
                "layer": [unit[0][0] for unit in found.units],
                "head": [unit[0][1] for unit in found.units],
                # A swap can only raise the divergence from the clean run: it has no sign and no gap.
                "necessity": -found.necessity[metric].mean(axis=(0, 1)),
                "sufficiency": found.sufficiency[metric].mean(axis=(0, 1)),
                "p_familywise": np.nan,
            }
        )
        return frame.assign(metric=metric, unit="nats")[list(METRIC_COLUMNS)]
    frame = significance(
        found,
        metric,
        categories=work.problem.categories,
        floor=work.settings.floor,
        n_flips=work.settings.n_flips,
        seed=work.settings.seed,
    )
    return frame.assign(metric=metric, unit="share of the gap")[list(METRIC_COLUMNS)]
