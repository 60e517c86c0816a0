"""What every head writes towards a refusal probe: as published, and folded through the final norm.

    published  (W_O,h z) . w / |w|                 at the last closing token
    folded     r' . (w * g) / rms(x_L)             at any token, with post-norms folded into the write r'
    cliff      folded at the last closing token - mean of folded over the plateau
    contrast   cliff of harmful traces - cliff of benign ones

The published score uses one vector for all layers and no norm, so that a head that writes against refusal
everywhere ranks as a suppressor; the contrasts are what take it out. Source: arXiv 2510.06036, Eq. 4 and the
authors' code; refusal_cliff section 4. All units come out of one pass, an einsum a layer; of a trace only
one number a token and unit is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from refusalscope.errors import InputError
from refusalscope.model import Anatomy, ChatModel, Site
from refusalscope.model.clean import make_batches, pad
from refusalscope.model.engine import Cost, attach, hooks
from refusalscope.stats import mean_interval
from refusalscope.stats.bootstrap import bootstrap_bounds
from refusalscope.studies.cliff.curves import LATE
from refusalscope.studies.cliff.reading import check_probe, reader
from refusalscope.studies.heads import Unit, clusters_of, final_scale, site_of, units_of

if TYPE_CHECKING:
    from refusalscope.studies.cliff.probe import Probe
    from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contributions:
    """Per trace and unit, all [traces, units]; units are those of `heads.units_of`, single heads in order.

    published: as in the authors' code, in units of the normed stream. final, plateau: folded, in logits of
    the probe, at the last closing token and on average over the plateau; 0 for a unit above the probe's
    site. write_norm: length of what the unit writes at the last closing token. logit_final, logit_plateau
    [traces]: what the probe reads there, not calibrated.
    """

    units: tuple[Unit, ...]
    published: Array
    final: Array
    plateau: Array
    write_norm: Array
    logit_final: Array
    logit_plateau: Array

    @property
    def cliff(self) -> Array:
        return self.final - self.plateau

    @property
    def fall(self) -> Array:
        """How far the probe's logit falls from the plateau to the last closing token: [traces]."""
        return self.logit_plateau - self.logit_final


@torch.inference_mode()
def contributions(
    chat: ChatModel,
    traces: Sequence[Trace],
    probe: Probe,
    *,
    last: int | None = LATE,
    progress: Callable[[int, int], None] | None = None,
) -> Contributions:
    """Contributions of all units to the probe's logit, one forward a batch and no unembedding.

    last: how many tokens at the end of the thinking are the plateau, those of `prompt_table`; all where None.
    Raises InputError for no trace, and for a probe that does not read this model's residual stream.
    """
    if not traces:
        raise InputError("there is no trace to attribute; give at least one")
    if last is not None and last < 1:
        raise InputError(
            f"a plateau of {last} tokens is none; give last=1 or more, or leave it out"
        )
    check_probe(chat.anatomy, probe)
    prompts = [trace.rendered for trace in traces]
    rows: dict[int, tuple[Array, ...]] = {}
    for batch in make_batches(chat.anatomy, prompts, chat.plan):
        found = _Pass(chat.anatomy, [traces[i] for i in batch], probe)
        chat.cost.add(found.run())
        rows |= dict(zip(batch, found.rows(last), strict=True))
        if progress is not None:
            progress(len(rows), len(traces))
    columns = [
        np.stack(parts) for parts in zip(*(rows[i] for i in range(len(traces))), strict=True)
    ]
    return Contributions(units_of(chat.anatomy), *columns)


def head_reads(anatomy: Anatomy, layer: int, z: Tensor, direction: Tensor) -> Tensor:
    """r' . direction of every head of a layer: z [..., n_heads * head_dim] -> [..., n_heads], float32.

    Post-norms are folded in as in `Anatomy.head_writes`, whose writes of width d_model are not made here.
    """
    projection = anatomy.attention_output(layer)
    norm = anatomy.attn_write(layer) if anatomy.architecture.attn_post_norm else None
    direction = direction.to(z.device)
    if norm is not None:
        direction = direction * anatomy.norm_gain(norm)
    weight = projection.weight.float().view(anatomy.d_model, anatomy.n_heads, anatomy.head_dim)
    by_head = torch.einsum("d,dhk->hk", direction, weight)
    split = z.float().unflatten(-1, (anatomy.n_heads, anatomy.head_dim))
    reads = torch.einsum("...hk,hk->...h", split, by_head)
    if norm is None:
        return reads
    # Called as a function: the module carries the hook that brings us here.
    total = functional.linear(z, projection.weight, projection.bias).float()
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon")  # noqa: B009
    return reads * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + eps)


