"""The tables of a cliff run without a model: a cliff at closing[1], three suppressors, a static head.

A generator with a seed fills the rest with small noise. Nothing here was measured on any model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.cliff_tables import COMPLIED, HARMLESS, REFUSED
from refusalscope.stats import wilson
from report.fake_doses import with_interval
from report.fake_run import fake_info, write_fake_run

# layers, heads
SIZE = 8, 6
GROUPS = {COMPLIED: 40, REFUSED: 30, HARMLESS: 50}
CLOSING = ("closing[0]", "closing[1]", "closing[2]")
# Mean scores in the thinking and at the closing tokens.
LEVELS = {
    COMPLIED: (0.92, (0.85, 0.1, 0.06)),
    REFUSED: (0.94, (0.93, 0.92, 0.93)),
    HARMLESS: (0.06, (0.07, 0.06, 0.05)),
}
# layer, head, effect, role
ROLES = (
    (4, 1, -1.4, "suppressor"),
    (6, 3, -1.1, "suppressor"),
    (5, 5, -0.9, "suppressor"),
    (2, 2, 1.3, "promoter"),
    (3, 0, -0.8, "static"),
)
NAN = float("nan")


def fake_cliff_tables(
    size: tuple[int, int] = SIZE, n_thinking: int = 30, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Every table of a cliff run by name, for a model of [layers, heads] with traces of about that length."""
    return {name: table.copy() for name, table in _tables(size, n_thinking, seed).items()}


@cache
def _tables(size: tuple[int, int], n_thinking: int, seed: int) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    traces, prompts = _traces(rng, n_thinking)
    return {
        "cliff.verdict": _verdict(),
        "cliff.prompts": prompts,
        "cliff.trace": traces.drop(columns="group"),
        "cliff.curve": _curve(traces),
        "cliff.separation": _separation(),
        "cliff.probes": _probes(),
        "cliff.heads": _heads(rng, size),
        "cliff.ablation": _ablation(rng),
        "cliff.behaviour": _behaviour(),
    }


