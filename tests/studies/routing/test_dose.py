"""Dose and response against plain hooked forwards, on planted models, and on data whose truth is drawn."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.special import expit
from scipy.stats import page_trend_test
from statsmodels.miscmodels.ordinal_model import OrderedModel

from organisms import oracle
from refusalscope.errors import InputError
from refusalscope.judge.protocol import Judge, Judgement
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.organisms.planted import build
from refusalscope.prompts import Prompt
from refusalscope.studies.routing.dose import detection, dose
from refusalscope.studies.routing.thresholds import (
    behaviour_alpha50,
    crossings,
    median_crossing,
    monotone,
    ordinal_slope,
)

MARGIN = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
DET = 5
DOSES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
SIDE = {"attenuate": "harmful", "amplify": "harmless"}
LEVELS = np.array(["compliance", "partial_refusal", "full_refusal"], dtype=object)


class FirstWord(Judge):
    """Reads the planted models' two words, and keeps the replies it was shown."""

    name = "first-word"

    def __init__(self, undecided=()):
        self.seen: list[list[str]] = []
        self.undecided = undecided

    def judge(self, exchanges, progress=None):
        self.seen.append([exchange.reply for exchange in exchanges])
        names = {"refuse": "full_refusal", "comply": "compliance"}
        return [
            Judgement(None if i in self.undecided else names.get(e.reply[:6], "degenerate"))
            for i, e in enumerate(exchanges)
        ]


@cache
def planted(variant="base", **options):
    organism = build("planted-routes", variant, **options)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=variant)
    prompts = {
        side: [Prompt(f"{p.id}/{side}", getattr(p, side), side, p.category) for p in organism.pairs]
        for side in SIDE.values()
    }
    rendered = {side: chat.render(those) for side, those in prompts.items()}
    return chat, prompts, rendered


@cache
def found_at(layer, variant="base", **options):
    chat, _, rendered = planted(variant, **options)
    return detection(chat, rendered["harmful"], rendered["harmless"], layer)


def run(arm, *, variant="base", signal=None, alphas=DOSES, take=None, options=(), **more):
    chat, prompts, rendered = planted(variant, **dict(options))
    side = SIDE[arm]
    return dose(
        chat,
        prompts[side][:take],
        rendered[side][:take],
        MARGIN,
        signal or found_at(1, variant, **dict(options)),
        arm=arm,
        alphas=alphas,
        **{"judge": None, **more},
    )


def hooked(chat, ids, layer, vector):
    """The slow way: logits of the last position with `vector` added after a layer, no cache."""

    def add(module, args, output):
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    handle = chat.model.model.layers[layer].register_forward_hook(add)
    try:
        with torch.no_grad():
            return chat.model(torch.tensor([list(ids)])).logits[0, -1]
    finally:
        handle.remove()


def slow_curve(chat, rendered, signal, sign, alphas):
    """[prompts, alphas]: one hooked forward each."""
    table = np.zeros((len(rendered), len(alphas)))
    for i, prompt in enumerate(rendered):
        for j, alpha in enumerate(alphas):
            push = sign * alpha * signal.residual_norm * signal.direction
            logits = hooked(chat, prompt.ids, signal.layer, push)
            table[i, j] = logits[oracle.REFUSE] - logits[oracle.COMPLY]
    return table


def slow_states(chat, rendered, layer):
    """The hidden state after a layer (not the last) at the prompt's end: [prompts, d_model]."""
    rows = []
    for prompt in rendered:
        with torch.no_grad():
            out = chat.model(torch.tensor([prompt.ids]), output_hidden_states=True)
        rows.append(out.hidden_states[layer + 1][0, -1].double().numpy())
    return np.stack(rows)


def test_the_signal_is_the_mean_difference_in_units_of_the_residual_norm():
    chat, _, rendered = planted()
    signal = found_at(1)
    harmful, control = (slow_states(chat, rendered[side], 1) for side in ("harmful", "harmless"))
    want = harmful.mean(0) - control.mean(0)
    np.testing.assert_allclose(signal.direction, want / np.linalg.norm(want), atol=1e-5)
    norms = np.linalg.norm(np.concatenate([harmful, control]), axis=1)
    assert signal.residual_norm == pytest.approx(norms.mean(), rel=1e-5)
    assert float(signal.direction[DET]) > 0.95


