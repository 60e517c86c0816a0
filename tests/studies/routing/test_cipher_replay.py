"""The published cipher results of three models, recomputed from the authors' own result files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from refusalscope.stats import wilson
from refusalscope.studies.routing.cipher import collapse_table, compat_collapse
from refusalscope.studies.routing.contrast import contrast_agreement, contrast_table
from refusalscope.studies.routing.interchange import Screen

GATES = {"gemma2_2b": (13, 2), "phi4_mini": (13, 7), "qwen3_8b": (17, 17)}
MODELS = list(GATES)
# The corpora differ: Qwen3-8B was run on the political pairs.
CORPUS = {"gemma2_2b": "safety_v3", "phi4_mini": "safety_v3", "qwen3_8b": "v2"}


@pytest.fixture
def results(shared):
    return shared / "golden" / "how_alignment_routes"


@pytest.fixture
def expected(shared):
    return json.loads((shared / "golden" / "expected.json").read_text())["how_alignment_routes"]


def read(path):
    return json.loads(path.read_text())


def contrast(results, model):
    """The authors' mean contributions as arms of one pair, and their table."""
    frame = pd.read_csv(results / "cipher_contrast" / model / "cipher_diagnostic_all_heads.csv")
    frame = frame.sort_values(["layer", "head"])
    shape = (1, frame["layer"].nunique(), frame["head"].nunique())
    arms = {
        arm: frame[f"mean_{arm}_dla"].to_numpy().reshape(shape)
        for arm in ("plain", "cipher", "benign")
    }
    return contrast_table(arms, wrapper="cipher"), frame


def interchange(results, model):
    """By condition: the authors' necessity and sufficiency of the gate, as a screen of one head."""
    frame = pd.read_csv(
        results / "cipher_interchange" / model / "interchange_cipher_pairwise.csv"
    ).sort_values("pair_idx")
    screens = {}
    for name, part in frame.groupby("condition"):
        columns = {column: part[column].to_numpy() for column in part.columns[3:]}
        screens[name] = Screen(
            ((GATES[model],),),
            {"dla": columns["baseline_harm_dla"]},
            {"dla": columns["baseline_benign_dla"]},
            {"dla": columns["necessity"][:, None, None]},
            {"dla": columns["sufficiency"][:, None, None]},
        )
    return screens


@pytest.mark.parametrize("model", MODELS)
def test_the_cipher_contrast_is_reproduced(results, expected, model):
    want = expected["cipher_contrast"][model]
    table, published = contrast(results, model)
    assert len(table) == want["heads"]
    np.testing.assert_allclose(table["kappa3"], published["cipher_sensitivity"], atol=1e-12)
    np.testing.assert_allclose(table["contrast"], published["plain_minus_benign"], atol=1e-12)
    found = contrast_agreement(table["kappa3"], table["contrast"])
    assert round(found["spearman"], 4) == want["spearman_kappa_vs_abs_plain_minus_benign"]
    assert round(found["pearson"], 4) == want["pearson"]
    assert round(found["jaccard"], 4) == want["top20_jaccard"]
    assert int(table["kept"].sum()) == want["kept_kappa>0.1_and_abs_dla>=0.05"]
    assert int((table["side"] == "pro").sum()) == want["pro"]
    assert int((table["side"] == "counter").sum()) == want["counter"]
    top = table.loc[table["kappa3"].idxmax()]
    assert f"L{top['layer']}.H{top['head']}" == want["top_head"]
    assert table["kappa4"].isna().all()


