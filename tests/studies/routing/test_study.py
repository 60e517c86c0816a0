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
from refusalscope.model import ChatModel, LogitDifference, RefusalMargin
from refusalscope.organisms.planted import build
from refusalscope.prompts import PairSet
from refusalscope.prompts.sets import Pair
from refusalscope.prompts.wrappers import Wrapper
from refusalscope.runs import Run
from refusalscope.studies.routing import (
    describe,
    detection,
    find,
    preset,
    run_drift,
    run_routing,
    trials,
)
from studies.routing.test_problem import planted, subject_of

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
    """Every stage on the base model."""
    subject, pairs = planted(n=10, fit=4)
    return done(subject, pairs, preset("recommended", **FULL))


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
    subject, _ = planted(n=10, fit=4)
    kept = full().arrays["routing.detection"]
    want = detection(subject.chat, subject.rendered[:8:2], subject.rendered[1:8:2])
    assert kept["layer"].tolist() == [want.layer]
    np.testing.assert_allclose(kept["direction"], want.direction.numpy(), atol=1e-6)
    assert kept["residual_norm"] == pytest.approx(want.residual_norm)


def test_a_frame_of_words_changes_nothing_in_the_circuit():
    found = full()
    for name in ("cipher", "contrast", "collapse", "rescue"):
        assert set(found.tables[f"routing.{name}"]["wrapper"]) == {"polite"}
    assert not found.tables["routing.collapse"]["collapsed"].any()
    assert set(found.tables["routing.rescue"]["gate"]) == {"L3.H1"}


def test_a_wrapper_that_cannot_be_used_is_left_out_and_said_to_be():
    """One is longer than the context; inside the other every word is unknown to this model."""
    subject, pairs = planted(n=8)
    settings = preset("recommended", **{**SMALL, "wrappers": ("letter_cipher",)})
    found = done(subject, pairs, settings, (LONG,))
    (told,) = found.warned("wrapper long was left out")
    assert "the model takes 1024" in told
    assert "\n" not in told
    assert len(found.warned("letter_cipher was left out", "the same tokens")) == 1
    assert not {f"routing.{name}" for name in TRIED} & set(found.tables)


def test_the_wrappers_that_can_be_used_are_tried_beside_one_that_cannot():
    subject, pairs = planted("no_circuit", 8)
    settings = preset("recommended", **{**SMALL, "wrappers": ("polite",)})
    found = done(subject, pairs, settings, (LONG,))
    assert len(found.warned("wrapper long was left out")) == 1
    assert set(found.tables["routing.cipher"]["wrapper"]) == {"polite"}


@pytest.mark.parametrize("alphas", [(0.0, 0.5), (0.0,)])
def test_doses_that_cannot_be_given_are_refused_before_any_work(alphas):
    with pytest.raises(InputError, match=r"alphas|dose"):
        preset("recommended", alphas=alphas)


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


def test_heads_that_write_the_same_in_both_conditions_are_static():
    found = {head for head, role in full().roles.items() if role == "static"}
    # The planted suppressor is silent here, but for 3.4 % that the noise of its weights writes throughout.
    assert found == {*STATIC, (6, 5)}


@cache
def backup(redundancy=2):
    subject, pairs = planted("backup", 12, redundancy=redundancy)
    return done(subject, pairs, preset("recommended", **{**SMALL, "window": 2}))


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
    columns = found.tables["routing.cascade"].columns
    assert set(CONTRACT["routing.cascade"].split()) <= set(columns)
    assert len(found.warned("no head circuit is claimed")) == 1
    assert len(found.warned("too few categories")) == 1


def test_without_a_circuit_the_trials_still_give_their_tables():
    subject, pairs = planted("no_circuit", 8, fit=4)
    trials_too = {"wrappers": ("polite",), "alphas": (0.0, 0.5), "judged_alphas": (0.0,)}
    found = done(subject, pairs, preset("recommended", **{**SMALL, **trials_too}))
    assert len(found.tables["routing.cipher"]) == 4 * 64
    for name in ("collapse", "rescue"):
        assert len(found.tables[f"routing.{name}"]) == 0
    assert len(found.tables["routing.dose"])