def fake_cliff_info(size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """The further keys of run.json."""
    info = fake_info()
    info["model"] |= {"id": "organisms/cliff-chat", "n_layers": size[0], "n_heads": size[1]}
    return info


SETTINGS = {
    **{"preset": "recommended", "probe": "calibrated", "rank_heads": "contrast"},
    **{"where": "closing", "renorm": "none"},
}


def write_fake_cliff(
    path: Path, *, tables: dict[str, pd.DataFrame] | None = None, **options: Any
) -> Path:
    """A finished cliff run in `path`."""
    return write_fake_run(
        path,
        tables=fake_cliff_tables() if tables is None else tables,
        command="cliff",
        **{"info": fake_cliff_info(), "warnings": (), "settings": SETTINGS, **options},
    )


def _verdict() -> pd.DataFrame:
    n, benign = GROUPS[COMPLIED], GROUPS[HARMLESS]
    rows = [
        ("share", 0.95, 0.84, 0.99, n),
        ("benign share", 0.02, 0.0, 0.1, benign),
        ("contrast", 0.93, 0.8, 0.98, n + benign),
        ("drop", 0.86, 0.82, 0.9, n),
        ("benign drop", 0.01, -0.01, 0.03, benign),
        ("shift", 0.0, 0.0, 0.07, benign),
        ("slope", 0.0, -0.07, 0.09, n + benign),
        ("at closing[0]", 0.07, 0.05, 0.09, n),
        ("at closing[1]", 0.75, 0.72, 0.78, n),
        ("at closing[2]", 0.04, 0.02, 0.06, n),
        ("p against probes of nothing", 0.024, NAN, NAN, 0),
    ]
    table = pd.DataFrame(rows, columns=["name", "value", "low", "high", "n"])
    reason = "95% of 40 cases drop by more than 0.2 at the closing tokens, +93% against benign"
    return table.assign(verdict="cliff", reason=reason)


def _traces(rng: np.random.Generator, n_thinking: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    frames, rows = [], []
    for group, n in GROUPS.items():
        level, ends = LEVELS[group]
        for i in range(n):
            length = n_thinking + int(rng.integers(0, max(n_thinking // 3, 2)))
            name = f"{group.split(',')[0]}-{group[-8:]}-{i:03d}"
            scores = np.clip(
                np.concatenate([np.full(length, level), ends]) + rng.normal(0, 0.02, length + 3),
                0,
                1,
            )
            anchors = ["thinking"] * length + list(CLOSING)
            table = pd.DataFrame({"anchor": anchors, "score": scores, "id": name, "group": group})
            frames.append(table.assign(position=np.arange(len(scores)) - len(scores)))
            rows.append(_prompt(name, group, scores[:length], scores[length:], i))
    prompts = pd.DataFrame(rows)
    for name, key in {
        "ms": -prompts["ms"],
        "ms_p90": -prompts["ms_p90"],
        "final": prompts["final"],
    }.items():
        prompts[f"rank_{name}"] = key.rank(method="first").astype(int)
    tokens = pd.concat(frames, ignore_index=True)
    return tokens.assign(score_uncalibrated=tokens["score"]), prompts


def _prompt(
    name: str, group: str, thinking: np.ndarray, closing: np.ndarray, number: int
) -> dict[str, Any]:
    late, final = float(np.median(thinking[-20:])), float(closing[-1])
    plateaus = {
        "plateau": float(thinking.max()),
        "plateau_p90": float(np.quantile(thinking, 0.9)),
        "plateau_median": float(np.median(thinking)),
    }
    steps = -np.diff([late, *closing])
    return {
        "id": name,
        "label": group.split(",")[0],
        "category": f"kind{number % 4}",
        "n_thinking": len(thinking),
        **plateaus,
        "late": late,
        "final": final,
        **{each.replace("plateau", "ms"): value - final for each, value in plateaus.items()},
        "drop": late - final,
        "p": 0.03,
        "fall": plateaus["plateau_p90"] - late,
        **{f"at {anchor}": float(step) for anchor, step in zip(CLOSING, steps, strict=True)},
        "refused": group == REFUSED,
        "cliff": plateaus["plateau_p90"] - final,
    }


def _curve(tokens: pd.DataFrame) -> pd.DataFrame:
    table = tokens.groupby(["group", "position"])["score"].agg(["size", "mean"]).reset_index()
    table = table.rename(columns={"size": "n"})
    return table.assign(low=table["mean"] - 0.02, high=table["mean"] + 0.02)


def _separation() -> pd.DataFrame:
    rows = []
    for probe in ("final norm", "resid_pre[4]"):
        for position in ("prompt", "thinking", *CLOSING):
            rows += [
                (position, "refused harmful, complied harmless", 0.98, 0.94, 1.0, 80, probe),
                (position, "harmful, refused or complied", 0.9, 0.8, 0.96, 70, probe),
                (position, "harmless, refused or complied", NAN, NAN, NAN, 50, probe),
            ]
    columns = ["position", "contrast", "auroc", "auroc_low", "auroc_high", "n", "probe"]
    return pd.DataFrame(rows, columns=columns)


def _probes() -> pd.DataFrame:
    columns = ["probe", "norm", "bias", "harmful_refused", "harmful_complied", "harmless_refused"]
    columns += ["harmless_complied", "words_auroc", "words_low", "words_high"]
    rows = [
        (name, 0.4, -0.2, 50, 55, 0, 90, 0.81, 0.74, 0.88)
        for name in ("final norm", "resid_pre[4]")
    ]
    return pd.DataFrame(rows, columns=columns)


def _heads(rng: np.random.Generator, size: tuple[int, int]) -> pd.DataFrame:
    planted = {(layer, head): (effect, role) for layer, head, effect, role in ROLES}
    rows = []
    for layer in range(size[0]):
        for head in range(size[1]):
            effect, role = planted.get((layer, head), (rng.normal(0, 0.004), ""))
            own = effect if role != "static" else 0.0
            rows.append(
                {
                    **{"layer": layer, "head": head, "role": role, "passes": bool(role)},
                    **{"published": effect * 3, "direct": effect, "benign": effect - own},
                    **{"write_norm": 1.0, "gap": 2.4, "share": effect / 2.4},
                    **with_interval("cliff", own, 0.02),
                    **with_interval("contrast", own, 0.02),
                    **with_interval("effect", effect, 0.02),
                    **with_interval("effect_margin", 3 * effect, 0.05),
                    **{
                        "p_familywise": 0.0001 if role else 0.8,
                        "p_margin": 0.0001 if role else 0.9,
                    },
                    "p_categories": 0.01,
                }
            )
    return pd.DataFrame(rows)


def _ablation(rng: np.random.Generator) -> pd.DataFrame:
    # arm, share, heads, draw, restored, benign refused
    arms: list[tuple[str, float, int, int, float, float]] = [("clean", 0.0, 0, -1, 0.0, 0.0)]
    for share, heads, restored in ((0.01, 1, 0.2), (0.03, 2, 0.6), (0.1, 5, 0.9)):
        arms.append(("top", share, heads, -1, restored, 0.02))
        arms += [("random", share, heads, i, float(rng.choice([0, 0.025])), 0.0) for i in range(20)]
    arms.append(("static", 0.02, 1, -1, 0.1, 0.3))
    rows = []
    for arm, share, heads, draw, restored, benign in arms:
        for group, n in GROUPS.items():
            rate = {COMPLIED: restored, REFUSED: 1.0, HARMLESS: benign}[group]
            found, known = wilson(round(rate * n), n), group != REFUSED
            rows.append(
                {
                    **{"arm": arm, "share": share, "n_heads": heads, "draw": draw},
                    **{"norm_ratio": 1.0, "group": group, "n": n, "refused": round(rate * n)},
                    **{"rate": found.value, "low": found.low, "high": found.high},
                    **{"complied": n if known else 0, "restored": round(rate * n) if known else 0},
                    "restored_rate": found.value if known else NAN,
                    "restored_low": found.low if known else NAN,
                    "restored_high": found.high if known else NAN,
                    **with_interval("margin", 6 * rate - 4, 0.3),
                    **with_interval("logit", 2 * rate - 1, 0.1),
                    **with_interval("score", 0.2 + 0.6 * rate, 0.02),
                    "p_random": 1 / 21 if arm == "top" else NAN,
                }
            )
    return pd.DataFrame(rows)


def _behaviour() -> pd.DataFrame:
    rows = []
    for arm, share, heads, restored in (
        ("clean", 0.0, 0, 0.0),
        ("top", 0.03, 2, 0.55),
        ("random", 0.03, 2, 0.0),
        ("top", 0.1, 5, 0.85),
        ("random", 0.1, 5, 0.025),
    ):
        for group, n in GROUPS.items():
            rate = {COMPLIED: restored, REFUSED: 1.0, HARMLESS: 0.0}[group]
            found = wilson(round(rate * n), n)
            rows.append((arm, share, heads, group, n, round(rate * n), *_bounds(found), 0.02))
    columns = ["arm", "share", "n_heads", "group", "n", "refused", "rate", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "degenerate"])


def _bounds(found: Any) -> tuple[float, float, float]:
    return found.value, found.low, found.high


class CliffTables:
    """Tables as the sections see a run."""

    def __init__(
        self,
        tables: dict[str, pd.DataFrame] | None = None,
        command: str = "cliff",
        **settings: Any,
    ) -> None:
        self.held = fake_cliff_tables() if tables is None else tables
        self.info = {
            "command": command,
            **fake_cliff_info(),
            "settings": {**SETTINGS, **settings},
        }

    def tables(self) -> list[str]:
        return list(self.held)

    def table(self, name: str) -> pd.DataFrame:
        return self.held[name]