@pytest.mark.parametrize("model", MODELS)
def test_the_cipher_interchange_is_reproduced_and_its_claim_is_not_always_ours(
    results, expected, model
):
    want = expected["cipher_interchange"][model]
    authors = read(results / "cipher_interchange" / model / "interchange_cipher_summary.json")
    screens = interchange(results, model)
    for effect in ("necessity", "sufficiency"):
        values = {name: getattr(s, effect)["dla"].ravel() for name, s in screens.items()}
        found = compat_collapse(values["plaintext"], values["cipher"])
        for name, key in (("plaintext", "mean_abs_plain"), ("cipher", "mean_abs_cipher")):
            row = want[f"{name}_{effect}"]
            assert len(values[name]) == row["n"]
            assert round(float(values[name].mean()), 4) == row["mean"]
            assert round(float(values[name].std()), 4) == row["sd_population"]
            assert round(found[key], 4) == row["mean_abs"]
        assert round(found["collapse_pct"], 1) == want[f"collapse_of_mean_abs_{effect}_pct"]
        assert found["drop_pct"] == pytest.approx(authors["collapse"][f"{effect}_drop_pct"])
    for name, screen in screens.items():
        baseline = float(screen.harmful["dla"].mean())
        assert round(baseline, 3) == want[f"{name}_baseline_harm_dla"]

    row = collapse_table(
        screens["plaintext"], screens["cipher"], "dla", [GATES[model]], wrapper="cipher"
    ).iloc[0]
    assert round(row["plain"], 4) == want["plaintext_necessity"]["mean"]
    assert round(row["cipher"], 4) == want["cipher_necessity"]["mean"]
    if model == "qwen3_8b":
        # Published as 70 %; signed, there is no plain effect that could be lost.
        assert row["plain_low"] < 0 < row["plain_high"]
        assert not row["collapsed"]
        assert np.isnan(row["change"])
    else:
        assert row["collapsed"]
        assert row["change"] == pytest.approx(-authors["collapse"]["necessity_drop_pct"] / 100)


@pytest.mark.parametrize("model", MODELS)
def test_the_plain_necessity_depends_on_the_length_of_the_donor(results, expected, model):
    """The left-aligned map's mark: a shorter donor never reaches the token that decides."""
    want = expected["cipher_interchange"][model]["plaintext_necessity_by_word_length"]
    necessity = interchange(results, model)["plaintext"].necessity["dla"].ravel()
    lengths = pd.read_csv(results / "derived" / "pair_lengths.csv")
    lengths = lengths[lengths["corpus"] == CORPUS[model]].sort_values("pair_idx")
    longer = np.sign(lengths["words_control"] - lengths["words_harmful"]).to_numpy()
    for sign, name in ((-1, "donor_shorter"), (0, "equal"), (1, "donor_longer")):
        picked = necessity[longer == sign]
        assert [len(picked), round(float(picked.mean()), 3)] == want[name]


def test_the_published_bands_are_the_layers_of_the_kept_heads(results):
    table, _ = contrast(results, "phi4_mini")
    kept = table[table["kept"]].sort_values("kappa3", ascending=False, kind="stable")
    bands = read(results / "band_interchange" / "phi4_mini" / "band_interchange_summary.json")
    groups = read(results / "refined_bands" / "phi4_mini" / "refined_bands_summary.json")
    assert (groups["n_pro_heads"], groups["n_counter_heads"]) == (
        (kept["side"] == "pro").sum(),
        (kept["side"] == "counter").sum(),
    )

    def names(part):
        return [f"L{r.layer}.H{r.head}" for r in part.itertuples()]

    for band in bands["bands"]:
        assert names(kept[kept["layer"].isin(band["layers"])]) == band["heads"]
    for name, group in groups["groups"].items():
        side, _, layer = name.partition("_L")
        if layer:
            mine = kept[(kept["side"] == side) & (kept["layer"] == int(layer))]
            assert set(names(mine)) == set(group["heads"])


def test_the_single_head_of_the_bands_is_the_gate_of_the_interchange(results):
    groups = read(results / "refined_bands" / "phi4_mini" / "refined_bands_summary.json")["groups"]
    screens = interchange(results, "phi4_mini")
    values = screens["plaintext"].necessity["dla"].ravel()
    single = compat_collapse(values, values)["mean_abs_plain"]
    assert single == pytest.approx(groups["single_best"]["mean_abs_necessity"], abs=1e-4)
    top = groups["cross_top10"]
    assert top["mean_abs_necessity"] / single == pytest.approx(top["ratio_vs_single"], abs=5e-4)
    assert round(top["ratio_vs_single"], 4) == 3.3110


def test_the_published_rescue_rate_has_an_interval(results):
    row = read(results / "rescue" / "phi4_single" / "rescue_summary.json")
    counts = [row[f"{arm}_refusal"] for arm in ("plaintext", "cipher", "rescued")]
    assert counts == [119, 0, 58]
    rate = wilson(row["rescued_refusal"], row["n_prompts"])
    assert round(100 * rate.value, 2) == round(row["rescue_recovery_rate"], 2) == 48.33
    assert 0.39 < rate.low < rate.value < rate.high < 0.58
