"""Circuits under a wrapper: a decoder that knows too late, a prefix that changes nothing, and drawn effects."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import KL, ChatModel, RefusalMargin
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.prompts import code_wrapper
from refusalscope.prompts.wrappers import Wrapper, get_wrapper
from refusalscope.stats import mean_interval
from refusalscope.studies.routing.attribution import attribute
from refusalscope.studies.routing.cipher import (
    arms_table,
    collapse_table,
    compat_collapse,
    measure_arms,
    wrapped,
)
from refusalscope.studies.routing.contrast import contrast_agreement, contrast_table
from refusalscope.studies.routing.interchange import Pair, Screen, screen

MARGIN = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
DETECTOR, GATE, DECODER = (1, 2), (3, 1), (4, 1)
AMPLIFIERS = [(5, 0), (5, 3), (6, 2)]
DIRECT = (7, 0)


@cache
def planted(variant="cipher"):
    organism = build("planted-routes", variant, comply_bias=0.5, allow_weak=True)
    return organism, ChatModel.wrap(organism.model, organism.tokenizer, id=variant)


@cache
def sides():
    """The pairs as they stand, and behind code words."""
    organism, chat = planted()
    return wrapped(chat, organism.pairs), wrapped(chat, organism.pairs, code_wrapper())


@cache
def arms():
    return measure_arms(planted()[1], *sides(), MARGIN)


def ids_of(pairs):
    return [(list(p.harmful.ids), list(p.control.ids)) for p in pairs]


def one_head(effects, gap=2.0):
    """A screen of the head L0.H0 whose necessity is given by pair, in nats."""
    n = len(effects)
    table = {"margin": np.asarray(effects, dtype=float)[:, None, None]}
    return Screen((((0, 0),),), {"margin": np.full(n, gap)}, {"margin": np.zeros(n)}, table, table)


def collapse(plain, cipher, **options):
    found = collapse_table(
        one_head(plain), one_head(cipher), "margin", [(0, 0)], wrapper="x", **options
    )
    assert len(found) == 1
    return found.iloc[0]


def around(value, n=24, noise=0.1, seed=0):
    return value + noise * np.random.default_rng(seed).standard_normal(n)


def test_wrapping_keeps_ids_and_order_and_hides_the_words():
    organism, _ = planted()
    plain, hidden = sides()
    assert [p.harmful.id for p in hidden] == [f"{pair.id}/harmful" for pair in organism.pairs]
    assert [(p.harmful.id, p.control.id) for p in plain] == [
        (p.harmful.id, p.control.id) for p in hidden
    ]
    for pair, open_, coded in zip(organism.pairs, plain, hidden, strict=True):
        assert pair.harmful in open_.harmful.text
        assert "harm" not in coded.harmful.text
        assert "code" in coded.harmful.text
        assert coded.control.ids == open_.control.ids


def test_a_wrapped_prompt_beyond_the_context_is_refused_and_not_cut():
    organism, chat = planted()
    long = Wrapper("long", "much filler", "frame", before="w1 " * 1100)
    with pytest.raises(InputError, match=r"tokens long, the model takes 1024"):
        wrapped(chat, organism.pairs, long)


def test_the_gate_is_not_used_where_the_decoder_knows_too_late():
    organism, chat = planted()
    plain, hidden = sides()
    for positions in ("last", "suffix", "right"):
        first, second = (
            screen(chat, pairs, {"margin": MARGIN}, units=[(GATE,)], positions=positions)
            for pairs in (plain, hidden)
        )
        gap = first.gap("margin")
        assert first.necessity["margin"].mean() / gap == pytest.approx(0.845, abs=0.02)
        assert second.necessity["margin"].mean() / gap == pytest.approx(-0.002, abs=0.003)
    assert (oracle.margins(organism.model, [h for h, _ in ids_of(plain)]) > 0).all()
    assert (oracle.margins(organism.model, [h for h, _ in ids_of(hidden)]) < 0).all()
    # What silences the circuit is the gate: the detection is there, one layer late.
    table = arms_table(arms(), wrapper="code").set_index(["arm", "layer", "head"])
    assert table.loc[("cipher", *DECODER), "necessity"] > 0.01
    for head in AMPLIFIERS:
        assert table.loc[("plain", *head), "dla"] > 1.5
        assert abs(table.loc[("cipher", *head), "dla"]) < 0.3


def test_the_table_is_that_of_its_arms_under_the_map_asked_for():
    _, chat = planted()
    plain, hidden = (side[:8] for side in sides())
    table = arms_table(
        measure_arms(chat, plain, hidden, MARGIN, positions="right"), wrapper="code", seed=3
    )
    found = measure_arms(chat, plain, hidden, MARGIN, positions="right")
    assert table.equals(arms_table(found, wrapper="code", seed=3))
    row = table[(table["arm"] == "plain") & (table["layer"] == 3) & (table["head"] == 1)].iloc[0]
    shares = {}
    for positions in ("right", "last"):
        want = screen(chat, plain, {"margin": MARGIN}, units=[(GATE,)], positions=positions)
        shares[positions] = want.necessity["margin"].mean() / want.gap("margin")
    assert row["necessity"] == pytest.approx(shares["right"], abs=1e-5)
    assert row["necessity"] != pytest.approx(shares["last"], abs=2e-4)


def test_each_arm_attributes_its_own_prompts():
    organism, chat = planted()
    some = organism.pairs[:3]
    other = Wrapper("other", "another marked word", "frame", before="mild0 w1 ")
    plain, hidden = wrapped(chat, some), wrapped(chat, some, other)
    found = measure_arms(chat, plain, hidden, MARGIN).direct
    prompts = {
        "plain": [p.harmful for p in plain],
        "cipher": [p.harmful for p in hidden],
        "benign": [p.control for p in plain],
        "benign_cipher": [p.control for p in hidden],
    }
    assert list(found) == list(prompts)
    for arm, each in prompts.items():
        np.testing.assert_allclose(found[arm], attribute(chat, each, MARGIN).heads, atol=1e-7)
    assert np.abs(found["benign_cipher"] - found["benign"]).max() > 1e-3


def test_the_shares_are_of_the_plain_gap_and_equal_one_hooked_forward_a_head():
    organism, _ = planted()
    plain, hidden = sides()
    table = arms_table(arms(), wrapper="code").set_index(["arm", "layer", "head"])
    heads = [GATE, DECODER, AMPLIFIERS[0]]
    gap = oracle.gap(organism.model, ids_of(plain))
    for arm, pairs in (("plain", plain), ("cipher", hidden)):
        own = oracle.gap(organism.model, ids_of(pairs))
        # The suffix of these pairs is one or a few filler words and the tail; the tail decides.
        slow = oracle.necessities(organism.model, ids_of(pairs), [[h] for h in heads], "last")
        for head, share in zip(heads, slow, strict=True):
            assert table.loc[(arm, *head), "necessity"] == pytest.approx(
                share * own / gap, abs=2e-3
            )


def test_every_arm_has_every_head_and_the_benign_ones_no_necessity():
    _, chat = planted()
    plain, hidden = sides()
    categories = [str(i % 8) for i in range(len(plain))]
    table = arms_table(arms(), wrapper="code", categories=categories)
    assert table.groupby("arm", sort=False).size().to_dict() == dict.fromkeys(
        ("plain", "cipher", "benign", "benign_cipher"), 64
    )
    benign = table["arm"].str.startswith("benign")
    measured = table[["necessity", "necessity_low", "necessity_high"]]
    assert measured[benign].isna().to_numpy().all()
    assert measured[~benign].notna().to_numpy().all()
    row = table[(table["arm"] == "cipher") & (table["layer"] == 5) & (table["head"] == 0)].iloc[0]
    values = arms().direct["cipher"].reshape(len(plain), -1).T[5 * 8]
    direct = attribute(chat, [p.harmful for p in hidden], MARGIN).heads[:, 5, 0]
    np.testing.assert_allclose(values, direct, atol=1e-6)
    interval = mean_interval(values, categories, seed=0)
    assert (row["dla"], row["dla_low"], row["dla_high"]) == pytest.approx(
        (interval.value, interval.low, interval.high)
    )


def test_a_collapse_is_claimed_where_the_gate_is_out_of_use():
    table = collapse_table(arms().plain, arms().cipher, "margin", [GATE, DETECTOR], wrapper="code")
    assert table["collapsed"].all()
    row = table.iloc[0]
    assert row["change"] == pytest.approx(-1, abs=0.01)
    assert row["change_low"] <= row["change"] <= row["change_high"]
    assert row["p"] < 0.001


def test_a_prefix_is_no_collapse_unless_the_map_starts_at_the_left():
    """O7': the circuit is intact behind filler; only the published alignment loses sight of it."""
    organism, chat = planted("long_prefix")
    hidden = wrapped(chat, organism.pairs)
    prefix = organism.truth.prompts.harmful_prefix
    assert prefix == 60
    plain = [Pair(cut(p.harmful, prefix), p.control) for p in hidden]
    found = {}
    for positions in ("last", "suffix", "right", "compat_left"):
        first, second = (
            screen(chat, pairs, {"margin": MARGIN}, units=[(GATE,)], positions=positions)
            for pairs in (plain, hidden)
        )
        table = collapse_table(first, second, "margin", [GATE], wrapper="filler")
        found[positions] = table.iloc[0]
        gap = first.gap("margin")
        assert found[positions]["plain"] / gap == pytest.approx(0.845, abs=0.03)
    for positions in ("last", "suffix", "right"):
        assert not found[positions]["collapsed"]
        assert abs(found[positions]["change"]) < 0.05
    artefact = found["compat_left"]
    assert abs(artefact["cipher"]) < 0.01
    assert artefact["collapsed"]


