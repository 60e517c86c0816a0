"""The cliff study end to end on planted models: its verdicts, tables, heads, splits, resume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import refusalscope.front
from refusalscope.cliff import measure_cliff
from refusalscope.runs import RunView
from refusalscope.studies.cliff.settings import preset
from studies.cliff.heads_case import INTENT, PROMOTER, STATIC, SUPPRESSORS
from studies.cliff.planted_case import subject

SMALL = {"n_flips": 200, "n_heads": 16, "draws": 2, "shares": (0.05,), "max_new_tokens": 2}
# Tables of a run that measured heads, with the columns that the report reads.
CONTRACT = {
    "verdict": "name value low high n verdict reason",
    "prompts": "id label category plateau plateau_p90 plateau_median final ms ms_p90 ms_median late drop p "
    "fall rank_ms rank_ms_p90 rank_final refused plateau_uncalibrated ms_uncalibrated cliff rank",
    "trace": "id position anchor score score_uncalibrated",
    "curve": "position n mean low high group",
    "separation": "position contrast auroc auroc_low auroc_high n probe",
    "probes": "probe norm bias harmful_refused harmful_complied harmless_refused harmless_complied "
    "words_auroc words_low words_high",
    "heads": "layer head published direct benign write_norm cliff cliff_low cliff_high contrast "
    "contrast_low contrast_high gap effect effect_low effect_high p_familywise effect_margin p_margin share "
    "p_categories passes role",
    "ablation": "arm share n_heads draw norm_ratio group n refused rate low high complied restored "
    "restored_rate restored_low restored_high margin logit score p_random",
    "behaviour": "arm share n_heads group n refused rate low high degenerate",
}
HEADS = ("heads", "ablation", "behaviour")


@pytest.fixture(autouse=True, scope="module")
def few_prompts():
    """A planted model by name comes with 240 prompts, not 640."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refusalscope.front, "PLANTED_PAIRS", 60)
        yield


def measure(out: Path, variant: str = "base", name: str = "recommended", **options) -> RunView:
    return measure_cliff(
        f"builtin:planted-cliff:{variant}", settings=preset(name, **SMALL), out=out, **options
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("shifted") / "run", "template_shift")


def verdict(view: RunView) -> str:
    (word,) = set(view.table("cliff.verdict")["verdict"])
    return word


def value(view: RunView, name: str) -> float:
    return view.table("cliff.verdict").set_index("name").loc[name, "value"]


def truth(variant: str = "base") -> pd.Series:
    """The planted group of every prompt, by id."""
    it = subject(variant)
    return pd.Series(it.groups, [trace.prompt.id for trace in it.traces])


def reported(view: RunView) -> set[str]:
    table = view.table("prompts")
    return set(table.loc[table["split"] == "report", "id"])


# Verdict


def test_the_planted_cliff_is_one_and_drops_at_the_first_closing_token(base):
    assert base.info["status"] == "finished"
    assert base.info["warnings"] == []
    assert (base.path / "report.html").is_file()
    assert verdict(base) == "cliff"
    assert value(base, "share") == 1
    assert value(base, "benign share") == 0
    assert value(base, "at closing[0]") > 0.8
    assert abs(value(base, "at closing[1]")) < 0.05
    # One of 41: no probe of nothing drops as far.
    assert value(base, "p against probes of nothing") == pytest.approx(1 / 41)


def test_the_planted_prompts_have_the_cliff_and_no_other(base):
    table = base.table("cliff.prompts").set_index("id")
    suppressed = truth()[table.index] == "suppressed"
    assert 20 < suppressed.sum() < len(table) - 20
    assert (table.loc[suppressed, "cliff"] > 0.5).all()
    assert (table.loc[~suppressed, "cliff"] < 0.2).all()
    assert not table.loc[suppressed, "refused"].any()
    worst = table.loc[suppressed].sort_values("rank").index
    assert set(table.sort_values("rank").index[: len(worst)]) == set(worst)


def test_a_template_shift_is_no_cliff_and_its_heads_are_not_measured(shifted):
    assert verdict(shifted) == "template shift"
    assert value(shifted, "shift") == 1
    assert value(shifted, "share") == 0
    assert shifted.info["status"] == "finished"
    assert (shifted.path / "report.html").is_file()
    (warning,) = shifted.info["warnings"]
    assert "Heads were not measured: 0 harmful traces" in warning
    assert "8 are needed" in warning
    mine = {name for name in shifted.tables() if name.startswith("cliff.")}
    assert mine == {f"cliff.{name}" for name in CONTRACT if name not in HEADS}


# Tables


@pytest.mark.parametrize("name", CONTRACT)
def test_a_table_has_the_columns_that_the_report_reads(base, name):
    table = base.table(f"cliff.{name}")
    assert set(CONTRACT[name].split()) <= set(table.columns)
    assert len(table)