def test_the_separation_is_read_on_the_half_that_the_direction_has_not_seen():
    """Between two sets of controls, where a direction seen and read on the same prompts separates by luck."""
    chat, _, rendered = planted()
    sides = rendered["harmless"][:12], rendered["harmless"][12:]
    first, second = (slow_states(chat, side, 1) for side in sides)

    def apart(seen, read):
        axis = first[seen::2].mean(0) - second[seen::2].mean(0)
        x, y = first[read::2] @ axis, second[read::2] @ axis
        return (x.mean() - y.mean()) / np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)

    found = detection(chat, *sides, 1).separation[1]
    assert found == pytest.approx((apart(0, 1) + apart(1, 0)) / 2, rel=1e-3)
    assert (apart(0, 0) + apart(1, 1)) / 2 > found + 1


def test_without_a_layer_the_earliest_of_the_well_separated_ones_is_taken():
    signal = found_at(None, "backup")
    reached = signal.separation >= 0.9 * signal.separation.max()
    assert reached[signal.layer]
    assert not reached[: signal.layer].any()
    # The best one comes later, and before the detector in layer 1 nothing tells the prompts apart.
    assert signal.layer < signal.separation.argmax()
    assert signal.separation[0] < 0.1 * signal.separation[1]


@pytest.mark.parametrize(("arm", "sign"), [("attenuate", -1), ("amplify", 1)])
def test_margins_equal_one_hooked_forward_a_dose(arm, sign):
    chat, _, rendered = planted()
    table, turns = run(arm)
    slow = slow_curve(chat, rendered[SIDE[arm]], found_at(1), sign, DOSES)
    whole = table[(table["category"] == "all") & (table["language"] == "all")]
    np.testing.assert_allclose(whole["margin"], slow.mean(axis=0), atol=1e-4)
    assert (whole["margin_low"] <= whole["margin"]).all()
    row = turns.iloc[0]
    crossing = [np.interp(0, sign * line, DOSES) for line in slow]
    assert row["alpha50"] == pytest.approx(np.median(crossing), abs=1e-5)
    assert row["crossed"] == 1
    assert row["monotone"] == 1
    assert row["p_monotone"] < 1e-6
    assert row["alpha50_low"] <= row["alpha50"] <= row["alpha50_high"]


def test_replies_are_those_of_a_hooked_greedy_loop_and_their_share_has_its_interval():
    chat, _, rendered = planted()
    signal = found_at(1)
    judge = FirstWord()
    doses = (0.0, 0.1, 0.2)
    table, turns = run("attenuate", judge=judge, judged_alphas=doses, max_new_tokens=3)
    assert len(judge.seen) == len(doses)
    ends = {chat.tokenizer.eos_token_id, chat.model.generation_config.eos_token_id}
    for alpha, seen in zip(doses, judge.seen, strict=True):
        push = -alpha * signal.residual_norm * signal.direction
        for prompt, text in zip(rendered["harmful"][:6], seen, strict=False):
            ids: list[int] = []
            while len(ids) < 3 and not ends & set(ids):
                ids.append(int(hooked(chat, (*prompt.ids, *ids), 1, push).argmax()))
            assert text == chat.decode(ids)
    whole = table[table["category"] == "all"].set_index("alpha")
    share = [np.mean([text.startswith("refuse") for text in seen]) for seen in judge.seen]
    np.testing.assert_allclose(whole.loc[list(doses), "refused"], share)
    assert share[0] == 1
    assert share[-1] == 0
    assert (whole.loc[list(doses), "n_judged"] == 24).all()
    assert whole.loc[0.05, ["refused", "low", "high", "degenerate"]].isna().all()
    assert whole.loc[0.05, "n_judged"] == 0
    row = turns.iloc[0]
    assert 0 < row["behaviour_alpha50"] < 0.2
    assert row["behaviour_alpha50_low"] <= row["alpha50"] <= row["behaviour_alpha50_high"]


