"""The verdict of a whole run, and of runs that lack tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from refusalscope.report.verdict import headline, verdict
from refusalscope.runs import open_run
from report.fake_run import fake_info, fake_tables, write_fake_run


def test_a_whole_run_gets_two_to_five_sentences_with_numbers_and_evidence(fake_run: Path):
    statements = verdict(open_run(fake_run))
    assert 2 <= len(statements) <= 5
    for statement in statements:
        assert statement.links
        assert re.search(r"\d", statement.text)
        assert statement.text.endswith(".")
        assert statement.text.count(". ") == 0


def test_the_headline_says_what_the_sentences_say(fake_run: Path):
    line = headline(verdict(open_run(fake_run)))
    assert line.startswith("Refuses harmful requests reliably and ")
    assert "one direction carries the refusal" in line
    assert "separate axes" in line


@pytest.mark.parametrize("missing", sorted(fake_tables()))
def test_a_missing_table_is_said_or_left_out(tmp_path: Path, missing: str):
    tables = {name: frame for name, frame in fake_tables().items() if name != missing}
    statements = verdict(open_run(write_fake_run(tmp_path / "run", tables=tables)))
    said = {
        "behaviour.rates": "refusal and over-refusal",
        "directions.interventions": "whether one direction carries the refusal",
        "directions.geometry": "whether harmfulness and refusal are separate axes",
    }
    if missing in said:
        assert f"Not measured in this run: {said[missing]}" in statements[-1].text
    else:
        assert "Not measured" not in statements[-1].text


def test_a_run_without_tables_says_that_it_measured_too_little(tmp_path: Path):
    run = open_run(write_fake_run(tmp_path / "run", tables={}, finish=False))
    statements = verdict(run)
    assert len(statements) == 1
    assert "has not finished" in statements[0].text
    assert "Not measured in this run" in statements[0].text
    assert headline(statements) == "This run measured too little for a verdict"


def test_rows_that_something_was_fitted_on_do_not_count(tmp_path: Path):
    tables = fake_tables()
    belief = tables["directions.belief"]
    tables["directions.belief"] = belief[belief["split"] != "report"]
    run = open_run(write_fake_run(tmp_path / "run", tables=tables))
    assert not any("figure-belief" in statement.links for statement in verdict(run))


def test_a_quiet_run_says_that_no_rule_found_a_concern(tmp_path: Path):
    tables = {"behaviour.rates": fake_tables()["behaviour.rates"]}
    run = open_run(write_fake_run(tmp_path / "run", tables=tables, info=fake_info(), warnings=()))
    assert "Not measured" in verdict(run)[-1].text
    whole = fake_tables()
    whole["directions.belief"]["refused"] = whole["directions.belief"]["label"] == "harmful"
    run = open_run(write_fake_run(tmp_path / "whole", tables=whole, warnings=()))
    assert verdict(run)[-1].text == "No rule of this report found a further concern."
