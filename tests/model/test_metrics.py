"""Metrics on logits whose scores can be worked out by hand, and learning how refusals open."""

from __future__ import annotations

import math

import pytest
import torch

from model import tiny
from refusalscope.errors import InputError
from refusalscope.model import (
    KL,
    ChatModel,
    OpeningProbability,
    RefusalMargin,
    RefusalScore,
    ReplyKL,
    ReplyNLL,
    learn_openings,
    render,
)
from refusalscope.prompts import Prompt


@pytest.fixture(scope="module")
def prompt():
    return render(Prompt("a", "Bake bread"), tiny.tokenizer())


def logits(*p: float) -> torch.Tensor:
    return torch.tensor(p).log().reshape(1, 1, -1)


def test_the_refusal_margin_is_the_log_odds_of_two_sets_of_openings(prompt):
    margin = RefusalMargin((0, 1), (2,))
    assert float(margin(logits(0.3, 0.3, 0.2, 0.2), prompt, None)) == pytest.approx(math.log(3))
    for refuse, reply in (((0,), (0, 1)), ((), (1,)), ((1,), ())):
        with pytest.raises(InputError, match="disjoint"):
            RefusalMargin(refuse, reply)


def test_the_refusal_score_is_the_published_log_odds(prompt):
    p = logits(0.1, 0.5, 0.25, 0.15)
    want = math.log(0.35 / 0.65)
    assert float(RefusalScore((0, 2))(p, prompt, None)) == pytest.approx(want, abs=1e-6)
    eps = RefusalScore((0, 2), compat_eps=True)
    assert float(eps(p, prompt, None)) == pytest.approx(
        math.log(0.35 + 1e-8) - math.log(0.65 + 1e-8), abs=1e-6
    )


def test_without_the_published_epsilon_a_sure_score_stays_exact(prompt):
    sure = torch.tensor([[[60.0, 0.0, 0.0]]])
    assert float(RefusalScore((0,))(sure, prompt, None)) == pytest.approx(
        60 - math.log(2), abs=1e-4
    )
    assert float(RefusalScore((0,), compat_eps=True)(sure, prompt, None)) == pytest.approx(
        math.log(1e8), abs=0.1
    )


def test_kl_is_zero_for_the_same_and_known_for_two_coins(prompt):
    clean = logits(0.5, 0.5)[0]
    assert float(KL()(logits(0.5, 0.5), prompt, clean)) == pytest.approx(0, abs=1e-7)
    want = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(KL()(logits(0.9, 0.1), prompt, clean)) == pytest.approx(want, abs=1e-6)
    assert float(KL(compat_eps=True)(logits(0.9, 0.1), prompt, clean)) == pytest.approx(
        want, abs=1e-4
    )


def test_kl_is_a_mean_over_the_positions_it_is_asked_for(prompt):
    metric = KL("template")
    assert metric.reads(prompt) == prompt.resolve("template")
    clean = torch.cat([logits(0.5, 0.5)[0], logits(0.9, 0.1)[0]])
    rows = torch.stack([torch.cat([logits(0.9, 0.1)[0], logits(0.9, 0.1)[0]])])
    half = 0.5 * (0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert float(metric(rows, prompt, clean)) == pytest.approx(half, abs=1e-6)


def test_a_reply_is_needed_for_its_likelihood(prompt):
    with pytest.raises(InputError, match="no reply"):
        ReplyNLL().reads(prompt)
    forced = prompt.with_reply([1, 0])
    assert ReplyNLL(1).reads(forced) == (prompt.n_prompt - 1,)
    rows = torch.cat([logits(0.2, 0.8), logits(0.4, 0.6)], dim=1)
    want = -(math.log(0.8) + math.log(0.4)) / 2
    assert float(ReplyNLL()(rows, forced, None)) == pytest.approx(want, abs=1e-6)


def test_the_opening_probability_is_what_its_tokens_hold_together(prompt):
    p = torch.stack([logits(0.1, 0.5, 0.25, 0.15)[0], logits(0.4, 0.1, 0.3, 0.2)[0]])
    metric = OpeningProbability((0, 2))
    assert metric.reads(prompt) == (prompt.n_prompt - 1,)
    assert metric(p, prompt, None).tolist() == pytest.approx([0.35, 0.7])
    # A logit that all tokens share says nothing.
    assert metric(p + 30, prompt, None).tolist() == pytest.approx([0.35, 0.7])
    assert not metric.needs_clean


def test_the_kl_of_a_reply_is_a_mean_over_its_tokens_and_no_others(prompt):
    with pytest.raises(InputError, match="no reply"):
        ReplyKL().reads(prompt)
    forced = prompt.with_reply([1, 0, 1])
    n = prompt.n_prompt
    assert ReplyKL().reads(forced) == (n - 1, n, n + 1)
    assert ReplyKL().needs_clean
    with pytest.raises(InputError, match="clean run"):
        ReplyKL()(logits(0.5, 0.5), forced, None)
    clean = torch.cat([logits(*p)[0] for p in ((0.5, 0.5), (0.9, 0.1), (0.2, 0.8))])
    rows = torch.cat([logits(*p) for p in ((0.9, 0.1), (0.9, 0.1), (0.5, 0.5))], dim=1)
    first = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    third = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    assert float(ReplyKL()(rows, forced, clean)) == pytest.approx((first + third) / 3, abs=1e-6)


def test_a_model_measures_both_where_a_plain_forward_says(prompt):
    chat = ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny")
    forced = prompt.with_reply([5, 9])
    found = chat.measure([forced], [()], {"p": OpeningProbability((5, 6)), "kl": ReplyKL()}).scores
    with torch.no_grad():
        out = chat.model(torch.tensor([prompt.ids])).logits[0, -1].softmax(-1)
    assert float(found["p"][0, 0]) == pytest.approx(float(out[5] + out[6]), abs=1e-6)
    assert float(found["kl"][0, 0]) == pytest.approx(0, abs=1e-6)


def test_openings_are_learnt_from_judged_replies():
    refusals = [5] * 10 + [6] * 9 + [7]
    replies = [8] * 13 + [7] * 7
    margin = learn_openings(refusals, replies)
    assert margin.refuse == (5, 6)
    assert margin.reply == (7, 8)


def test_openings_that_cannot_be_told_apart_are_refused():
    with pytest.raises(InputError, match="same tokens"):
        learn_openings([5] * 10, [5] * 10)
    with pytest.raises(InputError, match="0 refusals and 3 replies"):
        learn_openings([], [5] * 3)
