"""What the verdict says of a routing run, and what it warns of."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refusalscope.report.numbers import NBSP
from refusalscope.report.routing_rules import carriers, reach, redundancy, uncovered, unseen
from refusalscope.report.routing_tables import GROUPS, HEADS, main_gap
from refusalscope.report.routing_worries import (
    deaf,
    last_layer,
    no_gap,
    norm_only,
    old_map,
    one_donor,
    partial,
    routing_worries,
    unsteady,
)
from refusalscope.report.verdict import headline, verdict
from refusalscope.runs import open_run
from report.fake_routing import Tables, fake_routing_tables, write_fake_routing


def words(text: str) -> str:
    return text.replace(NBSP, " ")


def said(run: Tables) -> str:
    return words(carriers(run.clean(HEADS), run.clean(GROUPS), main_gap(run)).text)


def test_the_verdict_names_gate_amplifiers_share_redundancy_and_what_was_not_seen(
    routing_run: Path,
):
    statements = verdict(open_run(routing_run))
    text = words(" ".join(statement.text for statement in statements))
    for part in (
        "8 heads carry refusal, of 48 heads looked at: gate L2.H4, amplifiers L5.H1 and L5.H4",
        "swapped together they carry 94 % (95 % interval 90 to 98 %)",
        "Redundancy was found in 2 of 10 groups: layers 1 to 2 swapped together carry 86 %",
        "Not looked at: all positions for 36 of 48 heads (only layers 6-7 were).",
    ):
        assert part in text
    assert text.count("Redundancy") + text.count("redundancy") == 1
    assert all(statement.text.count(". ") == 0 for statement in statements)
    line = words(headline(statements))
    assert line.startswith("Refusal runs through gate L2.H4 and 2 amplifiers; all 8 heads found")
    assert line.endswith("redundancy found")


def test_no_head_found_is_said_with_the_largest():
    run = Tables()
    run.held[HEADS] = run.held[HEADS].assign(passes=False, role="")
    assert "No single head was shown to carry refusal: none of 48 heads" in said(run)
    assert "L2.H4, 61 %" in said(run)


def test_too_few_pairs_earn_no_word():
    run = Tables()
    run.held["routing.gap"]["n"] = 19
    assert said(run) == ("Too few pairs (19) to say which heads carry refusal; 48 heads looked at.")
    run.held["routing.gap"]["n"] = 20
    assert "Too few" not in said(run)


def test_without_a_gate_or_a_joint_swap_both_are_said():
    run = Tables()
    run.held[HEADS]["role"] = run.held[HEADS]["role"].replace("gate", "chain")
    groups = run.held[GROUPS]
    run.held[GROUPS] = groups[groups["kind"] != "found"]
    assert "no gate, amplifiers" in said(run)
    assert "what they carry together was not measured" in said(run)
    statement = carriers(run.clean(HEADS), run.clean(GROUPS), None)
    assert statement.short == "8 heads carry refusal, none of them a gate"


def test_many_heads_of_a_role_are_counted_not_listed():
    run = Tables()
    run.held[HEADS] = run.held[HEADS].assign(passes=True, role="amplifier")
    assert re.search(r"amplifiers L\d\.H\d, L\d\.H\d, L\d\.H\d, L\d\.H\d and 44 more", said(run))


def test_redundancy_is_said_only_of_groups_that_hide():
    run = Tables()
    groups = run.clean(GROUPS)
    assert redundancy(None, groups).tone == "watch"
    calm = redundancy(None, groups.assign(hides=False))
    assert calm.text.startswith("No redundancy was found: none of 10 groups")
    assert redundancy(None, None) is None
    assert redundancy(None, groups.assign(necessity=np.nan)) is None


def test_everything_looked_at_is_said_too():
    run = Tables()
    coverage = run.held["routing.coverage"]
    run.held["routing.coverage"] = coverage.assign(heads=coverage["of"])
    assert unseen(run) == []
    assert "Every head was looked at under 3 position maps." in reach(run).text


def test_what_was_not_run_counts_as_not_looked_at():
    run = Tables()
    for name in ("routing.groups", "routing.drive", "routing.cascade", "routing.dose"):
        del run.held[name]
    text = reach(run).text
    for part in ("groups of heads, so redundancy", "what drives what (drive, cascade)", "dose"):
        assert part in text
    assert "ciphers" not in text
    only_last = pd.DataFrame({"map": ["last"], "heads": [48.0], "of": [48.0], "layers": [""]})
    assert uncovered(only_last) == [
        "the template's tail, for any head",
        "all positions, for any head",
    ]
    assert "no record" in uncovered(None)[0]


def test_a_gate_in_the_last_layer_is_named():
    heads = Tables().clean(HEADS)
    assert last_layer(heads, 8) is None
    run = Tables()
    run.held[HEADS]["role"] = run.held[HEADS]["role"].replace("direct", "gate")
    (concern, *_) = [c for c in routing_worries(run) if "last layer" in c.text]
    assert concern.tone == "bad"
    assert "L7.H4 is called a gate and lies in the last layer" in concern.text
    run.info["model"]["n_layers"] = 9
    assert not any("last layer" in c.text for c in routing_worries(run))
    top = heads.copy()
    top.loc[top["at"] == "L7.H4", "necessity"] = 0.99
    assert "cannot be a gate" in last_layer(top, 8).text


def test_the_published_map_is_named():
    heads = Tables().clean(HEADS)
    assert old_map(heads) is None
    concern = old_map(heads.assign(map="compat_left"))
    assert concern.tone == "bad"
    assert "the last token was not swapped" in concern.text


@pytest.mark.parametrize(("spread", "named"), [(0.0, True), (np.nan, True), (0.01, False)])
def test_one_donor_only_is_named(spread: float, named: bool):
    heads = Tables().clean(HEADS).assign(donor_sd=spread)
    assert (one_donor(heads) is not None) == named


@pytest.mark.parametrize(
    ("gap", "low", "named"),
    [(5.0, 4.0, False), (5.0, -0.1, True), (-1.0, np.nan, True), (5.0, np.nan, False)],
)
def test_a_gap_that_may_be_zero_is_named(gap: float, low: float, named: bool):
    row = {"gap": gap, "low": low, "high": 6.0, "unit": "nats"}
    assert (no_gap(row) is not None) == named


def test_heads_of_the_norm_and_unsteady_sets_are_named():
    heads = Tables().clean(HEADS)
    assert norm_only(heads) is None
    assert (
        "L2.H4 acts through the normalisation"
        in norm_only(heads.assign(role=heads["role"].replace("gate", "norm-only"))).text
    )
    stability = pd.DataFrame({"measure": ["halves", "donors"], "jaccard": [0.3, np.nan]})
    assert "changes over halves (Jaccard 0.30)" in unsteady(stability).text
    assert unsteady(stability.assign(jaccard=0.9)) is None


def test_a_cascade_within_its_noise_floor_is_named():
    cascade = Tables().clean("routing.cascade")
    assert deaf(cascade) is None
    quiet = cascade.assign(change=cascade["change"].where(~cascade["deeper"], 0.0001))
    assert "the cascade of L2.H4 changes no deeper head more" in deaf(quiet).text
    assert deaf(cascade[cascade["deeper"]]) is None


def test_a_run_without_routing_tables_has_no_routing_worries():
    assert routing_worries(Tables({})) == []


def test_a_gate_in_the_last_layer_is_not_counted_as_one(tmp_path: Path):
    tables = fake_routing_tables()
    heads = tables[HEADS]
    heads["role"] = heads["role"].replace("gate", "chain").replace("direct", "gate")
    statements = verdict(open_run(write_fake_routing(tmp_path / "run", tables=tables)))
    assert "no gate, amplifiers L5.H1 and L5.H4" in statements[0].text
    assert 'last-layer "gate" L7.H4' in statements[0].text
    assert "none of them a gate" in headline(statements)
    assert "lies in the last layer" in statements[-1].text


def test_a_run_without_groups_says_once_that_redundancy_was_not_looked_at(tmp_path: Path):
    tables = {name: frame for name, frame in fake_routing_tables().items() if name != GROUPS}
    statements = verdict(open_run(write_fake_routing(tmp_path / "run", tables=tables)))
    text = " ".join(statement.text for statement in statements)
    assert text.count("redundancy") == 1
    assert "stand in for each other" not in text


def test_coverage_without_a_record_is_a_concern_of_its_own():
    assert "no record of which heads" in partial(None).text
