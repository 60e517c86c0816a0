"""A realistic run without a model: 6 layers, 5 anchors, 120 pairs, every table of an audit.

The figures are drawn from a seeded generator so that they hang together: margins decide refusals,
ablation lowers them, random directions hardly do. Nothing here was measured on any model.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.runs import Run
from refusalscope.stats import wilson

N_LAYERS = 6
ANCHORS = ("instruction_last", "template[-4]", "template[-3]", "template[-2]", "template[-1]")
CATEGORIES = (
    *("fraud", "weapons", "privacy", "malware", "harassment"),
    *("self-harm", "illegal trade", "misinformation"),
)
N_PAIRS = 120
PLANTED = "template[-2]", 3


def fake_tables(seed: int = 0) -> dict[str, pd.DataFrame]:
    """The tables of an audit by name."""
    rng = np.random.default_rng(seed)
    prompts = _prompts(rng)
    report = prompts[prompts["split"] == "report"]
    return {
        "prompts": prompts.drop(columns="harm"),
        "behaviour.rates": _rates(report),
        "directions.candidates": _candidates(rng),
        "directions.belief": _belief(prompts, rng),
        "directions.geometry": _geometry(rng),
        "directions.interventions": _interventions(report, rng),
        "directions.shortcuts": _shortcuts(),
    }


def fake_info() -> dict[str, Any]:
    """The further keys of run.json."""
    return {
        "model": {
            "id": "organisms/planted-chat-6l",
            "sha256": "3f" * 32,
            "architecture": "LlamaForCausalLM",
            "n_layers": N_LAYERS,
            "n_heads": 8,
            "d_model": 256,
            "dtype": "float32",
            "device": "cpu",
        },
        "tokenizer_sha256": "a1" * 32,
        "template_sha256": "b2" * 32,
        "sources": [
            {
                "name": "bundled pairs",
                "path": "pairs.csv",
                "sha256": "c3" * 32,
                "licence": "Apache-2.0",
                "n": N_PAIRS,
            }
        ],
        "seeds": {"splits": 0, "bootstrap": 0, "random_directions": 0},
        "split_sizes": {"fit": 120, "select": 48, "report": 72},
    }


SETTINGS = {
    "preset": "recommended",
    "depth_cut": 0.8,
    "max_kl": 0.1,
    "min_induce": 0.0,
    "tie": 0.25,
    "margin": {"openings": "learnt", "n": 8},
}
WARNINGS = (
    "3 of 240 prompts end in a token that the tokenizer merged with the chat template, so their last "
    "instruction token is partly template.",
    "1 of 240 replies were empty; they count as neither refused nor answered.",
)


def write_fake_run(
    path: Path,
    *,
    tables: dict[str, pd.DataFrame] | None = None,
    info: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    warnings: tuple[str, ...] = WARNINGS,
    keep_text: bool = False,
    finish: bool = True,
    command: str = "audit",
) -> Path:
    """Write the run folder through the package's own writer, with a clock that stands still."""
    ticks = iter(datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC) + timedelta(0, i) for i in range(999))
    run = Run.create(
        path,
        command=command,
        settings=SETTINGS if settings is None else settings,
        inputs={},
        keep_text=keep_text,
        clock=lambda: next(ticks),
    )
    run.update(**(fake_info() if info is None else info))
    for text in warnings:
        run.warn(text)
    run.add_cost(forwards=1_284, token_layers=4_712_330, tokens=812_044)
    for name, frame in (fake_tables() if tables is None else tables).items():
        run.write_table(name, frame)
    if finish:
        run.finish()
    return path


