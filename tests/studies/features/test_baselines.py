"""Comparing arms, on made-up measurements, against a slow reading of the table's definitions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from refusalscope.stats import paired_difference, wilson
from refusalscope.studies.features.arms import RANDOM
from refusalscope.studies.features.baselines import compare_arms

HARMFUL = [f"h{i}" for i in range(12)]
HARMLESS = [f"b{i}" for i in range(9)]
STRENGTHS = (0.5, 1.0, 2.0)
DRAWS = 20


def measured(
    arm, group, fall, kl, *, strengths=STRENGTHS, draws=1, seed=0, refused=0.0
) -> pd.DataFrame:
    """An arm that takes `fall` nats and costs `kl` nats at strength 1, in proportion at others, with noise."""
    noise = np.random.default_rng(seed)
    rows = []
    for draw in range(draws):
        for strength in strengths:
            at = {"arm": arm, "group": group, "n_latents": 4, "draw": draw, "strength": strength}
            judged = strength == 1 and draw < 3
            for i, name in enumerate(HARMFUL):
                own = {"margin": 2 + 0.1 * i - fall * strength + 0.05 * noise.normal()}
                said = {"refused": float(i / 12 < refused), "degenerate": 0.0} if judged else {}
                rows.append({**at, "prompt_id": name, "label": "harmful", **own, **said})
            for i, name in enumerate(HARMLESS):
                own = {"kl": kl * strength * (1 + 0.1 * i), "ce": 1 + kl * strength + 0.01 * i}
                said = {"refused": float(i == 0), "degenerate": float(i == 1)} if judged else {}
                rows.append({**at, "prompt_id": name, "label": "harmless", **own, **said})
    return pd.DataFrame(rows).assign(category=None)


@pytest.fixture(scope="module")
def arms():
    # Shuffled: prompts are paired by their ids, not by their place.
    table = pd.concat(
        [
            measured("none", "baseline", 0.0, 0.0, strengths=(1.0,), refused=1.0),
            measured("set pool/0", "set", 3.0, 0.2, seed=1),
            measured("cheap", "baseline", 1.0, 0.05, seed=2),
            measured("dear", "direction", 4.0, 1.0, strengths=(1.0,), seed=3),
            measured(RANDOM, "random", 0.1, 0.1, draws=DRAWS, seed=4, refused=0.75),
        ]
    )
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.fixture(scope="module")
def found(arms):
    return compare_arms(arms, "set pool/0", seed=0).set_index(["arm", "strength"])


def by_prompt(arms, name, strength, column) -> dict[str, float]:
    """Mean over draws, prompt by prompt."""
    values: dict[str, list[float]] = {}
    for row in arms.to_dict("records"):
        if row["arm"] == name and row["strength"] == strength and not math.isnan(row[column]):
            values.setdefault(row["prompt_id"], []).append(row[column])
    return {prompt: sum(each) / len(each) for prompt, each in values.items()}


CASES = [
    *((name, strength) for name in ("set pool/0", "cheap", RANDOM) for strength in STRENGTHS),
    ("dear", 1.0),
]


def test_every_arm_has_a_row_a_strength_and_the_clean_run_none(found):
    assert sorted(found.index) == sorted(CASES)


@pytest.mark.parametrize(("name", "strength"), CASES)
def test_a_row_is_what_its_prompts_say(arms, found, name, strength):
    row = found.loc[(name, strength)]
    clean = by_prompt(arms, "none", 1.0, "margin")
    margin = by_prompt(arms, name, strength, "margin")
    kl, ce = (by_prompt(arms, name, strength, column) for column in ("kl", "ce"))
    own = by_prompt(arms, "none", 1.0, "ce")
    falls = np.array([clean[prompt] - margin[prompt] for prompt in HARMFUL])
    assert row["margin"] == pytest.approx(np.mean(list(margin.values())))
    assert row["change"] == pytest.approx(falls.mean())
    assert row["kl"] == pytest.approx(np.mean(list(kl.values())))
    assert row["ce"] == pytest.approx(np.mean([ce[prompt] - own[prompt] for prompt in HARMLESS]))
    assert row["ratio"] == pytest.approx(falls.mean() / np.mean(list(kl.values())))
    assert (row["n_harmful"], row["n_harmless"]) == (12, 9)
    assert row["draws"] == (DRAWS if name == RANDOM else 1)
    for column in ("margin", "change", "kl", "ratio"):
        assert row[f"{column}_low"] < row[column] < row[f"{column}_high"]


def test_the_change_is_paired_over_prompts(found):
    """Prompts differ by more than a nat, the arm's effect on them by a tenth."""
    row = found.loc[("set pool/0", 1.0)]
    assert row["change_high"] - row["change_low"] < 0.1
    assert row["margin_high"] - row["margin_low"] > 0.3


def test_categories_are_resampled_as_one(arms):
    """Two prompts a category, on which the arm does the same, and from category to category another thing."""
    number = arms["prompt_id"].str[1:].astype(int)
    edited = (arms["arm"] == "set pool/0") & (arms["label"] == "harmful")
    changed = arms.assign(
        category=[f"c{k % 6}" for k in number],
        margin=arms["margin"] - np.where(edited, (number * 7 % 6) * 0.5, 0),
    )
    found = compare_arms(changed, "set pool/0", seed=0).set_index(["arm", "strength"])
    clean = by_prompt(changed, "none", 1.0, "margin")
    margin = by_prompt(changed, "set pool/0", 1.0, "margin")
    pairs = [(clean[prompt], margin[prompt]) for prompt in sorted(HARMFUL)]
    names = [f"c{int(prompt[1:]) % 6}" for prompt in sorted(HARMFUL)]
    want = paired_difference(*zip(*pairs, strict=True), names, seed=0)
    alone = paired_difference(*zip(*pairs, strict=True), seed=0)
    row = found.loc[("set pool/0", 1.0)]
    assert row[["change", "change_low", "change_high"]].tolist() == pytest.approx(
        [want.value, want.low, want.high]
    )
    assert want.high - want.low > 1.1 * (alone.high - alone.low)


