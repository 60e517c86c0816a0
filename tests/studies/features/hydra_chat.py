"""A planted hydra as a chat model with its dictionary at every layer, and its latents by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from organisms import oracle
from refusalscope.dictionary import Dictionary, load_dictionary
from refusalscope.model import ChatModel, RefusalMargin, Rendered
from refusalscope.organisms.planted import Planted, build
from refusalscope.organisms.planted.dictionary import DICTIONARY_FOLDER, write_dictionary
from refusalscope.organisms.planted.prompts import draw_pairs

MARGIN = RefusalMargin((oracle.REFUSE,), (oracle.COMPLY,))
LAYERS = range(8)


@dataclass(frozen=True)
class Hydra:
    """harmful, harmless: token ids; the prompts are the same, rendered."""

    organism: Planted
    chat: ChatModel
    dictionaries: dict[int, Dictionary]
    harmful: list[list[int]]
    harmless: list[list[int]]

    @property
    def prompts(self) -> list[Rendered]:
        return [rendered(ids) for ids in self.harmful]

    def latents(self, names: str) -> list[int]:
        known = {latent.name: latent.index for latent in self.organism.truth.latents}
        return [known[name] for name in names.split()]

    def written(self, names: str) -> list[tuple[int, int]]:
        """(the layer that writes it, latent)"""
        truth = self.organism.truth.latents
        return [(truth[i].layers[0], i) for i in self.latents(names)]

    def names(self, latents) -> list[str]:
        return [self.organism.truth.latents[latent].name for _, latent in latents]


def rendered(ids) -> Rendered:
    n = len(ids)
    return Rendered("x", "", tuple(ids), n, (0, n - 1), {"prompt_last": n - 1})


@cache
def hydra(variant: str) -> Hydra:
    organism = build("planted-hydra", variant)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id=variant)
    assert organism.dictionary is not None
    with TemporaryDirectory() as folder:
        write_dictionary(organism.dictionary, variant, Path(folder))
        places = (
            Path(folder) / DICTIONARY_FOLDER / f"blocks.{layer}.hook_resid_post" for layer in LAYERS
        )
        loaded = [load_dictionary(place) for place in places]
        held = {layer: each.hold() for layer, each in zip(LAYERS, loaded, strict=True)}
        for each in loaded:
            each.close()
    harmful, harmless = map(list, zip(*draw_pairs(organism.truth.prompts), strict=True))
    return Hydra(organism, chat, held, harmful, harmless)