class _Pass:
    """One forward of a batch of traces, in which every unit is read as it comes by."""

    def __init__(self, anatomy: Anatomy, traces: Sequence[Trace], probe: Probe) -> None:
        self.anatomy, self.traces, self.probe = anatomy, traces, probe
        self.site = probe.site.resolved(anatomy.n_layers)
        self.folding, self.plain = reader(anatomy, probe), probe.weight.float()
        self.plain = self.plain / self.plain.norm()
        self.ends = torch.tensor([trace.closing[-1] for trace in traces])
        self.folded: dict[int, Tensor] = {}
        self.published: dict[int, Tensor] = {}
        self.norms: dict[int, Tensor] = {}
        self.scale = self.logits = torch.empty(0)

    def run(self) -> Cost:
        anatomy = self.anatomy
        tokens = pad([trace.rendered.ids for trace in self.traces], anatomy)
        reading = self.site.kind == "final"
        module = anatomy.final_norm if reading else anatomy.layers[self.site.layer]
        with hooks() as add:
            for layer in range(anatomy.n_layers):
                head = 0 if layer in anatomy.softmax_layers else -1
                add(attach(anatomy, site_of((layer, head)), self._unit))
            add(module.register_forward_pre_hook(lambda _, args: self._stream(args[0])))
            anatomy.decoder(input_ids=tokens, use_cache=False)
        return Cost(1, tokens.numel(), tokens.numel() * anatomy.n_layers)

    def _unit(self, site: Site, hidden: Tensor) -> Tensor:
        """Reads z of a layer, or what a mixer without heads wrote; changes nothing."""
        at_end = hidden[torch.arange(len(hidden)), self.ends]
        if site.kind == "z":
            folded = head_reads(self.anatomy, site.layer, hidden, self.folding)
            weight = self.anatomy.attention_output(site.layer).weight
            split = weight.float().unflatten(-1, (self.anatomy.n_heads, self.anatomy.head_dim))
            raw = at_end.float().unflatten(-1, split.shape[1:])
            by_head = torch.einsum("d,dhk->hk", self.plain.to(split.device), split)
            published = torch.einsum("bhk,hk->bh", raw, by_head)
            norms = self.anatomy.head_writes(site.layer, at_end)[0].float().norm(dim=-1)
        else:
            folded = (hidden.float() @ self.folding.to(hidden.device)).unsqueeze(-1)
            published = (at_end.float() @ self.plain.to(hidden.device)).unsqueeze(-1)
            norms = at_end.float().norm(dim=-1, keepdim=True)
        above = self.site.kind != "final" and site.layer >= self.site.layer
        self.folded[site.layer] = (torch.zeros_like(folded) if above else folded).cpu()
        self.published[site.layer], self.norms[site.layer] = published.cpu(), norms.cpu()
        return hidden

    def _stream(self, hidden: Tensor) -> None:
        read = hidden.float() @ self.folding.to(hidden.device)
        scale = final_scale(self.anatomy, hidden) if self.probe.normed else torch.ones_like(read)
        self.scale, self.logits = scale.cpu(), (read * scale).cpu() + self.probe.bias

    def rows(self, last: int | None) -> list[tuple[Array, ...]]:
        """published, final, plateau, write_norm [units] and the two logits of each trace."""
        folded, published, norms = (
            torch.cat([table[layer] for layer in range(self.anatomy.n_layers)], dim=-1).double()
            for table in (self.folded, self.published, self.norms)
        )
        folded = folded * self.scale.double().unsqueeze(-1)
        found = []
        for row, trace in enumerate(self.traces):
            end, plateau = trace.closing[-1], list(trace.thinking)[-(last or 0) :]
            parts = (
                *(published[row], folded[row, end], folded[row, plateau].mean(0), norms[row]),
                *(self.logits[row, end].double(), self.logits[row, plateau].double().mean()),
            )
            found.append(tuple(part.numpy() for part in parts))
        return found


def contribution_table(
    harmful: Contributions,
    benign: Contributions,
    *,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a unit: means over traces of every score, the contrasts with 95 % intervals.

    Columns: layer, head, published, direct (folded, last closing token), benign (the same of benign traces),
    write_norm, cliff with _low and _high (harmful categories resampled where there are enough), contrast
    (cliff of harmful minus cliff of benign traces) with _low and _high (traces of either kind resampled).
    """
    clusters = clusters_of(categories)
    cliffs = [mean_interval(column, clusters, seed=seed) for column in harmful.cliff.T]
    contrasts = [
        difference(mine, theirs, seed)
        for mine, theirs in zip(harmful.cliff.T, benign.cliff.T, strict=True)
    ]
    return pd.DataFrame(
        {
            "layer": [unit[0][0] for unit in harmful.units],
            "head": [unit[0][1] for unit in harmful.units],
            "published": harmful.published.mean(0),
            "direct": harmful.final.mean(0),
            "benign": benign.final.mean(0),
            "write_norm": harmful.write_norm.mean(0),
            "cliff": [one.value for one in cliffs],
            "cliff_low": [one.low for one in cliffs],
            "cliff_high": [one.high for one in cliffs],
            "contrast": [one[0] for one in contrasts],
            "contrast_low": [one[1] for one in contrasts],
            "contrast_high": [one[2] for one in contrasts],
        }
    )


def difference(first: Array, second: Array, seed: int) -> tuple[float, float, float]:
    """Difference of the means of two independent samples, and its 95 % bootstrap bounds (NaN for one row)."""
    value = float(first.mean() - second.mean())
    if min(first.size, second.size) < 2:
        return value, float("nan"), float("nan")
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return value, value, value
    low, high = bootstrap_bounds(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=False,
        method="percentile",
        n_resamples=2000,
        level=0.95,
        seed=seed,
    )
    return value, low, high
