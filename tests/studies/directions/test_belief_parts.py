"""Settings, bands, clusters and the cut of the belief study on small things whose answer is plain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refusalscope.errors import InputError
from refusalscope.prompts.wrappers import WRAPPERS
from refusalscope.studies.directions import category_directions, position_scores
from refusalscope.studies.directions.belief_settings import preset
from refusalscope.studies.directions.belief_study import _fit_rows
from refusalscope.studies.directions.belief_work import band_rows, by_category, sample
from refusalscope.studies.directions.clusters import cluster_of, thin_clusters, without_template
from studies.directions.belief_case import chat_model, prompts, states, work

# Settings


def test_presets_hold_what_the_paper_and_we_do():
    paper, ours = preset("zhao2025"), preset("recommended")
    assert (paper.rows, paper.n_fit, paper.band, paper.category_band) == (
        "with_final",
        100,
        (9, 20),
        (11, 20),
    )
    assert (paper.steer_scale, paper.invert_scale, paper.steer_units) == (1.0, 2.0, "raw")
    assert paper.n_random == 0
    assert (ours.rows, ours.steer_units, ours.n_random) == ("inner", "residual", 19)
    assert ours.wrappers == tuple(WRAPPERS)
    assert preset("zhao2025", n_fit=7).n_fit == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrappers": ("nope",)}, "no wrapper is called 'nope'"),
        ({"wrappers": ("prefix", "rot13", "prefix")}, "'prefix' is named twice"),
        ({"band": (4, 2)}, "first layer of a band"),
        ({"min_category": 1}, "min_category"),
        ({"nope": 1}, "no setting 'nope'"),
        ({"steer_scale": 0.0}, "steer_scale"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_one_sentence(changes, words):
    with pytest.raises(InputError, match=words):
        preset("recommended", **changes)
    with pytest.raises(InputError, match="choose one of recommended, zhao2025"):
        preset("nope")


# Bands


def test_a_band_without_a_name_lies_at_the_depth_of_the_paper():
    assert band_rows(None, position_scores.BAND, 32) == list(range(9, 21))
    assert band_rows(None, category_directions.BAND, 28) == list(range(11, 21))


@pytest.mark.parametrize("n_layers", [2, 3, 5, 12, 80])
@pytest.mark.parametrize("band", [None, (9, 20), (1, 1), (70, 90)])
def test_a_band_is_never_empty_and_stays_inside(n_layers, band):
    rows = band_rows(band, position_scores.BAND, n_layers)
    assert rows == list(range(rows[0], rows[-1] + 1))
    assert 1 <= rows[0] <= rows[-1] <= n_layers - 1
    inside = [row for row in range(1, n_layers) if band and band[0] <= row <= band[1]]
    assert rows == (inside or band_rows(None, position_scores.BAND, n_layers))


# Clusters


def test_a_garbled_or_unlabelled_reply_belongs_to_no_cluster():
    assert cluster_of("harmful", True, "partial_refusal") == "harmful refused"
    assert cluster_of("harmless", False, "compliance") == "harmless accepted"
    assert cluster_of("harmful", False, "degenerate") is None
    assert cluster_of("harmful", False, None) is None


def test_clusters_of_few_prompts_are_named_with_their_numbers():
    full = ["harmful refused"] * 8 + ["harmless accepted"] * 9 + ["harmful accepted"] * 8
    full += ["harmless refused"] * 8
    cut = ["harmful accepted"] * 30 + [None] * 2 + ["harmless refused"]
    (said,) = thin_clusters(pd.DataFrame({"cluster": full, "cluster_cut": cut}))
    assert "template cut" in said
    assert "0 harmful refused, 1 harmless refused, 0 harmless accepted prompts" in said


def test_categories_are_clusters_only_where_there_are_three_and_every_prompt_has_one():
    assert by_category(["a", "b", "c", "a"]) == ["a", "b", "c", "a"]
    assert by_category(["a", "b", "a"]) is None
    assert by_category(["a", "b", "c", None]) is None


def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order():
    rows = list(range(100, 160))
    drawn = sample(rows, 7, 3)
    assert drawn == sorted(set(drawn)) == sample(rows, 7, 3)
    assert len(drawn) == 7
    assert drawn != sample(rows, 7, 4)
    assert sample(rows, 1000, 0) == rows
    assert sample([], 5, 0) == []


def test_a_prompt_cut_after_its_instruction_keeps_the_state_there():
    chat = chat_model()
    whole = chat.render(prompts()[:9])
    for prompt, cut in zip(whole, without_template(whole), strict=True):
        last = prompt.instruction[1]
        assert cut.ids == prompt.ids[: last + 1]
        assert (cut.n_template, cut.n_prompt) == (0, last + 1)
        assert cut.anchor("prompt_last") == cut.anchor("instruction_last") == last
        kept = states(chat, cut.ids)[:, -1]
        np.testing.assert_allclose(kept, states(chat, prompt.ids)[:, last], atol=1e-5)


# Rows of the centroids


def test_centroids_take_refused_harmful_and_answered_harmless_prompts_of_the_fit_split(tmp_path):
    mine = work(tmp_path, n_fit=6)
    fit = _fit_rows(mine.run, mine.subject, mine.settings.model_copy(update={"n_fit": 6}))
    # Ten of a kind or fewer are refused or answered here, so the draw is a real one.
    assert fit is not None
    table = mine.subject.table
    for rows, label in ((fit.harmful, "harmful"), (fit.harmless, "harmless")):
        part = table.iloc[rows]
        assert len(part) == 6
        assert set(part["split"]) == {"fit"}
        assert set(part["label"]) == {label}
    assert table["refused"].iloc[fit.harmful].all()
    assert set(table["verdict"].iloc[fit.harmless]) == {"compliance"}