def test_replies_that_the_judge_cannot_tell_stand_in_no_share():
    table, _ = run("attenuate", judge=FirstWord(undecided=(0, 1)), judged_alphas=(0.0,))
    first = table.iloc[0]
    assert (first["n"], first["n_judged"], first["refused"]) == (24, 22, 1)


def test_a_random_direction_has_no_threshold_within_the_same_doses():
    signal = found_at(1)
    other = torch.randn(len(signal.direction), generator=torch.Generator().manual_seed(0))
    other -= (other @ signal.direction) * signal.direction
    _, turns = run("attenuate", signal=replace(signal, direction=other / other.norm()))
    row = turns.iloc[0]
    assert np.isnan(row["alpha50"])
    assert (row["alpha50_low"], row["alpha50_high"]) == (DOSES[-1], np.inf)
    assert row["crossed"] == 0
    assert np.isnan(row["behaviour_alpha50"])


def test_a_prompt_that_is_over_at_dose_0_is_censored_on_the_left():
    """Controls are answered before anything is taken away."""
    chat, prompts, rendered = planted()
    _, turns = dose(
        chat,
        prompts["harmless"],
        rendered["harmless"],
        MARGIN,
        found_at(1),
        arm="attenuate",
        alphas=DOSES,
        judge=None,
    )
    row = turns.iloc[0]
    assert np.isnan(row["alpha50"])
    assert (row["alpha50_low"], row["alpha50_high"], row["crossed"]) == (-np.inf, 0, 0)


def test_rows_are_all_every_category_and_every_language_that_is_named():
    chat, prompts, rendered = planted()
    tongues = ["en", "de", None] * 8
    given = [replace(p, language=t) for p, t in zip(prompts["harmful"], tongues, strict=True)]
    table, turns = dose(
        chat,
        given,
        rendered["harmful"],
        MARGIN,
        found_at(1),
        arm="attenuate",
        alphas=DOSES[:3],
        judge=None,
    )
    categories = sorted({p.category for p in given})
    want = [("all", "all"), *((c, "all") for c in categories), ("all", "de"), ("all", "en")]
    assert list(zip(turns["category"], turns["language"], strict=True)) == want
    assert len(table) == len(want) * 3
    assert turns.set_index(["category", "language"]).loc[("all", "de"), "n"] == 8
    slow = slow_curve(chat, rendered["harmful"], found_at(1), -1, DOSES[:3])
    chosen = np.array([p.category == categories[0] for p in given])
    part = table[table["category"] == categories[0]]
    np.testing.assert_allclose(part["margin"], slow[chosen].mean(axis=0), atol=1e-4)
    assert (part["n"] == chosen.sum()).all()
    plain, _ = run("attenuate", alphas=DOSES[:3])
    assert set(plain["language"]) == {"all"}


def test_given_clusters_are_resampled_as_wholes():
    """Clusters of one name each are prompts; the categories of this model differ more than prompts do."""
    _, by_category = run("attenuate")
    _, by_prompt = run("attenuate", clusters=[str(i) for i in range(24)])
    assert by_category.iloc[0]["alpha50"] == by_prompt.iloc[0]["alpha50"]
    assert by_category.iloc[0]["alpha50_low"] != by_prompt.iloc[0]["alpha50_low"]


