"""The belief study end to end: its tables, its splits, what it says where it cannot run, and going on."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import transformers as hf

from model import tiny
from refusalscope import study_belief
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.prompts import PairSet, bundled_pairs
from refusalscope.prompts.wrappers import Wrapper, get_wrapper
from refusalscope.runs import RunView, open_run
from refusalscope.studies.directions import belief_study
from refusalscope.studies.directions.belief_settings import preset
from studies.directions.belief_case import work

SMALL = {
    "wrappers": ("prefix",),
    "n_wrapped": 6,
    "min_category": 3,
    "steer_rows": (2,),
    "n_steer": 4,
    "n_random": 1,
    "n_invert": 4,
    "max_new_tokens": 8,
    "n_resamples": 100,
}
# Tables with the columns that the report reads.
CONTRACT = {
    "prompts": "id label category refused verdict refused_cut verdict_cut cluster cluster_cut delta_harmful "
    "delta_refuse quadrant",
    "clusters": "position behaviour layer cluster n mean low high",
    "positions": "position token behaviour cluster n mean low high separates first_layer last_layer",
    "template_cut": "label n refused_full rate_full low_full high_full refused_cut rate_cut low_cut high_cut "
    "change change_low change_high p garbled_cut",
    "categories": "axis category total n reason to_others to_others_low to_others_high to_mean to_mean_low "
    "to_mean_high shared shared_low shared_high to_others_null to_others_null_low to_others_null_high "
    "to_others_p shared_null shared_null_low shared_null_high shared_p halves unsteady first_layer last_layer "
    "harmless",
    "category_cosines": "axis a b cosine low high first_layer last_layer harmless",
    "controls": "id|label|category|as is|no mark|full stop|question mark|last word",
    "shortcuts": "name auroc auroc_low auroc_high verdict",
    "marks": "label mark n mean low high spread spread_low spread_high",
    "wrapped": "wrapper id label category refused verdict delta_harmful delta_refuse quadrant",
    "jailbreaks": "wrapper label group quantity n value low high change change_low change_high p",
    "tuned_prompts": "id label category refused_before refused_after verdict_after delta_harmful_before "
    "delta_refuse_before delta_harmful_kept delta_refuse_kept quadrant_kept delta_harmful_refitted "
    "delta_refuse_refitted quadrant_refitted",
    "tuned": "label quantity centroids n before before_low before_high after after_low after_high change "
    "change_low change_high p",
}


def few_pairs(n: int = 6) -> PairSet:
    """Some pairs of every category of the bundled ones."""
    pairs = bundled_pairs()
    kept, seen = [], dict.fromkeys((pair.category for pair in pairs), 0)
    for pair in pairs:
        seen[pair.category] += 1
        if seen[pair.category] <= n:
            kept.append(pair)
    return PairSet(tuple(kept), pairs.sources)


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load("builtin:chat")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, chat) -> RunView:
    return study_belief(
        chat,
        pairs=few_pairs(),
        tuned=chat,
        settings=preset("recommended", **SMALL),
        out=tmp_path_factory.mktemp("runs") / "run",
    )


def test_a_run_holds_every_table_with_its_columns(finished):
    assert finished.info["status"] == "finished"
    for name, columns in CONTRACT.items():
        table = finished.table(f"belief.{name}")
        expected = columns.split("|" if "|" in columns else None)
        assert table.columns.tolist() == expected, name
        assert len(table), name
    assert {"belief.steering", "belief.inversion"} <= set(finished.tables())
    assert finished.info["tuned"]["id"] == "builtin:chat"
    assert (finished.path / "report.html").is_file()


def test_only_report_prompts_are_told_of(finished):
    prompts = finished.table("prompts")
    report = set(prompts.loc[prompts["split"] == "report", "id"])
    assert set(prompts["split"]) == {"fit", "select", "report"}
    assert prompts["split"].value_counts(normalize=True)["select"] > 0.08
    assert set(finished.table("belief.prompts")["id"]) == report
    assert set(finished.table("belief.tuned_prompts")["id"]) == report
    assert set(finished.table("belief.wrapped")["id"]) < report


def test_refused_prompts_lie_on_the_refusal_side(finished):
    """The built-in model refuses by a state at the prompt's end, so what it does can be read there."""
    table = finished.table("belief.prompts")
    sides = table.groupby("refused")["delta_refuse"].mean()
    assert sides[True] > 0 > sides[False]


