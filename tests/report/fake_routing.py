"""The tables of a routing run without a model: a gate, its backup, two amplifiers, a suppressor.

A generator with a seed fills the other heads with small noise. Nothing here was measured on any
model; `size` makes the same route in a model of any shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.routing_tables import routing_table
from report.fake_doses import (
    cipher,
    collapse,
    contrast,
    dose,
    rescue,
    thresholds,
    with_interval,
)
from report.fake_run import N_PAIRS, fake_info, write_fake_run

SIZE = 8, 6
# role, depth as a share of the layers, necessity, direct effect
ROUTE = (
    ("detector", 0.15, 0.21, 0.0),
    ("gate", 0.35, 0.61, 0.004),
    ("backup", 0.35, 0.006, 0.0),
    ("chain", 0.5, 0.16, 0.005),
    ("amplifier", 0.65, 0.33, 0.28),
    ("amplifier", 0.65, 0.18, 0.15),
    ("suppressor", 0.8, -0.09, -0.08),
    ("direct", 0.999, 0.05, 0.05),
)


def fake_routing_tables(size: tuple[int, int] = SIZE, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table of a routing run by name, for a model of [layers, heads]."""
    rng = np.random.default_rng(seed)
    places = _places(size)
    heads = _heads(rng, size, places)
    return {
        "routing.gap": _gap(),
        "routing.heads": heads,
        "routing.drive": _drive(rng, size, places),
        "routing.cascade": _cascade(rng, heads, places),
        "routing.groups": _groups(size),
        "routing.coalitions": pd.DataFrame([(9, 5, -0.86, -0.31, 0.04)], columns=COALITIONS),
        "routing.coverage": _coverage(size),
        "routing.stability": _stability(),
        "routing.metrics": _metrics(heads),
        "routing.dose": dose(),
        "routing.thresholds": thresholds(),
        "routing.cipher": cipher(rng, heads),
        "routing.contrast": contrast(rng, heads),
        "routing.collapse": collapse(heads),
        "routing.rescue": rescue(),
        "routing.moved": _moved(rng, heads),
        "routing.drift": pd.DataFrame([DRIFT]),
    }


COALITIONS = ["n_pro", "n_counter", "r_raw", "r_held", "p"]
DRIFT = {
    "rbo": 0.81,
    "null_mean": 0.93,
    "null_low": 0.88,
    "p": 0.012,
    "n": 120,
    "first": "organisms/base",
    "second": "organisms/tuned",
}


