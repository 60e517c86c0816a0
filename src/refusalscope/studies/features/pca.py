"""A dictionary of principal components: what is left of a claim when nothing was learnt but the variance.

The baseline "same pipeline, equal L0" of sae_features section 8. Each component has two one-sided latents,
above and below the mean, and one threshold serves all: of codes in an orthonormal basis with the same number of
active latents, the one that takes the largest projections misses the least of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary
from refusalscope.dictionary.activation import Activation
from refusalscope.dictionary.activations import states
from refusalscope.dictionary.weights import ALL, Index, Vectors
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered, Site

# Tokens held at once: 600 MB of float32 at a width of 4,608.
TOKENS = 2**15


def pca_dictionary(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    site: Site,
    n_latents: int,
    l0: float,
    seed: int,
) -> Dictionary:
    """The n_latents / 2 largest components of the stream at a site, both sides of each, as a dictionary.

    Latents 2j and 2j + 1 are the sides of component j, largest variance first, with decoder rows of length 1.
    Components are those of all tokens but BOS. The threshold, in units of the stream, leaves l0 latents active
    a token, on average over tokens that are no special ones, as `check` counts them. seed: draws the prompts
    where they have more than TOKENS tokens. Raises InputError for a site that no dictionary reads, an odd
    n_latents, more components than the tokens have, or an l0 out of reach.
    """
    if site.kind != "resid_post" or n_latents < 2 or n_latents % 2:
        raise InputError(
            f"a PCA dictionary reads the output of a block and has two latents a component; got {site} and "
            f"{n_latents} latents, so take Site('resid_post', layer) and an even number"
        )
    x, plain = _tokens(chat, prompts, site, seed)
    mean = x.mean(0)
    components = _components(x - mean, n_latents // 2)
    threshold = _threshold(((x - mean) @ components.T)[plain].abs(), l0)
    rows = torch.stack([components, -components], dim=1).flatten(0, 1).float().cpu()
    vectors = Vectors(_Memory(rows), "components", True, torch.tensor(1.0), held=rows)
    bias = torch.zeros(n_latents)
    return Dictionary(
        name=f"PCA of {site}",
        site=site,
        model=chat.id,
        encoder=vectors,
        decoder=vectors,
        b_dec=mean.float().cpu(),
        activation=Activation("jumprelu", bias, torch.full((n_latents,), threshold)),
        subtract_b_dec=True,
    )


def _tokens(
    chat: ChatModel, prompts: Sequence[Rendered], site: Site, seed: int
) -> tuple[Tensor, Tensor]:
    """States [tokens, d_model] without BOS, float64 on the model's device, and which are no special tokens."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn: list[Rendered] = []
    for i in order:
        if sum(map(len, drawn)) + len(prompts[i]) > TOKENS:
            break
        drawn.append(prompts[i])
    special = set(chat.tokenizer.all_special_ids)
    rows, plain = [], []
    for prompt, found in zip(drawn, states(chat, drawn, [site]), strict=True):
        places = list(prompt.resolve("no_bos"))
        rows.append(found[site][places])
        plain += [prompt.ids[t] not in special for t in places]
    if not any(plain):
        raise InputError(
            f"principal components need prompts with text, of at most {TOKENS} tokens each; got "
            f"{len(prompts)} prompts with none"
        )
    x = torch.cat(rows).to(chat.device, torch.float64)
    return x, torch.tensor(plain, device=x.device)


def _components(centred: Tensor, k: int) -> Tensor:
    """The k directions of largest variance, largest first: [k, d_model]."""
    most = min(centred.shape[1], len(centred) - 1)
    if k > most:
        raise InputError(
            f"{len(centred)} tokens of width {centred.shape[1]} have {most} principal components, so at most "
            f"{2 * most} latents; got {2 * k}: ask for fewer, or give more prompts"
        )
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return vectors.T.flip(0)[:k]


def _threshold(sizes: Tensor, l0: float) -> float:
    """What `l0` of the sizes [tokens, components] a token lie above, on average."""
    tokens, k = sizes.shape
    active = round(l0 * tokens)
    if not 0 < active < tokens * k:
        raise InputError(
            f"an L0 of {l0:g} cannot be reached with {k} components, of which each token has one side; take "
            f"more than 0 and fewer than {k}, or more latents"
        )
    falling = sizes.flatten().sort(descending=True).values
    return float((falling[active - 1] + falling[active]) / 2)


class _Memory:
    """The rows of a dictionary that is in no file."""

    path = Path("memory")
    names = frozenset({"components"})

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._rows.shape)

    def read(self, name: str, *index: Index) -> Tensor:
        rows = self._rows
        for axis, part in enumerate(index):
            rows = rows[(*[ALL] * axis, part if isinstance(part, slice) else list(part))]
        return rows.clone()

    def close(self) -> None:
        self._rows = self._rows[:0]