def test_progress_counts_prompts_over_margins_and_judged_doses():
    seen = []
    run(
        "attenuate",
        judge=FirstWord(),
        judged_alphas=(0.0, 0.2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (72, 72)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("threshold", "page"),
    [
        (30, [0.08, 0.28, 0.46, 0.60, 0.80, 0.98, 1.16, 1.32]),
        (60, [np.nan, np.nan, 0.16, 0.32, 0.52, 0.68, 0.88, 1.04]),
    ],
)
def test_the_threshold_is_linear_in_the_planted_intensity(threshold, page):
    """O6: eight words of rising intensity; the page takes raw steps of .02 from the channel itself."""
    signal = found_at(1, "dose", threshold=threshold)
    channel = replace(signal, direction=torch.eye(64)[DET], residual_norm=1.0)
    intensity = np.linspace(0.5, 2, 8)
    raw = {}
    for name, given in (("found", signal), ("channel", channel)):
        _, turns = run(
            "attenuate",
            signal=given,
            variant="dose",
            options=(("threshold", threshold),),
            alphas=np.arange(0, 1.7, 0.02) / given.residual_norm,
        )
        turns = turns[turns["category"] != "all"].sort_values("category")
        raw[name] = turns["alpha50"].to_numpy() * given.residual_norm
        known = np.isfinite(raw[name])
        assert (known == np.isfinite(page)).all()
        assert (turns["alpha50_low"][~known] == -np.inf).all()
        assert np.corrcoef(intensity[known], raw[name][known])[0, 1] > 0.999
    slow = slow_thresholds(channel, threshold)
    np.testing.assert_allclose(raw["channel"], slow, atol=5e-3)
    slope = np.polyfit(intensity[known], raw["channel"][known], 1)[0]
    assert slope == pytest.approx(0.83, abs=0.03)
    # The page counts the first dose on its grid and draws other noise: all of its words lie a little higher.
    below = (np.array(page) - raw["channel"])[known]
    assert np.ptp(below) < 0.06
    assert abs(below.mean()) < 0.1


def slow_thresholds(signal, threshold):
    """Median dose by harmful word where a bisection finds the margin at 0; NaN where it starts below."""
    chat, prompts, rendered = planted("dose", threshold=threshold)
    found: dict[str, list[float]] = {}
    for prompt, row in zip(prompts["harmful"], rendered["harmful"], strict=True):
        low, high = 0.0, 1.7
        refused = slow_curve(chat, [row], signal, -1, [low, high])[0] > 0
        while refused[0] and not refused[1] and high - low > 1e-3:
            middle = (low + high) / 2
            over = slow_curve(chat, [row], signal, -1, [middle])[0, 0] <= 0
            low, high = (low, middle) if over else (middle, high)
        at = low if refused[0] and not refused[1] else np.nan
        found.setdefault(prompt.category, []).append(at)
    return [float(np.median(found[word])) for word in sorted(found)]


def test_crossings_are_interpolated_and_censored_prompts_keep_their_side():
    table = [
        [3.0, 1.0, -1.0],
        [2.0, -2.0, 5.0],
        [4.0, 3.0, 2.0],
        [-1.0, 2.0, -2.0],
        [1.0, 0.0, 1.0],
    ]
    want = [0.3, 0.1, np.inf, -np.inf, 0.2]
    np.testing.assert_allclose(crossings([0, 0.2, 0.4], table, "attenuate"), want)
    np.testing.assert_allclose(crossings([0, 0.2, 0.4], -np.array(table), "amplify"), want)
    assert (crossings([0, 0.2, 0.4], table, "amplify") == [*[-np.inf] * 3, 0.2 / 3, -np.inf]).all()


def test_the_median_and_its_interval_equal_plain_resampling():
    rng = np.random.default_rng(1)
    clusters = np.repeat(list("abcdefghij"), 4)
    values = rng.normal(size=40) + np.repeat(rng.normal(size=10), 4)
    for given, size in ((None, 40), (clusters, 10)):
        found = median_crossing(values, 9.0, given, seed=0)
        parts = values.reshape(size, -1)
        slow = [np.median(parts[rng.integers(size, size=size)]) for _ in range(4000)]
        assert found.value == np.median(values)
        assert found.low == pytest.approx(np.quantile(slow, 0.025), abs=0.15)
        assert found.high == pytest.approx(np.quantile(slow, 0.975), abs=0.15)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([-np.inf, 0.1, 0.2, 0.3, np.inf], (0.2, -np.inf, np.inf)),
        ([0.1, 0.2, np.inf, np.inf, np.inf], (np.nan, 0.1, np.inf)),
        ([np.inf] * 5, (np.nan, 0.5, np.inf)),
        ([-np.inf] * 5, (np.nan, -np.inf, 0)),
        ([0.1, np.inf], (np.nan, 0.1, np.inf)),
        ([-np.inf, np.inf], (np.nan, -np.inf, np.inf)),
        ([0.1], (0.1, np.nan, np.nan)),
        ([np.inf], (np.nan, 0.5, np.inf)),
        ([], (np.nan, np.nan, np.nan)),
    ],
)
def test_a_censored_median_has_no_value_and_states_its_bound(values, want):
    found = median_crossing(values, 0.5, seed=0)
    np.testing.assert_equal((found.value, found.low, found.high), want)