def test_the_unchanged_model_as_tuned_one_changes_nothing(finished):
    tuned = finished.table("belief.tuned")
    assert (tuned["change"].abs() < 1e-6).all()


def test_the_centroids_are_kept_with_the_run(finished, chat):
    held = finished.array("belief")
    assert set(held) == {f"mean_{name}" for name in ("harm", "harmless", "refuse", "accept")}
    shape = (chat.anatomy.n_layers + 1, chat.anatomy.d_model)
    assert all(value.shape == shape for value in held.values())


def test_a_stopped_run_goes_on_where_it_was(tmp_path, chat, finished, monkeypatch):
    given = {
        "pairs": few_pairs(),
        "tuned": chat,
        "settings": preset("recommended", **SMALL),
        "out": tmp_path / "run",
    }
    real = os.replace

    def stopped(source, target):
        if "belief.jailbreaks" in str(target):
            raise KeyboardInterrupt
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            study_belief(chat, **given)
    view = open_run(tmp_path / "run")
    held = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}
    assert any("belief.wrapped" in path.name for path in held)
    assert not view.has_table("belief.jailbreaks")
    again = study_belief(chat, **given, resume=True)
    for path, when in held.items():
        assert path.stat().st_mtime_ns == when, path.name
    for name in CONTRACT:
        pd.testing.assert_frame_equal(
            again.table(f"belief.{name}"), finished.table(f"belief.{name}"), obj=name
        )


def test_a_wrapper_of_the_patient_takes_the_place_of_a_known_one(tmp_path, monkeypatch):
    mine = work(tmp_path, wrappers=("prefix", "rot13"))
    own = Wrapper("prefix", "a frame of its own", "frame", before="mine: ")
    given = []

    def wrapped(work, wrappers):
        given.extend(wrappers)
        raise InputError("far enough")

    monkeypatch.setattr(belief_study, "wrapped_prompts", wrapped)
    with pytest.raises(InputError, match="far enough"):
        belief_study.run_belief(mine.run, mine.subject, mine.settings, wrappers=[own])
    assert given == [own, get_wrapper("rot13")]


def test_a_model_of_one_layer_is_told_before_a_run_is_begun(tmp_path):
    config = hf.LlamaConfig(**tiny.COMMON | {"num_hidden_layers": 1}, attention_bias=True)
    model = hf.AutoModelForCausalLM.from_config(config)
    one = ChatModel.wrap(model, tiny.tokenizer(), id="one layer")
    with pytest.raises(InputError, match="too few layers for the rows 'inner'"):
        study_belief(one, pairs=few_pairs(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_layer_of_a_push_is_chosen_on_prompts_that_fit_nothing(finished):
    prompts = finished.table("prompts").set_index("split")["id"]
    sides = [set(prompts.loc[[name]]) for name in ("fit", "select", "report")]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert not sides[2] & (sides[0] | sides[1])


def test_too_few_refusals_or_answers_are_told_and_not_studied(tmp_path, chat):
    pairs = few_pairs(2)
    settings = preset("recommended", **SMALL)
    view = study_belief(chat, pairs=pairs, settings=settings, out=tmp_path / "run")
    (said,) = [text for text in view.info["warnings"] if "left out" in text]
    assert "The belief study was left out: the model " in said
    assert "8 are needed; give more prompts" in said
    assert not any(name.startswith("belief.") for name in view.tables())


def test_the_preset_of_the_paper_runs_on_a_model_without_its_layers(tmp_path, chat):
    changes = {name: SMALL[name] for name in SMALL if name != "n_random"}
    view = study_belief(
        chat,
        pairs=few_pairs(),
        settings=preset("zhao2025", **changes | {"wrappers": ()}),
        out=tmp_path / "run",
    )
    said = " ".join(view.info["warnings"])
    assert "layers 9 to 20 are not in the model of 5 layers, so layers 1 to 3 were taken" in said
    assert "layers 11 to 20" in said
    assert not view.has_table("belief.jailbreaks")
    assert np.isfinite(view.table("belief.positions")["mean"]).any()
