"""Some latents of a dictionary, in memory: all that an edit of them needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from refusalscope.dictionary.activation import Activation, normalised, wide
from refusalscope.errors import InputError
from refusalscope.model import Site


@dataclass(frozen=True, eq=False, repr=False)
class DictionarySlice:
    """Some latents of a dictionary, in memory, float32; name: that of the dictionary.

    W_enc: [d_in, latents]; W_dec: [latents, d_in]; b_in: [d_in], subtracted before the encoder.
    Two slices are equal where their numbers, site and latents are.
    """

    name: str
    site: Site
    latents: tuple[int, ...]
    d_sae: int
    W_enc: Tensor
    W_dec: Tensor
    b_in: Tensor | None
    activation: Activation
    normalisation: str = "none"
    _moved: dict[str, DictionarySlice] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def b_enc(self) -> Tensor:
        return self.activation.bias

    @property
    def threshold(self) -> Tensor | None:
        return self.activation.threshold

    def encode(self, x: Tensor) -> Tensor:
        """Activations of these latents: [..., d_in] -> [..., latents], in float32 or x's wider type."""
        return self.encode_scaled(x)[0]

    def encode_scaled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Activations, and what a write is multiplied by on its way back into x (None for one)."""
        entered, scale, _ = normalised(wide(x), self.normalisation)
        if self.b_in is not None:
            entered = entered - self.b_in.to(entered)
        return self.activation(entered @ self.W_enc.to(entered)), scale

    def edited(self, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        """x + sum_i (f'_i - f_i(x)) d_i with f'_i = (1 + gain_i) f_i(x) + offset_i; the error term stays.

        x: [..., d_in]; gain, offset: broadcast to [..., latents]. In float32 or x's wider type.
        """
        states = wide(x)
        acts, scale = self.encode_scaled(states)
        write = (gain.to(acts) * acts + offset.to(acts)) @ self.W_dec.to(acts)
        return states + (write if scale is None else write * scale)

    def members(self, latents: Sequence[int]) -> list[int]:
        """Where latents stand in this slice. Raises InputError for one that is not in it."""
        place = {latent: i for i, latent in enumerate(self.latents)}
        missing = [latent for latent in latents if latent not in place]
        if missing:
            raise InputError(
                f"latent {missing[0]} at {self.site} is not in this slice of {len(place)} latents; take "
                f"dictionary.slice() of all latents that an edit names"
            )
        return [place[latent] for latent in latents]

    # A copy made while measuring is kept, and must serve a gradient later.
    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> DictionarySlice:
        """The same slice on a device; kept, so that many passes move it once."""
        key = str(torch.device(device))
        if self.W_enc.device == torch.device(device):
            return self
        if key not in self._moved:
            self._moved[key] = replace(
                self,
                W_enc=self.W_enc.to(device),
                W_dec=self.W_dec.to(device),
                b_in=None if self.b_in is None else self.b_in.to(device),
                activation=self.activation.to(device),
                _moved={},
            )
        return self._moved[key]

    @cached_property
    def digest(self) -> str:
        act = self.activation
        parts = [self.W_enc, self.W_dec, self.b_in, act.bias, act.threshold, act.log_gain]
        head = (self.site, self.latents, self.d_sae, act.architecture, self.normalisation)
        digest = hashlib.sha256(repr(head).encode())
        for part in [*parts, act.magnitude_bias]:
            digest.update(b"-" if part is None else part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, DictionarySlice) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"DictionarySlice({len(self.latents)} of {self.d_sae} latents at {self.site}, {self.name})"
