"""A guard on disk: bit-exact, bound to its model, and refused in one sentence where it is not whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from guard.fitted import calibrated, chat, fitted, sides
from refusalscope.errors import GuardError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.folder import JSON, WEIGHTS, read_record, read_reference
from refusalscope.guard.monitor import fit_monitor
from refusalscope.guarding import open_guard
from refusalscope.model import ChatModel
from refusalscope.model.chat_model import BUILTIN


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    guard = fitted("lda").calibrate(sides()["select"][1], sides()["select"][0])
    guard.monitor_ = fit_monitor(guard, sides()["fit"], sides()["select"], max_new_tokens=8)
    guard.shortcuts_ = [{"name": "length", "auroc": 0.5, "verdict": "not shown"}]
    guard.known_failures_ = ["base64 hides harm"]
    return guard.save(tmp_path_factory.mktemp("guards") / "guard")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("variant", ["centroid", "centred", "lda"])
def test_what_is_read_back_is_what_was_saved(tmp_path, variant):
    guard = fitted(variant).calibrate(sides()["select"][1], sides()["select"][0])
    again = BeliefGuard.load(guard.save(tmp_path / "guard"), chat())
    prompts = sides()["report"][0]
    assert again.beliefs(prompts) == guard.beliefs(prompts)
    assert again.get_params() == guard.get_params()
    assert again.calibration_.points == guard.calibration_.points
    assert again.calibration_.probability == guard.calibration_.probability
    for name, tensor in guard.harm_.tensors().items():
        assert torch.equal(tensor, again.harm_.tensors()[name])
    assert read_reference(tmp_path / "guard").equals(guard.calibration_.reference)


def test_a_guard_without_calibration_keeps_its_scores(tmp_path):
    again = BeliefGuard.load(fitted().save(tmp_path / "guard"), chat())
    prompts = sides()["report"][0][:4]
    assert np.array_equal(again.decision_function(prompts), calibrated().decision_function(prompts))
    assert again.calibration_ is None
    with pytest.raises(GuardError, match="not calibrated"):
        read_reference(tmp_path / "guard")


def test_the_monitor_and_the_audit_come_along(folder):
    again = BeliefGuard.load(folder, chat())
    assert again.monitor_.tau == read_record(folder).monitor.threshold.tau
    assert again.monitor_.threshold.fpr.n == 64
    assert again.known_failures_ == ["base64 hides harm"]
    assert again.shortcuts_[0]["name"] == "length"
    with pytest.raises(GuardError, match="fit it again"):
        again.augment(sides()["report"][0][:2])


def test_a_folder_that_holds_something_is_left_alone(folder):
    before = (folder / JSON).read_bytes()
    with pytest.raises(GuardError, match="name a new folder"):
        calibrated().save(folder)
    assert (folder / JSON).read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["guard"]


def changed(folder: Path, change) -> None:
    record = json.loads((folder / JSON).read_text())
    change(record)
    (folder / JSON).write_text(json.dumps(record))


BROKEN = {
    "no folder": (lambda f: shutil.rmtree(f), "holds no guard.json"),
    "no json": (lambda f: (f / JSON).unlink(), "holds no guard.json"),
    "cut json": (
        lambda f: (f / JSON).write_text((f / JSON).read_text()[:200]),
        "not a whole guard file",
    ),
    "other json": (lambda f: (f / JSON).write_text('{"a": 1}'), "not a whole guard file"),
    "newer": (
        lambda f: changed(f, lambda r: r.update(schema_version=2)),
        r"this version \(field schema_version\)",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cut short or changed"),
    "cut weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-7]),
        "cut short or changed",
    ),
    "head gone": (lambda f: changed(f, lambda r: r["heads"].pop("harm")), "not a whole guard of"),
    "other weights": (
        lambda f: changed(f, lambda r: r["model"].update(weights_sha256="0")),
        "builtin:chat has other weights",
    ),
    "other template": (
        lambda f: changed(f, lambda r: r["model"].update(template_sha256="0")),
        "another chat template",
    ),
    "other tokenizer": (
        lambda f: changed(f, lambda r: r["model"].update(tokenizer_sha256="0")),
        "another tokenizer",
    ),
    "other precision": (
        lambda f: changed(f, lambda r: r["model"].update(dtype="bfloat16")),
        r"another precision \(float32 for bfloat16\)",
    ),
    "no canary": (lambda f: changed(f, lambda r: r.update(canary={})), r"\(field canary"),
    "no axis": (lambda f: changed(f, lambda r: r["heads"].pop("refuse")), "not a whole guard of"),
    "no rows": (lambda f: changed(f, lambda r: r.update(rows=[1])), "not a whole guard of"),
    "no points": (
        lambda f: changed(f, lambda r: r["calibration"].update(points=[])),
        r"field calibration\.points",
    ),
    "no model": (lambda f: changed(f, lambda r: r.update(model={})), r"field model"),
    "other anchors": (
        lambda f: changed(f, lambda r: r.update(anchors=["bos", "prompt_last"])),
        "anchors do not agree",
    ),
    "canary": (
        lambda f: changed(f, lambda r: r["canary"]["scores"][3].__setitem__(0, 0.9)),
        "canary",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_whole_or_not_this_models_is_refused(copy, kind):
    mutate, words = BROKEN[kind]
    mutate(copy)
    with pytest.raises(GuardError, match=words) as error:
        BeliefGuard.load(copy, chat())
    assert "\n" not in str(error.value)


def test_another_model_is_refused(folder):
    with pytest.raises(GuardError, match="fitted to builtin:chat, and builtin:reasoner has"):
        BeliefGuard.load(folder, ChatModel.load("builtin:reasoner"))


def test_the_canary_hears_what_the_hash_does_not(folder):
    """A weight that is changed after the hash was taken, as a merged adapter would."""
    other = ChatModel.load("builtin:chat")
    marks = other.fingerprint
    with torch.no_grad():
        other.anatomy.layers[0].mlp.down_proj.weight.mul_(1.05)
    assert other.fingerprint is marks
    with pytest.raises(GuardError, match="canary prompt scores"):
        BeliefGuard.load(folder, other)


def test_nothing_in_the_folder_names_a_path_or_a_prompt(folder):
    text = (folder / JSON).read_text()
    assert str(Path(__file__).parent) not in text
    for prompt in [*sides()["select"][0], *sides()["select"][1]]:
        assert prompt.text not in text


def test_a_folder_of_other_arrays_is_no_guard(copy):
    tensors = load_file(copy / WEIGHTS)
    save_file({f"x/{name}": tensor for name, tensor in tensors.items()}, copy / WEIGHTS)
    digest = hashlib.sha256((copy / WEIGHTS).read_bytes()).hexdigest()
    changed(copy, lambda r: r.update(tensors_sha256=digest))
    with pytest.raises(GuardError, match="not a whole guard of this version"):
        BeliefGuard.load(copy, chat())


def test_a_saved_folder_is_whole_or_absent(tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refusalscope.guard.folder.os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrated().save(tmp_path / "guard")
    assert list(tmp_path.iterdir()) == []


def test_rates_by_source_are_kept(tmp_path):
    harmful, harmless = (
        [replace(p, source=f"s{i % 2}") for i, p in enumerate(side)] for side in sides()["select"]
    )
    guard = fitted().calibrate(harmless, harmful)
    rates = BeliefGuard.load(guard.save(tmp_path / "guard"), chat()).point().rates
    assert {(rate.label, rate.source) for rate in rates} == {
        (label, source) for label in ("harmful", "harmless") for source in ("all", "s0", "s1")
    }
    assert sum(r.n for r in rates if r.label == "harmless" and r.source != "all") == len(harmless)


def test_a_score_that_is_no_number_never_passes_the_canary(folder, monkeypatch):
    real = BeliefGuard.read

    def broken(self, prompts, progress=None):
        readings, tokens = real(self, prompts, progress)
        return replace(readings, harmful=readings.harmful * np.nan), tokens

    monkeypatch.setattr(BeliefGuard, "read", broken)
    with pytest.raises(GuardError, match="canary prompt scores nan"):
        BeliefGuard.load(folder, chat())


def test_the_place_of_a_local_model_is_not_kept(tmp_path):
    place = shutil.copytree(BUILTIN["chat"], tmp_path / "secret" / "mine")
    model = ChatModel.load(str(place))
    guard = BeliefGuard("centroid", max_new_tokens=4).fit(
        model, *(side[:12] for side in sides()["fit"])
    )
    saved = guard.save(tmp_path / "guard")
    assert (read_record(saved).model.id, read_record(saved).model.local) == ("mine", True)
    assert "secret" not in (saved / JSON).read_text()
    with pytest.raises(GuardError, match="folder called 'mine'; give its place with --model"):
        open_guard(saved)
    assert open_guard(saved, str(place)).rows_ == guard.rows_
