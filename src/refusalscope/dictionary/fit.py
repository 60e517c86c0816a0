"""Does a dictionary fit this model? Measured on the user's own prompts, with warnings in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refusalscope.dictionary.activations import states
from refusalscope.dictionary.dictionary import Dictionary, require_fit
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered, Site
from refusalscope.stats import Interval, mean_interval
from refusalscope.stats.bootstrap import bootstrap_bounds

# Below this share of variance the reconstruction is no longer of this stream; published suites reach .6 to .9.
POOR = 0.5
# How far the norm of the reconstruction may be from that of its input.
RATIO = (2 / 3, 3 / 2)
# Special tokens count as outliers from this multiple of the other tokens' L0.
SPECIAL = 3.0
# A dictionary is dense, or not sparse at all, from this share of its latents active at once.
DENSE = 0.2
# A neighbouring layer that explains so much more variance points to an index off by one.
OFF_BY_ONE = 0.05
# Silent latents mean something once there are as many tokens as latents.
MOSTLY_DEAD = 0.9


@dataclass(frozen=True)
class Fit:
    """How a dictionary does on a model's activations.

    l0: latents active a token, special tokens left out, interval over prompts; l0_special: on special
    tokens alone (NaN without any); l0_all: on all. explained_variance: share of the variance of the
    stream that is reconstructed, special tokens left out, interval over prompts. norm_ratio: mean norm of
    the input over mean norm of the reconstruction. input_norm: mean norm. decoder_norm: median length of
    a decoder row. dead_share: latents active on no token at all. neighbours: layer -> explained variance
    of the same dictionary at the layers beside its own. warnings: in words, empty where nothing is amiss.
    """

    n_prompts: int
    n_tokens: int
    l0: Interval
    l0_special: float
    l0_all: float
    explained_variance: Interval
    norm_ratio: float
    input_norm: float
    decoder_norm: float
    dead_share: float
    neighbours: dict[int, float]
    warnings: tuple[str, ...]


def check(
    dictionary: Dictionary, chat: ChatModel, prompts: Sequence[Rendered], *, seed: int = 0
) -> Fit:
    """Run prompts as they are and see what the dictionary makes of the stream at its site.

    One clean pass over the prompts, read at the dictionary's layer and the two beside it. Raises
    InputError where the dictionary cannot be of this model at all (width, layer), or without prompts.
    """
    require_fit(dictionary, chat.anatomy)
    if not prompts:
        raise InputError("a dictionary is checked on prompts, and none were given")
    own = dictionary.site.layer
    layers = [k for k in (own - 1, own, own + 1) if 0 <= k < chat.anatomy.n_layers]
    found = states(chat, prompts, [Site("resid_post", k) for k in layers])
    special = set(chat.tokenizer.all_special_ids)
    plain = torch.tensor([token not in special for prompt in prompts for token in prompt.ids])
    if not plain.any():
        raise InputError("the prompts hold special tokens alone; give prompts with some text")
    owner = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])

    def at(layer: int) -> Tensor:
        return torch.cat([prompt[Site("resid_post", layer)] for prompt in found]).to(chat.device)

    x = at(own)
    acts = dictionary.encode(x)
    decoded = dictionary.decode(acts, x).cpu()
    active = (acts > 0).cpu()
    counts = active.sum(-1).double().numpy()
    x, mask = x.cpu(), plain.numpy()
    sums = _sums(x, decoded, plain, owner)
    neighbours = {}
    for layer in layers:
        if layer != own:
            beside = at(layer)
            rebuilt = dictionary.decode(dictionary.encode(beside), beside)
            neighbours[layer] = float(_share(*_sums(beside, rebuilt, plain, owner)))
    norms = torch.cat([rows.norm(dim=1) for _, rows in dictionary.decoder_rows()])
    draft = Fit(
        n_prompts=len(prompts),
        n_tokens=int(mask.sum()),
        l0=mean_interval(counts[mask], owner[mask], seed=seed),
        l0_special=float(counts[~mask].mean()) if (~mask).any() else float("nan"),
        l0_all=float(counts.mean()),
        explained_variance=_explained(*sums, int(mask.sum()), seed),
        norm_ratio=_mean_norm(x[plain]) / max(_mean_norm(decoded[plain]), 1e-12),
        input_norm=_mean_norm(x[plain]),
        decoder_norm=float(norms.median()),
        dead_share=float(1 - active.any(0).double().mean()),
        neighbours=neighbours,
        warnings=(),
    )
    return Fit(**{**draft.__dict__, "warnings": tuple(_warnings(draft, dictionary, chat))})


def _warnings(fit: Fit, dictionary: Dictionary, chat: ChatModel) -> list[str]:
    said = []
    # A folder is named without its path: a run may be shown to others.
    used = chat.id.rstrip("/").rsplit("/", 1)[-1]
    trained = (dictionary.model or "").rsplit("/", 1)[-1].lower()
    if trained and trained != used.lower():
        said.append(
            f"it was trained on {dictionary.model} and is used on {used}: what it misses there is in "
            f"the error term, which every edit keeps"
        )
    explained = fit.explained_variance.value
    if not explained >= POOR:
        said.append(
            f"it reconstructs {explained:.0%} of the variance of {dictionary.site}: it was trained on "
            f"another model, layer or scale, or it was loaded without its normalisation"
        )
    better = max(fit.neighbours, key=fit.neighbours.__getitem__, default=None)
    if better is not None and fit.neighbours[better] > explained + OFF_BY_ONE:
        said.append(
            f"it reconstructs layer {better} better than its own ({fit.neighbours[better]:.0%} against "
            f"{explained:.0%}): its layer number may be off by one"
        )
    if not RATIO[0] <= fit.norm_ratio <= RATIO[1]:
        said.append(
            f"the stream is {fit.norm_ratio:.2g} times as long as its reconstruction: the activations "
            f"have another scale than those it was trained on"
        )
    if fit.l0.value > DENSE * dictionary.d_sae:
        said.append(
            f"{fit.l0.value:.0f} of {dictionary.d_sae} latents are active a token: a threshold, a top-k "
            f"or a normalisation is missing"
        )
    if fit.l0.value < 1:
        said.append(
            "less than one latent is active a token: the activations may be too small for it"
        )
    if fit.l0_special > SPECIAL * max(fit.l0.value, 1):
        said.append(
            f"special tokens such as BOS have {fit.l0_special:.0f} active latents against "
            f"{fit.l0.value:.0f} elsewhere: leave them out of edits and reads (positions='no_bos')"
        )
    if fit.dead_share > MOSTLY_DEAD and fit.n_tokens >= dictionary.d_sae:
        said.append(f"{fit.dead_share:.0%} of its latents are active on no token of these prompts")
    return said


def _sums(
    x: Tensor, decoded: Tensor, plain: Tensor, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squares missed by the reconstruction, and squares about the mean: [prompts] each."""
    x, decoded = x.cpu()[plain], decoded.cpu()[plain]
    missed = (x - decoded).double().pow(2).sum(-1).numpy()
    spread = (x - x.mean(0)).double().pow(2).sum(-1).numpy()
    _, codes = np.unique(owner[plain.numpy()], return_inverse=True)
    return np.bincount(codes, missed), np.bincount(codes, spread)


def _share(missed: np.ndarray, spread: np.ndarray, axis: int = -1) -> np.ndarray:
    return 1 - missed.sum(axis) / spread.sum(axis)


def _explained(missed: np.ndarray, spread: np.ndarray, n: int, seed: int) -> Interval:
    """Explained variance with a bootstrap over prompts; no bounds from one prompt."""
    value = float(_share(missed, spread))
    if len(missed) < 2:
        return Interval(value, float("nan"), float("nan"), n)
    low, high = bootstrap_bounds(
        (missed, spread),
        _share,
        paired=True,
        method="percentile",
        n_resamples=1000,
        level=0.95,
        seed=seed,
    )
    return Interval(value, low, high, n)


def _mean_norm(x: Tensor) -> float:
    return float(x.norm(dim=-1).mean())
