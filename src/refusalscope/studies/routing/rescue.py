"""Rescue: does the gate's plain activation, put in place under the wrapper, bring the refusal back?

Source: arXiv 2604.04385, rescue, which replaces the gate at every forward pass and has no control;
alignment_routes section 8 for the four: another head's activation, the gate's on a harmless request, noise of
the same size, and an injection into the prompt alone. A rescue counts only where the controls stay silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.judge import Exchange, Judge
from refusalscope.model import ChatModel, RefusalMargin, Rendered, Replace, Site, Variant
from refusalscope.model.edits import frozen
from refusalscope.prompts.sets import PairSet
from refusalscope.stats import mean_interval, wilson
from refusalscope.studies.heads import Head, Unit, clusters_of
from refusalscope.studies.routing.cipher import require_same_pairs
from refusalscope.studies.routing.interchange import Pair

# How many layers a random head may lie from the gate.
WINDOW = 1


def rescue(
    chat: ChatModel,
    pairs: PairSet,
    plain: Sequence[Pair],
    hidden: Sequence[Pair],
    gate: Head | Unit,
    margin: RefusalMargin,
    judge: Judge,
    *,
    wrapper: str,
    others: Sequence[Head],
    policies: Sequence[str] = ("prompt_only", "every_step"),
    max_new_tokens: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Table `routing.rescue`: refusal of the harmful requests by arm, and by decode policy where one acts.

    Arms: plain and cipher, without an edit; rescued, z of the gate from the plain request put in place at the
    last position of the wrapped one; random_head, the same with as many other heads and their own plain z,
    drawn anew for every prompt from the `others` within WINDOW layers; benign, the gate's z from the plain
    control; noise, the gate's own z plus noise of the norm of the rescue's change. Under every_step, as
    published, the values are put in place at every generated token too, under prompt_only they are not.

    Columns: wrapper, arm, policy ("" without an edit), n, refused, rate with low and high (Wilson), margin
    (mean, nats) with margin_low and margin_high (BCa, whole categories where there are MIN_CLUSTERS or more).
    The judge sees the plain request beside the reply as it was written; a reply it cannot tell counts as not
    refused. Raises InputError for pairs that differ in number or order, a head the model lacks, or too few
    others near the gate.
    """
    heads: Unit = gate if isinstance(gate[0], tuple) else (gate,)
    _check(chat, pairs, plain, hidden, heads, others)
    variants = _variants(chat, plain, hidden, heads, _near(heads, others), seed)
    targets = [pair.harmful for pair in hidden]
    rows = [[(), *each] for each in zip(*variants.values(), strict=True)]
    scores = chat.measure(targets, rows, {"margin": margin}).scores["margin"]
    requests = [pair.harmful for pair in plain]
    unedited = [chat.measure(requests, [()], {"margin": margin}).scores["margin"][:, 0], *scores.T]
    margins = dict(zip(("plain", "cipher", *variants), unedited, strict=True))

    clean: list[Variant] = [()] * len(targets)
    jobs: list[tuple[str, str, list[Rendered], list[Variant]]] = [
        ("plain", "", requests, clean),
        ("cipher", "", targets, clean),
    ]
    jobs += [
        (arm, policy, targets, edits) for policy in policies for arm, edits in variants.items()
    ]
    clusters = clusters_of([str(pair.category) for pair in pairs])
    table = []
    for done, (arm, policy, prompts, edits) in enumerate(jobs, 1):
        ids = chat.generate(
            prompts, edits, max_new_tokens=max_new_tokens, policy=policy or "prompt_only"
        )
        said = [
            Exchange(pair.harmful, chat.decode(row)) for pair, row in zip(pairs, ids, strict=True)
        ]
        refused = sum(bool(judgement.refused) for judgement in judge.judge(said))
        rate = wilson(refused, len(said))
        mean = mean_interval(margins[arm], clusters, seed=seed)
        table.append(
            {
                "wrapper": wrapper,
                "arm": arm,
                "policy": policy,
                "n": len(said),
                "refused": refused,
                "rate": rate.value,
                "low": rate.low,
                "high": rate.high,
                "margin": mean.value,
                "margin_low": mean.low,
                "margin_high": mean.high,
            }
        )
        if progress is not None:
            progress(done, len(jobs))
    return pd.DataFrame(table)