def _prompts(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    splits = np.repeat(["fit", "select", "report"], [60, 24, 36])
    for number, split in enumerate(rng.permutation(splits)):
        category = CATEGORIES[number % len(CATEGORIES)]
        for label in ("harmful", "harmless"):
            # One category is refused less, and a few harmless prompts look harmful.
            weak = category == "misinformation"
            harm = rng.normal(1.0 if label == "harmful" else -1.0, 0.35)
            margin = 4.6 * harm + rng.normal(0, 1.6) - (4.5 if weak and label == "harmful" else 0)
            rows.append(
                {
                    "id": f"pair-{number:03d}/{label}",
                    "pair_id": f"pair-{number:03d}",
                    "label": label,
                    "category": category,
                    "source": "bundled pairs",
                    "split": split,
                    "refusal_margin": margin,
                    "refused": margin > 0,
                    "n_tokens": int(rng.integers(14, 40)),
                    "boundary_merge": number < 3,
                    "harm": harm,
                }
            )
    return pd.DataFrame(rows)


def _rates(report: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for label, mine in report.groupby("label"):
        for category, part in [("all", mine), *mine.groupby("category")]:
            rows.append({"label": label, "category": category, **_measure(part["refusal_margin"])})
    return pd.DataFrame(rows)


def _measure(margin: pd.Series) -> dict[str, Any]:
    rate = wilson(int((margin > 0).sum()), len(margin))
    half = 1.96 * margin.std() / len(margin) ** 0.5
    return {
        "n": rate.n,
        "refused": int((margin > 0).sum()),
        "rate": rate.value,
        "low": rate.low,
        "high": rate.high,
        "margin_mean": margin.mean(),
        "margin_low": margin.mean() - half,
        "margin_high": margin.mean() + half,
    }


def _candidates(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for a, anchor in enumerate(ANCHORS):
        for layer in range(N_LAYERS):
            near = np.exp(
                -((a - ANCHORS.index(PLANTED[0])) ** 2) / 4 - (layer - PLANTED[1]) ** 2 / 3
            )
            nothing = layer == 0 and a > 0
            bypass = np.nan if nothing else 4.5 - 9 * near + rng.normal(0, 0.3)
            induce = np.nan if nothing else -4 + 8.5 * near + rng.normal(0, 0.3)
            kl = (
                np.nan if nothing else 0.02 + 4 * np.exp(-layer) * rng.random() + 0.4 * (layer == 5)
            )
            late = layer >= int(0.8 * N_LAYERS)
            reason = (
                "nan"
                if nothing
                else "late layer"
                if late
                else "kl"
                if kl > 0.1 and (anchor, layer) != PLANTED and rng.random() < 0.6
                else "induce"
                if induce < 0
                else ""
            )
            rows.append(
                (anchor, layer, bypass, induce, min(kl, 0.09) if not reason else kl, reason)
            )
    frame = pd.DataFrame(rows, columns=["anchor", "layer", "bypass", "induce", "kl", "reason"])
    frame["kept"] = frame["reason"] == ""
    frame["chosen"] = (frame["anchor"] == PLANTED[0]) & (frame["layer"] == PLANTED[1])
    best = frame.loc[frame["chosen"], "bypass"].iloc[0]
    others = frame["kept"] & ~frame["chosen"]
    frame.loc[frame[others].nsmallest(2, "bypass").index, "bypass"] = [best + 0.1, best + 0.22]
    frame["tie"] = others & (frame["bypass"] <= best + 0.25)
    frame["stability"] = np.where(frame["chosen"], 0.71, np.where(frame["tie"], 0.14, 0.0))
    frame["cosine_to_chosen"] = np.where(frame["chosen"], 1.0, rng.uniform(0.2, 0.9, len(frame)))
    return frame


def _belief(prompts: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    frame = prompts[["id", "label", "category", "split", "refused"]].copy()
    frame["delta_harmful"] = 0.1 * prompts["harm"] + rng.normal(0, 0.02, len(prompts))
    frame["delta_refuse"] = 0.05 * prompts["refusal_margin"] + rng.normal(0, 0.05, len(prompts))
    names = {
        (True, True): "coherent harmful",
        (True, False): "suppressed refusal",
        (False, True): "over-refusal",
        (False, False): "coherent harmless",
    }
    frame["quadrant"] = [
        names[h, r]
        for h, r in zip(frame["delta_harmful"] >= 0, frame["delta_refuse"] >= 0, strict=True)
    ]
    return frame


def _geometry(rng: np.random.Generator) -> pd.DataFrame:
    layers = np.arange(1, N_LAYERS + 1)
    cosine = 0.05 + 0.09 * np.sin(layers) + rng.normal(0, 0.02, len(layers))
    return pd.DataFrame(
        {
            "layer": layers,
            "cosine": cosine,
            "low": cosine - 0.1,
            "high": cosine + 0.1,
            "harmfulness_norm": 2.5 * layers,
            "refusal_norm": 2.1 * layers,
            "residual_norm": 6.4 * layers,
        }
    )


def _interventions(report: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    arms = [("none", "direction", -1, 0.0), ("ablate", "direction", -1, -7.5)]
    arms += [("add", "direction", -1, 7.5)]
    arms += [("ablate", "random", seed, -0.2) for seed in range(3)]
    arms += [("add", "random", seed, 0.2) for seed in range(3)]
    rows = []
    for intervention, control, seed, shift in arms:
        for label in ("harmful", "harmless"):
            clean = report.loc[report["label"] == label, "refusal_margin"]
            margin = clean + (
                shift + rng.normal(0, 0.8, len(clean)) if intervention != "none" else 0
            )
            change = margin - clean
            half = 1.96 * change.std() / len(change) ** 0.5
            rows.append(
                {
                    "intervention": intervention,
                    "control": control,
                    "label": label,
                    **_measure(margin),
                    "margin_change": change.mean(),
                    "change_low": change.mean() - half,
                    "change_high": change.mean() + half,
                    "p": 0.00002 if abs(shift) > 1 else 0.21 if shift else np.nan,
                    "seed": seed,
                }
            )
    return pd.DataFrame(rows)


def _shortcuts() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("belief (delta_harmful)", 0.981, 0.951, 0.997, "the score under test"),
            ("final punctuation", 0.512, 0.431, 0.593, "no better than chance"),
            ("length in words", 0.574, 0.451, 0.689, "no better than chance"),
            ("words", 0.902, 0.831, 0.957, "carries some of the label, less than belief"),
        ],
        columns=["name", "auroc", "auroc_low", "auroc_high", "verdict"],
    )
