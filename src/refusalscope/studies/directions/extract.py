"""Mean states by class, and the directions between them.

Rows of a stack are numbered as in harmfulness_and_refusal section 1: row l < L is `resid_pre[l]`, row L is
the state before the final norm. Row 0 is token identity only; at the prompt's end it is the same for every
prompt, so belief never uses it unless the released code's behaviour is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered, Site
from refusalscope.progress import Progress, Silent


def rows(n_layers: int) -> list[Site]:
    """The sites of the L+1 rows."""
    return [Site("resid_pre", layer) for layer in range(n_layers)] + [Site("final")]


def stack(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    anchors: Sequence[str],
    label: str,
    progress: Progress | None = None,
) -> Tensor:
    """States of all rows at the anchors: [prompts, anchors, L+1, d_model] float32."""
    sites = rows(chat.anatomy.n_layers)
    states = chat.capture(prompts, sites, anchors, progress=(progress or Silent()).track(label))
    return torch.stack([states[site] for site in sites], dim=2)


def template_anchors(prompts: Sequence[Rendered]) -> list[str]:
    """Template tokens that all prompts share, from the end: `template[-n]` .. `template[-1]`."""
    n = min(prompt.n_template for prompt in prompts)
    if n < 1:
        raise InputError(
            "the chat template puts no token after the instruction, so there is no template position to read"
        )
    return [f"template[{i}]" for i in range(-n, 0)]


def mean_difference(harmful: Tensor, harmless: Tensor) -> Tensor:
    """Difference of class means, accumulated in float64: [n, ...], [m, ...] -> [...] float32."""
    return (harmful.double().mean(0) - harmless.double().mean(0)).float()


@dataclass(frozen=True)
class Centroids:
    """Class means at the two belief positions, [L+1, d_model] each (arXiv 2507.11878, section 3.2).

    harm and harmless at the last instruction token; refuse and accept at the prompt's end.
    """

    harm: Tensor
    harmless: Tensor
    refuse: Tensor
    accept: Tensor

    @property
    def v_harm(self) -> Tensor:
        """Harmfulness direction by row, not normalised (Eq. 5)."""
        return self.harm - self.harmless

    @property
    def v_refuse(self) -> Tensor:
        """Refusal direction by row, not normalised (Eq. 5)."""
        return self.refuse - self.accept


def centroids(at_instruction: Tensor, at_end: Tensor, harmful: Tensor) -> Centroids:
    """Means over harmful refused and harmless accepted prompts; states [prompts, L+1, d], harmful [prompts]."""
    if not harmful.any() or harmful.all():
        raise InputError("centroids need both refused harmful and accepted harmless prompts")
    means = [
        states[mask].double().mean(0).float()
        for states in (at_instruction, at_end)
        for mask in (harmful, ~harmful)
    ]
    return Centroids(means[0], means[1], means[2], means[3])
