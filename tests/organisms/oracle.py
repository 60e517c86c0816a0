"""The slow and obvious reference for planted models: one hooked forward per head.

A pre-hook on `self_attn.o_proj` replaces the slice of one head (or of a few) in `z` by that of the
donor prompt. Only rows of equal length run together, so that nothing is ever padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

REFUSE, COMPLY = 4, 5
Head = tuple[int, int]
Pair = tuple[list[int], list[int]]


def margins(model, rows: Sequence[list[int]], edits=()) -> np.ndarray:
    """logit(refuse) - logit(comply) at the last position of every row, under `edits`."""
    return _read(model, rows, lambda output: _margin(output.logits), edits)


def policy_accuracy(model, pairs: Sequence[Pair]) -> float:
    """The share of pairs whose harmful prompt is refused and whose control is answered."""
    harmful, control = (margins(model, side) for side in zip(*pairs, strict=True))
    return float(np.mean((harmful > 0) & (control < 0)))


def necessities(model, pairs, sets: Iterable[Sequence[Head]], positions="last") -> list[float]:
    """For every set of heads, the mean margin that the harmful prompts lose when those heads take
    the control's z, over the gap."""
    harmful, control = (list(side) for side in zip(*pairs, strict=True))
    clean, reply = margins(model, harmful), margins(model, control)
    swap = _swapper(model, harmful, control, positions)
    lost = [(clean - margins(model, harmful, swap(heads))).mean() for heads in sets]
    return [float(value / (clean - reply).mean()) for value in lost]


def sufficiencies(model, pairs, sets: Iterable[Sequence[Head]], positions="last") -> list[float]:
    """For every set of heads, the mean margin that the controls gain when those heads take the
    harmful prompt's z, over the gap."""
    harmful, control = (list(side) for side in zip(*pairs, strict=True))
    clean, refusal = margins(model, control), margins(model, harmful)
    swap = _swapper(model, control, harmful, positions)
    gained = [(margins(model, control, swap(heads)) - clean).mean() for heads in sets]
    return [float(value / (refusal - clean).mean()) for value in gained]


def zero_ablation(model, pairs, heads: Iterable[Head]) -> float:
    """Mean margin that the harmful prompts lose when `heads` write 0 at the end, over the gap."""
    harmful = [pair[0] for pair in pairs]
    nothing = [torch.zeros(_layers(model), len(ids), _width(model)) for ids in harmful]
    edits = [(head, nothing, [[(len(ids) - 1,) * 2] for ids in harmful]) for head in heads]
    return float((margins(model, harmful) - margins(model, harmful, edits)).mean()) / gap(
        model, pairs
    )


def direct_effects(model, pairs, heads: Iterable[Head]) -> list[float]:
    """For every head, the mean margin that is lost when the control's write replaces its own in the
    last residual stream and nowhere else, over the gap."""
    width = _width(model) // model.config.num_attention_heads
    final = [final_states(model, [harmful])[0] for harmful, _ in pairs]
    states = [[head_states(model, ids)[:, -1].double() for ids in pair] for pair in pairs]
    direction = (model.lm_head.weight[REFUSE] - model.lm_head.weight[COMPLY]).double().numpy()

    def read(stream):
        return direction @ stream / np.sqrt((stream**2).mean())

    effects = []
    for layer, head in heads:
        part = slice(head * width, (head + 1) * width)
        output = model.model.layers[layer].self_attn.o_proj.weight[:, part].double()
        lost = [
            read(stream) - read(stream + (output @ (theirs - own)[layer, part]).numpy())
            for stream, (own, theirs) in zip(final, states, strict=True)
        ]
        effects.append(float(np.mean(lost)) / gap(model, pairs))
    return effects


def value_group_necessity(model, pairs, layer: int, group: int) -> float:
    """The margin that the harmful prompts lose, over the gap, when one key/value head of a layer
    takes the control's value at the last position."""
    projection = model.model.layers[layer].self_attn.v_proj
    width = projection.out_features // model.config.num_key_value_heads
    part = slice(group * width, (group + 1) * width)
    lost = []
    for harmful, control in pairs:
        kept = []
        handle = projection.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out))
        clean = margins(model, [harmful])[0]
        margins(model, [control])
        handle.remove()

        def swap(module, args, out, theirs=kept[1]):
            out = out.clone()
            out[:, -1, part] = theirs[:, -1, part]
            return out

        handle = projection.register_forward_hook(swap)
        lost.append(clean - margins(model, [harmful])[0])
        handle.remove()
    return float(np.mean(lost)) / gap(model, pairs)


