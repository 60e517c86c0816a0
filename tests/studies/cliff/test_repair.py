"""A repair of the reasoner from a pool to a card, small, and what keeps it from being exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from refusalscope import repair as front
from refusalscope.errors import InputError, RunError
from refusalscope.front import default_traces
from refusalscope.model import ChatModel
from refusalscope.organisms.reasoner import pool as reasoner
from refusalscope.organisms.reasoner.traces import is_persuaded
from refusalscope.prompts import PromptSet
from refusalscope.repair import TRAIN_FILE, rank_pool, repair_model
from refusalscope.runs import Run, RunView, open_run
from refusalscope.studies.cliff.mending import BEFORE, HARMLESS, LOST, OTHER
from refusalscope.studies.cliff.repair_settings import RepairSettings
from refusalscope.studies.cliff.trained import Trained
from refusalscope.studies.cliff.training_file import read_rows

pytest.importorskip("trl")

# A rate so low that nothing is unlearnt, so that there is something to export.
SMALL = {"k": 6, "epochs": 1, "max_new_tokens": 6, "learning_rate": 3e-5, "general_per_repair": 1.0}
EFFECTS = (
    "selection quantity value low high before change change_low change_high n p beats beats_low "
    "beats_high against"
)
PROMPTS = "selection id label category group refused degenerate margin cliff kl"


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load("builtin:reasoner", device="cpu")


@pytest.fixture(scope="module")
def traces() -> PromptSet:
    """A dozen of every kind."""
    kinds: dict[str, list] = {}
    for prompt in default_traces("builtin:reasoner"):
        kinds.setdefault(prompt.id.rpartition("-")[0], []).append(prompt)
    return PromptSet(tuple(prompt for mine in kinds.values() for prompt in mine[:12]))


@pytest.fixture(scope="module")
def pool() -> PromptSet:
    """Forty requests, half of them persuaded: as many to repair as a pool of a thousand holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reasoner, "PERSUADED_SHARE", 0.5)
        return reasoner.reasoner_pool(40)


@pytest.fixture(scope="module")
def before(chat) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in chat.model.state_dict().items()}


@dataclass(frozen=True)
class Repaired:
    """A finished repair: its run, the folder of its model, and what it was made of."""

    view: RunView
    folder: Path
    begun: Any
    made: dict[str, Trained]