def cut(prompt, n):
    """The same prompt without the n tokens after its first."""
    ids = prompt.ids[:1] + prompt.ids[1 + n :]
    return replace(prompt, ids=ids, n_prompt=len(ids), anchors={"prompt_last": len(ids) - 1})


def test_a_collapse_is_a_lost_effect_and_not_a_weaker_or_a_turned_one():
    plain = around(2.0)
    gone, half, turned = around(0.0, seed=1), around(1.2, seed=1), around(-2.0, seed=1)
    assert collapse(plain, gone)["collapsed"]
    assert not collapse(plain, half)["collapsed"]
    assert not collapse(plain, turned)["collapsed"]
    assert collapse(-plain, gone)["collapsed"]
    row = collapse(plain, half)
    assert row["change"] == pytest.approx(half.mean() / plain.mean() - 1)
    assert row["change_low"] < row["change"] < row["change_high"] < 0
    assert row["plain"] == pytest.approx(plain.mean())


def test_nothing_collapses_where_nothing_was():
    """The published average of absolute values sees a collapse from noise to less noise."""
    plain, cipher = around(0.0, noise=2.0), around(-0.6, noise=0.2, seed=1)
    row = collapse(plain, cipher)
    assert not row["collapsed"]
    assert np.isnan([row["change"], row["change_low"], row["change_high"]]).all()
    published = compat_collapse(plain, cipher)
    assert published["mean_abs_plain"] == pytest.approx(np.mean(np.abs(plain)))
    assert published["collapse_pct"] > 50
    assert abs(published["drop_pct"] - published["collapse_pct"]) > 50


