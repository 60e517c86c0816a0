"""Reading a run: tables, arrays and SQL, and what is said when they are not there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from interrupted_work import start
from refusalscope.errors import RunError
from refusalscope.runs import RunView, open_run


@pytest.fixture
def view(tmp_path) -> RunView:
    run = start(tmp_path / "run")
    candidates = pd.DataFrame({"anchor": ["a", "b"], "layer": [1, 2], "chosen": [False, True]})
    run.write_table("directions.candidates", candidates)
    run.write_table("prompts", pd.DataFrame({"id": ["x"]}))
    run.write_array("directions", {"refusal": np.zeros(2)})
    run.finish()
    return open_run(str(run.path))


def test_a_view_lists_what_there_is(view):
    assert view.tables() == ["directions.candidates", "prompts"]
    assert view.arrays() == ["directions"]
    assert view.info["status"] == "finished"
    assert "2 tables" in repr(view)


def test_what_is_missing_is_told_with_what_there_is(view, tmp_path):
    with pytest.raises(RunError, match=r"no table 'nothing'.*directions.candidates, prompts"):
        view.table("nothing")
    with pytest.raises(RunError, match=r"no array '\.\./run'.*directions"):
        view.array("../run")
    with pytest.raises(RunError, match="not there"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run: it has no run.json"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="a file, not a folder"):
        open_run(view.path / "run.json")


def test_a_damaged_table_or_array_is_told_in_a_sentence(view):
    for path in [*view.path.rglob("*.parquet"), *view.path.rglob("*.safetensors")]:
        for content in (b"", b"PAR1 not really", path.read_bytes()[:-20]):
            path.write_bytes(content)
            read = view.table if path.suffix == ".parquet" else view.array
            with pytest.raises(RunError, match="damaged"):
                read(path.stem)
    with pytest.raises(RunError, match="damaged"):
        view.sql("select 1")


@pytest.mark.parametrize("name", ['"directions.candidates"', "directions_candidates"])
def test_sql_sees_a_dotted_table_quoted_or_with_an_underscore(view, name):
    result = view.sql(f"select anchor, layer from {name} where chosen")
    pd.testing.assert_frame_equal(result, pd.DataFrame({"anchor": ["b"], "layer": [2]}))


def test_a_table_named_with_the_underscore_wins_over_the_alias(tmp_path):
    run = start(tmp_path)
    for value, name in enumerate(["a.b", "a_b", "x.y_z", "x_y.z"]):
        run.write_table(name, pd.DataFrame({"v": [value]}))
    assert run.sql("select v from a_b").v[0] == 1
    assert run.sql('select v from "a.b"').v[0] == 0
    with pytest.raises(RunError, match="failed"):
        run.sql("select v from x_y_z")


@pytest.mark.parametrize(
    "statement",
    [
        "selec 1",
        "select * from nowhere",
        "select nothing from prompts",
        "select 1; select 2",
        "",
        "create table t (a int)",
        "drop view prompts",
        "set enable_external_access = true",
        "attach 'OUT/x.db'",
        "copy prompts to 'OUT/x.csv'",
        "install httpfs",
        "select * from 'RUN/tables/prompts.parquet'",
        "select * from read_text('RUN/run.json')",
        "select * from glob('RUN/*')",
        "select * from secret_frame",
        # A variable of the function that runs the query.
        "select * from data",
    ],
)
def test_sql_is_one_select_over_the_tables_and_reaches_nothing_else(view, tmp_path, statement):
    secret_frame = pd.DataFrame({"password": ["x"]})
    statement = statement.replace("RUN", str(view.path)).replace("OUT", str(tmp_path))
    with pytest.raises(RunError) as caught:
        view.sql(statement)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert len(secret_frame) == 1


def test_a_run_being_written_can_be_read(tmp_path):
    run = start(tmp_path)
    run.write_table("prompts", pd.DataFrame({"id": ["x"]}))
    assert open_run(tmp_path).info["status"] == "running"
    assert open_run(tmp_path).sql("from prompts").equals(run.table("prompts"))


def test_reading_a_run_does_not_load_torch():
    code = "import refusalscope.runs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