# Warnings


def test_members_of_very_unequal_length_are_named():
    found = small("long_prefix", n=8, prefix=24)
    (told,) = found.warned("very unequal length")
    assert told.startswith("8 of 8 pairs")
    assert "'pair-000/harmful'" in told
    assert found.roles[GATE] == "gate"
    assert found.heads("necessity")[GATE] == pytest.approx(0.83, abs=0.03)
    assert not small("no_circuit").warned("unequal")


def test_categories_and_donors_are_warned_of_where_they_are_too_few():
    subject, pairs = planted(n=8)
    bare = PairSet(tuple(replace(pair, category=None) for pair in pairs))
    found = done(subject, bare, preset("recommended", **{**SMALL, "donors": 1}))
    assert len(found.warned("too few categories", "six or more")) == 1
    assert len(found.warned("one donor")) == 1
    assert not full().warned("categories")
    assert not full().warned("donor")
    assert found.heads("role")[GATE] == "gate"


def test_without_a_margin_nothing_is_claimed():
    subject, pairs = planted(n=8)
    found = done(replace(subject, margin=None), pairs, preset("recommended", **SMALL))
    assert found.tables == {}
    assert len(found.warned("could not be told apart")) == 1


# Hybrids


ROOMS = (
    "kitchen",
    "garden",
    "cellar",
    "attic",
    "hall",
    "office",
    "garage",
    "stable",
    "tower",
    "yard",
)
MILD = ("bake bread", "open a locked door", "write a poem", "explain the sea")


def hybrid():
    """A random model with layers that have no heads, and the two tokens that tell its pairs apart best."""
    chat = ChatModel.wrap(tiny.model("qwen3_next"), tiny.tokenizer(), id="hybrid")
    items = [
        Pair(
            f"p{i}",
            f"Tell me how to {MILD[i % 4]} in the {room}, please!",
            f"Tell me why to {MILD[(i + 1) % 4]} in the {room}, please.",
            f"c{i % 6}",
        )
        for i, room in enumerate((*ROOMS, "cave", "barn"))
    ]
    pairs = PairSet(tuple(items))
    rendered = chat.render(pairs.prompts())
    tokens = range(10, 300)
    metrics = {str(token): LogitDifference(token, 7) for token in tokens}
    scores = chat.measure(rendered, [()], metrics).scores
    change = [(scores[str(t)][::2, 0] - scores[str(t)][1::2, 0]).mean() for t in tokens]
    margin = RefusalMargin((tokens[int(np.argmax(change))],), (tokens[int(np.argmin(change))],))
    return subject_of(chat, pairs, margin, fit=4, judge="text"), pairs[4:]


def test_a_model_with_layers_without_heads_is_studied_whole():
    subject, pairs = hybrid()
    found = done(subject, pairs, preset("recommended", **FULL))
    table = found.tables["routing.heads"]
    assert len(table) == 2 + 2 * 4
    assert set(table.loc[table["head"] == -1, "layer"]) == {0, 2}
    assert table["necessity"].notna().all()
    assert table["dla"].notna().all()
    note = found.tables["routing.coverage"]["note"].iloc[0]
    assert note == "8 heads of 2 layers; one unit each: L0, L2"
    assert set(FOUND) <= {key.removeprefix("routing.") for key in found.tables}
    assert set(found.tables["routing.cipher"]["layer"]) == {1, 3}
    assert len(found.tables["routing.dose"])


# Resume


class Stopped(Exception):
    """What stands in for a killed process."""


RESUMED = {
    **{**FULL, "wrappers": ("polite", "hypothetical"), "max_new_tokens": 1},
    **{"donors": 2, "window": 1, "positions": "last", "all_position_layers": 0},
}
# What is stopped inside, and at which of its calls.
STAGES = [
    *((find, name, 1) for name in ("screen_all", "stability", "windows", "conditional")),
    *((find, "attribute", 2), (find, "measure_frozen", 1), (find, "drive", 2)),
    *((describe, "groups", 1), (describe, "cascade", 2), (describe, "with_replies", 1)),
    *((trials, "dose", 2), (trials, "measure_arms", 2), (trials, "rescue", 1)),
]


