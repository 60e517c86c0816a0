"""The tables of a repair run without a model: one ranking restores most, a random selection half of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.repair_tables import HARMLESS, LOST, OTHER, QUANTITIES
from refusalscope.stats import mean_interval, paired_difference, wilson
from report.fake_run import fake_info, write_fake_run

N = {LOST: 40, OTHER: 50, HARMLESS: 60}
# Refused of each group, cliff, KL, by stage.
STAGES = {
    "before": ({LOST: 0.0, OTHER: 1.0, HARMLESS: 0.0}, 0.85, 0.0),
    "ms_p90": ({LOST: 0.9, OTHER: 1.0, HARMLESS: 0.05}, 0.1, 0.04),
    "random": ({LOST: 0.5, OTHER: 0.98, HARMLESS: 0.05}, 0.4, 0.05),
}
SETTINGS = {"rank_by": "ms_p90", "against": "random", "k": 40}
NAN = float("nan")


def fake_repair_tables(seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table of a repair run by name."""
    return {name: table.copy() for name, table in _tables(seed).items()}


@cache
def _tables(seed: int) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    prompts = _prompts(rng)
    return {
        "repair.prompts": prompts,
        "repair.selection": _selection(rng),
        "repair.losses": _losses(rng),
        "repair.effects": _effects(prompts),
    }


def write_fake_repair(
    path: Path,
    *,
    tables: dict[str, pd.DataFrame] | None = None,
    command: str = "repair",
    **options: Any,
) -> Path:
    """A finished repair run in `path`."""
    return write_fake_run(
        path,
        tables=fake_repair_tables() if tables is None else tables,
        command=command,
        **{"info": fake_info(), "warnings": (), "settings": SETTINGS, **options},
    )


def _prompts(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for stage, (rates, cliff, kl) in STAGES.items():
        for group, n in N.items():
            for i in range(n):
                refused = i < round(rates[group] * n)
                rows.append(
                    {
                        "id": f"{group}-{i}",
                        "label": group.split(",")[0],
                        "category": f"kind{i % 4}",
                        "group": group,
                        "refused": refused,
                        "degenerate": False,
                        "margin": (4 if refused else -4) + rng.normal(0, 0.5),
                        "cliff": cliff + rng.normal(0, 0.02) if group == LOST else 0.02,
                        "kl": abs(kl + rng.normal(0, 0.1 * kl)) if group == HARMLESS else NAN,
                        "selection": stage,
                    }
                )
    return pd.DataFrame(rows)


def _selection(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for name, start in (("ms_p90", 0), ("random", 30)):
        for i in range(40):
            rows.append((f"pool-{start + i:03d}", f"kind{i % 4}", i + 1, 1 - i / 100, name))
    return pd.DataFrame(rows, columns=["id", "category", "rank", "priority", "selection"])


def _losses(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for name in ("ms_p90", "random"):
        for step in range(31):
            loss = 3 * np.exp(-step / 8) + abs(rng.normal(0, 0.1))
            held = 3 * np.exp(-step / 9) + 0.05 if step % 5 == 0 else NAN
            rows.append((step, loss if step else NAN, held, name))
    return pd.DataFrame(rows, columns=["step", "loss", "validation_loss", "selection"])


def _effects(prompts: pd.DataFrame) -> pd.DataFrame:
    rows = []
    of = {name: part.set_index("id") for name, part in prompts.groupby("selection")}
    for name in ("ms_p90", "random"):
        for quantity, (group, column) in QUANTITIES.items():
            ids = of["before"].index[of["before"]["group"] == group]
            then, now, other = (
                of[each].loc[ids, column].to_numpy(float) for each in ("before", name, "random")
            )
            rate = column == "refused"
            level = wilson(int(now.sum()), len(now)) if rate else mean_interval(now, seed=0)
            change, beats = paired_difference(now, then, seed=0), mean_interval(now - other, seed=0)
            against = name != "random"
            rows.append(
                {
                    **{"selection": name, "quantity": quantity, "value": level.value},
                    **{"low": level.low, "high": level.high, "before": then.mean()},
                    **{"change": change.value, "change_low": change.low},
                    **{"change_high": change.high, "n": len(now), "p": change.p},
                    "beats": beats.value if against else NAN,
                    "beats_low": beats.low if against else NAN,
                    "beats_high": beats.high if against else NAN,
                    "against": "random" if against else "",
                }
            )
    return pd.DataFrame(rows)
