"""Heads switched off together, with or without the published rescale of what is left.

    y <- y * |y before| / |y after|        y: the z of a layer, [batch, tokens, heads, head_dim]

The authors' code takes the norm over the whole tensor, so that what happens to a prompt depends on the prompts
beside it (`official_batch`); over each token it does not (`per_token`). On the Llama path of that code the
rescale vanishes in one-token decode steps, on the Qwen path it does not. Padding, which the code counts too, is
left out here. Source: refusal_cliff section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import Anatomy, Edit, Frozen, Site, Variant
from refusalscope.model.edits import frozen
from refusalscope.model.generate import DECODE_POLICIES
from refusalscope.model.sites import Positions
from refusalscope.studies.heads import Head

if TYPE_CHECKING:
    from refusalscope.studies.cliff.traces import Trace

Renorm = Literal["none", "per_token", "official_batch"]
# "closing": prompt and thinking stay as they are; "all": the heads are off in the thinking as well.
Where = Literal["closing", "all"]


@dataclass(frozen=True)
class KeepHeads(Edit):
    """Sets the z of a layer to 0 where `kept` [n_heads * head_dim] is 0, and keeps it where that is 1."""

    kept: Frozen = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept is None or self.site.kind != "z":
            raise InputError(
                "KeepHeads works on Site('z', layer) and needs kept=..., 0 or 1 a number of z"
            )
        object.__setattr__(self, "kept", frozen(self.kept))

    def parameters(self, n_positions: int) -> Tensor:
        return self.kept.tensor.float()

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        return selected * parameters.to(selected.dtype)


class KeepHeadsPerToken(KeepHeads):
    """What is kept is scaled back to the norm that z had, each token for itself."""

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        left = selected.float() * parameters
        return _rescaled(left, selected.float().norm(dim=-1, keepdim=True), -1).to(selected.dtype)


class KeepHeadsOfBatch(KeepHeads):
    """What is kept is scaled back to the norm that z had in all rows of the pass together."""

    @staticmethod
    def compute(selected: Tensor, parameters: Tensor) -> Tensor:
        left = selected.float() * parameters
        return _rescaled(left, selected.float().norm(), None).to(selected.dtype)


KINDS: dict[Renorm, type[KeepHeads]] = {
    "none": KeepHeads,
    "per_token": KeepHeadsPerToken,
    "official_batch": KeepHeadsOfBatch,
}


def _rescaled(left: Tensor, before: Tensor, dim: int | None) -> Tensor:
    after = left.norm() if dim is None else left.norm(dim=dim, keepdim=True)
    # Where nothing is kept there is nothing to scale.
    return left * torch.where(after > 0, before / after.clamp_min(1e-30), 1.0)


def removal(
    anatomy: Anatomy,
    heads: Sequence[Head],
    trace: Trace,
    *,
    where: Where = "closing",
    renorm: Renorm = "none",
    policy: str = "prompt_only",
) -> Variant:
    """The edits that switch heads off in a trace, one a layer.

    policy: whether they stay off in the tokens of the reply ("every_step") or not ("prompt_only"); a reply is
    generated or measured under "every_step" then. Raises InputError for an unknown choice, or a head that the
    model does not have.
    """
    _check_choice("where", where, get_args(Where))
    _check_choice("renorm", renorm, get_args(Renorm))
    _check_choice("policy", policy, DECODE_POLICIES)
    # Counted from the end: prompts of unequal length share the edit, and the reply is not meant.
    first = trace.closing[0] if where == "closing" else 0
    prompt = tuple(range(first - trace.rendered.n_prompt, 0))
    parts: list[tuple[Positions, type[KeepHeads]]] = [(prompt, KINDS[renorm])]
    if policy == "every_step":
        fades = renorm == "official_batch" and not anatomy.architecture.name.startswith("Qwen")
        parts.append(("reply", KeepHeads if fades else KINDS[renorm]))
    return tuple(
        kind(Site("z", layer), positions, kept=kept)
        for layer, kept in _kept(anatomy, heads).items()
        for positions, kind in parts
    )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")


def _kept(anatomy: Anatomy, heads: Sequence[Head]) -> dict[int, Frozen]:
    """By layer, 1 for every number of z but those of its heads."""
    masks: dict[int, Tensor] = {}
    for layer, head in sorted(heads):
        if layer not in anatomy.softmax_layers or not 0 <= head < anatomy.n_heads:
            raise InputError(
                f"the model has no head L{layer}.H{head} to remove; give heads of its layers of attention"
            )
        mask = masks.setdefault(layer, torch.ones(anatomy.n_heads, anatomy.head_dim))
        mask[head] = 0
    return {layer: frozen(mask.flatten()) for layer, mask in masks.items()}
