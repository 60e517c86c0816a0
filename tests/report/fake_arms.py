"""The arms of a features run and the published sweep, without a model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from refusalscope.stats import wilson

NAN = float("nan")
N = 60
STRENGTHS = (0.25, 0.5, 1.0)
# arm, group, latents, draws, fall of the margin and KL at strength 1, fall at the KL of the set
ARMS = (
    ("set pool/0", "set", 5, NAN, 6.3, 0.031, 6.3),
    ("refusal direction", "direction", NAN, NAN, 8.4, 0.052, 7.2),
    ("top cosine", "baseline", 20, NAN, 3.1, 0.044, 2.6),
    ("activation difference", "baseline", 20, NAN, 1.4, 0.21, 0.4),
    ("attribution", "baseline", 20, NAN, 4.9, 0.06, 3.3),
    ("yeo2025", "baseline", 20, NAN, 5.6, 1.7, 1.2),
    ("all active", "baseline", 3_812, NAN, 7.9, 4.3, NAN),
    ("machine, natural, top 40", "stage3", 40, NAN, 2.0, 0.13, 0.9),
    ("set and machine, natural, top 40", "stage3", 45, NAN, 6.6, 0.16, 5.1),
    ("random matched", "random", 5, 20, 0.05, 0.0002, NAN),
    ("PCA dictionary", "pca", 5, NAN, 1.1, 0.09, 0.7),
)


def baselines() -> pd.DataFrame:
    """features.baselines: eleven arms at three strengths."""
    rows = []
    for arm, group, n_latents, draws, fall, kl, equal in ARMS:
        for strength in STRENGTHS:
            change, cost = fall * strength**0.8, kl * strength**1.7
            flipped = wilson(int(N * np.clip((change - 2) / 5, 0, 0.97)), N)
            refused = wilson(round(N * float(np.clip(1 - change / 6.5, 0.02, 1))), N)
            full = strength == 1.0
            beats = NAN if group == "random" else change - 0.05
            rows.append(
                {
                    "arm": arm,
                    "group": group,
                    "n_latents": n_latents,
                    "draws": draws,
                    "strength": strength,
                    "n_harmful": N,
                    "margin": 4.2 - change,
                    "margin_low": 3.8 - change,
                    "margin_high": 4.6 - change,
                    **_with("change", change, 0.05 + 0.08 * change),
                    **_of("flipped", flipped),
                    "n_harmless": N,
                    **_with("kl", cost, 0.2 * cost),
                    **_with("ce", 0.4 * cost, 0.1 * cost),
                    "ratio": change / cost,
                    **_of("refused", refused if full else None),
                    "degenerate": 0.3 if arm == "all active" and full else 0.0 if full else NAN,
                    "over_refused": 0.02 if full else NAN,
                    **_with("beats", beats, 0.05 + 0.09 * change),
                    "p_random": NAN if group == "random" else 1 / 21,
                    "equal_kl": equal,
                }
            )
    return pd.DataFrame(rows)


def _with(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def _of(name: str, rate) -> dict[str, float]:
    if rate is None:
        return {name: NAN, f"{name}_low": NAN, f"{name}_high": NAN}
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def published() -> pd.DataFrame:
    """features.published: two readings, three thresholds, eight prompts."""
    rows = []
    for reading in ("restore", "delta"):
        for tau in (0.1, 0.5, 0.8):
            for prompt in range(8):
                why = "not refused without an edit" if prompt == 0 else ""
                flipped = not why and reading == "restore" and prompt % 3 == 0
                rows.append((str(prompt), reading, tau, 0.9, 0.05, why, 31.0, 12, 0.4, flipped, 60))
    columns = ["prompt_id", "reading", "tau", "nothing", "everything", "why_not", "sizes_mean"]
    columns += ["intersection_size", "intersection_score", "intersection_flipped", "evaluations"]
    return pd.DataFrame(rows, columns=columns)
