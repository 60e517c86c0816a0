"""The published numbers of arXiv 2604.04385, recomputed from the authors' own result files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from refusalscope.studies.routing.published import change_percent, dla_ranks, rank_p, shares

LISTS = {
    "gemma2_2b": ["interchange"],
    "gemma2_9b": ["interchange"],
    "glmz1_9b": ["interchange"],
    "llama32_3b": ["interchange"],
    "llama33_70b": ["interchange", "interchange_cc"],
    "mistral_7b": ["interchange"],
    "phi4_14b": ["interchange"],
    "phi4_mini": ["interchange"],
    "qwen25_72b": ["interchange", "interchange_cc"],
    "qwen25_7b": ["interchange"],
    "qwen3_32b": ["interchange"],
    "qwen3_8b": ["interchange_v2", "interchange_adv"],
}
PANEL = [(model, name) for model, names in LISTS.items() for name in names]
# The authors' attribution files of the other eight models are too large to be kept as golden records.
ATTRIBUTED = ["gemma2_2b", "llama32_3b", "phi4_mini", "qwen3_8b"]
KNOCKOUTS = ["qwen3_8b", "phi4_mini", "gemma2_2b"]


@pytest.fixture
def golden(shared):
    return shared / "golden" / "how_alignment_routes"


@pytest.fixture
def expected(shared):
    return json.loads((shared / "golden" / "expected.json").read_text())["how_alignment_routes"]


def interchanged(folder) -> pd.DataFrame:
    """The summary of one list, strongest necessity first, with its shares."""
    table = pd.read_csv(folder / "head_interchange_summary.csv")
    table["necessity"], table["sufficiency"] = shares(
        table["mean_ctrl_to_ccp_reduction"],
        table["mean_ccp_to_ctrl_increase"],
        table["mean_baseline_delta"],
    )
    return table.sort_values("necessity", ascending=False, kind="stable", ignore_index=True)


def named(heads: pd.DataFrame) -> list[str]:
    return [f"L{layer}.H{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]


def test_every_model_and_list_of_the_panel_is_replayed(expected):
    lists = {
        model: [name for name in record if name.startswith("interchange")]
        for model, record in expected["panel"].items()
    }
    assert lists == LISTS


@pytest.mark.parametrize(("model", "name"), PANEL)
def test_necessity_and_sufficiency_are_the_printed_shares_of_the_gap(golden, expected, model, name):
    want = expected["panel"][model][name]
    table = interchanged(golden / "panel" / model / name)
    assert len(table) == want["n_heads"]
    assert set(table["n_pairs"]) == {want["n_pairs"]}
    assert [round(gap, 4) for gap in table["mean_baseline_delta"].unique()] == [want["gap_nats"]]
    for row, head in zip(table.itertuples(), want["top"], strict=False):
        assert (row.layer, row.head) == (head["layer"], head["head"])
        assert round(row.necessity, 2) == head["necessity_pct"]
        assert round(row.sufficiency, 2) == head["sufficiency_pct"]


@pytest.mark.parametrize("model", ATTRIBUTED)
def test_ranks_and_shares_of_the_attribution_are_the_printed_ones(golden, expected, model):
    want = expected["panel"][model]
    table = pd.read_csv(golden / "panel" / model / "headDLA" / "head_summary.csv")
    contrast = table[[f"mean_delta_head_{head}" for head in range(want["heads"])]].to_numpy()
    assert contrast.shape == (want["layers"], want["heads"])
    np.testing.assert_allclose(contrast.sum(axis=1), table["mean_delta_attn_total"], atol=1e-14)
    ranks, percent = dla_ranks(contrast)
    for name in LISTS[model]:
        for head in want[name]["top"]:
            at = (head["layer"], head["head"])
            assert ranks[at] == head["dla_rank"]
            assert round(percent[at], 3) == head["dla_share_pct"]


@pytest.mark.parametrize("model", [model for model in LISTS if model != "qwen3_8b"])
def test_the_best_ablation_is_the_printed_one(golden, expected, model):
    record = expected["panel"][model]
    for name in [key for key in record if key.startswith("headablate")]:
        table = pd.read_csv(golden / "panel" / model / name / "head_ablate_summary.csv")
        assert len(table) == record[name]["n_heads"]
        best = table.loc[table["mean_nll_reduction"].idxmax()]
        layer, head, reduction = record[name]["best"]
        assert (best["layer"], best["head"]) == (layer, head)
        assert round(best["mean_nll_reduction"], 4) == reduction
        left = table["mean_baseline_delta"] - table["mean_intervened_delta"]
        np.testing.assert_allclose(left, table["mean_nll_reduction"], atol=1e-12)


@pytest.mark.parametrize(("model", "name"), [pair for pair in PANEL if pair[0] != "qwen3_8b"])
def test_the_interchanged_heads_are_the_ten_of_largest_ablation(golden, model, name):
    """Which of the candidates are swapped is printed nowhere: it follows from the files, sign kept."""
    swapped = interchanged(golden / "panel" / model / name)
    other = name.replace("interchange", "headablate")
    table = pd.read_csv(golden / "panel" / model / other / "head_ablate_summary.csv")
    best = table.sort_values("mean_nll_reduction", ascending=False)[:10]
    assert set(named(best)) == set(named(swapped))


@pytest.mark.parametrize("model", KNOCKOUTS)
def test_the_cascade_changes_as_printed(golden, expected, model):
    want = expected["knockout"][model]
    table = pd.read_csv(golden / "knockout" / model / "cascade_summary.csv")
    change = change_percent(table["mean_normal_delta"], table["mean_knockout_delta"])
    found = dict(zip(named(table), np.round(change, 1).tolist(), strict=True))
    assert found == want["change_pct"]
    assert found == dict(zip(named(table), table["change_pct"], strict=True))
    assert round(float(np.abs(change).mean()), 2) == want["mean_abs_change_pct"]
    shallow = table[table["layer"] <= want["gate"][0]]
    assert named(shallow) == want["heads_not_deeper_than_gate"]


def test_the_null_of_the_knockout_gives_no_p_below_one_in_eleven(golden, expected):
    want = expected["knockout"]["null_qwen3_8b"]
    folder = golden / "knockout" / "null" / "qwen3_8b"
    table = pd.read_csv(folder / "knockout_null_distribution.csv", keep_default_na=False)
    gate = table.loc[table["role"] == "gate", "mean_abs_change_pct"].item()
    null = table.loc[table["role"] == "null", "mean_abs_change_pct"].to_numpy()
    assert gate == want["gate"]
    assert len(null) == want["m"]
    assert round(null.mean(), 3) == want["mean"]
    assert round(null.std(), 3) == want["sd_population"]
    assert round(null.std(ddof=1), 3) == want["sd_sample"]
    assert null.max() == want["max"]
    assert round(rank_p(gate, null), 4) == want["rank_p"]
    printed = json.loads((folder / "knockout_null_summary.json").read_text())
    assert round(null.std(), 2) == printed["null_std"]


def test_the_discovery_run_shows_more_than_the_confirmation(golden):
    """Winner's curse: 3.03 % of the gap at n = 24, 1.13 % at n = 120 (README 2.6)."""
    found = interchanged(golden / "discovery_pipeline" / "interchange")
    top = found.iloc[0]
    assert (top["layer"], top["head"], top["n_pairs"]) == (17, 17, 24)
    assert round(top["mean_baseline_delta"], 4) == 4.8999
    assert round(top["mean_ctrl_to_ccp_reduction"], 4) == 0.1484
    assert round(top["necessity"], 2) == 3.03
    confirmed = interchanged(golden / "panel" / "qwen3_8b" / "interchange_v2").iloc[0]
    assert (confirmed["layer"], confirmed["head"]) == (17, 17)
    assert round(confirmed["necessity"], 2) == 1.13
    ablated = pd.read_csv(golden / "discovery_pipeline" / "headablate" / "head_ablate_summary.csv")
    # In this run, unlike the panel's, heads whose ablation goes the wrong way were swapped too.
    order = np.argsort(-ablated["mean_nll_reduction"].abs().to_numpy())
    assert set(named(ablated.iloc[order[:10]])) == set(named(found))


def test_controls_are_mostly_at_least_as_long_as_their_partners(golden):
    """Left alignment then runs the donor on into the reply, or stops short of the last token."""
    table = pd.read_csv(golden / "derived" / "pair_lengths.csv")
    at_least = table["words_control"] >= table["words_harmful"]
    share = at_least.groupby(table["corpus"]).mean() * 100
    assert table.groupby("corpus").size().to_dict() == {"safety_v3": 120, "v2": 120}
    assert share.round(1).to_dict() == {"safety_v3": 90.8, "v2": 80.8}