def test_the_ratio_is_resampled_in_pairs_and_by_whole_categories():
    plain = around(2.0, noise=1.0)
    row = collapse(plain, 0.3 * plain)
    assert row["change_high"] - row["change_low"] < 1e-9
    shift = np.repeat(np.linspace(-0.5, 0.5, 8), 3)
    cipher = around(1.0, noise=0.01, seed=3) + shift
    categories = [f"c{i // 3}" for i in range(24)]
    width = [
        (lambda r: r["change_high"] - r["change_low"])(collapse(around(2.0), cipher, **options))
        for options in ({}, {"categories": categories})
    ]
    assert width[1] > 1.3 * width[0]


def arrays(seed=0, n=16):
    """Contributions of 2 x 3 heads: L0.H0 reads the request in plain text, L1.H2 the wrapper."""
    rng = np.random.default_rng(seed)
    direct = {
        arm: 0.02 * rng.standard_normal((n, 2, 3))
        for arm in ("plain", "cipher", "benign", "benign_cipher")
    }
    direct["plain"][:, 0, 0] += 1.0
    direct["plain"][:, 0, 1] -= 0.5
    for arm in ("plain", "benign"):
        direct[arm][:, 1, 2] += 0.8
    return direct


def test_the_fourth_arm_takes_out_what_the_wrapper_does_to_any_request():
    direct = arrays()
    table = contrast_table(direct, wrapper="x", n_flips=2_000).set_index(["layer", "head"])
    for (layer, head), row in table.iterrows():
        values = {arm: [float(pair[layer][head]) for pair in each] for arm, each in direct.items()}
        mean = {arm: sum(each) / len(each) for arm, each in values.items()}
        assert row["kappa3"] == pytest.approx(abs(mean["plain"] - mean["cipher"]))
        assert row["contrast"] == pytest.approx(mean["plain"] - mean["benign"])
        assert row["kappa4"] == pytest.approx(
            mean["plain"] - mean["benign"] - mean["cipher"] + mean["benign_cipher"]
        )
        assert row["kappa4_low"] <= row["kappa4"] <= row["kappa4_high"]
    assert table.loc[(1, 2), "kappa3"] > 0.7
    assert abs(table.loc[(1, 2), "kappa4"]) < 0.05
    assert table.loc[(1, 2), "p_familywise"] > 0.05
    assert table.loc[(0, 0), "p_familywise"] < 0.01
    assert table["kept"].tolist() == [True, True, False, False, False, True]
    assert table["side"].tolist() == ["pro", "counter", "", "", "", "pro"]


