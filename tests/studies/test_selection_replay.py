"""The published direction selection of five models, replayed from the authors' own score files."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from refusalscope.studies.directions import Rule, select

MODELS = [
    "gemma-2b-it",
    "llama-2-7b-chat-hf",
    "meta-llama-3-8b-instruct",
    "qwen-1_8b-chat",
    "yi-6b-chat",
]


def load(shared, model: str) -> pd.DataFrame:
    folder = shared / "golden" / "refusal_direction" / model
    rows = json.loads((folder / "direction_evaluations.json").read_text())
    frame = pd.DataFrame(rows)
    return frame.rename(
        columns={"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_published_choice_and_survivors_are_reproduced(shared, model):
    expected = json.loads((shared / "golden" / "expected.json").read_text())
    expected = expected["refusal_direction"]["models"][model]
    frame = load(shared, model)
    n_layers = int(frame["layer"].max()) + 1
    assert n_layers == expected["n_layers"]
    assert len(frame) == expected["rows"]
    found = select(frame, n_layers)
    chosen = found[found["chosen"]].iloc[0]
    assert [int(chosen["position"]), int(chosen["layer"])] == expected["chosen"]
    for name in ("bypass", "induce", "kl"):
        assert float(chosen[name]) == expected[name]
    kept = found[found["kept"]].sort_values("bypass", kind="stable")
    assert len(kept) == expected["survivors"]
    folder = shared / "golden" / "refusal_direction" / model
    published = json.loads((folder / "direction_evaluations_filtered.json").read_text())
    assert [
        (int(p), int(layer)) for p, layer in zip(kept["position"], kept["layer"], strict=True)
    ] == [(row["position"], row["layer"]) for row in published]
    runner_up = kept.iloc[1]
    assert [int(runner_up["position"]), int(runner_up["layer"])] == expected["runner_up"]
    assert float(runner_up["bypass"] - chosen["bypass"]) == pytest.approx(expected["gap"], abs=1e-9)
    metadata = json.loads((folder / "direction_metadata.json").read_text())
    assert [int(chosen["position"]), int(chosen["layer"])] == [metadata["pos"], metadata["layer"]]


@pytest.mark.parametrize("model", MODELS)
def test_the_filters_remove_what_they_are_published_to_remove(shared, model):
    expected = json.loads((shared / "golden" / "expected.json").read_text())
    expected = expected["refusal_direction"]["models"][model]
    frame = load(shared, model)
    assert int(frame[["bypass", "induce", "kl"]].isna().any(axis=1).sum()) == expected["nan_rows"]
    n_layers = expected["n_layers"]
    # As published, a comparison with NaN is false: a missing score fails no threshold.
    plain = frame.fillna({"bypass": 0.0, "induce": 0.0, "kl": 0.0})
    off = {"depth_cut": 1.0, "max_kl": float("inf"), "min_induce": float("-inf")}
    for reason, name, key in (
        ("late layer", "depth_cut", "late_layer"),
        ("kl", "max_kl", "kl_above_0.1"),
        ("induce", "min_induce", "induce_below_0"),
    ):
        found = select(plain, n_layers, Rule(**{**off, name: getattr(Rule(), name)}))
        assert int((found["reason"] == reason).sum()) == expected["removed_by"][key]
    unfiltered = select(frame.dropna(), n_layers, Rule(**off))
    best = unfiltered[unfiltered["chosen"]].iloc[0]
    assert [int(best["position"]), int(best["layer"])] == expected["unfiltered_argmin"][:2]


def test_near_ties_are_reported(shared):
    """The runner-up of qwen-1.8b lies 0.035 away; llama-2's lies 1.35 away."""
    near = select(load(shared, "qwen-1_8b-chat"), 24)
    assert bool(near[(near["position"] == -1) & (near["layer"] == 15)]["tie"].iloc[0])
    far = select(load(shared, "llama-2-7b-chat-hf"), 32)
    assert not far["tie"].any()
