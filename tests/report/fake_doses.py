"""The dose and cipher tables of a routing run, without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from refusalscope.stats import wilson
from report.fake_run import CATEGORIES, N_PAIRS


def dose() -> pd.DataFrame:
    """Margins and judged refusals by arm, category and alpha."""
    rows = []
    for arm, start, slope in (("attenuate", 4.1, -9.0), ("amplify", -1.8, 8.0)):
        for number, category in enumerate(("all", *CATEGORIES)):
            for alpha in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
                middle = 0.45 if category == "all" else 0.25 + 0.06 * number
                margin = start + slope / (1 + np.exp(-(alpha - middle) * 9))
                n = N_PAIRS if category == "all" else N_PAIRS // len(CATEGORIES)
                judged = category == "all"
                refused = round(n / (1 + np.exp(-1.5 * margin))) if judged else np.nan
                rate = wilson(int(refused), n) if judged else None
                rows.append(
                    {
                        "arm": arm,
                        "alpha": alpha,
                        "category": category,
                        "language": "all",
                        "n": n,
                        "margin": margin,
                        "margin_low": margin - 0.5,
                        "margin_high": margin + 0.5,
                        "n_judged": n if judged else 0,
                        "refused": refused / n,
                        "low": rate.low if rate else np.nan,
                        "high": rate.high if rate else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def thresholds() -> pd.DataFrame:
    """Where the curves cross."""
    rows = []
    for arm in ("attenuate", "amplify"):
        for number, category in enumerate(("all", *CATEGORIES)):
            at = 0.43 if category == "all" else 0.25 + 0.06 * number
            crossed = number != 4
            rows.append(
                {
                    "arm": arm,
                    "category": category,
                    "language": "all",
                    "n": N_PAIRS if category == "all" else 15,
                    "alpha50": at if crossed else np.nan,
                    "alpha50_low": at - 0.05 if crossed else np.nan,
                    "alpha50_high": at + 0.06 if crossed else np.nan,
                    "crossed": crossed,
                    "behaviour_alpha50": 0.5 if category == "all" else np.nan,
                    "p_monotone": 0.0004,
                }
            )
    return pd.DataFrame(rows)


def _route(heads: pd.DataFrame) -> list[dict[str, Any]]:
    return heads[heads["role"] != ""].to_dict("records")


def cipher(rng: np.random.Generator, heads: pd.DataFrame) -> pd.DataFrame:
    """Necessity and direct attribution by arm."""
    rows = []
    for wrapper, left in (("letters", 0.08), ("base64", 0.6)):
        for arm, factor in (
            ("plain", 1),
            ("cipher", left),
            ("benign", np.nan),
            ("benign_cipher", 0),
        ):
            for head in _route(heads):
                value = factor * head["necessity"] + rng.normal(0, 0.004)
                rows.append(
                    {
                        "wrapper": wrapper,
                        "arm": arm,
                        "layer": head["layer"],
                        "head": head["head"],
                        **with_interval("necessity", value, 0.03),
                        **with_interval(
                            "dla", 0 if np.isnan(factor) else factor * head["dla"], 0.1
                        ),
                    }
                )
    return pd.DataFrame(rows)


def contrast(rng: np.random.Generator, heads: pd.DataFrame) -> pd.DataFrame:
    """Cipher contrast of every head."""
    rows = []
    for head in heads.to_dict("records"):
        value = head["dla"] + rng.normal(0, 0.02)
        rows.append(
            {
                "wrapper": "letters",
                "layer": head["layer"],
                "head": head["head"],
                "kappa3": 1.2 * value,
                **with_interval("kappa4", value, 0.05),
                "p_familywise": 0.001 if abs(value) > 0.1 else 0.8,
                "plain": head["dla"],
                "kept": abs(value) > 0.1,
                "side": "pro" if head["dla"] > 0 else "counter",
            }
        )
    return pd.DataFrame(rows)


def collapse(heads: pd.DataFrame) -> pd.DataFrame:
    """Plain against cipher, by head."""
    rows = []
    for wrapper, left in (("letters", 0.08), ("base64", 0.9)):
        for head in _route(heads):
            plain, cipher = head["necessity"], left * head["necessity"]
            rows.append(
                {
                    "wrapper": wrapper,
                    "layer": head["layer"],
                    "head": head["head"],
                    **with_interval("plain", plain, 0.03),
                    **with_interval("cipher", cipher, 0.03),
                    **with_interval("change", cipher - plain, 0.04),
                    "collapsed": abs(cipher - plain) > 0.1,
                }
            )
    return pd.DataFrame(rows)


def rescue() -> pd.DataFrame:
    """Refusal rates with the gate's output put in, and the controls."""
    arms = (
        ("plain", "", 117),
        ("cipher", "", 2),
        ("gate", "every_step", 71),
        ("gate", "prompt_only", 55),
        ("random head", "every_step", 3),
        ("benign z", "every_step", 1),
        ("noise of the same norm", "every_step", 6),
    )
    rows = []
    for wrapper in ("letters", "base64"):
        for arm, policy, refused in arms:
            rate = wilson(refused, N_PAIRS)
            rows.append(
                {
                    "wrapper": wrapper,
                    "arm": arm,
                    "policy": policy,
                    "n": N_PAIRS,
                    "refused": refused,
                    "rate": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    **with_interval("margin", refused / 20 - 3, 0.4),
                }
            )
    return pd.DataFrame(rows)


def with_interval(name: str, value: float, half: float) -> dict[str, float]:
    """An estimate and its bounds, as columns."""
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
