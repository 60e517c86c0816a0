"""Prompts of a belief study without a model, on the plane, with the shortcuts and marks beside them.

Numbers are drawn from a seeded generator. Nothing here was measured on any model.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.studies.directions.belief import QUADRANTS

N = 20
MARKS = ("as is", "no mark", "full stop", "question mark")


def plane_tables() -> dict[str, pd.DataFrame]:
    """`belief.prompts`, `belief.shortcuts` and `belief.marks`."""
    return {
        "belief.prompts": _prompts(np.random.default_rng(5)),
        "belief.shortcuts": _shortcuts(),
        "belief.marks": _marks(),
    }


def _prompts(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for (harmful, refused), quadrant in QUADRANTS.items():
        for k in range(N):
            delta_harmful, delta_refuse = rng.uniform(0.02, 0.2, 2)
            rows.append(
                {
                    "id": f"{quadrant}/{k}",
                    "label": "harmful" if harmful else "harmless",
                    "category": ("fraud", "malware")[k % 2],
                    "refused": refused,
                    "delta_harmful": delta_harmful if harmful else -delta_harmful,
                    "delta_refuse": delta_refuse if refused else -delta_refuse,
                    "quadrant": quadrant,
                }
            )
    return pd.DataFrame(rows)


def _shortcuts() -> pd.DataFrame:
    rows = (
        ("belief (delta_harmful)", 0.95, "the score under test"),
        ("belief at the last word", 0.93, "the same score, -0.02 from the one under test"),
        ("final punctuation", 0.6, "carries some of the label, less than belief"),
    )
    table = pd.DataFrame(rows, columns=["name", "auroc", "verdict"])
    return table.assign(auroc_low=table["auroc"] - 0.04, auroc_high=table["auroc"] + 0.04)


def _marks() -> pd.DataFrame:
    rows = []
    for label, mean in (("harmful", 0.1), ("harmless", -0.1)):
        for k, mark in enumerate(MARKS):
            score = mean + 0.01 * k
            row = {"label": label, "mark": mark, "n": 2 * N, "mean": score, "spread": 0.03}
            row |= {"low": score - 0.01, "high": score + 0.01}
            rows.append(row | {"spread_low": 0.02, "spread_high": 0.04})
    return pd.DataFrame(rows)
