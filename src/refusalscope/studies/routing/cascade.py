"""What a gate does to the heads behind it: knockout cascades.

Source: arXiv 2604.04385, cascade; alignment_routes section 7. A cascade takes a head out and reads how every
deeper head's direct contrast changes; with the final norm's scale free it also counts what the norm does to
heads that never heard of the gate, so it is read with the scale held too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, RefusalMargin, Rendered, Replace, Scale, Site, Variant
from refusalscope.model.edits import frozen
from refusalscope.stats import mean_interval
from refusalscope.studies.heads import Head, head_name
from refusalscope.studies.routing.attribution import Attribution, attribute
from refusalscope.studies.routing.interchange import Pair

Array = npt.NDArray[np.float64]
Knockout = Literal["swap", "mean", "zero"]
KNOCKOUTS: tuple[Knockout, ...] = get_args(Knockout)


@dataclass(frozen=True)
class _Sides:
    """Both members of every pair, clean: attribution, and z by layer at the last token [pairs, width]."""

    harmful: list[Rendered]
    control: list[Rendered]
    clean: tuple[Attribution, Attribution]
    z: tuple[dict[int, Tensor], dict[int, Tensor]]


def cascade(
    chat: ChatModel,
    pairs: Sequence[Pair],
    margin: RefusalMargin,
    gate: Head,
    *,
    knockout: Knockout = "swap",
    null: Sequence[Head] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Change of every head's direct contrast (harmful minus control) when the gate is taken out.

    knockout, at the last token: `swap` gives the harmful prompt the control's z, `mean` gives both members the
    mean z of all prompts, `zero` nothing. null: heads that are taken out in its place, all others of its layer
    without it; p of a head is (1 + #null that change it at least as much) / (1 + m). Columns: gate_layer,
    gate_head, layer, head, contrast (clean, in logits), change with low and high (share of the clean contrast,
    final scale free), held (the same with the scale of the clean run), p (of held), deeper. Heads that are not
    deeper than the gate show what the norm alone does: `held` is exactly 0 there.
    """
    anatomy = chat.anatomy
    if knockout not in KNOCKOUTS:
        raise InputError(f"there is no knockout {knockout!r}; choose one of {', '.join(KNOCKOUTS)}")
    if gate[0] not in anatomy.softmax_layers:
        raise InputError(
            f"layer {gate[0]} has no heads that could be a gate; name a head of another"
        )
    if gate[0] >= anatomy.n_layers - 1:
        raise InputError(
            f"{head_name(gate)} is in the last layer, and nothing lies behind it to drive: "
            f"it cannot be a gate"
        )
    others = (
        list(null)
        if null is not None
        else [(gate[0], head) for head in range(anatomy.n_heads) if head != gate[1]]
    )
    sides = _prepare(chat, pairs, margin)
    free, held = _changes(chat, sides, margin, gate, knockout)
    spread = np.zeros((len(others), *held.shape[1:]))
    for i, other in enumerate(others):
        spread[i] = _changes(chat, sides, margin, other, knockout)[1].mean(axis=0)
        if progress is not None:
            progress(i + 1, len(others))
    contrast = (sides.clean[0].heads - sides.clean[1].heads).mean(axis=0)
    at_least = (np.abs(spread) >= np.abs(held.mean(axis=0)) - 1e-12).sum(axis=0)
    rows = []
    for layer in anatomy.softmax_layers:
        for head in range(anatomy.n_heads):
            base = abs(contrast[layer, head])
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = free[:, layer, head] / base
                fixed = held[:, layer, head].mean() / base
            interval = mean_interval(shares, seed=seed) if base > 0 else None
            rows.append(
                {
                    "gate_layer": gate[0],
                    "gate_head": gate[1],
                    "layer": layer,
                    "head": head,
                    "contrast": contrast[layer, head],
                    "change": interval.value if interval else float("nan"),
                    "low": interval.low if interval else float("nan"),
                    "high": interval.high if interval else float("nan"),
                    "held": float(fixed) if base > 0 else float("nan"),
                    "p": (1 + at_least[layer, head]) / (1 + len(others)),
                    "deeper": layer > gate[0],
                }
            )
    return pd.DataFrame(rows)


def _prepare(chat: ChatModel, pairs: Sequence[Pair], margin: RefusalMargin) -> _Sides:
    harmful = [pair.harmful for pair in pairs]
    control = [pair.control for pair in pairs]
    sites = [Site("z", layer) for layer in chat.anatomy.softmax_layers]
    found = chat.capture(harmful + control, sites, ["last"])
    z = {site.layer: states[:, 0] for site, states in found.items()}
    n = len(pairs)
    clean = (attribute(chat, harmful, margin), attribute(chat, control, margin))
    sides = ({k: v[:n] for k, v in z.items()}, {k: v[n:] for k, v in z.items()})
    return _Sides(harmful, control, clean, sides)


def _put(head: Head, z: Tensor, width: int) -> Replace:
    layer, number = head
    values = frozen(z[number * width : (number + 1) * width])
    return Replace(Site("z", layer), "last", head=number, values=values)


def _changes(
    chat: ChatModel, sides: _Sides, margin: RefusalMargin, head: Head, knockout: Knockout
) -> tuple[Array, Array]:
    """Change of each head's contrast by pair [pairs, layers, heads], in logits: scale free, scale held."""
    width = chat.anatomy.head_dim
    free, held = [], []
    mean = torch.cat([sides.z[0][head[0]], sides.z[1][head[0]]]).mean(dim=0)
    for side, prompts in enumerate((sides.harmful, sides.control)):
        variants: list[Variant] = []
        for i in range(len(prompts)):
            if knockout == "zero":
                variants.append((Scale(Site("z", head[0]), "last", head=head[1], factor=0.0),))
            elif knockout == "mean":
                variants.append((_put(head, mean, width),))
            else:
                variants.append((_put(head, sides.z[1][head[0]][i], width),) if side == 0 else ())
        clean = sides.clean[side]
        out = attribute(chat, prompts, margin, variants=variants)
        free.append(out.heads - clean.heads)
        # The same writes under the clean scale: contributions are linear in it.
        rescale = (clean.scale / out.scale)[:, None, None]
        held.append(out.heads * rescale - clean.heads)
    return free[0] - free[1], held[0] - held[1]
