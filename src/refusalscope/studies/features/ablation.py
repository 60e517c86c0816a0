"""Trials on a model: does the refusal of these prompts flip when these latents are zeroed?

The edit is live with the error term kept (sae_features section 1): a latent is zeroed at its layer wherever it
is active on the already edited stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from refusalscope.dictionary import DictionarySlice, latent_variant
from refusalscope.dictionary.dictionary import require_fit
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Metric, Rendered, Variant
from refusalscope.model.sites import Positions
from refusalscope.studies.features.trial import Outcome

# (layer, latent of that layer's dictionary)
Latent = tuple[int, int]


class LatentTrial:
    """A `Trial` over indices into `candidates`, on one prompt or a pool of prompts.

    slices: by layer, holding at least the candidates of that layer; the fewer else, the faster. share: of the
    prompts that a set must flip, a flip being a score (a refusal margin) below 0. What it spends is counted in
    `chat.cost`. Raises InputError for no prompt, no candidate or one twice, one that no slice holds, or a share
    outside 0 to 1.
    """

    def __init__(
        self,
        chat: ChatModel,
        prompts: Sequence[Rendered],
        candidates: Sequence[Latent],
        slices: Mapping[int, DictionarySlice],
        metric: Metric,
        *,
        positions: Positions = "no_bos",
        share: float = 1.0,
    ) -> None:
        if not prompts:
            raise InputError("a trial needs at least one prompt; give prompts that are refused")
        if not candidates or len(set(candidates)) < len(candidates):
            raise InputError("a trial needs at least one candidate and none twice; mend the pool")
        require_share(share)
        for layer, latents in by_layer(candidates).items():
            if layer not in slices:
                raise InputError(
                    f"latent {latents[0]} is a candidate at layer {layer} and no slice of that layer is "
                    f"given; add it to slices=..."
                )
            require_fit(slices[layer], chat.anatomy)
            slices[layer].members(latents)
        self.candidates = tuple(candidates)
        self.chat = chat
        self.prompts = list(prompts)
        # Moved here: a copy made inside a measurement could not be used for gradients afterwards.
        self.slices = {layer: piece.to(chat.device) for layer, piece in slices.items()}
        self.metric = metric
        self.positions = positions
        self.share = share

    def variant(self, members: Iterable[int]) -> Variant:
        """The edits that zero the candidates at these indices."""
        latents = by_layer(self.candidates[i] for i in sorted(members))
        return latent_variant(self.slices, latents, positions=self.positions)

    def margins(self, sets: Sequence[frozenset[int]]) -> np.ndarray:
        """Score of each prompt under each set, nats for a refusal margin: [prompts, sets]."""
        variants = [self.variant(members) for members in sets]
        found = self.chat.measure(self.prompts, variants, {"margin": self.metric})
        return found.scores["margin"]

    def flips(self, sets: Sequence[frozenset[int]]) -> list[Outcome]:
        """Mean score over the prompts, and whether enough of them flip, for each set; one batched call."""
        return [
            Outcome(float(column.mean()), flips_enough(column, self.share))
            for column in self.margins(sets).T
        ]


def by_layer(latents: Iterable[Latent]) -> dict[int, list[int]]:
    """Latents by layer, in the order given."""
    found: dict[int, list[int]] = {}
    for layer, latent in latents:
        found.setdefault(layer, []).append(latent)
    return found


def flips_enough(margins: np.ndarray, share: float) -> bool:
    """Whether at least `share` of the margins [prompts] are below 0."""
    return bool((margins < 0).sum() >= share * len(margins) - 1e-9)


def require_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"the share of prompts to flip must be above 0 and at most 1, got {share}")
