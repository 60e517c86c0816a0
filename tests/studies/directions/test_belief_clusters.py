"""Clusters and positions against loops that read one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from refusalscope.judge import Judge, Judgement
from refusalscope.studies.directions.belief import QUADRANTS
from refusalscope.studies.directions.clusters import CLUSTERS, cluster_table, prompt_frame
from refusalscope.studies.directions.position_scores import (
    _separates,
    cut_table,
    position_table,
)
from studies.directions.belief_case import (
    LotJudge,
    cosine,
    fit_rows,
    slow_deltas,
    slow_means,
    states,
    work,
)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return work(tmp_path_factory.mktemp("clusters"))


@pytest.fixture(scope="module")
def table(mine) -> pd.DataFrame:
    return prompt_frame(mine)


@pytest.fixture(scope="module")
def positions(mine, table) -> pd.DataFrame:
    harmful, harmless = fit_rows(mine.subject)
    return position_table(
        mine, table, [*harmful, *harmless], np.arange(len(harmful + harmless)) < len(harmful)
    )


def test_centroids_are_the_means_of_a_loop(mine):
    for at, names in (
        ("instruction_last", ("harm", "harmless")),
        ("prompt_last", ("refuse", "accept")),
    ):
        for slow, name in zip(slow_means(mine, at), names, strict=True):
            np.testing.assert_allclose(getattr(mine.means, name), slow, atol=1e-5)


@torch.no_grad()
def test_replies_without_the_template_continue_the_instruction(mine, table):
    chat = mine.chat
    for i, (_, row) in zip(mine.report, table.iterrows(), strict=True):
        prompt = mine.subject.rendered[i]
        ids = list(prompt.ids[: prompt.instruction[1] + 1])
        start = len(ids)
        for _ in range(3):
            ids.append(int(chat.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        label = LotJudge.label(mine.subject.prompts[i].text, chat.decode(ids[start:]))
        assert row["verdict_cut"] == label
        assert row["refused_cut"] == ("refusal" in label)


def test_every_report_prompt_has_the_belief_and_quadrant_of_a_loop(mine, table):
    assert table["id"].tolist() == [mine.subject.prompts[i].id for i in mine.report]
    for i, (_, row) in zip(mine.report, table.iterrows(), strict=True):
        harm, refuse = slow_deltas(mine.chat, mine.subject.rendered[i], mine.means, [1, 2, 3])
        assert row["delta_harmful"] == pytest.approx(harm, abs=1e-5)
        assert row["delta_refuse"] == pytest.approx(refuse, abs=1e-5)
        signs = row["delta_harmful"] >= 0, row["delta_refuse"] >= 0
        assert row["quadrant"] == QUADRANTS[signs]
    assert table["quadrant"].nunique() > 1


def test_scores_of_clusters_are_the_means_of_a_loop(mine, table):
    found = cluster_table(mine, table)
    means = [slow_means(mine, at) for at in ("instruction_last", "prompt_last")]
    at = {
        row["id"]: states(mine.chat, mine.subject.rendered[i].ids)
        for i, (_, row) in zip(mine.report, table.iterrows(), strict=True)
    }
    last = {mine.subject.rendered[i].id: mine.subject.rendered[i] for i in mine.report}
    seen = set()
    for _, row in found.iterrows():
        k = row["position"] == "t_post"
        column = "cluster_cut" if row["behaviour"] == "template cut" else "cluster"
        layer = row["layer"]
        scores = []
        for name in table.loc[table[column] == row["cluster"], "id"]:
            token = last[name].n_prompt - 1 if k else last[name].instruction[1]
            state = at[name][layer, token]
            towards, away = (each[layer] for each in means[k])
            scores.append(cosine(state, towards) - cosine(state, away))
        assert row["n"] == len(scores) > 0
        assert row["mean"] == pytest.approx(np.mean(scores), abs=2e-6)
        assert row["low"] <= row["mean"] <= row["high"]
        seen.add((row["position"], row["behaviour"], row["cluster"], layer))
    assert len(seen) == len(found) == 3 * len(CLUSTERS) * 5
    start = found[(found["position"] == "t_post") & (found["layer"] == 0)]
    assert start["mean"].abs().max() < 1e-6


def test_an_empty_cluster_has_no_prompts_and_no_mean(mine, table):
    without = table.assign(cluster=table["cluster"].where(table["cluster"] != "harmless refused"))
    found = cluster_table(mine, without).query("cluster == 'harmless refused'")
    assert found.loc[found["behaviour"] == "full template", "n"].eq(0).all()
    assert found.loc[found["behaviour"] == "full template", "mean"].isna().all()
    assert found.loc[found["behaviour"] == "template cut", "n"].gt(0).all()


# Positions


def slow_position(mine, rows, position: int, band) -> list[np.ndarray | None]:
    """States at a token counted from t_inst, [band, d_model]; None where the instruction is too short."""
    found = []
    for i in rows:
        prompt = mine.subject.rendered[i]
        at = prompt.instruction[1] + position
        inside = at >= prompt.instruction[0]
        found.append(states(mine.chat, prompt.ids)[band, at] if inside else None)
    return found


def test_positions_are_scored_by_their_own_centroids(mine, table, positions):
    assert positions["position"].unique().tolist() == [-2, -1, 0, 1, 2]
    band = [1, 2]
    assert (positions["first_layer"] == 1).all()
    assert (positions["last_layer"] == 2).all()
    for position in (-2, 0, 2):
        centres = []
        for rows in fit_rows(mine.subject):
            taken = slow_position(mine, rows, position, band)
            centres.append(np.mean([each for each in taken if each is not None], axis=0))
        scores = [
            np.nan
            if each is None
            else np.mean(
                [cosine(each[k], centres[0][k]) - cosine(each[k], centres[1][k]) for k in (0, 1)]
            )
            for each in slow_position(mine, mine.report, position, band)
        ]
        assert np.isnan(scores).any() == (position < 0)
        part = positions[positions["position"] == position]
        for _, row in part.iterrows():
            column = "cluster_cut" if row["behaviour"] == "template cut" else "cluster"
            values = np.array(scores)[(table[column] == row["cluster"]).to_numpy()]
            values = values[~np.isnan(values)]
            assert row["n"] == len(values)
            assert row["mean"] == pytest.approx(values.mean(), abs=2e-6)


def test_behaviour_is_told_by_the_template_only_where_it_was_read(positions):
    said = positions.groupby("position")["behaviour"].unique().map(list).to_dict()
    both = ["template cut", "full template"]
    assert said == {-2: both, -1: both, 0: both, 1: ["full template"], 2: ["full template"]}
    tokens = positions.groupby("position")["token"].first().to_dict()
    assert tokens == {-2: None, -1: None, 0: None, 1: "<|end|>", 2: "<|assistant|>"}


@pytest.mark.parametrize(
    ("accepted", "refused", "word"),
    [
        ((8, 0.2, 0.1, 0.3), (8, -0.2, -0.3, -0.1), "yes"),
        ((8, 0.2, -0.1, 0.3), (8, -0.2, -0.3, -0.1), "by mean"),
        ((8, 0.2, 0.1, 0.3), (8, -0.2, -0.3, 0.1), "by mean"),
        ((8, -0.2, -0.3, -0.1), (8, -0.2, -0.3, -0.1), "no"),
        ((8, 0.2, 0.1, 0.3), (8, 0.2, 0.1, 0.3), "no"),
        ((7, 0.2, 0.1, 0.3), (8, -0.2, -0.3, -0.1), "unknown"),
        ((8, 0.2, 0.1, 0.3), (0, np.nan, np.nan, np.nan), "unknown"),
    ],
)
def test_a_position_separates_only_with_enough_prompts_on_both_sides(accepted, refused, word):
    rows = [("harmful accepted", *accepted), ("harmless refused", *refused)]
    part = pd.DataFrame(rows, columns=["cluster", "n", "mean", "low", "high"])
    assert _separates(part) == word


# The template's end


class ReplyJudge(Judge):
    """Refused where the reply is not empty."""

    name = "reply"

    def judge(self, exchanges, progress=None):
        return [Judgement("full_refusal" if each.reply else "degenerate") for each in exchanges]


def test_the_change_is_refusal_with_the_template_less_that_without(table):
    found = cut_table(table).set_index("label")
    for label, part in table.groupby("label"):
        row = found.loc[label]
        assert row["n"] == len(part)
        assert row["refused_full"] == part["refused"].sum()
        assert row["refused_cut"] == part["refused_cut"].sum()
        assert row["change"] == pytest.approx(part["refused"].mean() - part["refused_cut"].mean())
        assert row["low_full"] < row["rate_full"] < row["high_full"]
        assert row["garbled_cut"] == (part["verdict_cut"] == "degenerate").mean()


@pytest.mark.parametrize(("full", "cut"), [(True, False), (True, True), (False, False)])
def test_a_change_of_every_prompt_alike_keeps_an_interval(table, full, cut):
    alike = table.assign(refused=full, refused_cut=cut)
    for _, row in cut_table(alike).iterrows():
        assert row["change"] == full - cut
        assert row["change_high"] - row["change_low"] > 0.1


def test_a_judge_that_always_refuses_leaves_no_accepted_prompt(mine):
    always = replace(mine, subject=replace(mine.subject, judge=ReplyJudge()))
    found = prompt_frame(always)
    assert not found["cluster_cut"].isin(["harmful accepted", "harmless accepted"]).any()
