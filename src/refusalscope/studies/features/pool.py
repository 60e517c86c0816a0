"""The candidate pool: every latent of every layer by cosine with the refusal direction, and by attribution.

Cosine pool: arXiv 2505.23556 and, by secondary sources, arXiv 2509.09708 (sae_features section 3); the same
direction serves every layer. Decoder rows are normalised first: their norms differ between dictionaries.
Activation difference: the baseline `actdiff` of section 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary
from refusalscope.dictionary.activations import states
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Metric, Rendered, Site
from refusalscope.model.sites import Positions
from refusalscope.studies.features.attribution import (
    gradients,
    summed_effects,
    unit_direction,
)

Scope = Literal["layer", "global"]
By = Literal["cosine", "attribution", "union"]
MEASURES = {
    "cosine": ("cosine",),
    "attribution": ("contrastive",),
    "union": ("cosine", "contrastive"),
}
# A latent whose mean peak on harmless prompts is lower by less than this share is one of both kinds of prompts.
SPECIFIC = 0.1
# Activations held at once: 256 MB of float32.
CELLS = 2**26


def pool(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    direction: Tensor,
    dictionaries: Mapping[int, Dictionary],
    metric: Metric,
    *,
    harmless: Sequence[Rendered],
    k: int | Literal["elbow"],
    scope: Scope = "layer",
    by: By = "cosine",
    positions: Positions = "no_bos",
) -> pd.DataFrame:
    """Table `features.pool`: one row a latent of every dictionary, and whether it is a candidate.

    prompts: harmful ones; harmless: what they are compared with. direction: [d_model], of any length. Columns:
    layer, latent, cosine (signed), attribution (nats of the margin to first order, mean over prompts, above 0
    for refusal), activation_difference (largest activation over tokens, mean of harmful less mean of harmless),
    decoder_norm, active_share (of prompts, at any token), mass (summed activation, mean over prompts), kept;
    activations, but for the difference, are those of `prompts`. All over `positions`. contrastive: the share of
    the attribution that goes with what harmless prompts lack, attribution x (1 - mean peak of harmless / mean
    peak of harmful), 0 where they lack less than SPECIFIC: a latent of the template that every refusal needs,
    and every reply has, is no latent of refusal. k: how many to keep of a layer, or of all layers with scope
    "global", by each measure that `by` names, attribution by its contrastive share, which keeps none at 0;
    "elbow" reads k from that share, see `elbow`.

    Costs one forward and one backward a harmful prompt and one forward a harmless one. The states of all of
    them at all layers are held in memory, and a dictionary is read once a block of prompts. Raises InputError
    without prompts or dictionaries, for a prompt that has none of the positions, for a direction of another
    width or of length 0, or for an unknown k, scope or by.
    """
    _check(prompts, harmless, dictionaries, k, scope, by)
    unit = unit_direction(direction, chat.anatomy.d_model)
    sites = [dictionary.site for dictionary in dictionaries.values()]
    refused = [_Tokens.of(chat, prompt, metric, dictionaries, positions) for prompt in prompts]
    replied = [
        {site: each[_places(prompt, positions)] for site, each in found.items()}
        for prompt, found in zip(harmless, states(chat, harmless, sites), strict=True)
    ]
    tables = []
    for layer, dictionary in dictionaries.items():
        table = _layer(dictionary, refused, replied, chat.device)
        cosine, norm = cosines(dictionary, unit)
        table.insert(0, "layer", layer)
        table.insert(2, "cosine", cosine)
        table.insert(6, "decoder_norm", norm)
        tables.append(table)
    whole = pd.concat(tables, ignore_index=True)
    groups = [whole] if scope == "global" else [part for _, part in whole.groupby("layer")]
    kept = np.zeros(len(whole), dtype=bool)
    for part in groups:
        count = elbow(part["contrastive"].to_numpy()) if k == "elbow" else k
        for measure in MEASURES[by]:
            values = part[measure] if measure == "cosine" else part[measure][part[measure] > 0]
            kept[values.nlargest(count).index] = True
    return whole.assign(kept=kept)


def parts(
    dictionaries: Mapping[int, Dictionary], execution: Tensor, recognition: Tensor
) -> npt.NDArray[np.str_]:
    """The part of each latent, in the order of the pool's rows: `execution` or `recognition`.

    execution, recognition: directions [d_model] at the prompt's end, where refusal is decided, and at the
    instruction's, where harm is known and nothing is refused yet. A latent is of the part whose direction its
    decoder row lies nearer to: without one of recognition the model is blind to harm rather than willing
    (sae_features section 13; our reconstruction).
    """
    along = [
        np.concatenate(
            [
                cosines(each, unit_direction(direction, each.d_in))[0]
                for each in dictionaries.values()
            ]
        )
        for direction in (execution, recognition)
    ]
    return np.where(along[0] > along[1], "execution", "recognition")


def elbow(values: npt.ArrayLike) -> int:
    """How many of the values above 0 stand before the elbow of their falling curve.

    The point furthest below the line from the first value to the last is the first that is left out; with two
    or fewer, or where none is below, all are taken (Satopaa et al. 2011, without smoothing).
    """
    falling = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    falling = falling[falling > 0]
    if len(falling) < 3:
        return len(falling)
    below = np.linspace(falling[0], falling[-1], len(falling)) - falling
    furthest = int(below.argmax())
    return furthest if below[furthest] > 1e-9 * falling[0] else len(falling)


@dataclass(frozen=True)
class _Tokens:
    """States and gradients of a prompt at its positions: site -> [positions, d_model], on the CPU."""

    states: dict[Site, Tensor]
    slopes: dict[Site, Tensor]

    @classmethod
    def of(
        cls,
        chat: ChatModel,
        prompt: Rendered,
        metric: Metric,
        dictionaries: Mapping[int, Dictionary],
        positions: Positions,
    ) -> _Tokens:
        found = gradients(chat, prompt, metric, dictionaries)
        places = _places(prompt, positions)
        return cls(
            {site: each[places].cpu() for site, each in found.activations.items()},
            {site: each[places].cpu() for site, each in found.gradients.items()},
        )


def _places(prompt: Rendered, positions: Positions) -> list[int]:
    places = list(prompt.resolve(positions))
    if not places:
        raise InputError(
            f"the prompt {prompt.id!r} has no token at the positions {positions!r}; choose positions that "
            f"every prompt has, such as no_bos"
        )
    return places


def _layer(
    dictionary: Dictionary,
    refused: Sequence[_Tokens],
    replied: Sequence[Mapping[Site, Tensor]],
    device: torch.device,
) -> pd.DataFrame:
    """What the latents of one dictionary do on both kinds of prompts."""
    site = dictionary.site
    totals = torch.zeros(5, dictionary.d_sae, dtype=torch.float64)
    effect, harmful, harmless, active, mass = totals
    for part in _blocks([each.states[site] for each in refused], dictionary.d_sae):
        x = torch.cat([refused[i].states[site] for i in part]).to(device)
        slopes = torch.cat([refused[i].slopes[site] for i in part]).to(device)
        acts = dictionary.encode(x)
        effect += summed_effects(dictionary, x, acts, slopes).cpu()
        mass += acts.sum(0).cpu()
        peaks = _peaks(acts, [len(refused[i].states[site]) for i in part])
        harmful += peaks.sum(0)
        active += (peaks > 0).sum(0)
    for part in _blocks([each[site] for each in replied], dictionary.d_sae):
        x = torch.cat([replied[i][site] for i in part]).to(device)
        harmless += _peaks(dictionary.encode(x), [len(replied[i][site]) for i in part]).sum(0)
    both = harmless / len(replied), harmful / len(refused)
    lacking = 1 - both[0] / both[1].clamp_min(1e-30)
    own = torch.where((both[1] > 0) & (lacking >= SPECIFIC), lacking, 0.0)
    return pd.DataFrame(
        {
            "latent": np.arange(dictionary.d_sae),
            "attribution": (effect / len(refused)).numpy(),
            "contrastive": (effect / len(refused) * own).numpy(),
            "activation_difference": (harmful / len(refused) - harmless / len(replied)).numpy(),
            "active_share": (active / len(refused)).numpy(),
            "mass": (mass / len(refused)).numpy(),
        }
    )


def _blocks(texts: Sequence[Tensor], d_sae: int) -> Iterator[range]:
    """Texts in runs whose activations fit the memory, one text at least."""
    starts, used = [0], 0
    for i, text in enumerate(texts):
        if used and (used + len(text)) * d_sae > CELLS:
            starts.append(i)
            used = 0
        used += len(text)
    return (range(a, b) for a, b in pairwise([*starts, len(texts)]))


def _peaks(acts: Tensor, lengths: Sequence[int]) -> Tensor:
    """Largest activation over the tokens of each text: [texts, d_sae], float64, on the CPU."""
    return torch.stack([each.amax(0) for each in acts.split(list(lengths))]).double().cpu()


def cosines(dictionary: Dictionary, unit: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Signed cosine of each decoder row with the direction, and its length; 0 for a row of length 0."""
    along_each, norms = [], []
    for _, rows in dictionary.decoder_rows():
        norm = rows.norm(dim=1)
        along = rows @ unit.to(rows)
        along_each.append(torch.where(norm > 0, along / norm.clamp_min(1e-30), 0.0).cpu())
        norms.append(norm.cpu())
    return torch.cat(along_each).double().numpy(), torch.cat(norms).double().numpy()


def _check(
    prompts: Sequence[Rendered],
    harmless: Sequence[Rendered],
    dictionaries: Mapping[int, Dictionary],
    k: int | str,
    scope: str,
    by: str,
) -> None:
    if not prompts or not harmless or not dictionaries:
        raise InputError(
            f"a pool needs harmful and harmless prompts and dictionaries; got {len(prompts)}, "
            f"{len(harmless)} and {len(dictionaries)}"
        )
    if k != "elbow" and not (isinstance(k, int) and k >= 1):
        raise InputError(f"k is how many latents to keep, 1 or more, or 'elbow'; got {k!r}")
    if scope not in ("layer", "global") or by not in MEASURES:
        raise InputError(
            f"unknown scope {scope!r} or by {by!r}; choose scope layer or global, and by "
            f"{', '.join(MEASURES)}"
        )
