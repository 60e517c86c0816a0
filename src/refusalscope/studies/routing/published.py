"""The procedure of arXiv 2604.04385 as published (preset `frank2026`), its defects kept.

    attribution   direct contributions read with the normed final state, no post-norm split; the 20 heads of
                  largest |harmful - control| between a quarter and 65 % of the depth are the candidates
    ablation      z - 5 (z.u) u at every position: not an ablation but an inversion (the component becomes -4 x)
    interchange   of the 10 candidates whose ablation most helps the control's reply (as in the released panel):
                  z copied from the left, on into the reply where the donor is longer; NLL of that reply
    cascade       the gate zeroed at every position, by relative change of other heads' contributions

Source: gregfrank/how-alignment-routes@35d2dd7; alignment_routes sections 1.2, 3, 4, 7, 10 and 11. One full
forward of one prompt for every number, so that the cost is that of the publication. What was chosen by hand
is settled here: the direction is the mean difference halfway up (the authors' fallback), the gate the head
of largest necessity, the heads it may drive the five next in that order, the null drawn by seed within four
layers of it. Corrected: `screen`, `significance`, `cascade`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import (
    ChatModel,
    Cost,
    Metric,
    ProjectOut,
    RefusalMargin,
    Rendered,
    Replace,
    ReplyNLL,
    Scale,
    Site,
    Variant,
)
from refusalscope.model.clean import place
from refusalscope.model.edits import frozen
from refusalscope.model.engine import Row, run_pass
from refusalscope.studies.heads import Head
from refusalscope.studies.routing.interchange import Pair
from refusalscope.studies.routing.maps import MapName, position_map

Array = npt.NDArray[np.float64]
N_REPLY = 5
DEPTH = (0.25, 0.65)
N_DRIVEN = 5
N_NULL, NULL_PAIRS, NULL_LAYERS = 10, 20, 4


@dataclass(frozen=True)
class Published:
    """What the publication prints, by stage.

    candidates [layer, head, dla (harmful - control, logits), rank (of |dla| among all heads)]; ablation [layer,
    head, reduction (nats)]; interchange [layer, head, necessity, sufficiency (nats), necessity_share,
    sufficiency_share (percent of the gap), gap (nats)]; cascade [gate, layer, head, change (percent)]; rank_p
    of the gate's mean |change| among the null's; cost [stage, forwards, tokens, token_layers].
    """

    candidates: pd.DataFrame
    ablation: pd.DataFrame
    interchange: pd.DataFrame
    cascade: pd.DataFrame
    rank_p: float
    cost: pd.DataFrame


@dataclass(frozen=True)
class Swaps:
    """Interchange by pair. harmful, control [pairs]: clean scores; necessity, sufficiency [pairs, heads]."""

    harmful: Array
    control: Array
    necessity: Array
    sufficiency: Array


@dataclass(frozen=True)
class Overshoot(ProjectOut):
    """The published head ablation: h - alpha (h.u) u. With alpha 5 it leaves -4 times the component."""

    alpha: float = 5.0

    def parameters(self, n_positions: int) -> Tensor:
        # Subtracting (h.p) p with p = sqrt(alpha) u is subtracting alpha (h.u) u.
        return super().parameters(n_positions) * self.alpha**0.5


def shares(
    reduction: npt.ArrayLike, increase: npt.ArrayLike, gap: npt.ArrayLike
) -> tuple[Array, Array]:
    """Necessity and sufficiency as printed: percent of the gap, from means in nats."""
    whole = np.asarray(gap, float)
    return 100 * np.asarray(reduction, float) / whole, 100 * np.asarray(increase, float) / whole


def change_percent(normal: npt.ArrayLike, knockout: npt.ArrayLike) -> Array:
    """(knockout - normal) / |normal| in percent; 0 where normal is within 1e-8 of nothing, as coded."""
    before, after = np.asarray(normal, float), np.asarray(knockout, float)
    size = np.abs(before)
    return np.where(size > 1e-8, (after - before) / np.where(size > 1e-8, size, 1.0) * 100, 0.0)


def rank_p(observed: float, null: Sequence[float]) -> float:
    """(1 + #null at least as large) / (1 + m); the publication prints the null but no p."""
    return float((1 + np.sum(np.asarray(null) >= observed)) / (1 + len(null)))


def dla_ranks(contrast: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Rank (1 is the largest) and percent of the sum, by |contrast| among all heads: [layers, heads]."""
    size = np.abs(contrast)
    ranks = np.empty(size.size, dtype=np.int64)
    ranks[np.argsort(-size.ravel(), kind="stable")] = np.arange(1, size.size + 1)
    return ranks.reshape(size.shape), 100 * size / (size.sum() or 1.0)


def as_coded(chat: ChatModel) -> ChatModel:
    """The same model run as the authors ran it: no prefix, no restart, no batch. Its cost starts at 0."""
    plan = replace(chat.plan, prefix=False, restart=False, batch=False)
    return replace(chat, plan=plan, cost=Cost())


def published(
    chat: ChatModel,
    pairs: Sequence[Pair],
    margin: RefusalMargin,
    replies: Sequence[tuple[int, ...]],
    *,
    n_candidates: int = 20,
    n_interchange: int = 10,
    alpha: float = 5.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Published:
    """Run all stages on pairs (their first donor only).

    margin: its refusal tokens give the attribution's direction; the other end is each control's first reply
    token that is not blank. replies: token ids of each control's greedy reply, of which 5 are scored.
    progress: told of stages done. Raises InputError where replies or numbers of heads do not fit.
    """
    _check(pairs, replies, n_candidates, n_interchange)
    coded = as_coded(chat)
    costs: dict[str, Cost] = {}

    def stage(name: str) -> None:
        if progress is not None:
            progress(len(costs), 6)
        coded.cost = costs[name] = Cost()

    readers = [_reader(coded, margin, reply) for reply in replies]
    stage("attribution")
    contrast = _contrasts(coded, pairs, readers).mean(axis=0)
    candidates = _candidates(contrast, n_candidates)
    heads = _heads(candidates)
    stage("direction")
    direction = _direction(coded, pairs)
    stage("ablation")
    ablation = _ablation(coded, pairs, replies, heads, direction, alpha)
    stage("interchange")
    chosen = _heads(ablation[:n_interchange])
    swaps = interchange(coded, pairs, chosen, ReplyNLL(N_REPLY), replies=replies)
    table = _interchange_table(swaps, chosen)
    stage("cascade")
    gate, *driven = _heads(table)[: 1 + N_DRIVEN]
    changes = _changes(coded, pairs, readers, gate, driven)
    stage("null")
    few, few_readers = pairs[:NULL_PAIRS], readers[:NULL_PAIRS]
    size, *null = [
        float(np.abs(_changes(coded, few, few_readers, head, driven)).mean())
        for head in [gate, *_null_heads(gate, driven, contrast.shape, seed)]
    ]
    for cost in costs.values():
        chat.cost.add(cost)
    if progress is not None:
        progress(6, 6)
    cascade = _frame(driven, change=changes)
    cascade.insert(0, "gate", f"L{gate[0]}.H{gate[1]}")
    return Published(
        candidates,
        ablation,
        table,
        cascade,
        rank_p(size, null),
        pd.DataFrame([{"stage": name, **vars(cost)} for name, cost in costs.items()]),
    )


def interchange(
    chat: ChatModel,
    pairs: Sequence[Pair],
    heads: Sequence[Head],
    metric: Metric,
    *,
    positions: MapName = "compat_left",
    replies: Sequence[tuple[int, ...]] | None = None,
) -> Swaps:
    """Swap every head of every pair both ways, capturing anew for each: n (2 + 4 heads) forwards, as coded.

    replies: teacher-forced after both members, 5 tokens of each; donors are captured without them. Run it
    on `as_coded(chat)` to pay what the authors paid; the numbers do not depend on the plan. Signs are the
    metric's own: with a margin as with the NLL of the control's reply, the harmful prompt scores higher.
    """
    rows = []
    for number, pair in enumerate(pairs):
        reply = () if replies is None else replies[number][:N_REPLY]
        members = (pair.harmful, pair.control)
        patients = [member.with_reply(reply) for member in members]
        clean = [_score(chat, patient, (), metric) for patient in patients]
        swapped = []
        for head in heads:
            captured = [_head_states(chat, member, head) for member in members]
            swapped.append(
                [
                    _score(
                        chat,
                        patients[side],
                        _swap(
                            patients[side], members[1 - side], head, captured[1 - side], positions
                        ),
                        metric,
                    )
                    for side in (0, 1)
                ]
            )
        rows.append((*clean, np.array(swapped)))
    harmful, control, by_head = (np.array(column) for column in zip(*rows, strict=True))
    return Swaps(
        harmful, control, harmful[:, None] - by_head[..., 0], by_head[..., 1] - control[:, None]
    )


def _check(
    pairs: Sequence[Pair], replies: Sequence[tuple[int, ...]], n_candidates: int, n_swapped: int
) -> None:
    if not pairs or len(replies) != len(pairs) or not all(replies):
        raise InputError(
            f"{len(pairs)} pairs need one reply each that is not empty, and there are "
            f"{sum(map(bool, replies))}: generate a reply to every control, and leave out pairs without one"
        )
    if not 2 <= n_swapped <= n_candidates:
        raise InputError(
            f"n_interchange must be from 2 (a gate and a head to drive) to n_candidates "
            f"({n_candidates}), not {n_swapped}"
        )


def _reader(chat: ChatModel, margin: RefusalMargin, reply: Sequence[int]) -> Tensor:
    """Mean unembedding of the refusal tokens minus that of the reply's first token, gain applied: [d_model].

    The gain is the norm's stored weight, also where the norm multiplies by 1 + weight.
    """
    said = next((token for token in reply if chat.tokenizer.decode([token]).strip()), reply[0])
    weight = chat.anatomy.lm_head.weight.detach()
    direction = weight[list(margin.refuse)].float().mean(0) - weight[said].float()
    return direction * chat.anatomy.final_norm.weight.detach().float().to(direction.device)


@torch.inference_mode()
def _last_states(
    chat: ChatModel, prompt: Rendered, sites: Sequence[Site], variant: Variant = ()
) -> dict[Site, Tensor]:
    """States at the prompt's last token from one full forward of this one row, edited or not."""
    anatomy = chat.anatomy
    placed = place(anatomy, prompt, variant, "every_step", restart=False)
    rows = [Row(0, placed.edits, placed.places, 0)] if placed.edits else []
    last = torch.tensor([[prompt.n_prompt - 1]], device=anatomy.device)
    tokens = torch.tensor([prompt.ids], device=anatomy.device)
    out = run_pass(anatomy, tokens, rows, keep_bases=False, capture=dict.fromkeys(sites, last))
    chat.cost.add(out.cost)
    return {site: out.state(site, 0 if rows else None, 0)[0] for site in sites}


@torch.inference_mode()
def _direct(chat: ChatModel, prompt: Rendered, reader: Tensor, variant: Variant = ()) -> Array:
    """Direct contribution of every head [layers, heads], scaled by the rms of the NORMED final state."""
    anatomy = chat.anatomy
    sites = [Site("z", layer) for layer in range(anatomy.n_layers)]
    states = _last_states(chat, prompt, [*sites, Site("final")], variant)
    norm = anatomy.final_norm
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon")  # noqa: B009
    rms = (norm(states[Site("final")]).float().pow(2).mean() + eps).sqrt()
    found = []
    for site in sites:
        weight = anatomy.attention_output(site.layer).weight.float()
        read = (reader.to(weight.device) @ weight).view(anatomy.n_heads, anatomy.head_dim)
        found.append((states[site].float().view_as(read) * read).sum(-1).cpu() / rms.cpu())
    return torch.stack(found).double().numpy()


def _contrasts(
    chat: ChatModel, pairs: Sequence[Pair], readers: Sequence[Tensor], variant: Variant = ()
) -> Array:
    """Harmful minus control, by pair: [pairs, layers, heads]."""
    return np.stack(
        [
            _direct(chat, pair.harmful, reader, variant)
            - _direct(chat, pair.control, reader, variant)
            for pair, reader in zip(pairs, readers, strict=True)
        ]
    )


def _candidates(contrast: Array, n: int) -> pd.DataFrame:
    """The n heads of largest |contrast| within the depth window, both ends included as coded."""
    n_layers, n_heads = contrast.shape
    first, last = (int(n_layers * part) for part in DEPTH)
    ranks, _ = dla_ranks(contrast)
    window = [(layer, head) for layer in range(first, last + 1) for head in range(n_heads)]
    best = sorted(window, key=lambda head: ranks[head])[:n]
    return _frame(best, dla=[contrast[head] for head in best], rank=[ranks[head] for head in best])


def _direction(chat: ChatModel, pairs: Sequence[Pair]) -> Tensor:
    """Mean difference of the members' last tokens at `hidden_states[(L + 1) // 2]`: [d_model]."""
    site = Site("resid_pre", (chat.anatomy.n_layers + 1) // 2)
    states = [
        _last_states(chat, pair.harmful, [site])[site].float()
        - _last_states(chat, pair.control, [site])[site].float()
        for pair in pairs
    ]
    return torch.stack(states).mean(0)


def _ablation(
    chat: ChatModel,
    pairs: Sequence[Pair],
    replies: Sequence[tuple[int, ...]],
    heads: Sequence[Head],
    direction: Tensor,
    alpha: float,
) -> pd.DataFrame:
    """How much nearer each head's ablation brings the harmful prompt to the control's reply; n (2 + heads)."""
    metric = ReplyNLL(N_REPLY)
    edits = [_overshoot(chat, head, direction, alpha) for head in heads]
    reductions = []
    for pair, reply in zip(pairs, replies, strict=True):
        harmful, control = (
            side.with_reply(reply[:N_REPLY]) for side in (pair.harmful, pair.control)
        )
        clean = _score(chat, harmful, (), metric)
        # The control's score cancels out of the reduction; the authors run it, so it is run and paid for.
        _score(chat, control, (), metric)
        reductions.append([clean - _score(chat, harmful, edit, metric) for edit in edits])
    table = _frame(heads, reduction=np.mean(reductions, axis=0))
    return table.sort_values("reduction", ascending=False, kind="stable", ignore_index=True)


def _overshoot(chat: ChatModel, head: Head, direction: Tensor, alpha: float) -> Variant:
    """The edit of one head; none where it writes nothing along the direction."""
    layer, number = head
    width = chat.anatomy.head_dim
    weight = chat.anatomy.attention_output(layer).weight.detach()
    writes = weight[:, number * width : (number + 1) * width].float().cpu()
    inner = torch.linalg.lstsq(writes, direction.cpu().unsqueeze(1)).solution[:, 0]
    if not float(inner.norm()) > 0:
        return ()
    return (Overshoot(Site("z", layer), "all", head=number, direction=frozen(inner), alpha=alpha),)


def _interchange_table(swaps: Swaps, heads: Sequence[Head]) -> pd.DataFrame:
    gap = float((swaps.harmful - swaps.control).mean())
    necessity, sufficiency = swaps.necessity.mean(axis=0), swaps.sufficiency.mean(axis=0)
    share = shares(necessity, sufficiency, gap)
    table = _frame(
        heads,
        necessity=necessity,
        sufficiency=sufficiency,
        necessity_share=share[0],
        sufficiency_share=share[1],
        gap=gap,
    )
    return table.sort_values("necessity", ascending=False, kind="stable", ignore_index=True)


def _changes(
    chat: ChatModel,
    pairs: Sequence[Pair],
    readers: Sequence[Tensor],
    gate: Head,
    driven: Sequence[Head],
) -> Array:
    """Percent change of each driven head's mean contrast without the gate: 4 forwards a pair."""
    zero = (Scale(Site("z", gate[0]), "all", head=gate[1], factor=0.0),)
    normal = _contrasts(chat, pairs, readers).mean(axis=0)
    knockout = _contrasts(chat, pairs, readers, zero).mean(axis=0)
    at = tuple(zip(*driven, strict=True))
    return change_percent(normal[at], knockout[at])


def _null_heads(
    gate: Head, driven: Sequence[Head], shape: tuple[int, ...], seed: int
) -> list[Head]:
    near = range(max(0, gate[0] - NULL_LAYERS), min(shape[0], gate[0] + NULL_LAYERS + 1))
    taken = {gate, *driven}
    pool = [(layer, head) for layer in near for head in range(shape[1])]
    pool = [head for head in pool if head not in taken]
    drawn = np.random.default_rng(seed).permutation(len(pool))[:N_NULL]
    return [pool[i] for i in drawn]


def _score(chat: ChatModel, prompt: Rendered, variant: Variant, metric: Metric) -> float:
    return float(chat.measure([prompt], [variant], {"m": metric}).scores["m"][0, 0])


def _head_states(chat: ChatModel, prompt: Rendered, head: Head) -> Tensor:
    """z of one head at every token of the prompt: [n_prompt, head_dim]."""
    site, width = Site("z", head[0]), chat.anatomy.head_dim
    every = [(i,) for i in range(prompt.n_prompt)]
    return chat.capture([prompt], [site], every)[site][0][
        :, head[1] * width : (head[1] + 1) * width
    ]


def _swap(
    patient: Rendered, donor: Rendered, head: Head, states: Tensor, positions: MapName
) -> Variant:
    to, source = zip(*position_map(patient, donor, positions), strict=True)
    return (Replace(Site("z", head[0]), to, head=head[1], values=frozen(states[list(source)])),)


def _heads(table: pd.DataFrame) -> list[Head]:
    return [
        (int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)
    ]


def _frame(heads: Sequence[Head], **columns: npt.ArrayLike) -> pd.DataFrame:
    layers, numbers = zip(*heads, strict=True)
    return pd.DataFrame({"layer": layers, "head": numbers, **columns})
