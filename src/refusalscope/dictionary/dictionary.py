"""A sparse autoencoder on the residual stream, read lazily, and the few latents that an edit needs.

`x_hat = f(x) W_dec + b_dec` with `f` of one of five architectures. Weights stay on disk; encoding and
decoding read them in chunks of latents, a slice reads its own latents alone.
Source: JumpReLU autoencoders, arXiv 2407.14435; layouts in `saelens`, `gemma_scope`, `llama_scope`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refusalscope.dictionary.activation import COMPETING, Activation, normalised, wide
from refusalscope.dictionary.slices import DictionarySlice
from refusalscope.dictionary.weights import ALL, TensorFile, Vectors
from refusalscope.errors import InputError
from refusalscope.model import Anatomy, Site

# Numbers of one chunk of weights: 64 MB of float32.
CHUNK = 2**24


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    """A sparse autoencoder whose weights are read when they are needed.

    name: where it came from. site: where it reads. model: the model it was trained on, where its files
    say so. encoder, decoder: one vector a latent. b_dec: [d_in]. subtract_b_dec: whether the encoder's
    input is x - b_dec. Works as a context manager; `close` lets go of the file.
    """

    name: str
    site: Site
    model: str | None
    encoder: Vectors
    decoder: Vectors
    b_dec: Tensor
    activation: Activation
    subtract_b_dec: bool = False
    normalisation: str = "none"

    def __post_init__(self) -> None:
        d_sae, d_in = self.encoder.shape
        shapes = {
            "decoder": (self.decoder.shape, (d_sae, d_in)),
            "b_dec": (tuple(self.b_dec.shape), (d_in,)),
        }
        vectors = ("bias", "threshold", "log_gain", "magnitude_bias")
        for name in vectors:
            value = getattr(self.activation, name)
            if value is not None:
                shapes[name] = (tuple(value.shape), (d_sae,))
        for name, (found, wanted) in shapes.items():
            if found != wanted:
                raise InputError(
                    f"the dictionary {self.name} has a {name} of shape {found} beside an encoder of "
                    f"{d_sae} latents by {d_in} dimensions; fetch its files again"
                )

    @property
    def architecture(self) -> str:
        return self.activation.architecture

    @property
    def d_sae(self) -> int:
        return self.encoder.shape[0]

    @property
    def d_in(self) -> int:
        return self.encoder.shape[1]

    def encode(self, x: Tensor, latents: Sequence[int] | None = None) -> Tensor:
        """Activations [..., d_sae], or of some latents [..., latents]; in float32 or x's wider type.

        For `batchtopk` the tokens of one call share one budget, as in training.
        """
        if latents is not None and self.architecture not in COMPETING:
            return self.slice(latents).to(x.device).encode(x)
        entered, _, _ = normalised(wide(x), self.normalisation)
        if self.subtract_b_dec:
            entered = entered - self.b_dec.to(entered)
        raw = [
            entered @ self.encoder.take(part).to(entered).T
            for part in _chunks(self.d_sae, self.d_in)
        ]
        acts = self.activation(torch.cat(raw, -1))
        return acts if latents is None else acts[..., list(latents)]

    def decode(self, acts: Tensor, x: Tensor | None = None) -> Tensor:
        """Reconstruction [..., d_in] of activations [..., d_sae].

        x: the states that were encoded, needed where the dictionary normalises each token, because the
        reconstruction is scaled back to that token.
        """
        out = self.b_dec.to(acts)
        for part in _chunks(self.d_sae, self.d_in):
            out = out + acts[..., part] @ self.decoder.take(part).to(acts)
        if self.normalisation == "none":
            return out
        if x is None:
            raise InputError(
                f"the dictionary {self.name} normalises each token ({self.normalisation}), so "
                f"decode(acts, x) needs the states x that were encoded"
            )
        _, scale, shift = normalised(wide(x), self.normalisation)
        out = out if scale is None else out * scale
        return out if shift is None else out + shift

    def slice(self, latents: Sequence[int] | None = None) -> DictionarySlice:
        """Some latents in memory, all where None. Refused where latents compete (`topk`, `batchtopk`)."""
        if self.architecture in COMPETING:
            raise InputError(
                f"the latents of the {self.architecture} dictionary {self.name} compete for the largest "
                f"places, so a few of them cannot be computed or edited alone; use encode() and decode(), "
                f"or take a dictionary of the standard, jumprelu or gated kind"
            )
        chosen = tuple(range(self.d_sae)) if latents is None else tuple(latents)
        outside = [latent for latent in chosen if not 0 <= latent < self.d_sae]
        if outside or len(set(chosen)) != len(chosen):
            raise InputError(
                f"latents of {self.name} are numbered 0 to {self.d_sae - 1}, each named once; got "
                f"{outside[0] if outside else 'one of them twice'}"
            )
        index = ALL if latents is None else list(chosen)
        return DictionarySlice(
            name=self.name,
            site=self.site,
            latents=chosen,
            d_sae=self.d_sae,
            W_enc=self.encoder.take(index).T,
            W_dec=self.decoder.take(index),
            b_in=self.b_dec if self.subtract_b_dec else None,
            activation=self.activation.take(index),
            normalisation=self.normalisation,
        )

    def decoder_rows(self, latents: Sequence[int] | None = None) -> Iterator[tuple[range, Tensor]]:
        """Decoder rows in chunks: (places among the latents asked for, rows [chunk, d_in])."""
        n = self.d_sae if latents is None else len(latents)
        for part in _chunks(n, self.d_in):
            index = part if latents is None else list(latents)[part]
            yield range(part.start, part.stop), self.decoder.take(index)

    def hold(self, device: torch.device | str = "cpu") -> Dictionary:
        """The same dictionary with all weights in memory: 8 bytes x d_in x d_sae."""
        return replace(self, encoder=self.encoder.hold(device), decoder=self.decoder.hold(device))

    def close(self) -> None:
        files: dict[int, TensorFile] = {
            id(vectors.file): vectors.file for vectors in (self.encoder, self.decoder)
        }
        for file in files.values():
            file.close()

    def __repr__(self) -> str:
        return f"Dictionary({self.architecture}, {self.d_sae} latents at {self.site}, {self.name})"

    def __enter__(self) -> Dictionary:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _chunks(n: int, d_in: int) -> list[slice]:
    """Latents in runs of a bounded number of weights."""
    step = max(1, CHUNK // d_in)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def require_fit(dictionary: Dictionary | DictionarySlice, anatomy: Anatomy) -> None:
    """Raise InputError where the model lacks the dictionary's layer or has another width."""
    if dictionary.d_in != anatomy.d_model:
        raise InputError(
            f"the dictionary {dictionary.name} reads {dictionary.d_in} dimensions and the model's residual "
            f"stream has {anatomy.d_model}; take a dictionary that was trained on this model"
        )
    if dictionary.site.layer >= anatomy.n_layers:
        raise InputError(
            f"the dictionary {dictionary.name} reads {dictionary.site} and the model's layers are 0 to "
            f"{anatomy.n_layers - 1}; take a dictionary that was trained on this model"
        )
