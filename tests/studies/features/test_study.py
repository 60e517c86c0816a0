"""The features study end to end on planted hydras: its sets against all subsets, its tables, splits, resume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
import pytest

from refusalscope.errors import RunError
from refusalscope.studies.features.dormant import reserves
from studies.features import hydra_study as hydra
from studies.features.hydra_study import (
    B1,
    B2,
    BASE,
    P1,
    P2,
    P3,
    SMALL,
    Finished,
    W,
    by_layer,
    dissect,
    done,
    margins,
    prompts_of,
    true_sets,
    written,
)

# Tables of a run that found a set, with the columns that the report reads.
CONTRACT = {
    "dictionaries": "layer name architecture d_sae l0 l0_low l0_high l0_special explained explained_low "
    "explained_high norm_ratio dead_share warnings",
    "pool": "layer latent cosine attribution activation_difference decoder_norm active_share mass kept",
    "searches": "search prompt_id n_prompts share candidates sets forwards repairs exhausted complete why",
    "sets": "set_id prompt_id layer latent place verified minimal forwards margin flipped size by",
    "members": "layer latent frequency low high n_sets pooled",
    "stability": "over n_sets jaccard lowest core",
    "rounds": "round layer latent effect woken margin flipped",
    "dormant": "set_id layer latent in_set active_clean woken null p q effect effect_low effect_high arm",
    "waking": "set_id arm null woken expected excess low high p",
    "clusters": "set_id arm cluster layer latent",
    "ledger": "set_id layer part amount low high null position",
    "compensation": "set_id layer position clean live no_wake amount low high",
    "values": "set_id name value low high n p",
    "overshoot": "set_id layer latent claimed slope slope_low slope_high n",
    "interactions": "set_id layer_a latent_a layer_b latent_b held moment moment_low moment_high effect low "
    "high alone_a alone_b both n kind",
    "contrast": "inputs n_latents machine_accuracy machine_low machine_high probe_accuracy probe_low "
    "probe_high",
    "machine": "inputs layer latent score place probe_weight",
    "arms": "arm group n_latents draw strength prompt_id label category margin kl ce refused degenerate",
    "baselines": "arm group n_latents draws strength n_harmful margin margin_low margin_high change "
    "change_low change_high flipped flipped_low flipped_high n_harmless kl kl_low kl_high ce ce_low ce_high "
    "ratio refused refused_low refused_high degenerate over_refused beats beats_low beats_high equal_kl",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return done(tmp_path_factory.mktemp("base") / "run", **BASE)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    return done(tmp_path_factory.mktemp("control") / "run", "control", **SMALL)


# Sets


def test_every_set_found_is_a_true_minimal_one(base):
    true = true_sets(prompts_of(base, "select"))
    assert true
    assert all(len(each) > 1 for each in true)
    sets = {name: hydra.bench().planted(each) for name, each in hydra.sets(base.view).items()}
    assert {name for name in sets if name.startswith("pool/")} == {"pool/0", "pool/1", "pool/2"}
    for name, members in sets.items():
        if name.startswith("pool/"):
            assert members in true, name
    assert len({frozenset(sets[f"pool/{k}"]) for k in range(3)}) == 3


def test_a_set_of_one_prompt_is_minimal_for_that_prompt(base):
    table = base.table("sets")
    ids = {each.id: each for each in hydra.bench().organism.pairs.prompts()}
    single = table[table["prompt_id"] != ""]
    assert single["set_id"].nunique() == 2
    for (name, prompt), part in single.groupby(["set_id", "prompt_id"]):
        assert name == f"prompt/{prompt}/0"
        (rendered,) = hydra.bench().chat.render([ids[prompt]])
        assert hydra.bench().planted(hydra.places(part)) in true_sets([list(rendered.ids)])


def test_what_a_set_is_said_to_do_is_what_it_does(base):
    rows = prompts_of(base, "select")
    table = base.table("sets")
    pooled = table[table["set_id"].str.startswith("pool/")]
    assert pooled["verified"].all()
    assert pooled["minimal"].all()
    for _, part in pooled.groupby("set_id"):
        want = margins(rows, by_layer(hydra.places(part)))
        assert part["margin"].iloc[0] == pytest.approx(want.mean(), abs=1e-3)
        assert (part["flipped"] == (want < 0).mean()).all()
        assert (part["size"] == len(part)).all()
        assert part["place"].tolist() == list(range(len(part)))


def test_without_backups_the_primaries_are_the_set(control):
    assert true_sets(prompts_of(control, "select", "control"), "control") == [
        {P1, P2},
        {P1, P3},
        {P2, P3},
    ]
    assert len(hydra.bench("control").planted(hydra.sets(control.view)["pool/0"])) == 2
    assert hydra.bench("control").planted(hydra.sets(control.view)["pool/0"]) <= {P1, P2, P3}


# Tables


@pytest.mark.parametrize("name", CONTRACT)
def test_a_table_has_the_columns_that_the_report_reads(base, name):
    assert set(CONTRACT[name].split()) <= set(base.table(name).columns)
    # Nothing but B1 and an inert latent wakes beyond chance, and one latent has no cluster to be in.
    assert len(base.table(name)) or name == "clusters"


def test_there_is_no_other_table(base):
    mine = {name for name in base.view.tables() if name.startswith("features.")}
    assert mine == {f"features.{name}" for name in CONTRACT}


def test_the_pool_has_a_row_for_every_latent_of_every_dictionary(base):
    pool = base.table("pool")
    assert not pool.duplicated(["layer", "latent"]).any()
    assert pool.groupby("layer").size().to_dict() == {2: 9, 4: 9}
    kept = hydra.places(pool[pool["kept"]])
    assert {(2, 0), (2, 1), (2, 2), (4, 0), (4, 1)} <= kept


def test_the_forwards_of_the_run_are_those_that_the_model_ran(base, control):
    for found in (base, control):
        assert found.view.info["cost"]["forwards"] == found.forwards


# Splits


def split_of(found: Finished) -> dict[str, set[str]]:
    return {split: set(part["id"]) for split, part in found.view.table("prompts").groupby("split")}


def test_no_stage_before_the_arms_sees_a_report_prompt(base):
    splits = split_of(base)
    assert base.read["search"] <= splits["fit"] | splits["select"]
    assert base.read["search"] & splits["fit"]
    assert base.read["search"] >= splits["select"]


def test_the_arms_are_measured_on_the_report_split_alone(base):
    report = split_of(base)["report"]
    assert base.read["arms"] == report
    assert set(base.table("arms")["prompt_id"]) == report


# What follows a set


def dormant_members(found: Finished, variant="base") -> set[int]:
    table = found.table("dormant")
    asleep = table[table["in_set"] & (table["active_clean"] == 0)]
    return hydra.bench(variant).planted(hydra.places(asleep))


def reserve(found: Finished, variant="base") -> set[int]:
    return hydra.bench(variant).planted(hydra.places(reserves(found.table("dormant"))))


def test_the_reserve_of_the_base_is_its_backups(base):
    assert hydra.bench().planted(hydra.sets(base.view)["pool/0"]) == {P1, P2, P3, B2}
    assert dormant_members(base) == {B2}
    assert reserve(base) == {B1}
    table = base.table("dormant")
    woke = table[~table["in_set"] & (table["q"] < 0.05) & (table["woken"] == 1)]
    assert hydra.bench().planted(hydra.places(woke)) == {B1, W}
    values = base.table("values").set_index("name")
    assert values.loc["dormant value", "low"] > 1


def test_the_control_has_no_reserve(control):
    assert dormant_members(control, "control") == set()
    assert reserve(control, "control") == set()
    values = control.table("values").set_index("name")
    assert values.loc["dormant value", "value"] == 0
    assert (control.table("compensation")["amount"] == 0).all()


def test_the_values_are_those_of_the_margins(base):
    rows = prompts_of(base, "select")
    values = base.table("values").set_index("name")["value"]
    assert values["margin, clean"] == pytest.approx(margins(rows, {}).mean(), abs=1e-3)
    main = hydra.bench().planted(hydra.sets(base.view)["pool/0"])
    assert values["margin, set ablated"] == pytest.approx(
        margins(rows, written(main)).mean(), abs=1e-3
    )
    awake = margins(rows, written(main - {B1, B2})).mean()
    assert values["dormant value"] == pytest.approx(
        awake - margins(rows, written(main)).mean(), abs=1e-3
    )


@pytest.mark.parametrize("inputs", ["natural", "post_ablation", "masks"])
def test_the_machines_rank_what_they_have_seen(base, inputs):
    contrast = base.table("contrast").set_index("inputs")
    assert list(contrast.index) == ["natural", "post_ablation", "masks"]
    accuracies = contrast.loc[inputs, ["machine_accuracy", "probe_accuracy"]]
    assert accuracies.isna().all() if inputs == "masks" else (accuracies >= 0.5).all()
    table = base.table("machine")
    mine = table[table["inputs"] == inputs]
    assert sorted(mine["place"].dropna()) == [0, 1, 2]
    ranked = mine[mine["place"].notna()].sort_values("place")
    # Latents that all score alike would be in no order but that of their numbers.
    assert (ranked["score"].diff().dropna() < 0).all()
    seen = hydra.bench().planted(hydra.places(mine))
    assert not seen & {"natural": {B1, B2, W}, "post_ablation": {P1, P2, P3, B2}}.get(inputs, set())
    if inputs == "post_ablation":
        assert seen & {B1, W}


def test_the_set_beats_random_latents_and_flips_unseen_prompts(base):
    table = base.table("baselines")
    whole = table[table["strength"] == 1].set_index("arm")
    assert whole.loc["set pool/0", "flipped"] == 1
    assert whole.loc["set pool/0", "refused"] == 0
    assert whole.loc["set pool/0", "beats_low"] > 1
    assert whole.loc["random matched", "flipped"] == 0
    assert (whole.loc["random matched", "draws"], whole.loc["set pool/0", "draws"]) == (20, 1)
    assert {"set pool/1", "set pool/2", "refusal direction", "yeo2025", "whole pool"} <= set(
        whole.index
    )
    rows = prompts_of(base, "report")
    want = margins(rows, by_layer(hydra.sets(base.view)["pool/0"])).mean()
    assert whole.loc["set pool/0", "margin"] == pytest.approx(want, abs=1e-3)


# Resume


class Stop(Exception):
    pass


@contextmanager
def stopped_at(name: str, number: int = 1) -> Iterator[None]:
    """Stop before the `number`-th file of that name in its path becomes visible."""
    rename, seen = os.replace, [0]

    def counted(source, target):
        seen[0] += name in str(target)
        if seen[0] == number:
            raise Stop
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counted)
        yield


def test_an_interrupted_run_gives_the_same_tables(control, tmp_path):
    for name, number in (("features.searches", 2), ("features.dormant", 1), ("features.arms", 4)):
        with stopped_at(name, number), pytest.raises(Stop):
            dissect(tmp_path / "run", "control", resume=True, **SMALL)
    again = dissect(tmp_path / "run", "control", resume=True, **SMALL)
    assert again.tables() == control.view.tables()
    for name in again.tables():
        pd.testing.assert_frame_equal(again.table(name), control.view.table(name))
    assert again.info["warnings"] == control.view.info["warnings"]


def test_a_run_is_not_gone_on_with_on_other_dictionaries(control, tmp_path):
    with stopped_at("features.searches"), pytest.raises(Stop):
        dissect(tmp_path / "run", "control", **SMALL)
    fewer = {2: hydra.bench("control").dictionaries[2]}
    other = {**fewer, 4: hydra.dictionary(hydra.bench("control").organism, 4, [B1, B2])}
    for sae in (fewer, other):
        with pytest.raises(RunError, match="dictionaries"):
            dissect(tmp_path / "run", "control", resume=True, sae=sae, **SMALL)
