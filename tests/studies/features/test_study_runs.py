"""The features study where it cannot go all the way, by its other presets, and with bad input from Python."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refusalscope.errors import InputError
from refusalscope.prompts import PairSet
from refusalscope.report.worries import worries
from refusalscope.studies.features import searching
from studies.features import hydra_study as hydra
from studies.features.hydra_study import (
    SMALL,
    W,
    by_layer,
    dissect,
    done,
    margins,
    prompts_of,
)

# Runs that cannot go all the way


def test_where_no_set_flips_the_run_says_so_and_keeps_the_other_arms(tmp_path):
    inert = {4: hydra.dictionary(hydra.bench().organism, 4, [W, *hydra.DISTRACTORS])}
    found = done(tmp_path / "run", sae=inert, **SMALL)
    assert len(found.warned("No set of the pool's latents flips", "pool_k")) == 1
    assert found.table("sets").empty
    assert set(found.table("searches")["why"]) == {"no set of the candidates flips it"}
    arms = found.table("baselines").set_index("arm")
    assert {"refusal direction", "top cosine", "whole pool"} <= set(arms.index)
    assert arms.loc["refusal direction", "flipped"] == 1
    assert arms["equal_kl"].isna().all()
    assert arms["beats"].isna().all()
    assert not found.view.has_table("features.dormant")
    assert found.view.info["status"] == "finished"


def test_where_no_latent_carries_refusal_out_nothing_is_searched_and_the_other_arms_are_kept(
    tmp_path,
):
    """The markers of harm: without them the model sees none, which is another matter."""
    sae = {4: hydra.dictionary(hydra.bench().organism, 4, [7, 8])}
    found = done(tmp_path / "run", sae=sae, **SMALL)
    assert len(found.warned("No latent of the pool carries refusal out", "part=both")) == 1
    assert not found.view.has_table("features.sets")
    assert "refusal direction" in set(found.table("baselines")["arm"])
    assert found.view.info["status"] == "finished"


def test_a_budget_that_runs_out_gives_the_best_set_so_far(tmp_path, monkeypatch):
    real, allowed = searching.minimal_sets, []

    def counted(trial, order, *, max_forwards, **options):
        allowed.append(max_forwards * len(trial.prompts))
        return real(trial, order, max_forwards=max_forwards, **options)

    monkeypatch.setattr(searching, "minimal_sets", counted)
    found = done(tmp_path / "run", **{**SMALL, "max_forwards": 100})
    # Pooled sets, one prompt, and the pooled set of principal components.
    assert len(allowed) == 3
    assert sum(allowed) <= 100 + 50
    searches = found.table("searches").set_index("search")
    assert searches.loc["pool", "exhausted"]
    assert searches["forwards"].sum() <= 100
    pooled = found.table("sets").query("set_id == 'pool/0'")
    assert pooled["verified"].all()
    assert not pooled["minimal"].any()
    assert [each for each in worries(found.view) if "ran out of their budget" in each.text]


def test_too_few_refusals_leave_the_study_out(tmp_path):
    found = done(tmp_path / "run", **{**SMALL, "pairs": 20})
    assert len(found.warned("refuses only 7 harmful prompts", "8 are needed")) == 1
    assert len(found.warned("features study was left out")) == 1
    assert not [name for name in found.view.tables() if name.startswith("features.")]
    assert found.view.has_table("prompts")


def test_a_model_that_refuses_nothing_leaves_the_study_out(tmp_path):
    pairs = hydra.bench().organism.pairs
    kind = [replace(each, harmful=f"{each.harmless} w1") for each in pairs]
    found = done(tmp_path / "run", **{**SMALL, "pairs": PairSet(tuple(kind), pairs.sources)})
    assert len(found.warned("features study was left out")) == 1
    assert found.view.info["status"] == "finished"


# Presets


def test_the_published_search_runs_end_to_end(tmp_path):
    small = {"n_prompts": 1, "max_new_tokens": 2, "machine_k": (3,), "n_top": 3, "orders": 2}
    found = done(
        tmp_path / "run", name="prakash2025", judge="phrases:planted", taus=(0.05, 0.5), **small
    )
    table = found.table("published")
    assert len(table) == 2 * 2 * 2
    assert set(table[table["tau"] == 0.5]["why_not"]) == {"it is not refused without an edit"}
    low = table[(table["tau"] == 0.05) & (table["prompt_id"] == "")].set_index("reading")
    assert set(low["why_not"]) == {""}
    rows = prompts_of(found, "select")
    for reading, row in low.iterrows():
        if row["intersection_size"]:
            assert len(hydra.sets(found.view)[f"greedy/{reading}/0.05"]) == row["intersection_size"]
    sets = found.table("sets")
    assert (sets["by"] == "block_greedy").all()
    for name, part in sets[sets["prompt_id"] == ""].groupby("set_id"):
        want = margins(rows, by_layer(hydra.places(part)))
        assert part["margin"].iloc[0] == pytest.approx(want.mean(), abs=1e-3), name
    assert found.view.has_table("features.baselines")
    assert found.view.info["cost"]["forwards"] == found.forwards


def test_the_published_ranking_runs_end_to_end(tmp_path):
    found = done(
        tmp_path / "run", name="yeo2025", judge="phrases:planted", max_new_tokens=2, n_top=5
    )
    sets = found.table("sets")
    assert set(sets["set_id"]) == {"yeo2025"}
    assert (sets["by"] == "top_attribution").all()
    assert len(sets) == 5
    want = margins(prompts_of(found, "select"), by_layer(hydra.places(sets)))
    assert sets["margin"].iloc[0] == pytest.approx(want.mean(), abs=1e-3)
    arms = found.table("baselines")
    assert {1.0, 2.0, 4.0} <= set(arms[arms["arm"] == "set yeo2025"]["strength"])


# Bad input of a Python caller


def test_dictionaries_that_do_not_fit_are_refused_before_a_run_begins(tmp_path):
    found = hydra.bench().dictionaries
    for sae, words in (
        ({2: replace(found[2], site=replace(found[2].site, layer=9))}, "layers are 0 to 7"),
        ({4: found[2]}, "layer 4"),
        ({}, "no dictionary was given"),
    ):
        with pytest.raises(InputError, match=words):
            dissect(tmp_path / "run", sae=sae, **SMALL)
    with pytest.raises(InputError, match="direction_layer is 8"):
        dissect(tmp_path / "run", **{**SMALL, "direction_layer": 8})
    assert not (tmp_path / "run").exists()


def test_a_layer_without_a_direction_is_said_and_the_study_left_out(tmp_path):
    """The last token of the template is the same in all prompts, and so is the input of the first block."""
    found = done(tmp_path / "run", **{**SMALL, "direction_layer": 0})
    assert len(found.warned("features study was left out", "direction")) == 1
    assert not found.view.has_table("features.pool")