def _variants(
    chat: ChatModel,
    plain: Sequence[Pair],
    hidden: Sequence[Pair],
    heads: Unit,
    near: Sequence[Head],
    seed: int,
) -> dict[str, list[Variant]]:
    """The edits of every injecting arm, one variant a prompt."""
    layers = sorted({layer for layer, _ in (*heads, *near)})
    own, benign, under = (
        _last_z(chat, prompts, layers)
        for prompts in (
            [pair.harmful for pair in plain],
            [pair.control for pair in plain],
            [pair.harmful for pair in hidden],
        )
    )
    width = chat.anatomy.head_dim
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)

    def slice_of(z: dict[int, Tensor], i: int, head: Head) -> Tensor:
        return z[head[0]][i, head[1] * width : (head[1] + 1) * width]

    def noisy(i: int, head: Head) -> Tensor:
        here = slice_of(under, i, head)
        change = (slice_of(own, i, head) - here).norm()
        noise = torch.randn(width, generator=generator)
        return here + noise * (change / noise.norm())

    def put(values: dict[Head, Tensor]) -> Variant:
        return tuple(
            Replace(Site("z", layer), "last", head=head, values=frozen(z))
            for (layer, head), z in values.items()
        )

    found: dict[str, list[Variant]] = {
        arm: [] for arm in ("rescued", "random_head", "benign", "noise")
    }
    for i in range(len(plain)):
        drawn = [near[k] for k in rng.choice(len(near), len(heads), replace=False)]
        found["rescued"].append(put({head: slice_of(own, i, head) for head in heads}))
        found["random_head"].append(put({head: slice_of(own, i, head) for head in drawn}))
        found["benign"].append(put({head: slice_of(benign, i, head) for head in heads}))
        found["noise"].append(put({head: noisy(i, head) for head in heads}))
    return found


def _last_z(
    chat: ChatModel, prompts: Sequence[Rendered], layers: Sequence[int]
) -> dict[int, Tensor]:
    """z of the prompt's last token, by layer: [prompts, n_heads * head_dim], float32 on the CPU."""
    states = chat.capture(prompts, [Site("z", layer) for layer in layers], ["last"])
    return {layer: states[Site("z", layer)][:, 0].float().cpu() for layer in layers}


def _near(heads: Unit, others: Sequence[Head]) -> list[Head]:
    """The candidates of like depth, without the gate."""
    near = [
        head
        for head in others
        if head not in heads and any(abs(head[0] - layer) <= WINDOW for layer, _ in heads)
    ]
    if len(near) < len(heads):
        gate = ", ".join(f"L{layer}.H{head}" for layer, head in heads)
        raise InputError(
            f"{len(near)} of the other heads lie within {WINDOW} layer of {gate}, and {len(heads)} are needed "
            f"as a control: give more heads of those layers that are not in the circuit"
        )
    return near


def _check(
    chat: ChatModel,
    pairs: PairSet,
    plain: Sequence[Pair],
    hidden: Sequence[Pair],
    heads: Unit,
    others: Sequence[Head],
) -> None:
    require_same_pairs(plain, hidden)
    if [f"{pair.id}/harmful" for pair in pairs] != [pair.harmful.id for pair in plain]:
        raise InputError(
            "the pairs and their rendered prompts differ in number or order: render these pairs with wrapped()"
        )
    n_layers, n_heads = chat.anatomy.n_layers, chat.anatomy.n_heads
    for layer, head in (*heads, *others):
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InputError(
                f"the model has no head L{layer}.H{head}; it has {n_layers} layers of {n_heads} heads"
            )