def test_there_is_no_other_table(base):
    mine = {name for name in base.tables() if name.startswith("cliff.")}
    assert mine == {f"cliff.{name}" for name in CONTRACT}


def test_every_figure_is_of_the_report_split_alone(base):
    report = reported(base)
    assert report
    assert report < set(base.table("prompts")["id"])
    assert set(base.table("cliff.prompts")["id"]) == report
    assert set(base.table("cliff.trace")["id"]) == report
    separation = base.table("cliff.separation")
    assert separation["n"].max() <= len(report)
    fitted = base.table("cliff.probes").filter(regex="^harm").sum(axis=1)
    assert (fitted == (base.table("prompts")["split"] == "fit").sum()).all()


def test_a_curve_is_the_mean_of_the_scores_of_its_group(base):
    table = base.table("cliff.prompts").set_index("id")
    lost = table.index[(table["label"] == "harmful") & ~table["refused"]]
    scores = base.table("cliff.trace")
    mine = scores[scores["id"].isin(lost) & (scores["anchor"] != "prompt")]
    want = mine.groupby("position")["score"].mean()
    curve = base.table("cliff.curve")
    found = curve[curve["group"] == "harmful, complied"].set_index("position")
    assert found["mean"].sort_index().to_numpy() == pytest.approx(want.to_numpy())
    assert (found["n"] == len(lost)).all()


def test_the_final_score_of_a_prompt_is_that_of_its_last_token(base):
    scores = base.table("cliff.trace")
    last = scores[scores["position"] == -1].set_index("id")["score"]
    final = base.table("cliff.prompts").set_index("id")["final"]
    assert final.to_numpy() == pytest.approx(last[final.index].to_numpy())
    assert scores["score"].between(0, 1).all()


# Heads


def roles(view: RunView) -> dict[tuple[int, int], str]:
    table = view.table("cliff.heads")
    return dict(zip(zip(table["layer"], table["head"], strict=True), table["role"], strict=True))


def test_the_suppressors_are_named_and_the_static_head_is_not(base):
    found = roles(base)
    assert {head for head, role in found.items() if role == "suppressor"} == SUPPRESSORS
    assert {head for head, role in found.items() if role == "promoter"} == {PROMOTER, INTENT}
    assert found[STATIC] == "static"


def test_removing_the_suppressors_restores_refusal_and_random_heads_do_not(base):
    table = base.table("cliff.ablation")
    lost = table[table["group"] == "harmful, complied"].set_index(["arm", "draw"])
    # Three of 64 heads are 5 %.
    assert lost.loc[("top", -1), "n_heads"] == 3
    assert lost.loc[("top", -1), "restored_rate"] == 1
    assert lost.loc["random", "restored"].max() == 0
    assert lost.loc[("static", -1), "restored"] == 0
    harmless = table[table["group"] == "harmless"]
    assert harmless["refused"].max() == 0
    judged = base.table("cliff.behaviour").set_index(["arm", "group"])
    assert judged.loc[("top", "harmful, complied"), "rate"] == 1
    assert judged.loc[("random", "harmful, complied"), "rate"] == 0
    assert judged.loc[("top", "harmless"), "rate"] == 0
    assert (judged["n"] <= SMALL["n_heads"]).all()


# Presets


def test_the_published_settings_run_and_say_what_their_rescale_depends_on(tmp_path):
    view = measure(tmp_path / "run", name="yin2025")
    assert view.info["status"] == "finished"
    assert view.info["settings"]["renorm"] == "official_batch"
    (warning,) = view.info["warnings"]
    assert "published rescale over the whole batch" in warning
    scores = view.table("cliff.trace")
    # As published there is one probe, without a scale for each position class.
    assert scores["score"].to_numpy() == pytest.approx(scores["score_uncalibrated"].to_numpy())
    assert view.table("cliff.probes")["probe"].tolist() == ["final norm"]
    (row,) = view.table("cliff.probes").to_dict("records")
    assert row["harmful_complied"] == row["harmless_refused"] == 0
    assert {head for head, role in roles(view).items() if role == "suppressor"} == SUPPRESSORS


# Resume


class Stop(Exception):
    pass


@contextmanager
def stopped_at(name: str) -> Iterator[None]:
    """Stop before a file of that name becomes visible."""
    rename = os.replace

    def stopped(source, target):
        if name in str(target):
            raise Stop
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        yield


def test_an_interrupted_run_gives_the_same_tables(base, tmp_path):
    for name in ("cliff.curve", "cliff.ablation"):
        with stopped_at(name), pytest.raises(Stop):
            measure(tmp_path / "run", resume=True)
    again = measure(tmp_path / "run", resume=True)
    assert again.tables() == base.tables()
    for name in again.tables():
        pd.testing.assert_frame_equal(again.table(name), base.table(name))
    assert again.info["warnings"] == base.info["warnings"]