@pytest.mark.parametrize("separated", [False, True])
def test_the_reply_threshold_solves_firths_equations(separated):
    """With leverages h, maximum likelihood on (y, weight 1 + h/2) and (1 - y, weight h/2) changes nothing."""
    rng = np.random.default_rng(2)
    doses = np.array([0.0, 0.2, 0.5, 1.0])
    rate = (doses < 0.3).astype(float) if separated else expit(2 - 5 * doses)
    refused = (rng.random((30, 4)) < rate).astype(float)
    found = behaviour_alpha50(doses, refused, "attenuate", seed=0)
    y, x = refused.ravel(), sm.add_constant(np.tile(doses, 30))
    params = np.zeros(2)
    for _ in range(3000):
        p = expit(x @ params)
        root = np.sqrt(p * (1 - p))[:, None] * x
        h = np.einsum("ij,jk,ik->i", root, np.linalg.inv(root.T @ root), root)
        fit = sm.GLM(
            np.r_[y, 1 - y],
            np.r_[x, x],
            sm.families.Binomial(),
            freq_weights=np.r_[1 + h / 2, h / 2],
        ).fit()
        if np.abs(fit.params - params).max() < 1e-7:
            break
        params = fit.params
    assert found.value == pytest.approx(-params[0] / params[1], abs=1e-4)
    assert found.low <= doses[doses <= found.value].max()
    assert found.high >= doses[doses >= found.value].min()
    mirror = behaviour_alpha50(doses, 1 - refused, "amplify", seed=0)
    assert mirror.value == pytest.approx(found.value)


def test_the_reply_threshold_covers_the_planted_one():
    rng = np.random.default_rng(3)
    doses = np.linspace(0, 1, 6)
    hits = 0
    for seed in range(60):
        at = 0.45 + 0.1 * rng.normal(size=(30, 1))
        refused = (rng.random((30, 6)) < expit(-12 * (doses - at))).astype(float)
        found = behaviour_alpha50(doses, refused, "attenuate", seed=seed)
        hits += found.low <= 0.45 <= found.high
    assert hits >= 54


def test_replies_that_never_turn_have_no_threshold_but_a_bound():
    doses = [0.0, 0.2, 1.0]

    def bounds(value, arm, judged=1.0):
        found = behaviour_alpha50(doses, np.full((6, 3), value) * judged, arm, seed=0)
        return found.value, found.low, found.high

    np.testing.assert_equal(bounds(1.0, "attenuate"), (np.nan, 1, np.inf))
    np.testing.assert_equal(bounds(0.0, "attenuate"), (np.nan, -np.inf, 0))
    np.testing.assert_equal(bounds(0.0, "amplify"), (np.nan, 1, np.inf))
    one = [1.0, np.nan, np.nan]
    np.testing.assert_equal(bounds(1.0, "attenuate", one), (np.nan, np.nan, np.nan))


def test_monotone_counts_steps_and_tests_the_predicted_order():
    rng = np.random.default_rng(4)
    falling = -np.arange(5.0) + 0.3 * rng.normal(size=(12, 5))
    share, p = monotone(falling, "attenuate")
    assert share == pytest.approx(np.mean(falling[:, 1:] < falling[:, :-1]))
    assert p == page_trend_test(falling[:, ::-1]).pvalue < 1e-4
    share, p = monotone(falling, "amplify")
    assert share < 0.1
    assert p > 0.99
    assert np.isnan(monotone(falling[:1], "attenuate")[1])
    assert np.isnan(monotone(falling[:, :2], "attenuate")[1])


def drawn_labels(slope, n=60, doses=6, seed=5):
    rng = np.random.default_rng(seed)
    alphas = np.linspace(0, 2, doses)
    lean = rng.logistic(size=(n, doses)) + slope * (alphas - 1)
    return alphas, LEVELS[np.digitize(lean, [-0.5, 0.5])]