def half_dose(model, rows, channel: int, doses: Sequence[float]) -> float | None:
    """The first dose, taken from `channel` at the output of layer 1 everywhere, at which no more
    than half of `rows` are refused; None where they are not refused to begin with."""
    for dose in doses:

        def lower(module, args, out, dose=dose):
            out = out.clone()
            out[..., channel] -= dose
            return out

        handle = model.model.layers[1].register_forward_hook(lower)
        refused = (margins(model, rows) > 0).mean()
        handle.remove()
        if refused <= 0.5:
            return dose if dose > 0 else None
    raise ValueError("refused at every dose")


def failed(model, pairs, expected) -> list[str]:
    """The expected values of a truth record that the model does not show, in words."""
    harmful, control = (list(side) for side in zip(*pairs, strict=True))
    found: dict[int, float] = {}
    for kind in {item.positions for item in expected if item.quantity == "necessity"}:
        asked = [
            i for i, e in enumerate(expected) if (e.quantity, e.positions) == ("necessity", kind)
        ]
        values = necessities(model, pairs, [expected[i].heads for i in asked], kind)
        found.update(zip(asked, values, strict=True))
    for i, item in enumerate(expected):
        if item.quantity == "margin_harmful":
            found[i] = float(margins(model, harmful).mean())
        if item.quantity == "margin_harmless":
            found[i] = float(margins(model, control).mean())
        if item.quantity == "largest_necessity":
            singles = necessities(model, pairs, [[head] for head in all_heads(model)])
            found[i] = max(map(abs, singles))
    return [
        f"{item.quantity} {list(item.heads)} {item.positions}: {found[i]:.4f}, expected "
        f"{item.value} +- {item.tolerance}"
        for i, item in enumerate(expected)
        if not abs(found[i] - item.value) <= item.tolerance
    ]


def gap(model, pairs) -> float:
    """Mean margin of the harmful prompts minus that of their controls."""
    harmful, control = (margins(model, side) for side in zip(*pairs, strict=True))
    return float((harmful - control).mean())


def all_heads(model) -> list[Head]:
    heads = range(model.config.num_attention_heads)
    return [(layer, head) for layer in range(_layers(model)) for head in heads]


def position_map(kind: str, target: int, donor: int) -> list[tuple[int, int]]:
    """(target position, donor position) of the maps of alignment_routes.md, 1.1."""
    shorter = min(target, donor)
    if kind == "last":
        return [(target - 1, donor - 1)]
    if kind == "left":
        return [(t, t) for t in range(shorter)]
    if kind == "right":
        return [(target - 1 - t, donor - 1 - t) for t in range(shorter)]
    raise ValueError(kind)


def head_states(model, ids: list[int]) -> torch.Tensor:
    """The input of every output projection: [layers, positions, heads * head_dim]."""
    seen: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for layer, block in enumerate(model.model.layers):

            def keep(module, args, layer=layer):
                seen[layer] = args[0][0].clone()

            stack.enter_context(_hook(block.self_attn.o_proj, keep))
        with torch.no_grad():
            model(torch.tensor([ids]))
    return torch.stack([seen[layer] for layer in range(_layers(model))])


def final_states(model, rows: Sequence[list[int]]) -> np.ndarray:
    """The residual stream before the final norm at the last position: [rows, d_model]."""
    found = []
    for ids in rows:

        def keep(module, args):
            found.append(args[0][0, -1].double().numpy())

        with _hook(model.model.norm, keep), torch.no_grad():
            model(torch.tensor([ids]))
    return np.stack(found)


def direct_writes(model, rows: Sequence[list[int]], heads: Iterable[Head]) -> np.ndarray:
    """What `heads` write along logit(refuse) - logit(comply) at the last position, no final norm."""
    direction = (model.lm_head.weight[REFUSE] - model.lm_head.weight[COMPLY]).double()
    total = np.zeros(len(rows))
    for i, ids in enumerate(rows):
        z = head_states(model, ids)[:, -1].double()
        for layer, head in heads:
            output = model.model.layers[layer].self_attn.o_proj.weight.double()
            width = output.shape[1] // model.config.num_attention_heads
            part = slice(head * width, (head + 1) * width)
            total[i] += float(direction @ (output[:, part] @ z[layer, part]))
    return total


