"""What a plan costs, in counts that do not vary: token-layer evaluations and forwards."""

from __future__ import annotations

import pytest
import torch

from model import tiny
from refusalscope.model import (
    ChatModel,
    LogitDifference,
    Plan,
    Replace,
    Scale,
    Site,
    measure,
    run_clean,
)
from refusalscope.model.anchors import Rendered

N, LAYERS, HEADS, PROMPTS = 20, 4, 4, 3


@pytest.fixture(scope="module")
def chat():
    return ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="llama")


@pytest.fixture(scope="module")
def prompts():
    ids = torch.randint(10, 300, (PROMPTS, N), generator=torch.Generator().manual_seed(0))
    return [
        Rendered(str(i), "", tuple(row), N, (0, N - 2), {"prompt_last": N - 1})
        for i, row in enumerate(ids.tolist())
    ]


def screen(chat, prompts, **kwargs):
    heads = [
        (Scale(Site("z", layer), "last", head=h, factor=0.0),)
        for layer in range(LAYERS)
        for h in range(HEADS)
    ]
    return measure(chat.anatomy, prompts, heads, {"ld": LogitDifference(3, 5)}, **kwargs)


def test_all_heads_cost_one_token_each_over_a_cached_prefix(chat, prompts):
    """A clean pass, one base token a layer, and L - l layers for each head of layer l."""
    cost = screen(chat, prompts).cost
    joined = HEADS * sum(LAYERS - layer for layer in range(LAYERS))
    # The base row leaves once the last head has joined, at the last layer.
    base = LAYERS - 1
    assert cost.token_layers == PROMPTS * (N * LAYERS + base + joined)


def test_without_its_ideas_the_plan_costs_what_the_plain_loop_does(chat, prompts):
    cost = screen(chat, prompts, plan=Plan(prefix=False, restart=False, batch=False)).cost
    assert cost.token_layers == PROMPTS * HEADS * LAYERS * N * LAYERS
    assert cost.forwards == PROMPTS * HEADS * LAYERS


def test_a_kept_clean_run_is_paid_once(chat, prompts):
    clean = run_clean(chat.anatomy, prompts, [Site("z", 0)], ["last"], plan=Plan())
    assert clean.cost.token_layers == PROMPTS * N * LAYERS
    with_it = screen(chat, prompts, clean=clean)
    alone = screen(chat, prompts)
    assert with_it.cost.token_layers == alone.cost.token_layers - clean.cost.token_layers
    assert abs(with_it.scores["ld"] - alone.scores["ld"]).max() < 1e-5


def test_donors_of_the_same_set_come_from_the_clean_run(chat, prompts):
    sites = [Site("z", layer) for layer in range(LAYERS)]
    clean = run_clean(chat.anatomy, prompts, sites, ["last"], plan=Plan())
    width = chat.anatomy.head_dim
    own = [
        [
            (
                Replace(
                    site,
                    "last",
                    head=h,
                    values=clean.states[site][p, 0, h * width : (h + 1) * width],
                ),
            )
            for site in sites
            for h in range(HEADS)
        ]
        for p in range(PROMPTS)
    ]
    same = measure(chat.anatomy, prompts, own, {"ld": LogitDifference(3, 5)}, clean=clean)
    plain = measure(chat.anatomy, prompts, [()], {"ld": LogitDifference(3, 5)})
    assert abs(same.scores["ld"] - plain.scores["ld"]).max() < 1e-5


def test_a_clean_run_of_other_prompts_is_refused(chat, prompts):
    from refusalscope.errors import InputError

    clean = run_clean(chat.anatomy, prompts[:2], plan=Plan())
    with pytest.raises(InputError, match="other prompts"):
        screen(chat, prompts, clean=clean)


def test_a_smaller_budget_means_more_passes_and_the_same_numbers(chat, prompts):
    large, small = screen(chat, prompts), screen(chat, prompts, plan=Plan(max_bytes=20_000))
    assert small.cost.forwards > large.cost.forwards
    assert abs(large.scores["ld"] - small.scores["ld"]).max() < 1e-5