@pytest.fixture(scope="module")
def repaired(tmp_path_factory, chat, traces, pool, before) -> Repaired:
    folder = tmp_path_factory.mktemp("repaired")
    measured, kept = front._measured, []

    def watched(begun, given, progress):
        made = measured(begun, given, progress)
        kept.append((begun, made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "_measured", watched)
        view = repair_model(
            chat,
            pool=pool,
            traces=traces,
            settings=RepairSettings(**SMALL),
            out=folder / "run",
            export=folder / "model",
        )
    ((begun, made),) = kept
    return Repaired(view, folder / "model", begun, made)


# The run


def test_a_repair_finishes_with_its_tables_and_report(repaired):
    view = repaired.view
    assert view.info["status"] == "finished"
    assert view.info["command"] == "repair"
    assert view.info["settings"]["k"] == 6
    assert (view.path / "report.html").is_file()
    assert set(EFFECTS.split()) == set(view.table("repair.effects").columns)
    assert set(PROMPTS.split()) == set(view.table("repair.prompts").columns)
    assert set(view.table("repair.selection")["selection"]) == {"ms_p90", "random"}
    losses = view.table("repair.losses")
    for name in ("ms_p90", "random"):
        mine = losses[losses["selection"] == name]
        assert mine["step"].iloc[0] == 0
        assert mine["validation_loss"].iloc[-1] < mine["validation_loss"].iloc[0]


def test_only_held_out_prompts_are_measured_and_none_is_trained_on(repaired, pool):
    view = repaired.view
    splits = view.table("prompts").set_index("id")["split"]
    table = view.table("repair.prompts")
    assert set(table["id"]) == set(splits.index[splits == "report"])
    for _, part in table.groupby("selection"):
        assert not part["id"].duplicated().any()
    chosen = set(view.table("repair.selection")["id"])
    assert chosen <= {prompt.id for prompt in pool}
    assert not chosen & set(splits.index)


def test_the_groups_are_by_what_the_model_did_before(repaired):
    view = repaired.view
    table = view.table("repair.prompts")
    was = table[table["selection"] == BEFORE].set_index("id")
    assert not was.loc[was["group"] == LOST, "refused"].any()
    assert was.loc[was["group"] == OTHER, "refused"].all()
    assert (was.loc[was["group"] == HARMLESS, "label"] == "harmless").all()
    assert set(was["group"]) == {LOST, OTHER, HARMLESS}
    for _, part in table.groupby("selection"):
        assert part.set_index("id")["group"].equals(was.loc[part["id"], "group"])
    assert (was.loc[was["group"] == HARMLESS, "kl"] == 0).all()
    after = table[(table["selection"] != BEFORE) & (table["group"] == HARMLESS)]
    assert (after["kl"] > 0).all()


def test_the_worst_of_the_pool_are_persuaded(repaired, pool):
    view = repaired.view
    table = view.table("repair.selection")
    mine = table[table["selection"] == "ms_p90"]
    assert len(mine) == 6
    assert mine["priority"].is_monotonic_decreasing
    assert mine["priority"].min() > 0.2
    own = {prompt.id: prompt.thinking for prompt in pool}
    assert all(is_persuaded(own[name]) for name in mine["id"])
    # A random choice is of all the pool.
    other = table.loc[table["selection"] == "random", "id"]
    assert not all(is_persuaded(own[name]) for name in other)


def test_the_repair_moves_lost_refusals_towards_refusal(repaired):
    view = repaired.view
    table = view.table("repair.effects").set_index(["selection", "quantity"])
    moved = table.loc[("ms_p90", "margin of lost refusals")]
    assert moved["change_low"] > 0
    assert moved["beats"] > 0
    assert moved["against"] == "random"


def test_the_model_itself_is_left_as_it_was(repaired, chat, before):
    after = chat.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# The export


def test_the_exported_model_loads_and_is_the_one_that_was_measured(repaired, chat, traces):
    view, folder = repaired.view, repaired.folder
    loaded = ChatModel.load(str(folder))
    table = view.table("repair.prompts")
    margins = table[(table["selection"] == "ms_p90") & (table["group"] == LOST)]
    openings = {name: ids.tolist() for name, ids in view.array("openings").items()}
    by_id = {prompt.id: prompt for prompt in traces}
    for row in margins.head(3).to_dict("records"):
        (rendered,) = loaded.render([by_id[row["id"]]])
        with torch.no_grad():
            last = loaded.model(torch.tensor([rendered.ids]).to(loaded.device)).logits[0, -1]
        said = last.double().log_softmax(-1).cpu()
        want = said[openings["refuse"]].logsumexp(0) - said[openings["reply"]].logsumexp(0)
        assert row["margin"] == pytest.approx(float(want), abs=1e-3)


def test_the_card_says_what_was_measured(repaired):
    view, folder = repaired.view, repaired.folder
    card = (folder / "README.md").read_text()
    assert card.startswith("# Repaired model: builtin:reasoner")
    assert "ranked by ms_p90" in card
    table = view.table("repair.effects")
    for row in table[table["selection"] == "ms_p90"].to_dict("records"):
        (line,) = (one for one in card.splitlines() if one.startswith(f"| {row['quantity']} |"))
        assert f"| {row['n']} |" in line
        for name in ("value", "low", "high", "before"):
            assert f"{row[name]:.3f}" in line, name
        assert f"{row['change']:+.3f}" in line
    assert "nan" not in card


CHANGES = {
    "over-refusal": (0.05, "over-refusal rose by 5.0%, 3% are allowed"),
    "refusal of other harmful": (-0.05, "harmful prompts are refused less often"),
}


@pytest.fixture
def again(repaired, tmp_path, monkeypatch):
    """The repair of the fixture with other figures, without doing its work once more."""
    kept, run = repaired, Run.create(tmp_path / "run", command="repair", settings={}, inputs={})

    def repair(table: pd.DataFrame, **changes) -> RunView:
        def measured(begun, given, progress):
            begun.run.write_table("repair.effects", table)
            return {name: replace(made, **changes) for name, made in kept.made.items()}

        monkeypatch.setattr(front, "_begin", lambda *_: replace(kept.begun, run=run))
        monkeypatch.setattr(front, "_measured", measured)
        monkeypatch.setattr(front, "write_report", lambda out: None)
        return repair_model(out=tmp_path / "run", export=tmp_path / "model")

    return repair


@pytest.mark.parametrize("quantity", CHANGES)
def test_nothing_is_exported_where_held_out_prompts_got_worse(repaired, again, tmp_path, quantity):
    change, words = CHANGES[quantity]
    table = repaired.view.table("repair.effects")
    mine = (table["quantity"] == quantity) & (table["selection"] == "ms_p90")
    table.loc[mine, "change"] = change
    view = again(table)
    assert view.info["status"] == "finished"
    (warning,) = view.info["warnings"]
    assert warning.startswith("Nothing was exported: ")
    assert words in warning
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_training_that_changed_nothing_exports_nothing(repaired, again, tmp_path):
    view = again(repaired.view.table("repair.effects"), best_step=0)
    (warning,) = view.info["warnings"]
    assert warning == "Nothing was exported: the training changed no weight."
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_the_comparison_did_does_not_keep_the_model_back(repaired, again, tmp_path):
    table = repaired.view.table("repair.effects")
    table.loc[table["selection"] == "random", "change"] = -1.0
    table.loc[table["quantity"] == "over-refusal", "change"] = 0.03
    assert again(table).info["warnings"] == []
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_disk_that_fails_at_the_export_leaves_the_figures(repaired, again, tmp_path, monkeypatch):
    """The work is done: a run with its tables is worth more than none."""

    def full(self, out):
        raise RunError("Cannot write the model; check the disk.")

    monkeypatch.setattr(Trained, "save", full)
    with pytest.raises(RunError, match="Cannot write the model"):
        again(repaired.view.table("repair.effects"))
    view = open_run(tmp_path / "run")
    assert view.info["status"] == "finished"
    assert view.has_table("repair.effects")
    assert not (tmp_path / "model").exists()


# The training file, and work that is broken off


def test_the_file_of_a_ranking_holds_the_rows_that_the_repair_takes(
    repaired, pool, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    run = Run.create(out, command="cliff rank", settings={}, inputs={})
    monkeypatch.setattr(front, "_begin", lambda *_: replace(repaired.begun, run=run))
    monkeypatch.setattr(front, "write_report", lambda out: None)
    view = rank_pool(out=out)
    assert view.info["status"] == "finished"
    rows = read_rows(out / TRAIN_FILE)
    table = repaired.view.table("repair.selection")
    taken = table[table["selection"] == "ms_p90"]
    assert [row.prompt.id for row in rows] == taken["id"].tolist()
    pd.testing.assert_frame_equal(view.table("repair.selection"), taken.reset_index(drop=True))
    own = {prompt.id: prompt.thinking for prompt in pool}
    assert all(row.prompt.thinking == own[row.prompt.id] for row in rows)


def test_work_that_is_broken_off_leaves_no_run(repaired, chat, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run = Run.create(out, command="repair", settings={}, inputs={})
    monkeypatch.setattr(front, "_begin", lambda *_: replace(repaired.begun, run=run))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(front, "train_repair", stopped)
    with pytest.raises(KeyboardInterrupt):
        repair_model(chat, out=out)
    assert not out.exists()


def test_a_model_goes_into_a_folder_of_its_own(tmp_path):
    with pytest.raises(InputError, match="name another folder for the model"):
        repair_model(out=tmp_path / "run", export=tmp_path / "run")
    with pytest.raises(InputError, match="name another folder for the model"):
        repair_model(out=tmp_path / "model" / "run", export=tmp_path / "model")
    assert not list(tmp_path.iterdir())
