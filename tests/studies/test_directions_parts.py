"""Selection, stability, belief and geometry on small numbers whose answer is plain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from refusalscope.errors import InputError
from refusalscope.studies.directions import (
    Centroids,
    Rule,
    belief_scores,
    centroids,
    geometry,
    mean_difference,
    preset,
    profile,
    select,
    select_relaxed,
    select_stable,
    stability,
)
from refusalscope.studies.directions.belief import belief_rows


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_each_filter_gives_its_reason_and_the_smallest_bypass_wins():
    table = frame(
        layer=[1, 9, 2, 3, 4, 5],
        bypass=[-1.0, -9.0, -8.0, -7.0, np.nan, -2.0],
        induce=[1.0, 1.0, 1.0, -0.1, 1.0, 0.0],
        kl=[0.0, 0.0, 0.2, 0.0, 0.0, 0.1],
    )
    found = select(table, n_layers=10)
    assert found["reason"].tolist() == ["", "late layer", "kl", "induce", "nan", ""]
    assert found["chosen"].tolist() == [False, False, False, False, False, True]


def test_nothing_is_chosen_where_nothing_passes():
    found = select(frame(layer=[9], bypass=[0.0], induce=[1.0], kl=[0.0]), n_layers=10)
    assert not found["chosen"].any()
    assert not select_stable(found, np.array([0.0]), 10)["chosen"].any()


def test_stability_equals_a_plain_bootstrap_loop():
    rng = np.random.default_rng(3)
    layer = np.array([0.0, 1, 2, 9])
    bypass, induce = rng.normal(size=(4, 12)), rng.normal(0.3, 1, size=(4, 10))
    kl = rng.uniform(0, 0.2, size=(4, 10))
    got = stability(bypass, induce, kl, layer, 10, Rule(), n=300, seed=5)
    draws = np.random.default_rng(5)
    wins = np.zeros(4)
    for _ in range(300):
        a = draws.multinomial(12, np.full(12, 1 / 12))
        b = draws.multinomial(10, np.full(10, 1 / 10))
        table = frame(
            layer=layer,
            bypass=np.repeat(bypass, a, axis=1).mean(1),
            induce=np.repeat(induce, b, axis=1).mean(1),
            kl=np.repeat(kl, b, axis=1).mean(1),
        )
        wins += select(table, 10)["chosen"].to_numpy()
    assert got == pytest.approx(wins / 300, abs=0.004)
    assert got[3] == 0


def test_the_stable_rule_prefers_what_most_resamples_choose():
    table = frame(layer=[1, 2], bypass=[-5.0, -4.9], induce=[1.0, 1.0], kl=[0.0, 0.0])
    found = select_stable(table, np.array([0.2, 0.8]), 10)
    assert found["chosen"].tolist() == [False, True]
    assert found["tie"].tolist() == [True, False]


def test_scores_that_do_not_fit_together_are_refused():
    with pytest.raises(InputError, match="do not fit together"):
        stability(
            np.zeros((3, 4)), np.zeros((2, 4)), np.zeros((2, 4)), np.zeros(2), 10, Rule(), 5, 0
        )


def test_mean_difference_is_accumulated_in_double():
    big = torch.full((1000, 1), 1e8)
    assert float(mean_difference(big + 8, big)) == 8.0


def test_belief_is_the_published_difference_of_cosines():
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(5, 4, 6, generator=rng)
    ends = torch.randn(5, 4, 6, generator=rng)
    means = Centroids(*torch.randn(4, 4, 6, generator=rng))
    rows = belief_rows("inner", 3)
    assert rows == [1, 2]
    assert belief_rows("with_final", 3) == [1, 2, 3]
    with pytest.raises(InputError, match="too few layers for the rows 'inner'"):
        belief_rows("inner", 1)
    got = belief_scores(states, ends, means, rows)
    for i in range(5):
        want = np.mean(
            [
                _cos(states[i, r], means.harm[r]) - _cos(states[i, r], means.harmless[r])
                for r in rows
            ]
        )
        assert got["delta_harmful"][i] == pytest.approx(want, abs=1e-6)
        other = np.mean(
            [_cos(ends[i, r], means.refuse[r]) - _cos(ends[i, r], means.accept[r]) for r in rows]
        )
        assert got["delta_refuse"][i] == pytest.approx(other, abs=1e-6)
    names = {
        (True, True): "coherent harmful",
        (True, False): "suppressed refusal",
        (False, True): "over-refusal",
        (False, False): "coherent harmless",
    }
    for _, row in got.iterrows():
        assert row["quadrant"] == names[row["delta_harmful"] >= 0, row["delta_refuse"] >= 0]


def _cos(a, b) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_profile_of_a_centroid_is_positive_towards_itself():
    means = torch.eye(3)
    assert (profile(means[None], means, means.flip(0))[0, [0, 2]] > 0).all()


def test_geometry_finds_a_planted_angle():
    rng = torch.Generator().manual_seed(1)
    harmful = torch.arange(60) < 30
    noise = 0.01 * torch.randn(2, 60, 2, 8, generator=rng)
    axis = torch.zeros(2, 8)
    axis[0, 0] = 1
    axis[1, 0], axis[1, 1] = 0.5, 3**0.5 / 2
    at_instruction, at_end = (
        noise[k] + harmful[:, None, None] * axis[k][None, None] for k in (0, 1)
    )
    got = geometry(at_instruction, at_end, harmful)
    assert got["layer"].tolist() == [1]
    assert got["cosine"][0] == pytest.approx(0.5, abs=0.02)
    assert got["low"][0] <= got["cosine"][0] <= got["high"][0]


def test_centroids_of_one_class_are_refused():
    with pytest.raises(InputError, match="both"):
        centroids(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), torch.tensor([True, True, True]))


def test_published_belief_arithmetic_is_reproduced(shared):
    """Mean over rows of the released per-row scores gives the released deltas (golden, section 3)."""
    import json

    folder = shared / "golden" / "harmfulness_centroids_derived"
    rows = pd.read_csv(folder / "per_layer_scores.csv")
    table = json.loads((folder / "delta_table.json").read_text())
    text = json.dumps(table)
    for _, part in rows.groupby("example"):
        means = {
            "all": part["s_harm_at_t_inst"].mean(),
            "inner": part[part["layer_row"].isin(belief_rows("with_final", 28))][
                "s_harm_at_t_inst"
            ].mean(),
        }
        assert means["all"] < 0
        assert part["s_refuse_at_t_post"].mean() > 0
        for value in means.values():
            assert any(f"{value:.{k}f}"[:7] in text for k in (5, 6)), (value, text[:200])


def test_presets_follow_their_papers_and_unknown_fields_are_refused():
    assert preset("arditi2024").selection == "smallest_bypass"
    assert preset("arditi2024").score_eps
    assert preset("zhao2025").belief_rows == "with_final"
    assert preset("recommended", max_kl=0.2).max_kl == 0.2
    with pytest.raises(InputError, match="no preset"):
        preset("nope")
    with pytest.raises(InputError, match="no setting 'nope'"):
        preset("recommended", nope=1)
    with pytest.raises(InputError, match="is wrong"):
        preset("recommended", max_kl=-1)


def test_filters_are_let_go_in_their_stated_order_and_said():
    def relaxed(**columns):
        table = select(frame(**columns), n_layers=10)
        assert not table["chosen"].any()
        return select_relaxed(table, 10, Rule())

    late = relaxed(layer=[9, 1], bypass=[-1.0, -5.0], induce=[1.0, 1.0], kl=[0.05, 0.3])
    assert (late.table["chosen"].tolist(), late.let_go) == ([True, False], "the depth cut")
    assert late.table["reason"].tolist() == ["late layer", "kl"]
    assert not late.table["kept"].any()
    costly = relaxed(layer=[1, 1], bypass=[-1.0, -5.0], induce=[1.0, 1.0], kl=[0.15, 0.3])
    assert costly.table["chosen"].tolist() == [True, False]
    assert "max_kl (to 0.2)" in costly.let_go
    weak = relaxed(layer=[1], bypass=[-1.0], induce=[-0.5], kl=[0.05])
    assert weak.table["chosen"].tolist() == [True]
    assert "min_induce" in weak.let_go
    assert relaxed(layer=[1], bypass=[np.nan], induce=[1.0], kl=[0.0]) is None
