"""The tables of a features run without a model: five members, two of them dormant, two reserves.

A generator with a seed fills the rest with small noise. Nothing here was measured on any model; `size`
makes the same set in a model of any depth with dictionaries of any width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusalscope.report.features_tables import features_table
from report.fake_arms import baselines, published
from report.fake_doses import with_interval
from report.fake_run import fake_info, write_fake_run

# layers, latents of a dictionary
SIZE = 10, 400
N = 48
# depth as a share of the layers, latent, dormant, what it holds up (nats)
MEMBERS = (
    (0.35, 17, False, 1.9),
    (0.35, 204, False, 0.8),
    (0.55, 31, False, 1.2),
    (0.55, 88, True, 0.6),
    (0.75, 9, True, 0.03),
)
RESERVES = ((0.65, 311, 1.3), (0.85, 52, 0.5))
SET = "pool/0"
NAN = float("nan")


def fake_features_tables(size: tuple[int, int] = SIZE, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table of a features run by name, for a model of [layers, latents of a dictionary]."""
    rng = np.random.default_rng(seed)
    members, reserves = places(size)
    return {
        "features.dictionaries": _dictionaries(rng, size),
        "features.pool": _pool(rng, size, members + reserves),
        "features.searches": _searches(),
        "features.sets": _sets(members, reserves),
        "features.published": published(),
        "features.members": _members(members, reserves),
        "features.stability": pd.DataFrame(STABILITY, columns=STABILITY_COLUMNS),
        "features.rounds": _rounds(reserves),
        "features.dormant": _dormant(rng, size, members, reserves),
        "features.waking": pd.DataFrame(WAKING, columns=WAKING_COLUMNS),
        "features.clusters": _clusters(reserves),
        "features.ledger": _ledger(rng, size, members),
        "features.compensation": _compensation(size),
        "features.values": pd.DataFrame(VALUES, columns=VALUES_COLUMNS).assign(set_id=SET),
        "features.overshoot": _overshoot(members),
        "features.interactions": _interactions(rng, members + reserves),
        "features.contrast": pd.DataFrame(CONTRAST, columns=CONTRAST_COLUMNS),
        "features.machine": _machine(members, reserves),
        "features.baselines": baselines(),
    }


STABILITY_COLUMNS = ["over", "n_sets", "jaccard", "lowest", "core"]
STABILITY = [
    ("distinct sets", 2, 0.61, 0.61, 3),
    ("prompts", 46, 0.52, 0.1, 0),
    ("halves of the prompts", 2, 0.74, 0.74, 4),
]
WAKING_COLUMNS = ["set_id", "arm", "null", "woken", "expected", "excess", "low", "high", "p"]
WAKING = [
    (SET, "no_bos", "directions", 6.2, 14.9, -8.7, -9.9, -7.4, 1.0),
    (SET, "no_bos", "stand_ins", 6.2, 2.1, 4.1, 3.2, 5.0, 0.048),
    (SET, "all", "directions", 9.8, 21.3, -11.5, -13.0, -10.1, 1.0),
]
VALUES_COLUMNS = ["name", "value", "low", "high", "n", "p"]
VALUES = [
    ("margin, clean", 4.2, 3.8, 4.6, N, NAN),
    ("margin, set ablated", -2.1, -2.5, -1.7, N, NAN),
    ("dormant value", 1.2, 0.9, 1.5, N, 0.0002),
    ("margin, norms frozen", -2.8, -3.2, -2.4, N, NAN),
    ("margin, BOS alone", 4.1, 3.7, 4.5, N, NAN),
    ("P(refusal opening), clean", 0.71, 0.66, 0.76, N, NAN),
    # Over woken latents, not prompts.
    ("effective rank of woken rows", 3.4, NAN, NAN, 63, NAN),
]
CONTRAST_COLUMNS = [
    *("inputs", "n_latents", "machine_accuracy", "machine_low", "machine_high"),
    *("probe_accuracy", "probe_low", "probe_high"),
]
CONTRAST = [
    ("masks", 60, NAN, NAN, NAN, NAN, NAN, NAN),
    ("natural", 212, 0.97, 0.92, 0.99, 0.96, 0.9, 0.98),
    ("post_ablation", 244, 0.95, 0.89, 0.98, 0.96, 0.9, 0.98),
]


