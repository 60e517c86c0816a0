"""From the projections of a dictionary's encoder to the activations of its latents.

Everything here is float32 or better: a threshold rounded to bfloat16 changes which latents are active.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refusalscope.dictionary.weights import Index
from refusalscope.errors import InputError

ARCHITECTURES = ("standard", "jumprelu", "gated", "topk", "batchtopk")
# Latents of these are chosen against each other, so a few of them cannot be computed alone.
COMPETING = ("topk", "batchtopk")
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Activation:
    """How raw projections x W_enc [..., latents] become activations.

    bias: [latents], the gate's bias for `gated`. threshold: [latents], `jumprelu`. log_gain, magnitude_bias:
    [latents], `gated`. k: how many latents a token has, `topk`, or has on average over the tokens of one
    call, `batchtopk`.
    """

    architecture: str
    bias: Tensor
    threshold: Tensor | None = None
    log_gain: Tensor | None = None
    magnitude_bias: Tensor | None = None
    k: float | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"unknown architecture {self.architecture!r} of a dictionary; the ones read here are "
                f"{', '.join(ARCHITECTURES)}"
            )

    def __call__(self, raw: Tensor) -> Tensor:
        pre = raw + self.bias.to(raw)
        if self.architecture == "standard":
            return pre.relu()
        if self.architecture == "jumprelu":
            assert self.threshold is not None
            return torch.where((pre > self.threshold.to(raw)) & (pre > 0), pre, 0.0)
        if self.architecture == "gated":
            assert self.log_gain is not None
            assert self.magnitude_bias is not None
            size = raw * self.log_gain.to(raw).exp() + self.magnitude_bias.to(raw)
            return torch.where(pre > 0, size.relu(), 0.0)
        assert self.k is not None
        if self.architecture == "topk":
            values, chosen = pre.topk(int(self.k), dim=-1)
            return torch.zeros_like(pre).scatter(-1, chosen, values.relu())
        flat = pre.relu().flatten()
        values, chosen = flat.topk(int(self.k * (pre.numel() // pre.shape[-1])))
        return torch.zeros_like(flat).scatter(-1, chosen, values).view_as(pre)

    def take(self, latents: Index) -> Activation:
        """The same for some latents."""
        index = latents if isinstance(latents, slice) else list(latents)

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            bias=self.bias[index],
            threshold=pick(self.threshold),
            log_gain=pick(self.log_gain),
            magnitude_bias=pick(self.magnitude_bias),
        )

    def to(self, device: torch.device | str) -> Activation:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            bias=self.bias.to(device),
            threshold=move(self.threshold),
            log_gain=move(self.log_gain),
            magnitude_bias=move(self.magnitude_bias),
        )


def normalised(x: Tensor, kind: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(input of the encoder, scale, shift): what the decoder gives back is y * scale + shift.

    None stands for a scale of one and a shift of zero. The two kinds are those of SAELens
    (`normalize_activations`): a norm of sqrt(d) for every token, or zero mean and unit deviation.
    """
    if kind == "none":
        return x, None, None
    if kind == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / scale, scale, None
    shift = x.mean(-1, keepdim=True)
    centred = x - shift
    scale = centred.std(-1, keepdim=True)
    return centred / (scale + LAYER_NORM_EPS), scale, shift


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
