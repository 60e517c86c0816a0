"""Writes: one latent of each layer for the same direction, taken out together.

The stream carries a write on, so that the dictionaries of later layers show it again. Taken out at a late layer
alone it has been read before, by the very parts that would answer its loss; taken out at all its layers it is
gone as if it had not been written. Our reconstruction; sae_features section 1.1 names the trap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary, DictionarySlice
from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.model.sites import Positions
from refusalscope.studies.features.ablation import Latent, LatentTrial, flips_enough
from refusalscope.studies.features.one_set import Repair
from refusalscope.studies.features.rounds import make_repair
from refusalscope.studies.features.trial import Outcome

# Decoder rows of two layers from this cosine on are one write.
CARRIED = 0.9
# Latents whose neighbours are looked for in one pass over the dictionaries.
BLOCK = 256
Write = tuple[Latent, ...]


def writes(
    latents: Sequence[Latent], dictionaries: Mapping[int, Dictionary], *, carried: float = CARRIED
) -> list[Write]:
    """Each latent with the one of every other layer whose decoder row is nearest, from cosine `carried` on.

    latents: strongest first; one that an earlier write has taken starts none. The named latent comes first,
    then the others by layer. A latent belongs to one write.
    """
    found: list[Write] = []
    taken: set[Latent] = set()
    for start in range(0, len(latents), BLOCK):
        part = latents[start : start + BLOCK]
        rows = torch.cat([_row(dictionaries[layer], latent) for layer, latent in part])
        near = {layer: _nearest(each, rows) for layer, each in dictionaries.items()}
        for k, own in enumerate(part):
            if own in taken:
                continue
            others = [
                (layer, int(index[k]))
                for layer, (cosine, index) in near.items()
                if layer != own[0] and float(cosine[k]) >= carried
            ]
            write = (own, *(each for each in others if each not in taken))
            taken.update(write)
            found.append(write)
    return found


def _row(dictionary: Dictionary, latent: int) -> Tensor:
    """Decoder row at length 1: [1, d_model]."""
    (_, row), *_ = dictionary.decoder_rows([latent])
    return torch.nn.functional.normalize(row.float().cpu(), dim=1)


def _nearest(dictionary: Dictionary, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of each row [n, d_model] with any decoder row, and the latent: [n] each."""
    best = torch.full((len(rows),), -1.0)
    index = torch.zeros(len(rows), dtype=torch.long)
    for places, others in dictionary.decoder_rows():
        unit = torch.nn.functional.normalize(others.float().cpu(), dim=1)
        cosine, at = (rows @ unit.T).max(dim=1)
        better = cosine > best
        best[better] = cosine[better]
        index[better] = at[better] + places.start
    return best, index


class WriteTrial:
    """A `Trial` over indices into `writes`, each of which is zeroed at all its layers.

    Otherwise as `LatentTrial`, which it asks.
    """

    def __init__(
        self,
        chat: ChatModel,
        prompts: Sequence[Rendered],
        writes: Sequence[Write],
        slices: Mapping[int, DictionarySlice],
        metric: Metric,
        *,
        positions: Positions = "no_bos",
        share: float = 1.0,
    ) -> None:
        self.writes = tuple(writes)
        flat = [latent for write in writes for latent in write]
        self.latents = LatentTrial(
            chat, prompts, flat, slices, metric, positions=positions, share=share
        )
        ends = np.cumsum([len(write) for write in writes]).tolist()
        self._places = [range(end - len(w), end) for end, w in zip(ends, writes, strict=True)]
        self._owner = [k for k, write in enumerate(writes) for _ in write]

    @property
    def prompts(self) -> list[Rendered]:
        return self.latents.prompts

    @property
    def metric(self) -> Metric:
        return self.latents.metric

    def variant(self, members: Iterable[int]) -> Variant:
        """The edits that zero the writes at these indices."""
        return self.latents.variant(self._flat(members))

    def margins(self, sets: Sequence[frozenset[int]]) -> np.ndarray:
        """Score of each prompt under each set of writes: [prompts, sets]."""
        return self.latents.margins([self._flat(members) for members in sets])

    def flips(self, sets: Sequence[frozenset[int]]) -> list[Outcome]:
        """Mean score over the prompts, and whether enough of them flip, for each set; one batched call."""
        share = self.latents.share
        return [
            Outcome(float(column.mean()), flips_enough(column, share))
            for column in self.margins(sets).T
        ]

    def repair(self, dictionaries: Mapping[int, Dictionary]) -> Repair:
        """Writes by the effect of their strongest latent, given that some are ablated; see `make_repair`."""
        inner = make_repair(self.latents, dictionaries)

        def more(ablated: frozenset[int]) -> list[int]:
            found = inner(self._flat(ablated))
            return list(dict.fromkeys(self._owner[i] for i in found))

        return more

    def _flat(self, members: Iterable[int]) -> frozenset[int]:
        return frozenset(i for k in members for i in self._places[k])
