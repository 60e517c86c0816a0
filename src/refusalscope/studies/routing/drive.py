"""The drive: what one head hears of another, along the residual stream alone.

Source: path patching; alignment_routes section 6.2. The gate is swapped, every head and MLP between it and a
deeper layer keeps what it wrote, and the heads of that layer are read with the final norm's scale held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.model import ChatModel, RefusalMargin, Replace, Site, Variant
from refusalscope.model.edits import frozen
from refusalscope.stats import max_t_signflip, mean_interval
from refusalscope.studies.heads import Head, Unit, clusters_of, final_scale, head_name
from refusalscope.studies.routing.attribution import refusal_reader
from refusalscope.studies.routing.interchange import Pair
from refusalscope.studies.routing.maps import MapName, position_map
from refusalscope.studies.routing.states import states_at

Array = npt.NDArray[np.float64]
# Share of a head's own change that must come from a gate for the head to count as driven by it. A head that
# merely grows as the norm shrinks hears less than nothing.
HEARD = 0.05


@dataclass(frozen=True)
class Drive:
    """What deeper heads hear of a gate; both [pairs, layers, heads], 0 up to the gate's layer.

    direct: what the head writes less towards refusal, in logits, with the final norm's scale held. heard: the
    part of its own change between harmful prompt and control that this makes up, pairs weighted by the
    size of that change (1: the head listens to nothing else; its mean over pairs is what counts). layers: those
    that have heads.
    """

    layers: tuple[int, ...]
    direct: Array
    heard: Array


@torch.inference_mode()
def drive(
    chat: ChatModel,
    pairs: Sequence[Pair],
    margin: RefusalMargin,
    gate: Head,
    *,
    positions: MapName = "last",
    held: Unit = (),
) -> Drive:
    """Path patching from a head to every deeper one.

    The gate takes the control's z at the places of the position map; all other heads and MLPs between it and a
    layer keep, there, what they wrote before. held: heads that are swapped throughout, so that a gate with a
    backup is heard alone.
    """
    anatomy = chat.anatomy
    harmful, control = [pair.harmful for pair in pairs], [pair.control for pair in pairs]
    maps = [position_map(pair.harmful, pair.control, positions) for pair in pairs]
    where = [tuple(at for at, _ in places) for places in maps]
    lent = [tuple(at for _, at in places) for places in maps]
    theirs = states_at(chat, control, sorted({Site("z", n) for n, _ in (gate, *held)}), lent)

    def swaps(i: int, heads: Sequence[Head]) -> Variant:
        return tuple(
            Replace(
                Site("z", layer),
                where[i],
                head=head,
                values=frozen(_slice(theirs[i][Site("z", layer)], head, anatomy.head_dim)),
            )
            for layer, head in heads
        )

    base = [swaps(i, held) for i in range(len(pairs))]
    deeper = range(gate[0] + 1, anatomy.n_layers)
    with_heads = [layer for layer in deeper if layer in anatomy.softmax_layers]
    kept = [Site("mlp_out", gate[0])]
    for layer in deeper:
        attends = layer in anatomy.softmax_layers
        kept += [Site("z" if attends else "attn_out", layer), Site("mlp_out", layer)]
    own = states_at(chat, harmful, kept, where, base)
    ends = [Site("z", layer) for layer in with_heads]
    before = chat.capture(harmful, [*ends, Site("final")], ["last"], variant=base)
    other = chat.capture(control, ends, ["last"])
    reader = refusal_reader(anatomy, margin)
    scale = final_scale(anatomy, before[Site("final")][:, 0]).double().cpu().numpy()
    direct = np.zeros((len(pairs), anatomy.n_layers, anatomy.n_heads))
    heard = np.zeros_like(direct)
    for layer in with_heads:
        site = Site("z", layer)
        still = [s for s in kept if s.layer < layer]
        variants = [
            (
                *base[i],
                *swaps(i, (gate,)),
                *(Replace(s, where[i], values=frozen(own[i][s])) for s in still),
            )
            for i in range(len(pairs))
        ]
        after = chat.capture(harmful, [site], ["last"], variant=variants)
        writes = [
            anatomy.head_writes(layer, z[site][:, 0].to(reader))[0] for z in (before, after, other)
        ]
        lost, whole = writes[0] - writes[1], writes[0] - writes[2]
        direct[:, layer] = (lost @ reader).double().cpu().numpy() * scale[:, None]
        size = whole.pow(2).sum(-1).mean(0).clamp_min(1e-30)
        heard[:, layer] = ((lost * whole).sum(-1) / size).double().cpu().numpy()
    return Drive(anatomy.softmax_layers, direct, heard)


def drive_table(
    found: Drive,
    gate: Head,
    gap: float,
    *,
    categories: Sequence[str] | None = None,
    alpha: float = 0.05,
    n_flips: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The drive of a gate on every deeper head, tested over all of them at once.

    gap: of the logit difference, of which `drive` is a share. Columns: gate, gate_layer, gate_head, layer,
    head, drive, low, high, heard, heard_low, heard_high, p (of heard, max-T sign flips), driven: more than
    HEARD of the head's own change comes from the gate, and p is below alpha.
    """
    n, _, n_heads = found.direct.shape
    layers = [layer for layer in found.layers if layer > gate[0]]
    share = found.direct[:, layers].reshape(n, -1) / gap
    heard = found.heard[:, layers].reshape(n, -1)
    clusters = clusters_of(categories)
    test = max_t_signflip(heard, n_flips, seed=seed)
    direct = [mean_interval(column, clusters, seed=seed) for column in share.T]
    listened = [mean_interval(column, clusters, seed=seed) for column in heard.T]
    return pd.DataFrame(
        {
            "gate": head_name(gate),
            "gate_layer": gate[0],
            "gate_head": gate[1],
            "layer": np.repeat(layers, n_heads),
            "head": np.tile(np.arange(n_heads), len(layers)),
            "drive": [interval.value for interval in direct],
            "low": [interval.low for interval in direct],
            "high": [interval.high for interval in direct],
            "heard": test.mean,
            "heard_low": [interval.low for interval in listened],
            "heard_high": [interval.high for interval in listened],
            "p": test.p_familywise,
            "driven": (test.mean > HEARD) & (test.p_familywise < alpha),
        }
    )


def _slice(z: Tensor, head: int, width: int) -> Tensor:
    """One head's part of z [places, n_heads * head_dim]."""
    return z[:, head * width : (head + 1) * width]