def fake_routing_info(size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """The further keys of run.json."""
    info = fake_info()
    info["model"] |= {"id": "organisms/routed-chat", "n_layers": size[0], "n_heads": size[1]}
    return info


def write_fake_routing(
    path: Path,
    *,
    size: tuple[int, int] = SIZE,
    tables: dict[str, pd.DataFrame] | None = None,
    **options: Any,
) -> Path:
    """A finished routing run in `path`."""
    return write_fake_run(
        path,
        tables=fake_routing_tables(size) if tables is None else tables,
        command="routing",
        **{"info": fake_routing_info(size), "warnings": (), **options},
    )


def _places(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Where the heads of the route stand; two in one layer stand apart."""
    return [
        (int(depth * size[0]), (3 * i + 1) % size[1]) for i, (_, depth, _, _) in enumerate(ROUTE)
    ]


def _heads(
    rng: np.random.Generator, size: tuple[int, int], places: list[tuple[int, int]]
) -> pd.DataFrame:
    roles = dict(zip(places, ROUTE, strict=True))
    rows = []
    for layer in range(size[0]):
        for head in range(size[1]):
            role, _, true, direct = roles.get((layer, head), ("", 0, 0.0, 0.0))
            necessity = true + rng.normal(0, 0.003)
            sufficiency = 0.6 * true + rng.normal(0, 0.003)
            passes = bool(role) and role != "backup"
            deep = layer >= size[0] * 3 // 4
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    **with_interval("necessity", necessity, 0.03 if passes else 0.006),
                    **with_interval("sufficiency", sufficiency, 0.03 if passes else 0.006),
                    "p_familywise": 0.0001 if passes else rng.uniform(0.2, 1),
                    "p_sufficiency": 0.0001 if passes else rng.uniform(0.2, 1),
                    "p_both": 0.0001 if passes else rng.uniform(0.2, 1),
                    "p_equivalent": 0.9 if passes else 0.001,
                    "donor_sd": 0.01,
                    "passes": passes,
                    "map": "suffix",
                    # The detector works before the last token.
                    "necessity_last": 0.0 if role == "detector" else necessity,
                    "necessity_all": necessity * 1.1 if deep else np.nan,
                    "necessity_first": necessity + 0.01,
                    "necessity_second": necessity - 0.01,
                    "conditional": 0.58 if role == "backup" else np.nan,
                    "dla": 4 * direct + rng.normal(0, 0.01),
                    "dla_share": direct,
                    "direct": direct,
                    "frozen": 0.97 * necessity if passes else np.nan,
                    "drives": 3 if role == "gate" else 1 if role == "chain" else 0,
                    "driven_by": 1 if role in ("chain", "amplifier") else 0,
                    "role": role,
                    "why": f"necessity {100 * true:.0f} %, direct {100 * direct:.1f} % of the gap"
                    if role
                    else "",
                }
            )
    return pd.DataFrame(rows)


def _gap() -> pd.DataFrame:
    rows = [
        ("margin", "nats", N_PAIRS, 4.1, -1.8, 5.9, 5.4, 6.4),
        ("nll", "nats", N_PAIRS, 6.2, 2.7, 3.5, 3.1, 3.9),
        ("probe", "logits", N_PAIRS, 2.2, -2.4, 4.6, 4.3, 4.9),
        ("kl", "nats", N_PAIRS, 1.2, 0.0, 1.2, 1.0, 1.4),
    ]
    columns = ["metric", "unit", "n", "harmful", "control", "gap", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _drive(
    rng: np.random.Generator, size: tuple[int, int], places: list[tuple[int, int]]
) -> pd.DataFrame:
    drives = {
        (places[0], places[1]): 0.2,
        (places[1], places[3]): 0.15,
        (places[1], places[4]): 0.29,
        (places[1], places[5]): 0.13,
        (places[1], places[6]): -0.06,
        (places[3], places[4]): 0.12,
    }
    rows = []
    for gate in (places[0], places[1], places[3]):
        for layer in range(gate[0] + 1, size[0]):
            for head in range(size[1]):
                value = drives.get((gate, (layer, head)), 0.0) + rng.normal(0, 0.002)
                driven = (gate, (layer, head)) in drives
                rows.append(
                    {
                        "gate": f"L{gate[0]}.H{gate[1]}",
                        "gate_layer": gate[0],
                        "gate_head": gate[1],
                        "layer": layer,
                        "head": head,
                        "drive": value,
                        "low": value - 0.02,
                        "high": value + 0.02,
                        "p": 0.02 if driven else 0.6,
                        "driven": driven,
                    }
                )
    return pd.DataFrame(rows)


def _cascade(
    rng: np.random.Generator, heads: pd.DataFrame, places: list[tuple[int, int]]
) -> pd.DataFrame:
    change = {places[3]: -0.91, places[4]: -0.88, places[5]: -0.74, places[6]: -0.6}
    rows = []
    for gate, knockout in ((places[1], "swap"), (places[1], "zero"), (places[3], "swap")):
        for head in heads.to_dict("records"):
            place = head["layer"], head["head"]
            deeper = place[0] > gate[0]
            held = (change.get(place, 0.0) if deeper else 0.0) * (0.4 if gate == places[3] else 1)
            value = held + rng.normal(0, 0.03)
            rows.append(
                {
                    "gate": f"L{gate[0]}.H{gate[1]}",
                    "gate_layer": gate[0],
                    "gate_head": gate[1],
                    "knockout": knockout,
                    "layer": place[0],
                    "head": place[1],
                    "contrast": head["dla"] + rng.normal(0, 0.1),
                    "change": value,
                    "low": value - 0.05,
                    "high": value + 0.05,
                    "held": held,
                    "p": 0.125 if held else 0.7,
                    "deeper": deeper,
                }
            )
    return pd.DataFrame(rows)


def _groups(size: tuple[int, int]) -> pd.DataFrame:
    rows = []
    gate = int(0.35 * size[0])
    for start in range(size[0] - 1):
        inside = start <= gate < start + 2
        value = 0.86 if inside else 0.04
        rows.append(
            ("window", "", start, start + 2, 2 * size[1], value, value - 0.05, value + 0.05)
            + ((0.61, 0.63, True) if inside else (0.03, 0.04, False))
        )
    nan = np.nan
    rows += [
        ("found", "all heads found", nan, nan, 8, 0.94, 0.9, 0.98, 0.61, 1.45, False),
        ("pro", "pro-refusal", nan, nan, 6, 0.97, 0.93, 1.01, 0.61, 1.54, False),
        ("counter", "counter-refusal", nan, nan, 1, -0.09, -0.12, -0.06, -0.09, -0.09, False),
    ]
    columns = ["kind", "name", "start", "stop", "n_heads", "necessity", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "largest", "summed", "hides"])


def _coverage(size: tuple[int, int]) -> pd.DataFrame:
    of, first = size[0] * size[1], size[0] * 3 // 4
    rows = [
        ("suffix", of, of, f"0-{size[0] - 1}", "main map"),
        ("last", of, of, f"0-{size[0] - 1}", ""),
        ("all", (size[0] - first) * size[1], of, f"{first}-{size[0] - 1}", "top layers only"),
    ]
    return pd.DataFrame(rows, columns=["map", "heads", "of", "layers", "note"])


def _stability() -> pd.DataFrame:
    rows = [("resamples", 0.92, 8), ("halves", 0.78, 8), ("donors", 0.88, 8)]
    return pd.DataFrame(rows, columns=["measure", "jaccard", "top"])


def _metrics(heads: pd.DataFrame) -> pd.DataFrame:
    frames = []
    for metric, unit, factor in (("margin", "nats", 1), ("nll", "nats", 0.7), ("kl", "nats", 0.9)):
        frame = heads[["layer", "head", "necessity", "sufficiency", "p_familywise"]].copy()
        frame[["necessity", "sufficiency"]] *= factor
        frames.append(frame.assign(metric=metric, unit=unit))
    return pd.concat(frames, ignore_index=True)


def _moved(rng: np.random.Generator, heads: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for head in heads.to_dict("records"):
        change = -0.2 if head["role"] == "gate" else rng.normal(0, 0.003)
        rows.append(
            {
                "layer": head["layer"],
                "head": head["head"],
                "first": head["necessity"],
                "second": head["necessity"] + change,
                "change": change,
                "low": change - 0.03,
                "high": change + 0.03,
                "p_familywise": 0.001 if change < -0.1 else 0.9,
                "moved": change < -0.1,
            }
        )
    return pd.DataFrame(rows)


class Tables:
    """Tables as the sections see a run."""

    def __init__(self, tables: dict[str, pd.DataFrame] | None = None) -> None:
        self.held = fake_routing_tables(SIZE) if tables is None else tables
        self.info = {"command": "routing", **fake_routing_info(SIZE)}

    def tables(self) -> list[str]:
        return list(self.held)

    def table(self, name: str) -> pd.DataFrame:
        return self.held[name]

    def clean(self, name: str) -> pd.DataFrame:
        frame = routing_table(self, name)
        assert frame is not None
        return frame
