"""A killed run goes on where it stopped and ends as if nothing had happened."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import interrupted_work
from children import hear_interrupts
from interrupted_work import at_rename, start, work
from refusalscope.errors import RunError
from refusalscope.runs import Run, open_run

# run.json at the start, before "prompts" and before its table; six shards; and so on.
RENAMES = 15


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    work(folder, resume=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but the log, which tells its story."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "log.txt"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_the_count_of_renames_is_the_one_that_the_tests_below_go_through(tmp_path):
    renames = []
    with pytest.raises(ZeroDivisionError), at_rename(RENAMES, "after", lambda: 1 / 0):
        work(tmp_path / "last", resume=False)
    with at_rename(RENAMES + 1, "before", lambda: renames.append(1)):
        work(tmp_path / "none", resume=False)
    assert not renames


@pytest.mark.parametrize(
    ("name", "when", "number"),
    [
        ("SIGKILL", "before", 1),
        ("SIGKILL", "after", 2),
        ("SIGKILL", "before", 3),
        ("SIGKILL", "before", 6),
        ("SIGKILL", "after", 9),
        ("SIGKILL", "before", 12),
        ("SIGKILL", "after", 13),
        ("SIGKILL", "before", 15),
        ("SIGKILL", "after", 15),
        ("SIGINT", "before", 5),
        ("SIGINT", "after", 11),
    ],
)
def test_a_process_killed_in_the_middle_resumes_to_the_same_files(
    tmp_path, whole, name, when, number
):
    folder = tmp_path / "run"
    script = [sys.executable, interrupted_work.__file__, str(folder), name, when, str(number)]
    child = subprocess.run(
        script,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=hear_interrupts,
    )
    assert child.returncode == -signal.Signals[name], child.stderr

    left = list(folder.rglob(".*.tmp"))
    assert bool(left) == (name == "SIGKILL" and when == "before")
    work(folder, resume=True)
    assert contents(folder) == contents(whole)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, RENAMES), st.sampled_from(["before", "after"])), max_size=4)
)
def test_any_row_of_interruptions_leaves_the_tables_and_the_cost_of_one_whole_run(
    tmp_path_factory, whole, interruptions
):
    folder = tmp_path_factory.mktemp("cut") / "run"

    def interrupt():
        raise KeyboardInterrupt

    for number, when in interruptions:
        try:
            with at_rename(number, when, interrupt):
                work(folder, resume=True)
        except KeyboardInterrupt:
            assert not list(folder.rglob(".*.tmp"))
    work(folder, resume=True)
    assert contents(folder) == contents(whole)
    shutil.rmtree(folder)


def test_the_cost_is_the_work_behind_the_results(whole):
    info = open_run(whole).info
    assert info["cost"] == {"forwards": 16, "token_layers": 42, "tokens": 30, "seconds": 0.0}
    assert info["cost_by"]["shards/directions.candidates"]["forwards"] == 12
    assert info["cost_by"]["tables/prompts"]["forwards"] == 3


def test_work_cut_off_before_its_table_is_not_counted_and_leaves_no_temporary_file(tmp_path):
    class Killed(BaseException):
        pass

    def kill():
        (tmp_path / "tables" / ".0123456789abcdef.tmp").touch()
        raise Killed

    run = start(tmp_path)
    run.add_cost(forwards=5)
    with pytest.raises(Killed), at_rename(2, "before", kill):
        run.write_table("t", pd.DataFrame({"a": [1]}))
    assert list(tmp_path.rglob(".*.tmp"))
    again = start(tmp_path, resume=True)
    assert not list(tmp_path.rglob(".*.tmp"))
    assert open_run(tmp_path).info["cost"]["forwards"] == 0
    assert not again.has_table("t")


def test_a_stage_repeated_after_a_resume_counts_once_and_one_process_writing_twice_adds(tmp_path):
    frame = pd.DataFrame({"a": [1]})
    run = start(tmp_path)
    run.add_cost(forwards=5)
    run.write_table("t", frame)
    run = start(tmp_path, resume=True)
    run.add_cost(forwards=5)
    run.write_table("t", frame)
    assert run.info["cost"]["forwards"] == 5
    run.add_cost(forwards=2)
    run.write_table("t", frame)
    assert open_run(tmp_path).info["cost"]["forwards"] == 7


def test_a_finished_run_resumed_says_so_and_changes_nothing(tmp_path):
    work(tmp_path, resume=False)
    before = contents(tmp_path), (tmp_path / "log.txt").read_bytes()
    run = start(tmp_path, resume=True)
    assert run.finished
    run.finish()
    for change in (
        lambda: run.write_table("t", pd.DataFrame({"a": [1]})),
        lambda: run.warn("late"),
        lambda: run.update(model={}),
        lambda: run.add_cost(forwards=1),
        lambda: run.shards("t"),
        lambda: run.log("late"),
    ):
        with pytest.raises(RunError, match="finished"):
            change()
    assert (contents(tmp_path), (tmp_path / "log.txt").read_bytes()) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"n": 7}}, "settings.n is 6 in the run and 7 now"),
        ({"settings": {}}, "settings.n is 6 in the run and is not given now"),
        ({"settings": {"n": 6, "m": [1]}}, r"settings.m is \[1\] now and is not in the run"),
        ({"inputs": {"model": "cd34"}}, 'inputs.model is "ab12" in the run and "cd34" now'),
        ({"keep_text": True}, "keep_text is false in the run and true now"),
    ],
)
def test_a_resume_with_something_else_names_the_first_difference(tmp_path, changes, words):
    start(tmp_path)
    with pytest.raises(RunError, match=words):
        start(tmp_path, resume=True, **changes)


def test_a_difference_deep_inside_a_list_is_named(tmp_path):
    start(tmp_path, inputs={"sources": [{"sha256": "a"}, {"sha256": "b"}]})
    with pytest.raises(RunError, match=r"inputs.sources\[1\].sha256"):
        start(tmp_path, resume=True, inputs={"sources": [{"sha256": "a"}, {"sha256": "c"}]})


def test_tuples_in_settings_do_not_hinder_a_resume(tmp_path):
    start(tmp_path, settings={"layers": (1, 2)})
    assert not start(tmp_path, resume=True, settings={"layers": (1, 2)}).finished


def test_a_resume_with_other_software_is_warned_of(tmp_path, monkeypatch):
    start(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert "other software" in start(tmp_path, resume=True).info["warnings"][0]


def test_two_processes_cannot_write_one_run(tmp_path):
    run = start(tmp_path)
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from interrupted_work import start\n"
        "start(Path(sys.argv[1]), resume=True)\n"
    )
    tests = Path(interrupted_work.__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(tests)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Another process is writing the run" in child.stderr
    run.finish()


def test_shards_come_back_in_the_order_in_which_the_keys_were_named(tmp_path):
    run = start(tmp_path)
    shards = run.shards("t")
    for key in "ca":
        shards.write(key, pd.DataFrame({"key": [key]}))
    again = start(tmp_path, resume=True).shards("t")
    for key in "abc":
        if not again.done(key):
            again.write(key, pd.DataFrame({"key": [key]}))
    assert list(again.collect()["key"]) == ["a", "b", "c"]


def test_shards_that_are_not_all_done_cannot_be_collected(tmp_path):
    shards = start(tmp_path).shards("t")
    with pytest.raises(RunError, match="no shard was named"):
        shards.collect()
    shards.write("a", pd.DataFrame({"x": [1]}))
    assert not shards.done("b")
    with pytest.raises(RunError, match="'b' is not done"):
        shards.collect()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=5, unique=True))
@example(["a/b", "a_b", "a%2Fb", ".", "..", "", "\0", "x" * 300, "x" * 299 + "y", "ü" * 90])
def test_any_text_is_a_shard_key_and_no_two_meet(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("keys")
    shards = Run.create(folder, command="c", settings={}, inputs={}).shards("t")
    for number, key in enumerate(keys):
        assert not shards.done(key)
        shards.write(key, pd.DataFrame({"number": [number]}))
    assert list(shards.collect()["number"]) == list(range(len(keys)))
    assert {p.parent.name for p in folder.rglob("*.parquet")} == {"t"}


def test_an_empty_shard_does_not_change_the_types_of_the_others(tmp_path):
    shards = start(tmp_path).shards("t")
    shards.write("a", pd.DataFrame({"x": []}))
    shards.write("b", pd.DataFrame({"x": [1, 2]}))
    assert shards.collect()["x"].dtype == "int64"
