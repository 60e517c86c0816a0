"""The published dose table (Qwen3-8B, 120 pairs an arm), recomputed from the three judges' own labels."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from refusalscope.judge.protocol import REFUSALS
from refusalscope.studies.routing.thresholds import behaviour_alpha50, ordinal_slope

JUDGES = ["gemini", "llama", "gpt4o_mini"]
# INCOHERENT is degenerate; where no two judges agree, nobody knows.
OURS = {
    "REFUSAL": "full_refusal",
    "EVASION": "partial_refusal",
    "STEERED": "partial_refusal",
    "FACTUAL": "compliance",
    "INCOHERENT": "degenerate",
}


@pytest.fixture
def expected(shared):
    return json.loads((shared / "golden" / "expected.json").read_text())["how_alignment_routes"][
        "dose"
    ]


@pytest.fixture
def labels(shared) -> pd.DataFrame:
    folder = shared / "golden" / "how_alignment_routes" / "dose_response"
    frame = pd.read_csv(folder / "judgments_labels.csv")
    return frame.assign(majority=[majority(row) for row in frame[JUDGES].to_numpy()])


def majority(votes) -> str:
    label, n = Counter(votes).most_common(1)[0]
    return label if 2 * n > len(votes) else "DISAGREE"


def table(labels, arm):
    """alphas, and labels in our words [pairs, alphas]."""
    part = labels[labels["experiment"] == arm]
    wide = part.pivot(index="pair_idx", columns="alpha", values="majority")
    ours = wide.map(OURS.get).to_numpy(dtype=object)
    return wide.columns.to_numpy(dtype=float), np.where(pd.isna(ours), None, ours)


def test_the_majority_of_three_judges_is_the_published_one(labels, expected):
    assert len(labels) == 2_400
    assert (labels["majority"] == labels["new_majority_vote"]).all()
    same = labels[JUDGES].nunique(axis=1) == 1
    assert (same == labels["unanimous"]).all()
    assert round(same.mean(), 4) == expected["unanimous"]
    assert round((labels["majority"] != "DISAGREE").mean(), 4) == expected["majority"]


@pytest.mark.parametrize("arm", ["attenuation", "amplification"])
def test_the_label_counts_of_every_dose_are_reproduced(labels, expected, arm):
    part = labels[labels["experiment"] == arm]
    counts = {
        str(alpha): dict(Counter(group["majority"])) for alpha, group in part.groupby("alpha")
    }
    assert counts == expected[arm]
    assert all(sum(row.values()) == 120 for row in counts.values())


def test_nearly_all_refusals_that_fade_are_of_one_category(labels, expected):
    part = labels[(labels["experiment"] == "attenuation") & (labels["pair_idx"] < 8)]
    refused = part["majority"].eq("REFUSAL").groupby(part["alpha"]).sum()
    want = expected["attenuation_refusals_in_pairs_0_to_7"]
    assert {alpha: int(refused[int(alpha)]) for alpha in want} == want


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("arm", "sign"), [("attenuation", -1), ("amplification", 1)])
def test_the_published_labels_have_a_slope_of_the_arms_sign(labels, arm, sign):
    alphas, found = table(labels, arm)
    slope, p = ordinal_slope(alphas, found)
    assert sign * slope > 0.01
    assert p < 1e-3


@pytest.mark.filterwarnings("error")
def test_the_published_replies_turn_where_their_counts_say(labels):
    """STEERED and EVASION count as refused in part; a category is a cluster of eight pairs."""
    clusters = np.arange(120) // 8

    def turn(arm, name, pairs=slice(None), by=clusters):
        alphas, found = table(labels, arm)
        known = pd.notna(found)
        refused = np.where(known, np.isin(found, REFUSALS).astype(float), np.nan)[pairs]
        share = np.nanmean(refused, axis=0)
        return behaviour_alpha50(alphas, refused, name, by, seed=0), share, alphas

    # Refusing is the exception at alpha 0 already.
    whole, share, _ = turn("attenuation", "attenuate")
    assert share[0] < 0.5
    assert np.isnan(whole.value)
    assert whole.low == -np.inf
    # Amplified, more than half refuse at the largest dose only.
    whole, share, alphas = turn("amplification", "amplify")
    assert share[-2] < 0.5 < share[-1]
    assert alphas[-2] - 5 < whole.value < alphas[-1]
    assert whole.low < whole.value < whole.high
    first, share, alphas = turn("attenuation", "attenuate", slice(0, 8), None)
    assert share[0] == 1
    assert 0 < first.value < 50
