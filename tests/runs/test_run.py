"""Creating a run and storing into it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from interrupted_work import start
from refusalscope.errors import RunError
from refusalscope.runs import Run, open_run
from refusalscope.runs.tables import frame_to_bytes


def test_a_new_run_has_the_folder_of_the_contract(tmp_path):
    run = start(tmp_path / "deep" / "run")
    run.update(model={"id": "builtin:chat"}, seeds={"split": 1})
    assert {p.name for p in run.path.iterdir()} == {"run.json", "tables", "arrays", "log.txt"}
    info = json.loads((run.path / "run.json").read_text())
    assert info["schema"] == 1
    assert info["status"] == "running"
    assert info["finished"] is None
    assert info["command"] == "audit"
    assert set(info["versions"]) == {"python", "torch", "transformers", "numpy"}
    assert info["settings"] == {"n": 6}
    assert info["inputs"] == {"model": "ab12"}
    assert info["model"] == {"id": "builtin:chat"}
    assert info["cost"] == {"forwards": 0, "token_layers": 0, "tokens": 0, "seconds": 0.0}
    run.finish()
    info = open_run(run.path).info
    assert (info["status"], info["finished"]) == ("finished", "2026-01-02T03:04:05+00:00")


def test_times_are_utc_and_seconds_add_up_over_a_resume(tmp_path):
    berlin = timezone(timedelta(hours=2))
    moments = iter(datetime(2026, 1, 1, 2, 0, second, tzinfo=berlin) for second in range(60))

    def tick():
        return next(moments)

    given = {"command": "c", "settings": {}, "inputs": {}, "clock": tick}
    run = Run.create(tmp_path, **given)
    assert run.info["started"] == "2026-01-01T00:00:00+00:00"
    first = run.info["cost"]["seconds"]
    again = Run.create(tmp_path, resume=True, **given)
    again.finish()
    assert again.info["cost"]["seconds"] > first > 0
    assert datetime.fromisoformat(again.info["finished"]).tzinfo == UTC


def test_a_folder_with_another_run_is_refused_with_the_way_out(tmp_path):
    start(tmp_path)
    with pytest.raises(RunError, match=r"'audit' started 2026.*another --out.*--resume"):
        start(tmp_path)


def test_a_folder_that_is_not_a_run_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunError, match="not empty and is not a run"):
            start(tmp_path, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_as_out_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        start(tmp_path / "file")
    with pytest.raises(RunError, match="a file, not a folder"):
        start(tmp_path / "file" / "run")


def test_a_resume_with_nothing_to_resume_starts(tmp_path):
    assert start(tmp_path / "new", resume=True).info["status"] == "running"


def test_a_damaged_run_json_is_named(tmp_path):
    start(tmp_path)
    for text in ('{"schema": 1', "[]", '{"schema": 1}', '{"schema": 99}', b"\xff\xfe"):
        (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(RunError, match=r"run\.json"):
            start(tmp_path, resume=True)
        with pytest.raises(RunError, match=r"run\.json"):
            open_run(tmp_path)


def test_settings_that_json_cannot_hold_are_refused_before_anything_is_made(tmp_path):
    for bad in (float("nan"), object()):
        with pytest.raises(RunError, match="settings"):
            start(tmp_path / "run", settings={"x": bad})
    assert not (tmp_path / "run").exists()


def test_a_warning_is_kept_once(tmp_path):
    run = start(tmp_path)
    for _ in range(2):
        run.warn("a token straddles instruction and template")
    assert open_run(tmp_path).info["warnings"] == ["a token straddles instruction and template"]
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"2026-01-02T03:04:05\+00:00 \S", line) for line in log)
    assert len([line for line in log if "straddles" in line]) == 1


def test_keys_of_its_own_cannot_be_set(tmp_path):
    run = start(tmp_path)
    with pytest.raises(RunError, match="'status'"):
        run.update(status="finished")
    assert not run.finished


def test_tables_come_back_as_they_were(tmp_path):
    frame = pd.DataFrame(
        {
            "id": ["a", None, "ü"],
            "layer": [1, 2, 3],
            "kl": [0.1, np.nan, -np.inf],
            "kept": [True, False, True],
            "n": pd.array([1, None, 3], dtype="Int64"),
        }
    )
    run = start(tmp_path)
    run.write_table("directions.candidates", frame)
    for reader in (run, open_run(tmp_path)):
        assert reader.has_table("directions.candidates")
        assert reader.tables() == ["directions.candidates"]
        pd.testing.assert_frame_equal(reader.table("directions.candidates"), frame)


cells = st.tuples(
    st.text(st.characters(codec="utf-8"), max_size=5), st.floats(allow_nan=False), st.booleans()
)


@settings(max_examples=50, deadline=None)
@given(st.lists(cells, min_size=1, max_size=20), st.data())
def test_equal_frames_give_equal_bytes_however_they_were_made(rows, data):
    columns = ["id", "x", "kept"]
    frame = pd.DataFrame(rows, columns=columns).astype({"id": "str"})
    cut = data.draw(st.integers(0, len(rows) - 1))
    parts = [frame.iloc[:cut], frame.iloc[cut:]]
    joined = pd.concat([p for p in parts if len(p)])
    joined.index = joined.index + 100
    assert frame_to_bytes(joined) == frame_to_bytes(frame)


def test_the_bytes_of_a_long_frame_do_not_depend_on_how_it_was_joined():
    ids = [f"prompt-{number % 700}" for number in range(5000)]
    frame = pd.DataFrame({"id": ids, "x": np.arange(5000.0)}).astype({"id": "str"})
    joined = pd.concat([frame.iloc[:1], frame.iloc[1:1500], frame.iloc[1500:]])
    assert frame_to_bytes(joined) == frame_to_bytes(frame)


@settings(max_examples=30, deadline=None)
@given(
    arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.float16]),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, array):
    run = Run.create(tmp_path_factory.mktemp("a"), command="c", settings={}, inputs={})
    run.write_array("a", {"plain": array, "turned": array.T})
    back = open_run(run.path).array("a")
    for key, value in (("plain", array), ("turned", array.T)):
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert back[key].tobytes() == value.tobytes()


def test_tensors_are_taken_as_they_are_and_bfloat16_is_widened(tmp_path):
    run = start(tmp_path)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    half = weight.detach().bfloat16()
    run.write_array("directions", {"w": weight, "turned": weight.T, "half": half})
    back = run.array("directions")
    assert run.has_array("directions")
    np.testing.assert_array_equal(back["w"], weight.detach().numpy())
    np.testing.assert_array_equal(back["turned"], weight.detach().numpy().T)
    np.testing.assert_array_equal(back["half"], half.float().numpy())


def test_arrays_of_objects_are_refused(tmp_path):
    with pytest.raises(RunError, match="expected numbers"):
        start(tmp_path).write_array("a", {"x": np.array([{}])})


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a..b", ".a", "a b"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    run = start(tmp_path)
    for store in (
        lambda: run.write_table(name, pd.DataFrame({"x": [1]})),
        lambda: run.write_array(name, {"x": np.zeros(1)}),
        lambda: run.shards(name),
    ):
        with pytest.raises(RunError, match="not a table or array name"):
            store()


def test_text_is_stored_only_when_it_is_asked_for(tmp_path):
    replies = pd.DataFrame({"id": ["a"], "reply": ["Sure, here is"]})
    run = start(tmp_path / "scores")
    with pytest.raises(RunError, match=r"'reply'.*--keep-text"):
        run.write_table("replies", replies)
    with pytest.raises(RunError, match=r"'reply'.*--keep-text"):
        run.shards("replies").write("a", replies)
    assert not list(run.path.rglob("*.parquet"))
    run.write_table("counts", pd.DataFrame({"reply": [3]}))
    keeps = start(tmp_path / "text", keep_text=True)
    keeps.write_table("replies", replies)
    assert keeps.keep_text
    assert open_run(keeps.path).info["keep_text"] is True


def test_a_frame_that_parquet_cannot_hold_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RunError, match="cannot be stored as Parquet"):
        start(tmp_path).write_table("t", pd.DataFrame({"x": [1, "a"]}))
