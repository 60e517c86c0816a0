"""Groups and coalitions: planted heads that pull apart, and heads that only share a denominator."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.model import RefusalMargin
from refusalscope.stats import mean_interval
from refusalscope.studies.routing import groups as module
from refusalscope.studies.routing import screen
from refusalscope.studies.routing.groups import coalitions, groups
from studies.routing.test_interchange import MARGIN, planted

TOKENS = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
PRO = ((5, 0), (5, 3), (6, 2))
COUNTER = ((5, 5), (6, 7))
STATIC = ((2, 6), (4, 5))
NAMED = {"pro": PRO, "counter": COUNTER, "both": PRO + COUNTER}


def test_coalitions_pull_apart_and_leave_their_difference():
    _, chat, _, mine = planted("coalitions")
    table = groups(chat, mine, MARGIN["margin"], NAMED).set_index("name")
    assert table["n_heads"].to_dict() == {"pro": 3, "counter": 2, "both": 5}
    for name, want in (("pro", 1.21), ("counter", -0.18), ("both", 0.86)):
        row = table.loc[name]
        assert row["necessity"] == pytest.approx(want, abs=0.02)
        assert row["low"] < row["necessity"] < row["high"] < row["low"] + 0.1
    assert table.loc["counter", "largest"] == pytest.approx(-0.10, abs=0.02)
    assert table.loc["both", "largest"] == pytest.approx(0.33, abs=0.02)
    assert table.loc["both", "summed"] == pytest.approx(
        table.loc["pro", "summed"] + table.loc["counter", "summed"]
    )


def test_groups_equal_one_hooked_forward_a_set():
    organism, chat, pairs, mine = planted("coalitions", pairs=12)
    categories = [f"c{i % 6}" for i in range(12)]
    table = groups(
        chat, mine, MARGIN["margin"], NAMED, positions="last", categories=categories, seed=3
    )
    want = oracle.necessities(organism.model, pairs, NAMED.values())
    np.testing.assert_allclose(table["necessity"], want, atol=1e-5)
    singles = oracle.necessities(organism.model, pairs, [[head] for head in PRO])
    pro = table.iloc[0]
    assert pro["summed"] == pytest.approx(sum(singles), abs=1e-5)
    assert pro["largest"] == pytest.approx(max(singles, key=abs), abs=1e-5)
    against = oracle.necessities(organism.model, pairs, [[head] for head in COUNTER])
    assert table["largest"].iloc[1] == pytest.approx(min(against), abs=1e-5)
    units = [*NAMED.values(), *((head,) for head in PRO + COUNTER)]
    found = screen(chat, mine, MARGIN, units=units)
    shares = found.necessity["margin"][:, 0, 0] / found.gap("margin")
    interval = mean_interval(shares, categories, seed=3)
    assert (pro["low"], pro["high"]) == pytest.approx((interval.low, interval.high))


def test_one_screen_serves_all_sets_and_their_heads(monkeypatch):
    _, chat, _, mine = planted("coalitions", pairs=12)
    asked = []

    def counted(*args, units, **rest):
        asked.append(units)
        return screen(*args, units=units, **rest)

    monkeypatch.setattr(module, "screen", counted)
    groups(chat, mine, MARGIN["margin"], NAMED)
    assert len(asked) == 1
    assert asked[0] == [PRO, COUNTER, PRO + COUNTER, *((head,) for head in PRO + COUNTER)]


def test_a_set_of_stand_ins_lies_above_its_heads():
    _, chat, _, mine = planted("backup", redundancy=2)
    row = groups(chat, mine, MARGIN["margin"], {"gates": ((3, 1), (4, 2))}).iloc[0]
    assert row["necessity"] > 0.8
    assert abs(row["largest"]) < 0.05
    assert abs(row["summed"]) < 0.05


def test_the_denominator_hides_part_of_the_opposition():
    organism, chat, pairs, mine = planted("coalitions")
    row = coalitions(chat, mine, TOKENS, PRO, COUNTER, seed=0).iloc[0]
    assert row["r_raw"] == pytest.approx(-0.71, abs=0.02)
    assert row["r_held"] == pytest.approx(-0.80, abs=0.02)
    assert row["p"] == pytest.approx(1 / 10_001)
    assert (row["n_pro"], row["n_counter"], row["n"]) == (3, 2, 96)
    harmful = [pair[0] for pair in pairs]
    one, other = (oracle.direct_writes(organism.model, harmful, heads) for heads in (PRO, COUNTER))
    rms = np.sqrt((oracle.final_states(organism.model, harmful) ** 2).mean(axis=1))
    assert row["r_held"] == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-4)
    assert row["r_raw"] == pytest.approx(np.corrcoef(one / rms, other / rms)[0, 1], abs=1e-4)


@pytest.mark.parametrize(
    ("pro", "counter", "raw"),
    [(STATIC[:1], STATIC[1:], 1.0), (STATIC[:1], PRO, -0.98), (PRO, STATIC, -0.98)],
)
def test_heads_that_write_a_constant_correlate_by_the_denominator_alone(pro, counter, raw):
    _, chat, _, mine = planted("coalitions")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = coalitions(chat, mine, TOKENS, pro, counter, seed=0).iloc[0]
    assert row["r_raw"] == pytest.approx(raw, abs=0.02)
    assert np.isnan(row["r_held"])
    assert not row["p"] < 0.05


def test_the_p_is_that_of_a_plain_permutation_loop():
    organism, chat, pairs, mine = planted("coalitions", pairs=12)
    harmful = [pair[0] for pair in pairs]
    noise = ((0, 0),)
    row = coalitions(chat, mine, TOKENS, PRO, noise, seed=0, n_permutations=4_000).iloc[0]
    one, other = (oracle.direct_writes(organism.model, harmful, heads) for heads in (PRO, noise))
    rng = np.random.default_rng(5)
    observed = abs(np.corrcoef(one, other)[0, 1])
    hits = sum(
        abs(np.corrcoef(rng.permutation(one), other)[0, 1]) >= observed for _ in range(4_000)
    )
    assert 0.03 < row["p"] < 0.97
    assert row["p"] == pytest.approx(hits / 4_000, abs=0.04)
    again = coalitions(chat, mine, TOKENS, PRO, noise, seed=0, n_permutations=4_000).iloc[0]
    assert again["p"] == row["p"]


def test_bad_input_is_refused_in_one_sentence():
    _, chat, _, mine = planted("coalitions", pairs=12)
    with pytest.raises(InputError, match="no group"):
        groups(chat, mine, MARGIN["margin"], {})
    for unit in ((), (PRO[0], PRO[0])):
        with pytest.raises(InputError, match="the group 'x' is empty or names a head twice"):
            groups(chat, mine, MARGIN["margin"], {"x": unit})
    with pytest.raises(InputError, match="1 categories for 12 pairs"):
        groups(chat, mine, MARGIN["margin"], NAMED, categories=["a"])
    with pytest.raises(InputError, match="no head L99"):
        groups(chat, mine, MARGIN["margin"], {"x": ((99, 0),)})
    with pytest.raises(InputError, match="both sides"):
        coalitions(chat, mine, TOKENS, (), COUNTER, seed=0)
    for counter in (PRO[:1], (COUNTER[0], COUNTER[0])):
        with pytest.raises(InputError, match="named twice or stands on both sides"):
            coalitions(chat, mine, TOKENS, PRO, counter, seed=0)
    with pytest.raises(InputError, match=r"no head L5\.H8"):
        coalitions(chat, mine, TOKENS, PRO, ((5, 8),), seed=0)
    with pytest.raises(InputError, match="7 pairs are too few"):
        coalitions(chat, mine[:7], TOKENS, PRO, COUNTER, seed=0)
