"""Attention heads as units of a study, and what the studies of heads share.

A unit is a set of heads that are edited together. A layer without softmax attention has no heads and is one
unit, its mixer's whole write.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from refusalscope.model import Anatomy, Site

# (layer, head); the whole write of a layer's mixer, at `attn_out`, is (layer, WHOLE).
Head = tuple[int, int]
Unit = tuple[Head, ...]
WHOLE = -1
MIN_PAIRS = 8
# With fewer categories no pattern of their signs is rare enough for a test at 5 %.
MIN_CLUSTERS = 6


def all_heads(n_layers: int, n_heads: int) -> tuple[Unit, ...]:
    """Every query head as a unit of its own, layer by layer."""
    return tuple(((layer, head),) for layer in range(n_layers) for head in range(n_heads))


def units_of(anatomy: Anatomy) -> tuple[Unit, ...]:
    """Every query head as a unit of its own, and the whole mixer of each layer that has none."""
    heads = range(anatomy.n_heads)
    return tuple(
        ((layer, head),)
        for layer in range(anatomy.n_layers)
        for head in (heads if layer in anatomy.softmax_layers else (WHOLE,))
    )


def key_value_groups(
    n_layers: int, n_heads: int, n_kv_heads: int, softmax_layers: Sequence[int] | None = None
) -> tuple[Unit, ...]:
    """The query heads of one key-value head together, layer by layer; in `softmax_layers` only, if given."""
    size = n_heads // n_kv_heads
    return tuple(
        tuple((layer, head) for head in range(group * size, (group + 1) * size))
        for layer in (range(n_layers) if softmax_layers is None else softmax_layers)
        for group in range(n_kv_heads)
    )


def head_name(head: Head) -> str:
    """`L3.H1`, or `L3.mixer` for a layer's whole mixer."""
    layer, number = head
    return f"L{layer}.mixer" if number == WHOLE else f"L{layer}.H{number}"


def coverage(anatomy: Anatomy) -> str:
    """What a screen of all units looks at: `16 heads of 4 layers`, and the layers that are one unit each."""
    found = f"{anatomy.n_heads * len(anatomy.softmax_layers)} heads of {len(anatomy.softmax_layers)} layers"
    whole = [f"L{k}" for k in range(anatomy.n_layers) if k not in anatomy.softmax_layers]
    return f"{found}; one unit each: {', '.join(whole)}" if whole else found


def site_of(head: Head) -> Site:
    """Where a head, or a layer's whole mixer, is edited."""
    return Site("attn_out" if head[1] == WHOLE else "z", head[0])


def clusters_of(categories: Sequence[str] | None) -> npt.NDArray | None:
    """Categories as clusters where there are enough of them to resample and to flip."""
    if categories is None or len(set(categories)) < MIN_CLUSTERS:
        return None
    return np.asarray(list(categories), dtype=object).astype(str)


def final_scale(anatomy: Anatomy, final: torch.Tensor) -> torch.Tensor:
    """1 / rms of final states [..., d_model], as the final norm takes it: [...]."""
    norm = anatomy.final_norm
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon")  # noqa: B009
    return torch.rsqrt(final.float().pow(2).mean(-1) + eps)
