"""Our way: every head of a prompt in one pass over a cached prefix, through refusalscope.model."""

from __future__ import annotations

import torch
from rivals.problem import Problem, Way
from torch import Tensor
from transformers import LlamaForCausalLM

from refusalscope.model import (
    LogitDifference,
    Plan,
    Replace,
    Site,
    Variant,
    inspect,
    measure,
    run_clean,
)
from refusalscope.model.anchors import Rendered


def load(model: LlamaForCausalLM, problem: Problem) -> Way:
    p = problem
    return Way(
        lambda: plan_screen(model, p.ids, p.donors, p.tokens, p.heads),
        model.model,
        model.model.layers,
    )


def plan_screen(
    model: LlamaForCausalLM, ids: Tensor, donors: Tensor, tokens: Tensor, heads: Tensor
) -> tuple[Tensor, dict[str, int]]:
    """Scores [prompts, heads] and {"forwards", "token_layers"} as the plan counts them itself.

    ids: [prompts, positions]; donors: [prompts]; tokens: [2]; heads: [heads, 2] of (layer, head).
    """
    anatomy = inspect(model)
    n = ids.shape[1]
    prompts = [
        Rendered(str(i), "", tuple(row), n, (0, n - 1), {"prompt_last": n - 1})
        for i, row in enumerate(ids.tolist())
    ]
    sites = [Site("z", layer) for layer in range(anatomy.n_layers)]
    clean = run_clean(anatomy, prompts, sites, ["last"], plan=Plan())
    width = anatomy.head_dim
    swaps: list[list[Variant]] = [
        [
            (
                Replace(
                    sites[layer],
                    "last",
                    head=head,
                    values=clean.states[sites[layer]][donor, 0, head * width : (head + 1) * width],
                ),
            )
            for layer, head in heads.tolist()
        ]
        for donor in donors.tolist()
    ]
    metric = LogitDifference(*tokens.tolist())
    found = measure(anatomy, prompts, swaps, {"difference": metric}, clean=clean)
    found.cost.add(clean.cost)
    counts = {"forwards": found.cost.forwards, "token_layers": found.cost.token_layers}
    return torch.from_numpy(found.scores["difference"]), counts