@pytest.mark.filterwarnings("error")
def test_the_ordinal_slope_is_that_of_the_plain_model_and_of_the_truth():
    alphas, labels = drawn_labels(-2.0)
    slope, p = ordinal_slope(alphas, labels)
    assert slope == pytest.approx(-2, abs=0.4)
    assert p < 1e-6
    level = np.array([[list(LEVELS).index(label) for label in row] for row in labels])
    plain = OrderedModel(level.ravel(), np.tile(alphas, 60)[:, None], distr="logit")
    by_prompt = {"cov_type": "cluster", "cov_kwds": {"groups": np.repeat(np.arange(60), 6)}}
    fit = plain.fit(method="bfgs", disp=False, **by_prompt)
    assert slope == pytest.approx(fit.params[0], abs=1e-3)
    assert np.log(p) == pytest.approx(np.log(fit.pvalues[0]), rel=1e-2)
    left_out = labels.copy()
    left_out[:3], left_out[3:6] = None, "degenerate"
    assert ordinal_slope(alphas, left_out)[0] == pytest.approx(
        ordinal_slope(alphas, labels[6:])[0], abs=1e-4
    )
    assert np.isnan(ordinal_slope(alphas, labels[:7])[1])
    assert ordinal_slope(10 * alphas, labels)[0] == pytest.approx(slope / 10, abs=1e-3)


def test_the_ordinal_p_of_no_effect_is_even():
    p = np.array([ordinal_slope(*drawn_labels(0.0, n=30, seed=s))[1] for s in range(100)])
    assert 0 < (p < 0.05).mean() < 0.15
    assert 0.35 < p.mean() < 0.65


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [["full_refusal", "full_refusal", "compliance"]] * 9,
        [
            ["full_refusal", "full_refusal", "compliance"],
            ["full_refusal", "compliance", "compliance"],
        ],
        [["compliance"] * 3] * 9,
        [["degenerate", None, "compliance"]] * 9,
        [["full_refusal", None, None], ["compliance", None, None]] * 9,
        [[None] * 3],
        [["full_refusal", "partial_refusal", "compliance"]] * 9,
    ],
)
def test_a_slope_that_is_not_identified_is_nan_without_a_word(rows, capfd):
    found = ordinal_slope([0, 0.5, 1], np.array(rows, dtype=object))
    assert np.isnan(found).all()
    assert capfd.readouterr() == ("", "")


def test_few_prompts_give_rows_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        table, turns = run("attenuate", take=1, judge=FirstWord(), judged_alphas=(0.0, 0.2))
    assert (turns["n"] == 1).all()
    assert turns["alpha50"].notna().all()
    assert table["margin_low"].isna().all()


def test_bad_input_is_refused_in_one_sentence():
    chat, _, rendered = planted()
    with pytest.raises(InputError, match="no prompt to dose"):
        run("attenuate", take=0)
    for alphas in ((), (0.0,), (0.1, 0.2), (0.0, 0.2, 0.2), (0.0, float("nan"))):
        with pytest.raises(InputError, match="start at 0 and rise"):
            run("attenuate", alphas=alphas)
    with pytest.raises(InputError, match=r"the dose 0\.7 is to be judged"):
        run("attenuate", judge=FirstWord(), judged_alphas=(0.0, 0.7))
    with pytest.raises(InputError, match="need a judge"):
        run("attenuate", judged_alphas=(0.0,))
    with pytest.raises(InputError, match="no layer 99"):
        run("attenuate", signal=replace(found_at(1), layer=99))
    with pytest.raises(InputError, match="one rendered prompt"):
        run("attenuate", clusters=["a"])
    with pytest.raises(InputError, match="no layer 8; its layers are 0 to 7"):
        detection(chat, rendered["harmful"], rendered["harmless"], 8)
    with pytest.raises(InputError, match="too few"):
        detection(chat, rendered["harmful"][:3], rendered["harmless"])
    with pytest.raises(InputError, match="same mean state"):
        detection(chat, rendered["harmful"], rendered["harmful"], 1)
    with pytest.raises(InputError, match="no arm 'both'"):
        dose(
            chat,
            [Prompt("a", "b")],
            rendered["harmful"][:1],
            MARGIN,
            found_at(1),
            arm="both",
            alphas=DOSES,
            judge=None,
        )