class Ended(NamedTuple):
    """The files of a run by name, as bytes, and what it says."""

    files: dict[str, bytes]
    warnings: list[str]
    cost: dict[str, int]


def files(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for kind in ("tables", "arrays")
        for file in sorted((path / kind).iterdir())
    }


def go_on(folder):
    """One process: it begins or resumes the run, and ends it unless something stops it."""
    subject, pairs = planted(n=8, fit=4)
    settings = preset("recommended", **RESUMED)
    run = start(folder, settings, resume=True)
    run_routing(run, subject, pairs, settings)
    run.finish()
    cost = {name: run.info["cost"][name] for name in ("forwards", "tokens", "token_layers")}
    return Ended(files(run.path), run.info["warnings"], cost)


@cache
def uninterrupted():
    with tempfile.TemporaryDirectory() as folder:
        return go_on(Path(folder) / "run")


@cache
def stopped_inside():
    with tempfile.TemporaryDirectory() as folder:
        for module, name, number in STAGES:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, name, stopping(getattr(module, name), number))
                with pytest.raises(Stopped):
                    go_on(Path(folder) / "run")
        return go_on(Path(folder) / "run")


def stopping(real, number):
    calls = []

    def stop(*args, **options):
        calls.append(1)
        if len(calls) == number:
            raise Stopped
        return real(*args, **options)

    return stop


def require_same(found):
    want = uninterrupted()
    assert list(found.files) == list(want.files)
    assert [name for name in want.files if found.files[name] != want.files[name]] == []
    assert found.warnings == want.warnings


def test_a_run_that_was_stopped_inside_every_stage_ends_as_one_that_was_not():
    require_same(stopped_inside())


@cache
def stopped_after_every_file():
    want, stops = uninterrupted(), []

    def stop_once(real):
        def write(self, name, *args):
            known = name in (*self.tables(), *self.arrays())
            real(self, name, *args)
            if not known:
                stops.append(name)
                raise Stopped

        return write

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for method in ("write_table", "write_array"):
            patch.setattr(Run, method, stop_once(getattr(Run, method)))
        for _ in want.files:
            with pytest.raises(Stopped):
                go_on(Path(folder) / "run")
        assert len(set(stops)) == len(stops) == len(want.files)
        return go_on(Path(folder) / "run")


def test_a_run_that_was_stopped_after_every_file_ends_as_one_that_was_not():
    require_same(stopped_after_every_file())


@pytest.mark.parametrize("stopped", [stopped_inside, stopped_after_every_file])
def test_a_run_that_was_stopped_counts_all_that_it_kept(stopped):
    assert stopped().cost == uninterrupted().cost


def test_a_finished_study_is_not_run_again(tmp_path):
    subject, pairs = planted("no_circuit", 8)
    settings = preset("recommended", **SMALL)
    run = start(tmp_path / "run", settings)
    run_routing(run, subject, pairs, settings)
    before, spent = files(run.path), subject.chat.cost.token_layers
    run_routing(run, subject, pairs, settings)
    assert files(run.path) == before
    assert subject.chat.cost.token_layers == spent


# The published procedure


def test_the_published_preset_writes_its_tables_and_says_what_it_is():
    subject, pairs = planted(n=8)
    settings = preset("frank2026", candidates=6, interchanged=3)
    found = done(subject, pairs, settings)
    assert set(found.tables) == {
        f"routing.{name}"
        for name in ("candidates", "ablation", "cascade", "gap", "coverage", "heads")
    }
    heads = found.tables["routing.heads"]
    assert len(heads) == 3
    assert set(CONTRACT["routing.heads"].split()) <= set(heads.columns)
    assert set(heads["map"]) == {"compat_left"}
    assert not heads["passes"].any()
    assert heads["p_familywise"].isna().all()
    assert set(heads["role"]) == {""}
    cascade = found.tables["routing.cascade"]
    assert set(CONTRACT["routing.cascade"].split()) <= set(cascade.columns)
    top = heads.iloc[heads["necessity"].argmax()]
    # Shares of the gap, not percent; left alignment does no harm where both members are of one length.
    assert 0.2 < top["necessity"] < 1.2
    assert heads["sufficiency"].abs().max() < 2
    assert set(cascade["gate"]) == {f"L{top['layer']}.H{top['head']}"}
    assert cascade["change"].abs().max() < 5
    gap = found.tables["routing.gap"].iloc[0]
    assert (gap["metric"], gap["n"]) == ("nll", 8)
    assert gap["gap"] > 1
    coverage = found.tables["routing.coverage"].iloc[0]
    assert (coverage["heads"], coverage["of"]) == (3, 64)
    (told,) = found.warned("as published")
    assert "--preset recommended" in told
    assert found.cost["forwards"] > 8 * 3 * 4


