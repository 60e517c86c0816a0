"""Claimed and measured writes of planted latents, and the slope against statsmodels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import statsmodels.api as sm
import torch

from refusalscope.dictionary import load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.construction import C
from refusalscope.organisms.planted.dictionary import DICTIONARY_FOLDER, write_dictionary
from refusalscope.organisms.planted.prompts import draw_pairs
from refusalscope.studies.features.overshoot import COLUMNS, overshoot, slope
from studies.features.hydra_chat import rendered

AXIS = 3 * torch.eye(64)[C.U]
P1, P2, P3, B1, B2 = range(5)
SET = {2: (P1, P2, P3), 4: (B1, B2)}


@cache
def planted(variant, **options):
    organism = build("planted-hydra", variant, **options)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=variant)
    prompts = [rendered(ids) for ids, _ in draw_pairs(organism.truth.prompts)]
    dictionaries = {}
    with TemporaryDirectory() as folder:
        write_dictionary(organism.dictionary, variant, Path(folder))
        for layer in range(8):
            place = Path(folder) / DICTIONARY_FOLDER / f"blocks.{layer}.hook_resid_post"
            with load_dictionary(place) as found:
                dictionaries[layer] = found.hold()
    return chat, prompts, dictionaries


def table(variant, members=SET, n=24, **options):
    chat, prompts, dictionaries = planted(variant, **options)
    found = overshoot(chat, prompts[:n], members, dictionaries, AXIS, set_id="s", seed=0)
    return found.set_index(["layer", "latent"])


@pytest.mark.parametrize(("variant", "backup"), [("base", 0.707), ("partial", 0.371)])
def test_honest_rows_claim_what_is_written(variant, backup):
    found = table(variant)
    for (layer, _), row in found.iterrows():
        assert row["claimed"] == pytest.approx(0.707 if layer == 2 else backup, abs=0.001)
        assert row["slope"] == pytest.approx(row["claimed"], abs=0.02)
        assert row["slope_low"] < row["slope"] < row["slope_high"]
        assert row["slope_high"] - row["slope_low"] < 0.05
        assert row["n"] == 24


def test_a_row_that_claims_more_than_was_written_is_seen():
    found = table("partial", overclaim=1)
    backups, primaries = found.loc[4], found.loc[2]
    assert (backups["slope_high"] < backups["claimed"] - 0.3).all()
    np.testing.assert_allclose(primaries["slope"], primaries["claimed"], atol=0.02)
    # One writes .4 of its claim; the other, taken out with its claim, leaves .4 - 1 of it behind.
    np.testing.assert_allclose(backups["slope"], (0.4 + 0.4 - 1) * 0.707, atol=0.02)


def test_one_write_at_several_layers_is_left_in():
    found = table("base", {2: (P1,), 3: (P1,)}, n=8)
    # All three primaries write together, and only one is in the set.
    np.testing.assert_allclose(found["slope"], 3 * 0.707, atol=0.1)
    assert (found["n"] == 8).all()


def test_a_latent_that_never_wakes_has_no_slope():
    found = table("base", {4: (B1,)}, n=6)
    assert found["n"].tolist() == [0]
    assert found[["slope", "slope_low", "slope_high"]].isna().all(axis=None)
    assert found["claimed"].item() == pytest.approx(0.707, abs=0.001)


def test_columns():
    chat, prompts, dictionaries = planted("base")
    found = overshoot(chat, prompts[:2], SET, dictionaries, AXIS, set_id="s", seed=0)
    assert list(found.columns) == COLUMNS
    assert (found["set_id"] == "s").all()
    # Two prompts carry a slope and no interval.
    assert found["slope"].notna().all()
    assert found[["slope_low", "slope_high"]].isna().all(axis=None)


def test_the_slope_and_its_interval_equal_those_of_statsmodels():
    draw = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    x = 100 + draw.normal(size=300)
    y = 2 * x + draw.normal(size=60)[clusters] * (x - 100) + 0.1 * draw.normal(size=300)
    found = slope(x, y, clusters, seed=0)
    fitted = sm.OLS(y, sm.add_constant(x)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert found.value == pytest.approx(fitted.params[1], rel=1e-9)
    width = fitted.conf_int()[1, 1] - fitted.conf_int()[1, 0]
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    naive = sm.OLS(y, sm.add_constant(x)).fit().conf_int()[1]
    assert found.high - found.low > 1.3 * (naive[1] - naive[0])
    assert found.low < found.value < found.high
    assert found.n == 300


def test_the_interval_covers_the_slope():
    draw = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), 4)
    hits = 0
    for seed in range(100):
        own = 0.5 * draw.normal(size=60)
        x = draw.normal(size=240)
        y = 0.5 * x + own[clusters] * x + draw.normal(size=240)
        found = slope(x, y, clusters, seed=seed)
        hits += found.low <= 0.5 <= found.high
    assert 88 <= hits <= 99


def test_what_carries_no_slope_says_so():
    same = slope(np.ones(6), np.arange(6.0), np.arange(6), seed=0)
    assert np.isnan([same.value, same.low, same.high]).all()
    one = slope(np.ones(1), np.ones(1), np.zeros(1, dtype=int), seed=0)
    assert np.isnan(one.value)
    few = slope(np.arange(8.0), 2 * np.arange(8.0), np.arange(8) % 4, seed=0)
    assert few.value == pytest.approx(2)
    assert np.isnan([few.low, few.high]).all()
    line = slope(np.arange(8.0), 2 * np.arange(8.0), np.arange(8), seed=0)
    assert [line.low, line.high] == pytest.approx([2, 2])


def test_what_cannot_be_used_is_said():
    chat, prompts, dictionaries = planted("base")
    for members, direction, text in (
        ({}, AXIS, "needs prompts and members"),
        ({2: ()}, AXIS, "needs prompts and members"),
        ({9: (1,)}, AXIS, "no dictionary of that layer"),
        ({2: (999,)}, AXIS, "numbered 0 to"),
        (SET, AXIS[:5], "one vector of 64 numbers"),
        (SET, 0 * AXIS, "not zero"),
    ):
        with pytest.raises(InputError, match=text):
            overshoot(chat, prompts[:2], members, dictionaries, direction, seed=0)
    with pytest.raises(InputError, match="got 0 prompts"):
        overshoot(chat, [], SET, dictionaries, AXIS, seed=0)