def test_the_thresholds_of_the_contrast_are_as_published_and_can_be_set():
    direct = {arm: np.zeros((1, 1, 4)) for arm in ("plain", "cipher", "benign")}
    direct["plain"][0, 0] = [0.05, 0.049, -0.3, 0.1]
    direct["cipher"][0, 0] = [-0.1, -0.2, -0.19, 0.0]
    # The third has kappa .11, the fourth exactly .1, which is not above it.
    table = contrast_table(direct, wrapper="x")
    assert table["side"].tolist() == ["pro", "", "counter", ""]
    lower = contrast_table(direct, wrapper="x", min_kappa=0.05, min_plain=0.01)
    assert lower["kept"].all()


def test_on_the_planted_cipher_the_contrast_keeps_the_writers_of_refusal():
    table = contrast_table(arms().direct, wrapper="code", n_flips=500)
    largest = table.sort_values("kappa4", ascending=False).iloc[:4]
    assert {(r.layer, r.head) for r in largest.itertuples()} == {*AMPLIFIERS, DIRECT}
    assert (largest["side"] == "pro").all()
    assert not table.set_index(["layer", "head"]).loc[GATE, "kept"]


def test_the_agreement_of_two_orders_is_by_size():
    kappa = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    same = contrast_agreement(kappa, -kappa, top=2)
    assert same == pytest.approx({"spearman": 1, "pearson": 1, "jaccard": 1})
    other = contrast_agreement(kappa, np.array([5.0, 1.0, 4.0, 2.0, 3.0]), top=2)
    assert other["jaccard"] == pytest.approx(1 / 3)
    assert other["spearman"] == pytest.approx(0.3)


def test_bad_input_is_refused_in_one_sentence():
    _, chat = planted()
    plain, hidden = sides()
    with pytest.raises(InputError, match="24 plain pairs and 23 wrapped"):
        measure_arms(chat, plain, hidden[:-1], MARGIN)
    with pytest.raises(InputError, match="in one order"):
        measure_arms(chat, plain, hidden[::-1], MARGIN)
    found = measure_arms(chat, plain[:2], hidden[:2], MARGIN)
    flat = replace(found.plain, control=found.plain.harmful)
    with pytest.raises(InputError, match="no gap to share"):
        arms_table(replace(found, plain=flat), wrapper="x")
    with pytest.raises(InputError, match=r"L9\.H9 is not a unit"):
        collapse_table(found.plain, found.cipher, "margin", [(9, 9)], wrapper="x")
    with pytest.raises(InputError, match="24 pairs and the wrapped one 2"):
        collapse_table(arms().plain, found.cipher, "margin", [GATE], wrapper="x")
    with pytest.raises(InputError, match="no head whose collapse"):
        collapse_table(found.plain, found.cipher, "margin", [], wrapper="x")
    direct = arrays()
    with pytest.raises(InputError, match="needs the arm 'benign'"):
        contrast_table({k: direct[k] for k in ("plain", "cipher")}, wrapper="x")
    with pytest.raises(InputError, match="differ in shape"):
        contrast_table({**direct, "cipher": direct["cipher"][:3]}, wrapper="x")


def test_progress_counts_both_screens():
    _, chat = planted()
    plain, hidden = sides()
    seen = []
    measure_arms(
        chat, plain[:4], hidden[:4], MARGIN, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 1


@pytest.mark.parametrize("name", ["letter_cipher", "rot13"])
def test_the_packaged_ciphers_render_and_keep_the_template_at_the_end(name):
    organism, chat = planted()
    hidden = wrapped(chat, organism.pairs[:2], get_wrapper(name))
    assert all(p.harmful.ids[-1] == p.control.ids[-1] for p in hidden)
    assert all(p.harmful.n_prompt == len(p.harmful.ids) for p in hidden)


def test_a_screen_that_was_run_before_is_not_run_again():
    """Its partner donor is what a fresh screen gives, and only the wrapped side is paid for."""
    chat, (plain, hidden) = planted()[1], sides()
    few = [
        replace(pair, to_harmful=(other.control,), to_control=(other.harmful,))
        for pair, other in pairwise(plain[:7])
    ]
    before = screen(chat, few, {"margin": MARGIN, "kl": KL()}, positions="suffix")
    spent = chat.cost.token_layers
    fresh = measure_arms(chat, plain[:6], hidden[:6], MARGIN)
    whole = chat.cost.token_layers - spent
    given = measure_arms(chat, plain[:6], hidden[:6], MARGIN, screened=before)
    assert chat.cost.token_layers - spent - whole < 0.6 * whole
    assert given.plain.units == fresh.plain.units
    for side in ("harmful", "control", "necessity", "sufficiency"):
        first, second = (getattr(arms.plain, side)["margin"] for arms in (fresh, given))
        np.testing.assert_allclose(first, second, atol=1e-4)