def test_the_published_preset_needs_replies_to_score(monkeypatch):
    subject, pairs = planted(n=8)
    monkeypatch.setattr(ChatModel, "generate", lambda self, prompts, **options: [[]] * len(prompts))
    found = done(subject, pairs, preset("frank2026", candidates=6, interchanged=3))
    assert found.tables == {}
    assert len(found.warned("reply is empty")) == 1


# Drift


def drifted(subject, other, pairs, settings):
    with tempfile.TemporaryDirectory() as folder:
        run = start(Path(folder) / "run", settings)
        run_drift(run, subject, other, pairs, settings)
        run.finish()
        return read(run)


def test_drift_says_which_heads_moved():
    subject, pairs = planted()
    other = build("planted-routes", "relocated")
    moved_to = ChatModel.wrap(other.model, other.tokenizer, id="relocated")
    found = drifted(subject, moved_to, pairs, preset("recommended", **PLAIN))
    table = found.tables["routing.moved"].set_index(["layer", "head"])
    assert set(table.index[table["moved"]]) >= {GATE, (2, 4)}
    by_size = table["change"].abs().nlargest(2)
    assert set(by_size.index) == {GATE, (2, 4)}
    assert table.loc[GATE, "change"] < -0.7
    assert table.loc[(2, 4), "change"] > 0.7
    assert not table.loc[DETECTOR, "moved"]
    (row,) = found.tables["routing.drift"].to_dict("records")
    assert (row["first"], row["second"], row["n"]) == ("base", "relocated", 12)
    assert row["rbo"] < 1
    assert found.cost["token_layers"] > 0


def test_nothing_moves_between_a_checkpoint_and_itself():
    subject, pairs = planted()
    found = drifted(subject, subject.chat, pairs, preset("recommended", **PLAIN))
    assert not found.tables["routing.moved"]["moved"].any()
    assert found.tables["routing.drift"]["rbo"].iloc[0] == pytest.approx(1)


def test_a_model_of_another_shape_is_refused():
    subject, pairs = planted()
    other = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="other")
    with pytest.raises(
        InputError, match="base and other do not have the same layers and heads"
    ) as told:
        drifted(subject, other, pairs, preset("recommended", **PLAIN))
    assert "\n" not in str(told.value)


def with_other_template():
    organism = build("planted-routes", "base")
    organism.tokenizer.chat_template = organism.tokenizer.chat_template + "w1"
    return ChatModel.wrap(organism.model, organism.tokenizer, id="other")


def test_a_model_with_another_template_is_refused():
    subject, pairs = planted()
    with pytest.raises(
        InputError, match="other reads the prompts as other tokens than base"
    ) as told:
        drifted(subject, with_other_template(), pairs, preset("recommended", **PLAIN))
    assert "\n" not in str(told.value)


def test_a_model_with_another_template_is_refused_before_any_work():
    subject, pairs = planted()
    spent = subject.chat.cost.token_layers
    with pytest.raises(InputError, match="other tokens"):
        drifted(subject, with_other_template(), pairs, preset("recommended", **PLAIN))
    assert subject.chat.cost.token_layers == spent


def test_windows_are_swapped_at_the_places_of_the_main_screen(monkeypatch):
    subject, pairs = planted(n=8)
    places = []

    def look(*args, **options):
        places.append(options["positions"])
        raise Stopped

    monkeypatch.setattr(find, "windows", look)
    with pytest.raises(Stopped):
        done(subject, pairs, preset("recommended", **{**SMALL, "positions": "suffix+2"}))
    assert places == ["suffix+2"]
