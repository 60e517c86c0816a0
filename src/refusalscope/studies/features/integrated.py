"""What integrated gradients of latents share: both ends of a path, mean slopes along it, and the result.

The path leads from the clean run to the run with the refusal direction ablated at every read of the stream. A
latent gets sum_t (f_patch - f_clean) <mean slope, d_i>. Sources: arXiv 2505.23556, arXiv 2403.19647.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary, require_fit
from refusalscope.dictionary.activations import states
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, LogitDifference, Rendered, Site, Variant, everywhere
from refusalscope.studies.features.ablation import Latent
from refusalscope.studies.features.attribution import summed_effects

Array = npt.NDArray[np.float64]
Rows = Mapping[int, Tensor]
TOP = 20


@dataclass(frozen=True)
class Attributions:
    """values: [prompts, latents] in logits of the opening token of the ablated run over that of a refusal.

    Above 0 where moving the latent to its value in the ablated run speaks against the refusal. openings: the
    token that each ablated run opens with; a prompt where that is the refusal's token has zeros alone.
    """

    prompt_ids: tuple[str, ...]
    openings: tuple[int, ...]
    latents: tuple[Latent, ...]
    values: Array

    @property
    def mean(self) -> Array:
        """Over prompts: [latents]."""
        return self.values.mean(axis=0)

    def top_local(self, k: int = TOP) -> list[tuple[Latent, ...]]:
        """For each prompt its k latents of all layers with the largest attribution above 0, largest first."""
        return [self._top(row, k) for row in self.values]

    def top_global(self, k: int = TOP) -> tuple[Latent, ...]:
        """The k latents of all layers with the largest mean attribution above 0, largest first."""
        return self._top(self.mean, k)

    def frame(self) -> pd.DataFrame:
        """One row a latent: layer, latent, attribution (mean over prompts)."""
        table = pd.DataFrame(self.latents, columns=["layer", "latent"])
        return table.assign(attribution=self.mean)

    def _top(self, row: Array, k: int) -> tuple[Latent, ...]:
        order = np.argsort(-row, kind="stable")[:k]
        return tuple(self.latents[i] for i in order if row[i] > 0)


@dataclass(frozen=True)
class Ends:
    """Of one prompt. clean, patch: layer -> [tokens, d_model] on the CPU, where the dictionaries read.

    metric: logit[opening of the ablated run] - logit[opening of refusals].
    """

    prompt: Rendered
    clean: Rows
    patch: Rows
    metric: LogitDifference


@dataclass(frozen=True)
class Task:
    """A model, dictionaries by layer, the variant that ablates the direction, and the refusal's opening."""

    chat: ChatModel
    dictionaries: Mapping[int, Dictionary]
    ablated: Variant
    refusal: int

    @classmethod
    def of(
        cls,
        chat: ChatModel,
        direction: Tensor,
        dictionaries: Mapping[int, Dictionary],
        refusal: int,
    ) -> Task:
        """Raises InputError where there is no dictionary, or one or the direction does not fit the model."""
        width = chat.anatomy.d_model
        if not dictionaries or tuple(direction.shape) != (width,):
            raise InputError(
                f"attributions need dictionaries and a direction of {width} numbers; got "
                f"{len(dictionaries)} dictionaries and a direction of shape {tuple(direction.shape)}"
            )
        for dictionary in dictionaries.values():
            require_fit(dictionary, chat.anatomy)
        return cls(chat, dictionaries, everywhere(chat.anatomy.n_layers, direction), refusal)

    @property
    def sites(self) -> dict[int, Site]:
        return {layer: each.site for layer, each in self.dictionaries.items()}

    def ends(self, prompt: Rendered) -> Ends:
        """Three forwards: the states of both runs, and what the ablated one opens with."""
        clean, patch = (
            states(self.chat, [prompt], list(self.sites.values()), variants)[0]
            for variants in (None, [self.ablated])
        )
        opening = self.chat.measure([prompt], [self.ablated], {"opening": _Opening()})
        return Ends(
            prompt,
            {layer: clean[site] for layer, site in self.sites.items()},
            {layer: patch[site] for layer, site in self.sites.items()},
            LogitDifference(int(opening.scores["opening"][0, 0]), self.refusal),
        )

    def slopes(
        self, ends: Ends, path: Sequence[Variant], weights: Array, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """sum_a weight_a d metric / d stream over the variants of a path: layer -> [tokens, d_model], CPU."""
        sites = [self.sites[layer] for layer in layers]
        total = {layer: torch.zeros_like(ends.clean[layer]) for layer in layers}
        for weight, variant in zip(weights, path, strict=True):
            found = self.chat.first_order(ends.prompt, ends.metric, sites, variant=variant)
            for layer, site in zip(layers, sites, strict=True):
                total[layer] += found.gradients[site].float().cpu() * float(weight)
        return total

    def effects(self, ends: Ends, slopes: Rows, places: Sequence[int]) -> dict[int, Tensor]:
        """sum_t (f_patch - f_clean) <slope, d_i> over places: layer -> [d_sae], on the CPU."""

        def part(dictionary: Dictionary, rows: Tensor, slope: Tensor) -> Tensor:
            x = rows[list(places)].to(self.chat.device)
            return summed_effects(dictionary, x, dictionary.encode(x), slope).cpu()

        total = {}
        for layer, dictionary in self.dictionaries.items():
            slope = slopes[layer][list(places)].to(self.chat.device)
            patch = part(dictionary, ends.patch[layer], slope)
            total[layer] = patch - part(dictionary, ends.clean[layer], slope)
        return total

    def attributions(
        self,
        ends: Sequence[Ends],
        found: Sequence[Rows],
        candidates: Mapping[int, Sequence[int]] | None,
    ) -> Attributions:
        """One column for each candidate, or for each latent that has an attribution on some prompt."""
        columns = {}
        for layer in self.dictionaries:
            rows = torch.stack([row[layer] for row in found])
            named = None if candidates is None else candidates.get(layer, ())
            columns[layer] = (
                rows.any(0).nonzero().flatten().tolist() if named is None else list(named)
            )
        parts = [
            torch.stack([row[layer][latents] for row in found])
            for layer, latents in columns.items()
        ]
        return Attributions(
            tuple(each.prompt.id for each in ends),
            tuple(each.metric.plus for each in ends),
            tuple((layer, latent) for layer, latents in columns.items() for latent in latents),
            torch.cat(parts, dim=1).double().numpy(),
        )


@dataclass(frozen=True)
class _Opening:
    """The token with the largest logit at the prompt's end, as a number."""

    needs_clean: bool = False

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return (prompt.n_prompt - 1,)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        return logits[:, -1].argmax(-1).double()
