"""The tables of a guard's run without a model: scores of two kinds of prompts, measured by its own code.

Scores are drawn from a seeded generator. Nothing here was measured on any model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.guard import against, evaluate
from refusalscope.guard.audit.verdict import APART
from refusalscope.guard.drift import drift
from refusalscope.guard.operating import OperatingPoint, Rate
from refusalscope.stats import auroc, clopper_pearson, wilson
from refusalscope.stats.thresholds import Threshold, fpr_threshold
from report.fake_run import fake_info, write_fake_run

N, ROWS = 160, (1, 2, 3, 4, 5)
SOURCES = ("advice", "everyday")
CATEGORIES = ("fraud", "privacy", "malware")
MARKS = ("period", "question", "letter")
NAN = float("nan")
SETTINGS = {"preset": "recommended", "variant": "centroid", "rows": "inner", "fpr": [0.05, 0.01]}


def fake_guard_tables(kind: str = "fit") -> dict[str, pd.DataFrame]:
    """Every table of a run of `guard fit`, `guard score` or `guard drift` by name."""
    held = _tables()
    names = {
        "fit": [name for name in held if name != "guard.drift"],
        "score": [
            f"guard.{name}" for name in ("scores", "points", "rates", "roc", "metrics", "layers")
        ],
        "drift": ["guard.drift"],
    }
    found = {name: held[name].copy() for name in names[kind]}
    if kind == "score":
        found["guard.scores"]["split"] = "scored"
        found["guard.points"] = found["guard.points"].replace({"set": {"report": "scored"}})
    return found


def write_fake_guard(
    path: Path, kind: str = "fit", *, tables: dict[str, pd.DataFrame] | None = None, **options: Any
) -> Path:
    """A finished run in `path`."""
    return write_fake_run(
        path,
        tables=fake_guard_tables(kind) if tables is None else tables,
        command=f"guard {kind}",
        **{"info": fake_info(), "warnings": (), "settings": SETTINGS, **options},
    )


class GuardTables:
    """Tables as the sections see a run."""

    def __init__(
        self, tables: dict[str, pd.DataFrame] | None = None, kind: str = "fit", **changed: Any
    ) -> None:
        self.held = fake_guard_tables(kind) if tables is None else tables
        self.held |= {f"guard.{name}": table for name, table in changed.items()}
        self.info = {"command": f"guard {kind}", **fake_info(), "settings": SETTINGS}

    def tables(self) -> list[str]:
        return list(self.held)

    def table(self, name: str) -> pd.DataFrame:
        return self.held[name]


@cache
def _tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    scores = _scores(rng)
    points = [_point(rng, alpha) for alpha in (0.05, 0.01)]
    scores["flagged"] = scores["delta_harmful"] > points[0].tau
    return {
        "guard.scores": scores,
        "guard.points": evaluate.points_table(points, scores),
        "guard.rates": evaluate.rates_table(points, scores),
        "guard.roc": evaluate.roc_table(scores),
        "guard.metrics": evaluate.metrics_table(scores, 0),
        "guard.layers": evaluate.layers_table(scores, ROWS, 0),
        "guard.shortcuts": _shortcuts(),
        "guard.verdict": _verdict(),
        "guard.sources": _left_out(),
        "guard.variants": _variants(),
        "guard.wrappers": _wrappers(),
        "guard.against": against.against_table(points, scores, _others(rng, scores), 0),
        "guard.monitor": _monitor(),
        "guard.augmented": _augmented(),
        "guard.drift": drift(_log(rng, 0.0), _log(rng, 0.5).assign(flagged=False), 0.05),
    }


def _scores(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for label, centre in (("harmful", 0.06), ("harmless", -0.05)):
        for i in range(N):
            profile = rng.normal(centre, 0.06, len(ROWS)) + rng.normal(0, 0.025)
            harm, refuse = profile.mean(), rng.normal(centre, 0.07)
            p = 1 / (1 + np.exp(-45 * harm))
            rows.append(
                {
                    "id": f"{label}-{i:03d}",
                    "label": label,
                    "category": CATEGORIES[i % 3] if label == "harmful" else None,
                    "source": SOURCES[i % 2],
                    "split": "report",
                    "delta_harmful": harm,
                    "delta_refuse": refuse,
                    "quadrant": _quadrant(harm, refuse),
                    "p_harmful": p,
                    "p_low": 0.8 * p,
                    "p_high": min(1.0, 1.2 * p),
                    "abstain": i % 80 == 0,
                    "final_mark": MARKS[i % 3],
                    "t_inst_class": MARKS[i % 3],
                    "per_layer": list(profile),
                }
            )
    return pd.DataFrame(rows)


def _quadrant(harm: float, refuse: float) -> str:
    if harm >= 0:
        return "coherent harmful" if refuse >= 0 else "suppressed refusal"
    return "over-refusal" if refuse >= 0 else "coherent harmless"


def fake_threshold(rng: np.random.Generator, alpha: float) -> Threshold:
    """A threshold from harmless scores of their own."""
    return fpr_threshold(rng.normal(-0.05, 0.037, 600), alpha)


def _point(rng: np.random.Generator, alpha: float) -> OperatingPoint:
    found = fake_threshold(rng, alpha)
    caught = clopper_pearson(180, 200)
    rate = Rate("harmful", "all", 200, 180, caught.value, caught.low, caught.high)
    head = (f"fpr={alpha:g}", alpha, found.rule, found.confidence, found.promise, found.tau)
    return OperatingPoint(
        *head, found.n, found.flagged, found.fpr.value, found.fpr.low, found.fpr.high, {}, (rate,)
    )


def _shortcuts() -> pd.DataFrame:
    rows = [
        ("belief", 0.97, 0.95, 0.99, "the score under test"),
        ("final punctuation", 0.52, 0.46, 0.58, "not shown to carry the label"),
        ("length in words", 0.61, 0.55, 0.67, "carries some of the label, less than belief"),
        ("words", 0.9, 0.86, 0.93, "carries some of the label, less than belief"),
    ]
    return pd.DataFrame(rows, columns=["name", "auroc", "auroc_low", "auroc_high", "verdict"])


def _verdict() -> pd.DataFrame:
    reason = "AUROC +0.07 (+0.03 to +0.11) over the cue with every mark stripped"
    rows = [
        (
            "overall",
            APART,
            f"AUROC 0.97 (0.95 to 0.99); the cue nearest to it is words: {reason}",
            NAN,
        ),
        ("final punctuation", APART, "AUROC 0.97 as they are, 0.96 (0.93 to 0.98) without", 0.46),
        ("length in words", APART, "AUROC +0.36 (+0.30 to +0.42) over the cue", 0.36),
        ("words", APART, reason, 0.07),
    ]
    table = pd.DataFrame(rows, columns=["name", "verdict", "reason", "difference"])
    return table.assign(low=table["difference"] - 0.04, high=table["difference"] + 0.04)


def _left_out() -> pd.DataFrame:
    rows = []
    for source, area, ngrams in (("advice", 0.95, 0.8), ("everyday", 0.9, 0.66)):
        caught, wrong = clopper_pearson(60, 80), clopper_pearson(6, 80)
        rows.append(
            {
                **{
                    "source": source,
                    "label": "harmful",
                    "n_harmful": 80,
                    "n_harmless": 80,
                    "note": "",
                },
                **{"auroc": area, "low": area - 0.05, "high": area + 0.03},
                **{"tpr": caught.value, "tpr_low": caught.low, "tpr_high": caught.high},
                **{"fpr": wrong.value, "fpr_low": wrong.low, "fpr_high": wrong.high},
                **{"ngrams": ngrams, "ngrams_low": ngrams - 0.05, "ngrams_high": ngrams + 0.05},
                **{"difference": area - ngrams, "difference_low": 0.05, "difference_high": 0.3},
            }
        )
    return pd.DataFrame(rows)


def _variants() -> pd.DataFrame:
    rows = []
    for label, flagged, centre in (("harmful", 144, 0.09), ("harmless", 6, -0.08)):
        for i, variant in enumerate(("as_is", "stripped", "period", "question")):
            rate = clopper_pearson(flagged - i, N)
            rows.append(
                {
                    **{"variant": variant, "label": label, "n": N, "mean": centre + 0.004 * i},
                    **{
                        "rate": rate.value,
                        "low": rate.low,
                        "high": rate.high,
                        "spread": 0.02,
                        "left_out": 0,
                    },
                }
            )
    return pd.DataFrame(rows)


def _wrappers() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for wrapper, gap in (("bare", 0.17), ("role play", 0.1), ("cipher rot13", 0.03)):
        sides = rng.normal(gap, 0.06, N), rng.normal(0, 0.06, N)
        area = auroc(np.arange(2 * N) < N, np.concatenate(sides), seed=0)
        for label, scores in zip(("harmful", "harmless"), sides, strict=True):
            rate = clopper_pearson(int((scores > 0.1).sum()), N)
            rows.append(
                {
                    **{
                        "wrapper": wrapper,
                        "label": label,
                        "n": N,
                        "worst": wrapper.startswith("ciph"),
                    },
                    **{"auroc": area.value, "auroc_low": area.low, "auroc_high": area.high},
                    **{"rate": rate.value, "low": rate.low, "high": rate.high, "left_out": 2},
                }
            )
    return pd.DataFrame(rows)


def _others(rng: np.random.Generator, scores: pd.DataFrame) -> pd.DataFrame:
    noise = [
        scores[["id"]].assign(
            score=scores["delta_harmful"] + rng.normal(0, width, len(scores)), guard=name
        )
        for name, width in (("text guard 8B", 0.12), ("word list", 0.4))
    ]
    return pd.concat(noise, ignore_index=True)


def _monitor() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for shortest, longest, flagged in ((3, 12, 1), (13, 30, 2), (31, 48, 4)):
        rate = clopper_pearson(flagged, 70)
        bounds = {"shortest": shortest, "longest": longest, "low": rate.low, "high": rate.high}
        rows.append({"kind": "benign", **bounds, "n": 70, "flagged": flagged})
    rate = clopper_pearson(50, 60)
    rows.append(
        {"kind": "harmful, opened", "n": 60, "flagged": 50, "low": rate.low, "high": rate.high}
    )
    return pd.DataFrame(rows).assign(tau=0.031)


def _augmented() -> pd.DataFrame:
    counts = {("harmless", "before"): 8, ("harmless", "after"): 9, ("harmful", "before"): 150}
    counts["harmful", "after"] = 180
    rows = []
    for (label, when), flagged in counts.items():
        rate = wilson(flagged, 200)
        bounds = {"flagged": rate.value, "low": rate.low, "high": rate.high}
        rows.append({"label": label, "point": "fpr=0.05", "when": when, "n": 200, **bounds})
    return pd.DataFrame(rows)


def _log(rng: np.random.Generator, shift: float) -> pd.DataFrame:
    profile = rng.normal(shift, 1, (300, len(ROWS)))
    return pd.DataFrame(
        {
            "delta_harmful": profile.mean(1),
            "delta_refuse": rng.normal(0, 1, 300),
            "per_layer": profile.tolist(),
            "t_inst_token": [MARKS[i % 3] for i in range(300)],
        }
    )