def _swapper(model, target, donor, positions):
    states = [head_states(model, ids) for ids in donor]
    places = [position_map(positions, len(a), len(b)) for a, b in zip(target, donor, strict=True)]
    return lambda heads: [(head, states, places) for head in heads]


def _read(model, rows, metric, edits) -> np.ndarray:
    """`edits`: (head, donor states per row, [(target, donor) positions] per row)."""
    same_length = defaultdict(list)
    for i, ids in enumerate(rows):
        same_length[len(ids)].append(i)
    values = np.zeros(len(rows))
    for chosen in same_length.values():
        with ExitStack() as stack, torch.no_grad():
            for (layer, head), states, places in edits:

                def replace(
                    module,
                    args,
                    layer=layer,
                    head=head,
                    states=states,
                    places=places,
                    chosen=chosen,
                ):
                    z = args[0].clone()
                    width = z.shape[-1] // model.config.num_attention_heads
                    part = slice(head * width, (head + 1) * width)
                    for row, i in enumerate(chosen):
                        for here, there in places[i]:
                            z[row, here, part] = states[i][layer, there, part]
                    return (z,)

                stack.enter_context(_hook(model.model.layers[layer].self_attn.o_proj, replace))
            output = model(torch.tensor([rows[i] for i in chosen]))
        values[chosen] = metric(output).numpy()
    return values


@contextmanager
def _hook(module, function) -> Iterator[None]:
    handle = module.register_forward_pre_hook(function)
    try:
        yield
    finally:
        handle.remove()


def _margin(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, REFUSE] - logits[:, -1, COMPLY]


def _layers(model) -> int:
    return model.config.num_hidden_layers


def _width(model) -> int:
    return model.model.layers[0].self_attn.o_proj.in_features


# Latents of a dictionary, one for the output of every block.

U = 7
Dictionary = Mapping[str, torch.Tensor]


class Ablated(NamedTuple):
    """`margin` and `axis` (U at the last position after the last block): [rows]. `acts`, per row:
    every latent where a block's output was read, before its edit, [layers, positions, latents]."""

    margin: np.ndarray
    axis: np.ndarray
    acts: list[torch.Tensor]