def fake_features_info(size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """The further keys of run.json."""
    info = fake_info()
    info["model"] |= {"id": "organisms/hydra-chat", "n_layers": size[0]}
    return info


def write_fake_features(
    path: Path,
    *,
    size: tuple[int, int] = SIZE,
    tables: dict[str, pd.DataFrame] | None = None,
    **options: Any,
) -> Path:
    """A finished features run in `path`."""
    return write_fake_run(
        path,
        tables=fake_features_tables(size) if tables is None else tables,
        command="features",
        **{"info": fake_features_info(size), "warnings": (), **options},
    )


def places(size: tuple[int, int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(layer, latent) of members and of reserves."""
    members = [(int(depth * size[0]), latent) for depth, latent, _, _ in MEMBERS]
    return members, [(int(depth * size[0]), latent) for depth, latent, _ in RESERVES]


def _dictionaries(rng: np.random.Generator, size: tuple[int, int]) -> pd.DataFrame:
    layers = np.arange(size[0])
    l0, explained = 40 + rng.normal(0, 4, size[0]), 0.86 + rng.normal(0, 0.02, size[0])
    return pd.DataFrame(
        {
            "layer": layers,
            "name": [f"planted/layer_{layer}" for layer in layers],
            "architecture": "JumpReLU",
            "d_sae": size[1],
            "l0": l0,
            "l0_low": l0 - 2,
            "l0_high": l0 + 2,
            "l0_special": l0 * 1.2,
            "explained": explained,
            "explained_low": explained - 0.01,
            "explained_high": explained + 0.01,
            "norm_ratio": 1.01,
            "dead_share": 0.08,
            "warnings": "",
        }
    )


def _pool(
    rng: np.random.Generator, size: tuple[int, int], named: list[tuple[int, int]]
) -> pd.DataFrame:
    layer, latent = (part.ravel() for part in np.divmod(np.arange(size[0] * size[1]), size[1]))
    cosine = rng.normal(0, 0.06, layer.size)
    for place in named:
        cosine[place[0] * size[1] + place[1]] = 0.4 + 0.1 * rng.random()
    return pd.DataFrame(
        {
            "layer": layer,
            "latent": latent,
            "cosine": cosine,
            "attribution": rng.normal(0, 0.02, layer.size) + np.maximum(cosine - 0.3, 0),
            "contrastive": np.maximum(cosine - 0.3, 0),
            "activation_difference": rng.normal(0, 0.5, layer.size),
            "decoder_norm": 1.0,
            "active_share": rng.random(layer.size),
            "mass": rng.random(layer.size),
            "kept": cosine > 0.12,
            # Every third of the others recognises harm, and none of the named ones does.
            "part": np.where((latent % 3 == 0) & (cosine < 0.3), "recognition", "execution"),
            "cosine_recognition": 0.02,
        }
    )


def _searches() -> pd.DataFrame:
    rows = [
        ("pool", "", 48, 0.9, 96, 2, 3_120, 1, False, True, ""),
        ("half/0", "", 24, 0.9, 96, 1, 1_040, 0, False, True, ""),
        ("half/1", "", 24, 0.9, 96, 1, 1_010, 0, False, True, ""),
    ]
    for i in range(48):
        why = "not refused without an edit" if i < 2 else ""
        rows.append(
            (f"prompt/{i}", str(i), 1, 1.0, 96, 0 if why else 1, 60, 0, False, not why, why)
        )
    columns = ["search", "prompt_id", "n_prompts", "share", "candidates", "sets", "forwards"]
    return pd.DataFrame(rows, columns=[*columns, "repairs", "exhausted", "complete", "why"])


def _sets(members: list[tuple[int, int]], reserves: list[tuple[int, int]]) -> pd.DataFrame:
    rows = _one_set(SET, "", members, 0.94)
    rows += _one_set("pool/1", "", [*members[:3], *reserves, (1, 7)], 0.91)
    for i in range(2, 48):
        rows += _one_set(f"prompt/{i}/0", str(i), members[: 3 + i % 3], 1.0)
    # Smaller than those of all prompts, and only there to show how stable they are.
    for i in range(2):
        rows += _one_set(f"half/{i}/0", "", members[: 2 - i], 1.0)
    columns = ["set_id", "prompt_id", "layer", "latent", "place", "write", "verified", "minimal"]
    return pd.DataFrame(rows, columns=[*columns, "forwards", "margin", "flipped", "size", "by"])


def _one_set(name: str, prompt: str, latents: list[tuple[int, int]], flipped: float) -> list[tuple]:
    return [
        (name, prompt, *latent, i, i, True, True, 812, -1.4, flipped, len(latents), "bisection")
        for i, latent in enumerate(latents)
    ]


def _members(members: list[tuple[int, int]], reserves: list[tuple[int, int]]) -> pd.DataFrame:
    share = (1.0, 1.0, 1.0, 0.66, 0.33, 0.1, 0.0)
    rows = [
        (*place, share[i], max(share[i] - 0.1, 0.0), min(share[i] + 0.1, 1.0), 46, i < len(members))
        for i, place in enumerate([*members, *reserves])
    ]
    columns = ["layer", "latent", "frequency", "low", "high", "n_sets", "pooled"]
    return pd.DataFrame(rows, columns=columns)


def _rounds(reserves: list[tuple[int, int]]) -> pd.DataFrame:
    rows = [(0, *reserves[0], 1.2, 0.9, -1.1, 0.71), (1, *reserves[1], 0.4, 0.6, -2.6, 0.93)]
    return pd.DataFrame(
        rows, columns=["round", "layer", "latent", "effect", "woken", "margin", "flipped"]
    )


def _dormant(
    rng: np.random.Generator,
    size: tuple[int, int],
    members: list[tuple[int, int]],
    reserves: list[tuple[int, int]],
) -> pd.DataFrame:
    rows = []
    for arm in ("all", "no_bos"):
        for place, (_, _, sleeps, effect) in zip(members, MEMBERS, strict=True):
            active = 0.0 if sleeps else 0.9
            rows.append((*place, True, active, 0.0, 0.1, NAN, NAN, effect, 0.15, arm))
        for place, (_, _, effect) in zip(reserves, RESERVES, strict=True):
            rows.append((*place, False, 0.0, 0.85, 0.12, 1e-7, 1e-5, effect, 0.15, arm))
        # One wakes beyond chance and does nothing; the others wake by chance.
        rows.append((size[0] - 1, 301, False, 0.1, 0.7, 0.2, 1e-4, 1e-3, 0.02, 0.03, arm))
        for i in range(60):
            null = rng.beta(1.2, 3)
            woken = float(np.clip(null + rng.normal(0, 0.06), 0.02, 1))
            place = int(rng.integers(2, size[0])), 310 + i + 2
            rows.append((*place, False, rng.random(), woken, null, 0.5, 0.9, NAN, NAN, arm))
    columns = ["layer", "latent", "in_set", "active_clean", "woken", "null", "p", "q", "effect"]
    frame = pd.DataFrame(rows, columns=[*columns, "half", "arm"])
    low, high = frame["effect"] - frame["half"], frame["effect"] + frame["half"]
    frame = frame.assign(effect_low=low, effect_high=high, set_id=SET)
    return frame.drop(columns="half")


def _clusters(reserves: list[tuple[int, int]]) -> pd.DataFrame:
    rows = [(SET, "no_bos", 0, *reserves[0]), (SET, "no_bos", 0, 8, 77), (SET, "no_bos", 1, 9, 301)]
    return pd.DataFrame(rows, columns=["set_id", "arm", "cluster", "layer", "latent"])


def _ledger(
    rng: np.random.Generator, size: tuple[int, int], members: list[tuple[int, int]]
) -> pd.DataFrame:
    rows = []
    for position in ("last", "instruction_last"):
        for layer in range(size[0]):
            removed = -0.8 * sum(layer == at for at, _ in members) + rng.normal(0, 0.01)
            after = layer > members[0][0]
            heads, mlp = ((0.12, 0.25) if after else (0.0, 0.0)) + rng.normal(0, 0.01, 2)
            latents = 0.7 * (heads + mlp)
            for part, amount, null in (
                ("removed", removed, -0.01),
                ("heads", heads, 0.02 * after),
                ("mlp", mlp, 0.03 * after),
                ("latents", latents, 0.02 * after),
                ("rest", heads + mlp - latents, 0.03 * after),
            ):
                bounds = with_interval("amount", amount, 0.03)
                rows.append((SET, layer, part, *bounds.values(), null, position))
    columns = ["set_id", "layer", "part", "amount", "low", "high", "null", "position"]
    return pd.DataFrame(rows, columns=columns)


def _compensation(size: tuple[int, int]) -> pd.DataFrame:
    rows = []
    for layer in range(size[0]):
        amount = 0.22 * max(layer - 3, 0)
        rows.append(
            (SET, layer, "last", 2.0, 1.1, 1.1 - amount, amount, amount - 0.1, amount + 0.1)
        )
    columns = ["set_id", "layer", "position", "clean", "live", "no_wake", "amount", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _overshoot(members: list[tuple[int, int]]) -> pd.DataFrame:
    claimed = (0.5, 0.42, 0.45, 0.44, 0.4)
    rows = [
        (SET, *place, claim, claim - 0.01, claim - 0.06, claim + 0.04, 900)
        for place, claim in zip(members, claimed, strict=True)
    ]
    columns = ["set_id", "layer", "latent", "claimed", "slope", "slope_low", "slope_high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _interactions(rng: np.random.Generator, latents: list[tuple[int, int]]) -> pd.DataFrame:
    planted = {(0, 5): (-2.3, "OR"), (2, 6): (-0.9, "redundant"), (0, 2): (0.7, "synergistic")}
    rows = []
    for a in range(len(latents)):
        for b in range(a + 1, len(latents)):
            effect, kind = planted.get((a, b), (rng.normal(0, 0.03), "additive"))
            moment = effect / 4 + rng.normal(0, 0.02)
            exact = (a, b) in planted or b < 4
            known = effect if exact else NAN
            pair = (SET, *latents[a], *latents[b])
            moments = (moment, moment - 0.05, moment + 0.05)
            corners = (known, known - 0.2, known + 0.2, -0.4, -0.1, -0.5 + effect, N)
            rows.append((*pair, "nothing", *moments, *corners, kind if exact else ""))
            if exact and b < len(MEMBERS):
                # What looks synergistic alone is additive once the rest of the set is out.
                held = (0.01, -0.02, 0.04, -0.9, -0.6, -1.51, N, "additive")
                rows.append((*pair, "the rest of the set", *moments, *held))
    columns = ["set_id", "layer_a", "latent_a", "layer_b", "latent_b", "held", "moment"]
    columns += ["moment_low", "moment_high", "effect", "low", "high", "alone_a", "alone_b"]
    return pd.DataFrame(rows, columns=[*columns, "both", "n", "kind"])


def _machine(members: list[tuple[int, int]], reserves: list[tuple[int, int]]) -> pd.DataFrame:
    rows = [
        (inputs, *place, 1.0 / (i + 1), i, 0.5 / (7 - i), 6 - i)
        for inputs in ("natural", "post_ablation")
        for i, place in enumerate([*members, *reserves])
    ]
    return pd.DataFrame(
        rows,
        columns=["inputs", "layer", "latent", "score", "place", "probe_weight", "probe_place"],
    )


class Tables:
    """Tables as the sections see a run; `reads` counts them by name."""

    def __init__(self, tables: dict[str, pd.DataFrame] | None = None) -> None:
        self.held = fake_features_tables() if tables is None else tables
        self.info = {"command": "features", **fake_features_info()}
        self.reads: dict[str, int] = {}

    def tables(self) -> list[str]:
        return list(self.held)

    def table(self, name: str) -> pd.DataFrame:
        self.reads[name] = self.reads.get(name, 0) + 1
        return self.held[name]

    def clean(self, name: str) -> pd.DataFrame:
        frame = features_table(self, name)
        assert frame is not None
        return frame
