"""The routing study end to end on planted models: its tables, roles, warnings, resume, and drift."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from model import tiny
from refusalscope.errors import InputError
from refusalscope.model import KL, ChatModel, LogitDifference, RefusalMargin
from refusalscope.organisms.planted import build
from refusalscope.prompts import PairSet
from refusalscope.prompts.sets import Pair
from refusalscope.prompts.wrappers import Wrapper, get_wrapper
from refusalscope.runs import Run
from refusalscope.studies.routing import describe, find, preset, run_drift, run_routing, study, trials
from studies.routing.test_problem import MARGIN, planted, subject_of

DETECTOR, GATE, BACKUP, TOPIC, DIRECT = (1, 2), (3, 1), (4, 2), (4, 7), (7, 0)
AMPLIFIERS = [(5, 0), (5, 3), (6, 2)]
STATIC = [(2, 6), (4, 5)]
PLAIN = {"alphas": (), "wrappers": (), "metrics": (), "n_flips": 300}
SMALL = {**PLAIN, "all_position_layers": 0, "window": 1, "held": 1, "n_gates": 1, "null_heads": 2}
FULL = {
    **{"n_flips": 300, "window": 2, "held": 1, "n_gates": 1, "null_heads": 2, "max_new_tokens": 2},
    **{"alphas": (0.0, 0.5), "judged_alphas": (0.0,), "wrappers": ("polite",)},
}
# ../shared/DESIGN.md, section 5.
CONTRACT = {
    "routing.heads": "layer head necessity necessity_low necessity_high sufficiency p_familywise dla role",
    "routing.cascade": "gate layer head change low high p",
    "routing.cipher": "arm layer head necessity dla",
    "routing.dose": "alpha category margin refused low high",
}
FOUND = (
    *("attribution", "cascade", "conditional", "coverage", "drive", "frozen", "gap", "groups"),
    *("heads", "metrics", "stability", "tests", "windows"),
)
TRIED = ("cipher", "collapse", "contrast", "dose", "rescue", "thresholds")
LONG = Wrapper("long", "much filler", "frame", before="w1 " * 1100)


class Finished(NamedTuple):
    """What a run holds when it is over."""

    tables: dict[str, pd.DataFrame]
    arrays: dict[str, dict]
    warnings: list[str]
    cost: dict

    def heads(self, column):
        table = self.tables["routing.heads"]
        places = zip(table["layer"], table["head"], strict=True)
        return dict(zip(places, table[column], strict=True))

    @property
    def roles(self):
        return {head: role for head, role in self.heads("role").items() if role}

    def warned(self, *words):
        return [text for text in self.warnings if all(word in text for word in words)]


def start(folder, settings, **options):
    given = settings.model_dump(mode="json")
    return Run.create(folder, command="routing", settings=given, inputs={}, **options)


def read(run):
    return Finished(
        {name: run.table(name) for name in run.tables()},
        {name: run.array(name) for name in run.arrays()},
        run.info["warnings"],
        run.info["cost"],
    )


def done(subject, pairs, settings, wrappers=()):
    with tempfile.TemporaryDirectory() as folder:
        run = start(Path(folder) / "run", settings)
        run_routing(run, subject, pairs, settings, wrappers=wrappers)
        run.finish()
        return read(run)


@cache
def full():
    """Every stage on the base model, beside a wrapper that its context is too short for."""
    subject, pairs = planted(n=10, fit=4)
    return done(subject, pairs, preset("recommended", **FULL), (LONG,))


@cache
def small(variant, n=12, seed=0, **options):
    subject, pairs = planted(variant, n, **options)
    return done(subject, pairs, preset("recommended", seed=seed, **SMALL))


# Tables


def test_every_table_is_there_and_no_other():
    found = full()
    assert set(found.tables) == {f"routing.{name}" for name in (*FOUND, *TRIED)}
    assert set(found.arrays) == {"routing.screens", "routing.detection"}
    assert not [name for name, table in found.tables.items() if not len(table)]


@pytest.mark.parametrize("name", CONTRACT)
def test_a_table_has_the_columns_that_others_rely_on(name):
    assert set(CONTRACT[name].split()) <= set(full().tables[name].columns)


def test_there_is_one_row_a_head_with_its_numbers():
    table = full().tables["routing.heads"]
    assert len(table) == 64
    assert not table.duplicated(["layer", "head"]).any()
    assert (table["necessity_low"] <= table["necessity"]).all()
    assert (table["necessity"] <= table["necessity_high"]).all()
    numbers = ["necessity", "sufficiency", "p_familywise", "dla", "direct", "necessity_all"]
    assert table[numbers].notna().all().all()
    assert set(table["map"]) == {"suffix"}
    assert table.loc[table["passes"], "frozen"].notna().all()
    assert table.loc[~table["passes"], "shown_by"].eq("").all()
    necessity = full().heads("necessity")
    assert necessity[GATE] == pytest.approx(0.83, abs=0.02)
    assert full().heads("sufficiency")[GATE] == pytest.approx(1.03, abs=0.05)
    halves = table[["necessity_first", "necessity_second"]].mean(axis=1)
    np.testing.assert_allclose(halves, table["necessity"], atol=0.01)


def test_the_tests_cover_every_head_of_every_map():
    found = full()
    assert found.tables["routing.tests"]["map"].value_counts().to_dict() == {
        "suffix": 64,
        "last": 64,
        "right": 64,
    }
    coverage = found.tables["routing.coverage"].set_index("map")
    assert coverage["heads"].to_dict() == {"suffix": 64, "last": 64, "all": 64}
    assert (coverage["of"] == 64).all()


def test_the_other_metrics_agree_on_the_gate():
    table = full().tables["routing.metrics"]
    assert set(table["metric"]) == {"kl", "probe", "nll"}
    assert table.groupby("metric").size().eq(64).all()
    for metric, rows in table.groupby("metric"):
        best = rows.loc[rows["necessity"].abs().nlargest(2).index]
        assert set(zip(best["layer"], best["head"], strict=True)) == {DETECTOR, GATE}
        assert (best["necessity"] > 0).all(), metric
    gaps = full().tables["routing.gap"].set_index("metric")
    assert set(gaps.index) == {"margin", "probe"}
    assert gaps.loc["margin", "gap"] == pytest.approx(8.1, abs=0.1)


def test_the_gate_is_taken_out_each_way_and_silences_its_amplifiers():
    table = full().tables["routing.cascade"]
    assert set(table["gate"]) == {"L3.H1"}
    assert set(table["knockout"]) == {"swap", "zero"}
    by_head = table.set_index(["knockout", "layer", "head"])
    for knockout in ("swap", "zero"):
        for head in AMPLIFIERS:
            assert by_head.loc[(knockout, *head), "held"] < -0.8
        assert abs(by_head.loc[(knockout, *DIRECT), "held"]) < 0.1


def test_the_sets_of_the_circuit_are_swapped_together():
    table = full().tables["routing.groups"].set_index("name")
    assert set(table["kind"]) == {"found", "routers", "pro", "window"}
    assert table.loc["found", "necessity"] == pytest.approx(1.0, abs=0.02)
    assert table.loc["pro", "n_heads"] == 4
    assert table.loc["L3-L3", "necessity"] == pytest.approx(0.83, abs=0.02)
    assert not table["hides"].any()


def test_the_dose_turns_refusal_round():
    table = full().tables["routing.dose"]
    every = table[(table["category"] == "all") & (table["language"] == "all")]
    margin = every.set_index(["arm", "alpha"])["margin"]
    assert margin["attenuate", 0.0] > 0 > margin["attenuate", 0.5]
    assert margin["amplify", 0.0] < 0
    refused = every.set_index(["arm", "alpha"])["refused"]
    assert (refused["attenuate", 0.0], refused["amplify", 0.0]) == (1, 0)
    assert set(full().tables["routing.thresholds"]["arm"]) == {"attenuate", "amplify"}
    detection = full().arrays["routing.detection"]
    assert detection["layer"].tolist() == [1]
    assert np.linalg.norm(detection["direction"]) == pytest.approx(1, abs=1e-5)


def test_a_frame_of_words_changes_nothing_in_the_circuit():
    found = full()
    for name in ("cipher", "contrast", "collapse", "rescue"):
        assert set(found.tables[f"routing.{name}"]["wrapper"]) == {"polite"}
    assert not found.tables["routing.collapse"]["collapsed"].any()
    assert set(found.tables["routing.rescue"]["gate"]) == {"L3.H1"}


def test_a_wrapper_that_cannot_be_used_is_left_out_and_said_to_be():
    (told,) = full().warned("wrapper long was left out")
    assert "the model takes 1024" in told
    assert "\n" not in told


def test_a_wrapper_in_which_both_members_read_alike_is_left_out_and_said_to_be():
    """This model knows no ciphered word: inside the wrapper every one is unknown."""
    subject, pairs = planted(n=8)
    found = done(subject, pairs, preset("recommended", **{**SMALL, "wrappers": ("letter_cipher",)}))
    assert len(found.warned("letter_cipher was left out", "the same tokens")) == 1
    assert "routing.cipher" not in found.tables


# Roles


def test_the_planted_circuit_is_found_with_its_roles_and_nothing_else():
    roles = {head: role for head, role in full().roles.items() if role != "static"}
    assert roles == {
        DETECTOR: "detector",
        GATE: "gate",
        TOPIC: "norm-only",
        DIRECT: "direct",
        **dict.fromkeys(AMPLIFIERS, "amplifier"),
    }
    table = full().tables["routing.heads"].set_index(["layer", "head"])
    assert table.loc[GATE, "why"].startswith("effect +0.8")
    assert (table.loc[GATE, "drives"], table.loc[GATE, "driven_by"]) == (3, 1)
    assert (table.loc[DETECTOR, "drives"], table.loc[DETECTOR, "driven_by"]) == (1, 0)
    assert table.loc[TOPIC, "frozen"] == pytest.approx(0.027, abs=0.01)
    assert not full().warned("Redundancy")


# A static head writes the same in both conditions, but its contributions are compared under each side's own
# final scale (.70 on harmful prompts, .97 on controls), so that nothing is ever alike within a tenth. With
# heads.assemble giving Evidence(control=row["harmful"] / gap - row["direct"]), which is what the control writes
# under the harmful prompt's scale, both are named.
@pytest.mark.xfail(strict=True, reason="heads.assemble compares static writes under two final scales")
def test_heads_that_write_the_same_in_both_conditions_are_static():
    assert {head for head, role in full().roles.items() if role == "static"} == set(STATIC)


@cache
def backup(redundancy=2):
    subject, pairs = planted("backup", 12, redundancy=redundancy)
    return done(subject, pairs, preset("recommended", **{**SMALL, "window": 3}))


def test_a_gate_with_a_backup_is_found_with_its_backup():
    found = backup()
    roles = found.roles
    assert (roles[GATE], roles[BACKUP], roles[DETECTOR]) == ("gate", "backup", "detector")
    assert {head for head, role in roles.items() if role == "amplifier"} == set(AMPLIFIERS)
    effect, held = found.heads("effect"), found.heads("conditional")
    for head in (GATE, BACKUP):
        assert abs(effect[head]) < 0.05
        assert held[head] > 0.8
    assert np.isnan(held[DETECTOR])
    (told,) = found.warned("Redundancy")
    assert "L3.H1" in told
    assert "L4.H2" in told
    hiding = found.tables["routing.groups"].query("hides")["name"]
    assert "L3-L4" in set(hiding)


def test_no_head_is_claimed_where_no_head_carries_anything():
    found = small("no_circuit")
    assert not found.heads("passes")[GATE]
    assert not any(found.heads("passes").values())
    assert not any(found.roles)
    assert found.tables["routing.heads"]["conditional"].isna().all()
    for name in ("frozen", "drive", "cascade"):
        assert len(found.tables[f"routing.{name}"]) == 0
    assert CONTRACT["routing.cascade"].split() <= list(found.tables["routing.cascade"].columns) or set(
        CONTRACT["routing.cascade"].split()
    ) <= set(found.tables["routing.cascade"].columns)
    assert len(found.warned("no head circuit is claimed")) == 1
    assert len(found.warned("too few categories")) == 1


def test_without_a_circuit_the_trials_still_give_their_tables():
    subject, pairs = planted("no_circuit", 8, fit=4)
    settings = preset("recommended", **{**SMALL, "wrappers": ("polite",), "alphas": (0.0, 0.5)})
    found = done(subject, pairs, settings)
    assert len(found.tables["routing.cipher"]) == 4 * 64
    for name in ("collapse", "rescue"):
        assert len(found.tables[f"routing.{name}"]) == 0
    assert len(found.tables["routing.dose"])