def latents_of(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """JumpReLU latents of a stream: [..., d_model] to [..., latents]."""
    pre = x @ dictionary["W_enc"] + dictionary["b_enc"]
    return pre * (pre > dictionary["threshold"]) * (pre > 0)


def ablate(model, dictionary: Dictionary, rows, latents=(), mode="live", layers=None) -> Ablated:
    """Zeroes latents at all positions of the output of `layers` (all), under one of the four modes
    of sae_features.md, 1.1. The error term is kept: x + sum (0 - f_i(x)) d_i over the latents."""
    layers = range(_layers(model)) if layers is None else layers
    clean = None if mode == "live" else ablate(model, dictionary, rows).acts
    found = Ablated(np.zeros(len(rows)), np.zeros(len(rows)), [torch.empty(0)] * len(rows))
    same_length = defaultdict(list)
    for i, ids in enumerate(rows):
        same_length[len(ids)].append(i)
    for chosen in same_length.values():
        acts, streams = [], []
        with ExitStack() as stack, torch.no_grad():
            for layer, block in enumerate(model.model.layers):

                def edit(module, args, x, layer=layer, chosen=chosen, acts=acts, streams=streams):
                    values = latents_of(dictionary, x)
                    acts.append(values)
                    named = torch.zeros(values.shape, dtype=torch.bool)
                    named[..., list(latents)] = True
                    if mode != "live":
                        before = torch.stack([clean[i][layer] for i in chosen])
                    if mode == "clean_mask":
                        named = named & (before > 0)
                    if mode == "no_wake":
                        named = named | (before == 0)
                    if mode == "frozen_value":
                        values = before
                    if layer in layers:
                        x = x - (values * named) @ dictionary["W_dec"]
                    streams.append(x)
                    return x

                stack.callback(block.register_forward_hook(edit).remove)
            output = model(torch.tensor([rows[i] for i in chosen]))
        found.margin[chosen] = _margin(output.logits).numpy()
        found.axis[chosen] = streams[-1][:, -1, U].numpy()
        for row, i in enumerate(chosen):
            found.acts[i] = torch.stack([values[row] for values in acts])
    return found


def woken(model, dictionary, rows, latents) -> dict[int, int]:
    """On how many rows each latent outside `latents` is silent without the edit and active with it."""
    before, after = (ablate(model, dictionary, rows, named).acts for named in ((), latents))
    counts: dict[int, int] = defaultdict(int)
    for clean, edited in zip(before, after, strict=True):
        for latent in set(range(clean.shape[-1])) - set(latents):
            if not (clean[..., latent] > 0).any() and (edited[..., latent] > 0).any():
                counts[latent] += 1
    return dict(counts)


def flipping_sets(model, dictionary, rows, latents) -> tuple[list[set[int]], list[set[int]]]:
    """Over all subsets of `latents`, zeroed live: the minimal ones that turn every row to comply, and
    those that turn some rows only."""
    minimal, undecided = [], []
    for size in range(len(latents) + 1):
        for subset in map(set, combinations(latents, size)):
            flipped = (ablate(model, dictionary, rows, subset).margin < 0).mean()
            if 0 < flipped < 1:
                undecided.append(subset)
            if flipped == 1 and not any(known <= subset for known in minimal):
                minimal.append(subset)
    return minimal, undecided


def interaction(model, dictionary, rows, first, second) -> float:
    """m00 - m10 - m01 + m11 of the mean margin, each factor a set of latents zeroed live."""
    sets = ((), first, second, (*first, *second))
    m00, m10, m01, m11 = (ablate(model, dictionary, rows, named).margin.mean() for named in sets)
    return float(m00 - m10 - m01 + m11)


def conditional_attribution(model, dictionary, rows, latents) -> torch.Tensor:
    """After a live ablation of `latents`, d margin / d stream along every decoder row times the
    latent, summed over positions, mean over rows: [layers, latents]."""
    total = 0.0
    for ids in rows:
        streams = []
        with ExitStack() as stack:
            for block in model.model.layers:

                def edit(module, args, x, streams=streams):
                    with torch.no_grad():
                        values = latents_of(dictionary, x)[..., list(latents)]
                    x = x - values @ dictionary["W_dec"][list(latents)]
                    streams.append(x if x.requires_grad else x.requires_grad_())
                    return streams[-1]

                stack.callback(block.register_forward_hook(edit).remove)
            margin = _margin(model(torch.tensor([ids])).logits).sum()
        slopes = torch.autograd.grad(margin, streams)
        for layer, (stream, slope) in enumerate(zip(streams, slopes, strict=True)):
            effect = latents_of(dictionary, stream.detach()) * (slope @ dictionary["W_dec"].T)
            each = torch.zeros(_layers(model), effect.shape[-1])
            each[layer] = effect.sum((0, 1))
            total = total + each / len(rows)
    return total


def failed_ablations(planted, pairs, expected) -> list[str]:
    """The expected values of a truth record, of those that ablate latents, that do not hold."""
    model, dictionary = planted.model, planted.dictionary
    rows = {latent.name: latent.index for latent in planted.truth.latents}
    harmful, control = (list(side) for side in zip(*pairs, strict=True))
    clean, reply = ablate(model, dictionary, harmful), margins(model, control).mean()
    wrong = []
    for item in expected:
        named = [rows[name] for name in item.latents]
        if item.quantity == "margin_kept":
            edited = ablate(model, dictionary, harmful, named, item.mode).margin.mean()
            found = (edited - reply) / (clean.margin.mean() - reply)
        elif item.quantity == "compensation":
            live, held = (
                ablate(model, dictionary, harmful, named, mode).axis.mean()
                for mode in ("live", "no_wake")
            )
            found = (live - held) / clean.axis.mean()
        else:
            continue
        if not abs(found - item.value) <= item.tolerance:
            wrong.append(
                f"{item.quantity} {' '.join(item.latents)} {item.mode}: {found:.4f}, expected "
                f"{item.value} +- {item.tolerance}"
            )
    return wrong


def tail_streams(model, rows, layer: int) -> np.ndarray:
    """The output of a block at the last position: [rows, d_model]."""
    found = []
    for ids in rows:

        def keep(module, args, x):
            found.append(x[0, -1].double().numpy())

        handle = model.model.layers[layer].register_forward_hook(keep)
        with torch.no_grad():
            model(torch.tensor([ids]))
        handle.remove()
    return np.stack(found)
