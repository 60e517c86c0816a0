"""What is added to the residual stream: a belief direction at one layer, beside random rotations of it.

arXiv 2507.11878, section 3.4: `x[:, prompt tokens] += c * v[l]` before block l, one layer at a time, in the
prefill only; +v on harmless prompts, -v on harmful ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import Add, ChatModel, Frozen, Rendered, Site, Variant
from refusalscope.model.sites import Positions
from refusalscope.studies.directions.belief_settings import BeliefSettings
from refusalscope.studies.directions.belief_work import ENDS, Work, sample
from refusalscope.studies.directions.extract import stack

DIRECTIONS = ("harm", "refuse")
SIGNS = {"harmless": 1, "harmful": -1}
# A direction shorter than this share of the residual norm is rounding, not a difference of means.
NOTHING = 1e-6


@dataclass(frozen=True)
class Push:
    """One direction at one layer and rule of positions; `vector` [d_model] is added times the sign.

    scale: length of the vector in lengths of the difference of means; in_norms: in mean residual norms of
    its layer. control: "direction", or "random" for a rotation of the same length drawn by `seed` (else -1).
    """

    direction: str
    positions: str
    layer: int
    control: str
    seed: int
    scale: float
    in_norms: float
    vector: Frozen

    @property
    def kind(self) -> tuple[str, str]:
        return self.direction, self.positions

    def variant(self, sign: int, positions: Positions) -> Variant:
        return (
            Add(Site("resid_pre", self.layer), positions, vector=self.vector, scale=float(sign)),
        )


def residual_norms(chat: ChatModel, prompts: Sequence[Rendered]) -> Tensor:
    """Mean norm of the state by row at the ends, where the directions were read: [2, L+1]."""
    return stack(chat, prompts, ENDS, "residual norms").norm(dim=-1).mean(0)


def make_pushes(work: Work, rules: Sequence[str], size: float) -> list[Push]:
    """Both directions at every steered layer under every rule of positions, and their rotations.

    size: how much is added, in the unit of `steer_units`. Layers are 1..L-1 unless `steer_rows` names others.
    Raises InputError for a layer outside the model; a direction of no length at a layer is left out with a
    warning.
    """
    chat, settings, means = work.chat, work.settings, work.means
    fit = [i for label in SIGNS for i in drawn(work, "fit", label, settings.n_steer)]
    norms = residual_norms(chat, work.subject.take(fit))
    layers = _layers(settings, chat.anatomy.n_layers)
    found = []
    for d, (direction, v) in enumerate(
        zip(DIRECTIONS, (means.v_harm, means.v_refuse), strict=True)
    ):
        empty = [layer for layer in layers if v[layer].norm() <= NOTHING * norms[d, layer]]
        if empty:
            work.run.warn(
                f"The direction {direction} has no length at layer {', '.join(map(str, empty))}, so "
                f"nothing was added there."
            )
        for layer in layers:
            if layer in empty:
                continue
            length, norm = float(v[layer].norm()), float(norms[d, layer])
            raw = settings.steer_units == "raw"
            scale = size * (1.0 if raw else norm / length)
            vectors = [("direction", -1, scale * v[layer])]
            for number in range(settings.n_random):
                seed = settings.seed + number
                vectors.append(
                    ("random", seed, scale * length * _unit(seed, d, layer, len(v[layer])))
                )
            found += [
                Push(
                    direction,
                    rule,
                    layer,
                    control,
                    seed,
                    scale,
                    scale * length / norm,
                    Frozen(vector),
                )
                for control, seed, vector in vectors
                for rule in rules
            ]
    return found


def _layers(settings: BeliefSettings, n_layers: int) -> list[int]:
    if settings.steer_rows is None:
        return list(range(1, n_layers))
    outside = [layer for layer in settings.steer_rows if layer >= n_layers]
    if outside:
        raise InputError(
            f"steer_rows names layer {outside[0]}, but the model's layers are 0 to {n_layers - 1}; "
            f"choose among these"
        )
    return sorted(set(settings.steer_rows))


def _unit(seed: int, direction: int, layer: int, width: int) -> Tensor:
    """Where a random rotation takes any unit vector: uniform on the sphere, another one a cell."""
    words = np.random.SeedSequence([seed, direction, layer]).generate_state(1, np.uint64)
    noise = torch.randn(width, generator=torch.Generator().manual_seed(int(words[0] >> 1)))
    return noise / noise.norm()


def drawn(work: Work, split: str, label: str, most: int) -> list[int]:
    """At most `most` prompts of a split and label, drawn by the seed."""
    return sample(work.subject.pick(split, label), most, work.settings.seed)


def to_report(work: Work, label: str, most: int) -> list[int]:
    """Prompts of a label that are reported on. Raises InputError where the report split has none."""
    found = drawn(work, "report", label, most)
    if not found:
        raise InputError(f"the report split has no {label} prompts; give more of them")
    return found


def to_choose_on(work: Work, label: str, most: int) -> list[int]:
    """Prompts that a layer is chosen on, which are not those reported: select, or fit where it is empty."""
    return drawn(work, "select", label, most) or drawn(work, "fit", label, most)
