"""Steering against plain hooks: sizes, signs, tokens, rotations, the layer chosen, and what cannot be read."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
import torch

from refusalscope.errors import InputError
from refusalscope.stats import paired_rates
from refusalscope.studies.directions.push_effects import (
    MOST_REPLIED,
    chosen_layers,
    margin_columns,
    reply_grid,
    score_grid,
)
from refusalscope.studies.directions.pushes import SIGNS, make_pushes
from refusalscope.studies.directions.steering import run_steering
from studies.directions import push_case as case


def steered(work):
    return make_pushes(work, ("all",), work.settings.steer_scale)


def steer(work):
    run_steering(work.run, work.subject, work.settings, work.means)
    return work.run.table("belief.steering")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    work = case.work(tmp_path_factory.mktemp("steering"))
    with case.no_hooks_left(work.chat):
        return work, steer(work)


def plain(work, push, indices, sign):
    """Margins and replies of prompts, each pushed by one hook on all its tokens."""
    vector = sign * push.vector.tensor
    scores, replies = [], []
    for prompt in work.subject.take(indices):
        at = (prompt.ids, push.layer, range(len(prompt.ids)), vector)
        last = case.logits(work.chat, *at)
        scores.append(
            float(last[list(case.MARGIN.refuse)].logsumexp(0))
            - float(last[list(case.MARGIN.reply)].logsumexp(0))
        )
        replies.append(case.reply(work.chat, *at, 3))
    return np.array(scores), replies


def cell(table, push, label):
    mine = table.query("direction == @push.direction and layer == @push.layer")
    (row,) = mine.query("seed == @push.seed and label == @label").to_dict("records")
    return row


def test_every_row_is_that_of_plain_hooks(done):
    work, table = done
    pushes = steered(work)
    assert len(table) == 2 * (1 + len(pushes))
    assert len(pushes) == 2 * 2 * 3
    answered = 0
    for label, sign in SIGNS.items():
        indices = work.subject.pick("report", label)
        clean = table.query("direction == 'none' and label == @label").iloc[0]
        for push in pushes:
            row = cell(table, push, label)
            margins, replies = plain(work, push, indices, sign)
            assert row["sign"] == sign
            assert row["n_margin"] == len(case.ASKS)
            assert row["margin"] == pytest.approx(margins.mean(), abs=1e-4)
            assert row["margin_change"] == pytest.approx(margins.mean() - clean["margin"], abs=1e-4)
            if row["n"] == 0:
                assert np.isnan(row["rate"])
                continue
            answered += 1
            labels = [case.OddJudge.label(reply) for reply in replies]
            assert row["refused"] == labels.count("full_refusal")
            assert row["degenerate"] == labels.count("degenerate")
            assert row["change"] == pytest.approx(row["rate"] - clean["rate"])
            assert row["change_low"] <= row["change"] <= row["change_high"]
    # Both directions at both layers, two rotations of each at its chosen layer, for both labels.
    assert answered == 2 * (4 + 4)


def test_rotations_are_answered_at_the_chosen_layer_which_the_select_split_names(done):
    work, table = done
    pushes = [push for push in steered(work) if push.seed < 0]
    for direction in ("harm", "refuse"):
        gain = {}
        for push in (push for push in pushes if push.direction == direction):
            gain[push.layer] = 0.0
            for label, sign in SIGNS.items():
                indices = work.subject.pick("select", label)
                pushed, clean = (plain(work, push, indices, s)[0] for s in (sign, 0))
                gain[push.layer] += sign * (pushed - clean).mean()
        best = max(gain, key=gain.__getitem__)
        mine = table[table["direction"] == direction]
        assert set(mine.loc[mine["chosen"], "layer"]) == {best}
        random = mine[mine["control"] == "random"]
        assert ((random["n"] > 0) == (random["layer"] == best)).all()


def test_each_rotation_stands_by_its_best_layer_as_the_direction_does(done):
    work, table = done
    pushes = steered(work)
    told = set()
    for label, sign in SIGNS.items():
        indices = work.subject.pick("report", label)
        clean = plain(work, pushes[0], indices, 0)[0].mean()
        far = {p: sign * (plain(work, p, indices, sign)[0].mean() - clean) for p in pushes}
        for push in pushes:
            row = cell(table, push, label)
            if push.seed >= 0:
                assert np.isnan([row["p_random"], row["random_most"]]).all()
                continue
            seeds = range(work.settings.seed, work.settings.seed + work.settings.n_random)
            best = [
                max(f for p, f in far.items() if p.kind == push.kind and p.seed == seed)
                for seed in seeds
            ]
            assert row["n_random"] == len(best) == 2
            assert row["random_most"] == pytest.approx(sign * max(best), abs=1e-4)
            assert row["p_random"] == (1 + sum(other >= far[push] for other in best)) / 3
            told.add(row["p_random"])
    assert len(told) > 1


def test_a_vector_that_is_no_better_than_its_rotations_is_claimed_one_time_in_twenty(tmp_path):
    """Each vector takes its best of many layers; without the same for rotations a third would be claimed."""
    work = case.work(tmp_path, n_random=19, steer_rows=(0, 1, 2, 3))
    cells = [None, *(push for push in steered(work) if push.direction == "harm")]
    own = [n for n, push in enumerate(cells) if push is not None and push.seed < 0]
    indices = work.subject.pick("report", "harmful")
    rng, claimed, by_layer, n = np.random.default_rng(0), 0, 0, 400
    for _ in range(n):
        # Effects differ between vectors, hardly between prompts: resampled prompts tell of none of it.
        margins = rng.normal(0.3, 1, (len(cells), 1)) + rng.normal(0, 0.01, (1, len(indices)))
        best = min(own, key=lambda place: margins[place].mean())
        row = margin_columns(work, indices, margins, cells, best, -1)
        claimed += row["p_random"] <= 0.05
        beside = [
            place
            for place, push in enumerate(cells)
            if push is not None and push.seed >= 0 and push.layer == cells[best].layer
        ]
        by_layer += margins[best].mean() < margins[beside].mean(axis=1).min()
    assert 0.02 < claimed / n < 0.08
    assert by_layer / n > 0.12


def test_margins_are_read_of_every_rotation_and_replies_of_a_few(tmp_path):
    work = case.work(tmp_path, n_random=MOST_REPLIED + 2, seed=3)
    table = steer(work)
    random = table[table["control"] == "random"]
    assert (random["n_margin"] == len(case.ASKS)).all()
    replied = random[random["n"] > 0].groupby(["label", "direction"])["seed"]
    assert set(replied.agg(tuple)) == {tuple(range(3, 3 + MOST_REPLIED))}
    assert random["seed"].max() == 3 + MOST_REPLIED + 1


@pytest.mark.parametrize(("units", "size"), [("raw", 1.5), ("residual", 0.4)])
def test_sizes_are_reported_in_both_units(tmp_path, units, size):
    work = case.work(tmp_path, steer_units=units, steer_scale=size, n_random=1)
    fit = work.subject.take(work.subject.pick("fit"))
    ends = {"harm": "instruction_last", "refuse": "prompt_last"}
    v = {"harm": work.means.v_harm, "refuse": work.means.v_refuse}
    for push in steered(work):
        norm = case.residual_norm(work.chat, fit, push.layer, ends[push.direction])
        length = float(push.vector.tensor.norm())
        own = v[push.direction][push.layer]
        assert length == pytest.approx(push.scale * float(own.norm()), rel=1e-5)
        assert length == pytest.approx(push.in_norms * norm, rel=1e-5)
        assert (push.scale if units == "raw" else push.in_norms) == pytest.approx(size)
        if push.seed < 0:
            assert torch.allclose(push.vector.tensor, push.scale * own)


def test_rotations_have_the_length_of_the_direction_and_no_common_way(tmp_path):
    work = case.work(tmp_path, n_random=40)
    pushes = steered(work)
    for own in (push for push in pushes if push.seed < 0):
        beside = [p for p in pushes if (p.kind, p.layer) == (own.kind, own.layer) and p.seed >= 0]
        turned = torch.stack([p.vector.tensor for p in beside])
        assert torch.allclose(turned.norm(dim=-1), own.vector.tensor.norm().expand(40))
        cosines = torch.nn.functional.cosine_similarity(turned, own.vector.tensor[None])
        assert abs(float(cosines.mean())) < 4 / (40 * 32) ** 0.5
    units = torch.stack([push.vector.unit for push in pushes])
    same = (units @ units.T - torch.eye(len(units))).abs().max()
    assert same < 0.9, "two cells share a rotation"


def test_a_push_of_no_size_changes_nothing(tmp_path):
    work = case.work(tmp_path)
    rendered = list(work.subject.rendered[:4])
    grid = [[()] * 4] + [[push.variant(0, "all")] * 4 for push in steered(work)]
    margins = score_grid(work.chat, rendered, grid, {"margin": case.MARGIN})["margin"]
    assert np.abs(margins - margins[0]).max() < 1e-5
    replies = reply_grid(work.chat, rendered, grid, 3)
    assert all(said == replies[0] for said in replies)


def test_generated_tokens_are_not_pushed(tmp_path):
    """A large push would change later tokens of some reply if it went on after the prompt."""
    work = case.work(tmp_path, steer_scale=3.0, n_random=4)
    prompts = work.subject.take(work.subject.pick("report"))
    pushes = steered(work)
    grid = [[push.variant(1, "all")] * len(prompts) for push in pushes]
    with case.no_hooks_left(work.chat):
        ours = reply_grid(work.chat, prompts, grid, 4)
    always = [
        [
            work.chat.decode(ids)
            for ids in work.chat.generate(prompts, variants, max_new_tokens=4, policy="every_step")
        ]
        for variants in grid
    ]
    assert ours != always
    for push, said in zip(pushes[:3], ours, strict=False):
        for prompt, text in zip(prompts, said, strict=True):
            at = (prompt.ids, push.layer, range(len(prompt.ids)), push.vector.tensor)
            assert text == case.reply(work.chat, *at, 4)


def test_without_a_margin_the_layer_is_chosen_by_refusals(tmp_path):
    work = case.work(tmp_path, margin=None, steer_scale=2.0)
    table = steer(work)
    assert table[["margin", "p_random"]].isna().all(axis=None)
    assert (table["n_margin"] == 0).all()
    for direction in ("harm", "refuse"):
        gain = {}
        for push in (p for p in steered(work) if p.direction == direction and p.seed < 0):
            gain[push.layer] = 0
            for label, sign in SIGNS.items():
                indices = work.subject.pick("select", label)
                pushed, clean = (plain(work, push, indices, s)[1] for s in (sign, 0))
                refused = [
                    sum(case.OddJudge.label(text) == "full_refusal" for text in texts)
                    for texts in (pushed, clean)
                ]
                gain[push.layer] += sign * (refused[0] - refused[1])
        mine = table[table["direction"] == direction]
        assert set(mine.loc[mine["chosen"], "layer"]) == {max(gain, key=gain.__getitem__)}
        random = mine[mine["control"] == "random"]
        assert ((random["n"] > 0) == random["chosen"]).all()


def test_a_direction_without_length_is_left_out_and_said(tmp_path):
    work = case.work(tmp_path, steer_rows=(0, 2), n_random=0)
    work.means.refuse[0] = work.means.accept[0]
    table = steer(work)
    assert set(table.query("direction == 'refuse'")["layer"]) == {2}
    assert set(table.query("direction == 'harm'")["layer"]) == {0, 2}
    assert table["p_random"].isna().all()
    assert (table["n_random"] == 0).all()
    assert "direction refuse has no length at layer 0" in work.run.info["warnings"][0]


def test_what_cannot_be_steered_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="layers are 0 to 3"):
        steer(case.work(tmp_path / "a", steer_rows=(1, 4)))
    work = case.work(tmp_path / "b")
    work.subject.table.loc[work.subject.table["label"] == "harmful", "split"] = "fit"
    with pytest.raises(InputError, match="no harmful prompts"):
        steer(work)


def test_every_layer_but_the_first_is_steered_by_default(tmp_path):
    work = case.work(tmp_path, steer_rows=None)
    assert {push.layer for push in steered(work)} == {1, 2, 3}


def test_no_hook_outlives_a_failure(tmp_path):
    work = case.work(tmp_path)

    def fail(exchanges, progress=None):
        raise RuntimeError("the judge broke")

    work.subject.judge.judge = fail
    with case.no_hooks_left(work.chat), pytest.raises(RuntimeError, match="judge broke"):
        steer(work)


def test_a_table_that_is_there_is_left_as_it_is(done):
    work, table = done
    before = work.chat.cost.forwards
    assert steer(work).equals(table)
    assert work.chat.cost.forwards == before


def test_the_layer_of_largest_gain_is_chosen_with_labels_weighing_alike(tmp_path):
    pushes = steered(case.work(tmp_path, n_random=0))
    assert [push.layer for push in pushes] == [1, 3, 1, 3]
    gains = {
        "harmless": np.array([[0.0], [3.0], [1.0], [0.0]]),
        "harmful": np.array([[2.0] * 9, [0.0] * 9, [0.0] * 9, [0.5] * 9]),
    }
    assert chosen_layers(pushes, gains) == {("harm", "all"): 3, ("refuse", "all"): 1}


def test_paired_rates_cover_what_they_promise():
    """Exact coverage by enumeration of all tables of 12 pairs, at several truths."""
    n = 12
    tables = [
        (a, b, c, n - a - b - c) for a, b, c in product(range(n + 1), repeat=3) if a + b + c <= n
    ]
    found = []
    for a, b, c, d in tables:
        first = np.array([True] * (a + b) + [False] * (c + d))
        second = np.array([True] * a + [False] * b + [True] * c + [False] * d)
        found.append(paired_rates(first, second))
    for truth in ((0.25, 0.25, 0.25, 0.25), (0.1, 0.6, 0.1, 0.2), (0.45, 0.3, 0.05, 0.2)):
        covered = 0.0
        for (a, b, c, d), interval in zip(tables, found, strict=True):
            ways = comb(n, a) * comb(n - a, b) * comb(n - a - b, c)
            p = ways * np.prod(np.power(truth, (a, b, c, d)))
            covered += p * (interval.low <= truth[1] - truth[2] <= interval.high)
        assert 0.93 < covered < 1


def test_paired_rates_of_known_and_extreme_tables():
    # 36, 12, 2, 0 of 50 pairs: both, only the first, only the second, neither.
    first = np.array([True] * 48 + [False] * 2)
    second = np.array([True] * 36 + [False] * 12 + [True] * 2)
    found = paired_rates(first, second)
    assert (found.value, found.n) == (pytest.approx(0.2), 50)
    mirror = paired_rates(second, first)
    assert (mirror.low, mirror.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    every = paired_rates(np.ones(10, dtype=bool), np.zeros(10, dtype=bool))
    assert every.value == every.high == 1.0
    assert every.low < 0.75
    same = paired_rates(first, first)
    assert same.low < 0 < same.high
    nothing = paired_rates(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
    assert nothing.n == 0
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