def test_an_arm_beats_random_latents_of_its_strength(arms, found):
    for name, strength in CASES:
        row = found.loc[(name, strength)]
        if name == RANDOM:
            assert row[["beats", "beats_low", "beats_high", "p_random"]].isna().all()
            continue
        chance = by_prompt(arms, RANDOM, strength, "margin")
        margin = by_prompt(arms, name, strength, "margin")
        gaps = [chance[prompt] - margin[prompt] for prompt in HARMFUL]
        assert row["beats"] == pytest.approx(np.mean(gaps))
        assert row["beats_low"] < row["beats"] < row["beats_high"]
        assert row["beats_high"] - row["beats_low"] < 0.15


def test_the_p_counts_random_draws_that_do_as_much(arms, found):
    assert found.loc[("set pool/0", 1.0), "p_random"] == pytest.approx(1 / (1 + DRAWS))
    # Draws of which five take out as much as this arm.
    stronger = measured(RANDOM, "random", 3.5, 0.1, draws=5, seed=5)
    weaker = measured(RANDOM, "random", 0.1, 0.1, draws=15, seed=6)
    weaker["draw"] += 5
    kept = arms[arms["arm"].isin(["none", "set pool/0"])]
    table = compare_arms(pd.concat([kept, stronger, weaker]), "set pool/0", seed=0)
    row = table.set_index(["arm", "strength"]).loc[("set pool/0", 1.0)]
    assert row["p_random"] == pytest.approx(6 / 21)


def test_all_arms_are_read_at_the_kl_of_the_set(found):
    budget = found.loc[("set pool/0", 1.0), "kl"]
    own = found.xs("set pool/0")["equal_kl"]
    assert (own == found.loc[("set pool/0", 1.0), "change"]).all()
    # The cheap one reaches no more than half of the budget.
    assert found.loc[("cheap", 2.0), "kl"] < budget
    assert found.xs("cheap")["equal_kl"].isna().all()
    # The dear one spends five times as much: the margin goes with the edit, the divergence with its square.
    dear = found.loc[("dear", 1.0)]
    assert dear["equal_kl"] == pytest.approx(dear["change"] * math.sqrt(budget / dear["kl"]))
    assert found.xs(RANDOM)["equal_kl"].iloc[0] == pytest.approx(found.loc[(RANDOM, 2.0), "change"])


def test_between_two_strengths_the_change_is_interpolated(arms):
    table = compare_arms(arms, "cheap", seed=0).set_index(["arm", "strength"])
    budget = table.loc[("cheap", 1.0), "kl"]
    low = measured("steep", "baseline", 1.0, 0.02, strengths=(1.0,), seed=7)
    high = measured("steep", "baseline", 3.0, 0.1, strengths=(1.0,), seed=8).assign(strength=2.0)
    found = compare_arms(pd.concat([arms, low, high]), "cheap", seed=0)
    rows = found[found["arm"] == "steep"].sort_values("strength")
    want = np.interp(math.sqrt(budget), np.sqrt(rows["kl"]), rows["change"])
    assert rows["equal_kl"].tolist() == pytest.approx([want, want])


def test_nothing_is_compared_at_a_budget_of_nothing(arms):
    free = measured("free", "set", 1.0, 1e-9, seed=9)
    found = compare_arms(pd.concat([arms, free]), "free", seed=0)
    assert found["equal_kl"].isna().all()
    assert found[found["arm"] == "free"]["ratio"].isna().all()
    assert compare_arms(arms, "set ", seed=0)["equal_kl"].isna().all()


def test_rates_have_the_interval_of_the_prompts_however_many_draws(found):
    chance = found.loc[(RANDOM, 1.0)]
    want = wilson(9, 12)
    assert chance[["refused", "refused_low", "refused_high"]].tolist() == pytest.approx(
        [want.value, want.low, want.high]
    )
    own = found.loc[("set pool/0", 1.0)]
    none = wilson(0, 12)
    assert own[["refused", "refused_high"]].tolist() == pytest.approx([0, none.high])
    flipped = wilson(12, 12)
    assert found.loc[("dear", 1.0), "flipped_low"] == pytest.approx(flipped.low)
    assert own["over_refused"] == pytest.approx(1 / 9)
    assert own["degenerate"] == pytest.approx(1 / 21)


def test_replies_that_were_not_judged_are_no_rate(found):
    for strength in (0.5, 2.0):
        row = found.loc[("set pool/0", strength)]
        assert row[["refused", "refused_low", "degenerate", "over_refused"]].isna().all()


def test_without_random_latents_nothing_is_beaten(arms):
    found = compare_arms(arms[arms["arm"] != RANDOM], "set pool/0", seed=0)
    assert found[["beats", "p_random"]].isna().all().all()
    assert found["change"].notna().all()


def test_the_same_seed_gives_the_same_table(arms):
    first, second = (compare_arms(arms, "set pool/0", seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
