"""A disk that is full or closed: one sentence, nothing lost, a resume that works."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import interrupted_work
from interrupted_work import start, work
from refusalscope.errors import RunError
from refusalscope.runs import open_run, write_atomic

FRAME = pd.DataFrame({"x": [1, 2]})


def full_disk(monkeypatch, at: int):
    """Fail the `at`-th write to the disk from now on, and all after it."""
    calls = 0

    def fsync(handle):
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_full_disk_is_one_sentence_and_earlier_tables_stay(tmp_path, monkeypatch, at):
    run = start(tmp_path)
    run.write_table("first", FRAME)
    with monkeypatch.context() as patch:
        full_disk(patch, at)
        with pytest.raises(RunError, match=r"disk is full.*--resume") as caught:
            run.write_table("second", FRAME)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".*.tmp"))
    pd.testing.assert_frame_equal(open_run(tmp_path).table("first"), FRAME)
    again = start(tmp_path, resume=True)
    again.write_table("second", FRAME)
    again.finish()
    assert open_run(tmp_path).tables() == ["first", "second"]


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 10, 13, 16, 19, 21, 24, 25, 27, 29, 30])
def test_a_disk_that_fills_at_any_write_leaves_a_run_that_resumes(tmp_path, monkeypatch, at):
    whole = work(tmp_path / "whole", resume=False)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, at)
        with pytest.raises(RunError, match="disk is full"):
            work(folder, resume=False)
    again = work(folder, resume=True)
    assert again.info == whole.info
    for name in whole.tables():
        pd.testing.assert_frame_equal(again.table(name), whole.table(name))


def test_a_finish_that_a_full_disk_refused_can_be_asked_again(tmp_path, monkeypatch):
    run = start(tmp_path)
    run.shards("t").write("a", FRAME, cost={"forwards": 4})
    run.add_cost(forwards=1)
    with monkeypatch.context() as patch:
        full_disk(patch, 1)
        with pytest.raises(RunError, match="disk is full"):
            run.finish()
    assert not run.finished
    run.warn("the disk was full")
    run.finish()
    assert open_run(tmp_path).info["cost"]["forwards"] == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_grow_is_told_and_closes_in_peace(tmp_path, recwarn):
    run = start(tmp_path)
    run.write_table("first", FRAME)
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(RunError, match="disk is full"):
        start(tmp_path, resume=True)
    (tmp_path / "log.txt").unlink()
    start(tmp_path, resume=True).finish()
    assert open_run(tmp_path).tables() == ["first"]
    assert not recwarn.list


def test_a_file_keeps_its_old_content_when_it_cannot_be_replaced(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_atomic(path, b"old")
    full_disk(monkeypatch, 1)
    with pytest.raises(RunError, match="disk is full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_really_full_file_system_is_survived(tmp_path):
    """A file system of 256 KiB in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    mount = [unshare, "-rm", "mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
    if unshare is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a small file system")
    tests = Path(interrupted_work.__file__).parent
    script = [
        *[unshare, "-rm", "sh", "-c"],
        'mount -t tmpfs -o size=256k none "$1" && shift && exec "$@"',
        *["sh", str(tmp_path), sys.executable, __file__, str(tmp_path / "run")],
    ]
    child = subprocess.run(
        script,
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == ["full", "intact", "resumed"]


def fill_and_resume(folder: Path) -> None:
    run = start(folder)
    run.write_table("first", FRAME)
    noise = pd.DataFrame({"x": np.random.default_rng(0).random(100_000)})
    try:
        run.write_table("large", noise)
    except RunError as error:
        print("full" if "disk is full" in str(error) else error)
    view = open_run(folder)
    print("intact" if view.tables() == ["first"] and view.table("first").equals(FRAME) else view)
    again = start(folder, resume=True)
    again.write_table("large", noise[:1000])
    again.finish()
    print("resumed" if open_run(folder).info["status"] == "finished" else again.info)


@pytest.fixture
def powerless():
    """Give up the rights of root, for whom no folder is closed, for the length of a test."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(tmp_path, powerless):
    closed = tmp_path / "closed"
    if os.geteuid() != 65534:
        closed.mkdir(mode=0o555)
    with pytest.raises(RunError, match=r"permission was denied.*--out"):
        start(closed / "run")


def test_a_run_that_becomes_unwritable_keeps_its_tables(tmp_path, monkeypatch):
    run = start(tmp_path)
    run.write_table("first", FRAME)

    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", denied)
        with pytest.raises(RunError, match="permission was denied"):
            run.write_table("second", FRAME)
    assert open_run(tmp_path).tables() == ["first"]


if __name__ == "__main__":
    fill_and_resume(Path(sys.argv[1]))
