"""The belief study on the organism whose two beliefs were planted: what it says is what was planted."""

from __future__ import annotations

import pytest

from refusalscope import study_belief
from refusalscope.front import default_splits
from refusalscope.organisms.planted import build_two_beliefs
from refusalscope.runs import RunView
from refusalscope.studies.directions.belief_settings import preset

# The organism is trained on demand and held by the process.
pytestmark = pytest.mark.xdist_group("two-beliefs")
QUADRANTS = {
    "harmful refused": "coherent harmful",
    "harmful accepted": "suppressed refusal",
    "harmless refused": "over-refusal",
    "harmless accepted": "coherent harmless",
}
SMALL = {
    "steer_rows": (2,),
    "steer_scale": 1.2,
    "n_steer": 16,
    "n_random": 2,
    "n_invert": 16,
    "max_new_tokens": 3,
    "n_resamples": 100,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunView:
    return study_belief(
        "builtin:two-beliefs",
        settings=preset("recommended", **SMALL),
        out=tmp_path_factory.mktemp("runs") / "run",
    )


def test_its_own_sets_are_the_splits():
    sets, found = build_two_beliefs().sets, default_splits("builtin:two-beliefs")
    assert found is not None
    assert {name: each.items for name, each in found.items()} == {
        "fit": sets["fit"].items,
        "select": sets["calibrate"].items,
        "report": sets["report"].items,
    }
    assert default_splits("builtin:chat") is None


def test_every_cluster_is_full_and_lies_in_its_quadrant(run):
    prompts = run.table("belief.prompts")
    assert prompts["cluster"].value_counts().to_dict() == dict.fromkeys(QUADRANTS, 50)
    assert (prompts["cluster"].map(QUADRANTS) == prompts["quadrant"]).mean() > 0.97


def test_harm_is_read_at_the_last_token_and_refusal_at_the_end(run):
    table = run.table("belief.clusters").query("behaviour == 'full template' and layer > 0")
    for position, positive in (("t_inst", "harmful"), ("t_post", "refused")):
        inner = table[(table["position"] == position) & (table["layer"] < table["layer"].max())]
        held = inner["cluster"].str.contains(positive)
        assert (inner.loc[held, "low"] > 0.3).all()
        assert (inner.loc[~held, "high"] < -0.3).all()


def test_the_tokens_of_the_request_separate_and_those_of_the_reply_do_not(run):
    table = run.table("belief.positions").query("behaviour == 'full template'")
    said = table.groupby("position")["separates"].first()
    assert said[0] == "yes"
    assert said.iloc[-1] == "no"


def test_no_cue_of_the_text_does_as_well_as_belief(run):
    table = run.table("belief.shortcuts").set_index("name")
    assert table.loc["belief (delta_harmful)", "auroc"] > 0.98
    assert not table["verdict"].str.startswith("as good as").any()
    assert table.loc["final punctuation", "auroc"] < 0.65


def test_categories_that_the_model_was_not_told_of_lie_within_random_ones(run):
    rows = run.table("belief.categories").query("total")
    assert (rows["shared_p"] > 0.05).all()
    assert (rows["to_others"] > 0.95).all()


def pushed(run, table: str, direction: str, positions: str):
    rows = run.table(table).query("label == 'harmless' and control == 'direction'")
    mine = rows[(rows["direction"] == direction) & (rows["positions"] == positions)]
    assert len(mine) == 1
    return mine.iloc[0]


def test_refusal_steers_and_harm_does_not(run):
    refuse, harm = (pushed(run, "belief.steering", name, "all") for name in ("refuse", "harm"))
    assert refuse["rate"] > 0.9
    assert refuse["change_low"] > 0
    assert harm["change_low"] < 0 < harm["change_high"]


def test_harm_turns_the_answer_on_harm_and_refusal_does_not(run):
    for positions in ("before_question", "all"):
        harm, refuse = (
            pushed(run, "belief.inversion", name, positions) for name in ("harm", "refuse")
        )
        assert harm["change_high"] < 0
        assert refuse["share_no"] == 1
        assert refuse["change_low"] < 0 < refuse["change_high"]


def test_the_page_shows_the_plane_and_the_shortcuts(run):
    page = (run.path / "report.html").read_text("utf-8")
    for name in ("figure-belief", "table-shortcuts", "table-belief-marks"):
        assert f'id="{name}"' in page
