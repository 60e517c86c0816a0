"""The features study on planted hydras, with dictionaries of the writers alone and small settings.

The tail's marker at layer 0 flips everything by itself, so that the full dictionaries of a hydra have sets of
one latent. With primaries read at layer 2 and backups at layer 4 the true minimal sets have several members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

import refusalscope.dissect
from organisms import oracle
from refusalscope.dictionary import Dictionary, load_dictionary
from refusalscope.dissect import dissect_model
from refusalscope.model import ChatModel
from refusalscope.organisms.planted import Planted, build
from refusalscope.organisms.planted.dictionary import DICTIONARY_FOLDER, write_dictionary
from refusalscope.runs import RunView
from refusalscope.studies.features import FeaturesSettings, preset, study

# Enough to search on that a latent counts which wakes on every prompt, and by chance on about .6 of them.
PAIRS = 36
P1, P2, P3, B1, B2, _, W = range(7)
WRITERS = {2: [P1, P2, P3], 4: [B1, B2, W]}
DISTRACTORS = range(11, 17)
# Of layer 4: with the planted .1, random edits wake a latent there on .7 of the prompts.
THRESHOLD = 0.4
PLAIN = {"judge": "phrases:planted", "draws": 20, "max_new_tokens": 2, "n_top": 3, "share": 1.0}
BASE = {
    **PLAIN,
    **{"n_masks": 64, "n_masked": 8, "n_pairs": 3, "machine_k": (3,), "strengths": (0.5, 1.0)},
    **{"n_prompts": 2, "n_halves": 1},
}
SMALL = {
    **PLAIN,
    **{"n_masks": 0, "n_pairs": 2, "machine_inputs": (), "strengths": (1.0,), "direction": "last"},
    **{"n_prompts": 1, "n_halves": 0, "n_sets": 1, "pairs": 28},
}
# What a prompt is given to.
STAGES = ("measure", "capture", "first_order", "generate")


@dataclass(frozen=True)
class Bench:
    """rows: of each layer's dictionary, the latents of the organism's."""

    organism: Planted
    chat: ChatModel
    dictionaries: dict[int, Dictionary]
    rows: dict[int, list[int]]

    def planted(self, latents) -> set[int]:
        """(layer, latent) of the study as latents of the organism."""
        return {self.rows[int(layer)][int(latent)] for layer, latent in latents}


@cache
def bench(variant: str = "base") -> Bench:
    organism = build("planted-hydra", variant, pairs=PAIRS)
    chat = ChatModel.wrap(organism.model, organism.tokenizer, id="planted-hydra")
    rows = {layer: [*named, *DISTRACTORS] for layer, named in WRITERS.items()}
    return Bench(
        organism,
        chat,
        {layer: dictionary(organism, layer, chosen) for layer, chosen in rows.items()},
        rows,
    )


def tensors(organism: Planted, layer: int) -> dict[str, torch.Tensor]:
    """The organism's dictionary as the study has it at a layer."""
    found = dict(organism.dictionary)
    if layer == 4:
        found["threshold"] = found["threshold"].clamp(min=THRESHOLD)
    return found


def dictionary(organism: Planted, layer: int, rows: list[int]) -> Dictionary:
    whole = tensors(organism, layer)
    part = {
        **{name: whole[name][rows].contiguous() for name in ("W_dec", "b_enc", "threshold")},
        "W_enc": whole["W_enc"][:, rows].contiguous(),
        "b_dec": whole["b_dec"],
    }
    with TemporaryDirectory() as folder:
        write_dictionary(part, "planted-hydra", Path(folder))
        place = Path(folder) / DICTIONARY_FOLDER / f"blocks.{layer}.hook_resid_post"
        with load_dictionary(place) as stored:
            return stored.hold()


def dissect(out: Path, variant: str = "base", name: str = "recommended", **changes: Any) -> RunView:
    """A run of the study; `sae`, `pairs` (or how many) and `resume` are the front door's, the rest settings."""
    found = bench(variant)
    given = {
        key: changes.pop(key, other)
        for key, other in (
            ("sae", found.dictionaries),
            ("pairs", found.organism.pairs),
            ("resume", False),
        )
    }
    if isinstance(given["pairs"], int):
        given["pairs"] = found.organism.pairs[: given["pairs"]]
    settings: FeaturesSettings = preset(name, **changes)
    # Pages have tests of their own, and take longer than these runs.
    with mock.patch("refusalscope.dissect.write_report"):
        return dissect_model(found.chat, settings=settings, out=out, **given)


def sets(view: RunView) -> dict[str, set[tuple[int, int]]]:
    table = view.table("features.sets")
    return {name: places(part) for name, part in table.groupby("set_id")}


def places(table: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(table["layer"].astype(int), table["latent"].astype(int), strict=True))


class Finished(NamedTuple):
    """read: ids of prompts that the model ran, by phase; forwards: that it ran in all."""

    view: RunView
    read: dict[str, set[str]]
    forwards: int

    def table(self, name: str) -> pd.DataFrame:
        return self.view.table(f"features.{name}")

    def warned(self, *words: str) -> list[str]:
        return [text for text in self.view.info["warnings"] if all(each in text for each in words)]


def done(folder, variant="base", name="recommended", **changes) -> Finished:
    chat = bench(variant).chat
    before = chat.cost.forwards
    with watched() as read:
        view = dissect(folder, variant, name, **changes)
    return Finished(view, read, chat.cost.forwards - before)


@contextmanager
def watched() -> Iterator[dict[str, set[str]]]:
    """Ids of the prompts that the model runs: `search` before the arms are measured, `arms` from then on."""
    read: dict[str, set[str]] = {"before": set(), "search": set(), "arms": set()}
    phase = ["before"]

    def entering(module, name, now):
        real = getattr(module, name)

        def call(*args, **options):
            phase[0] = now
            return real(*args, **options)

        patch.setattr(module, name, call)

    def spied(name):
        real = getattr(ChatModel, name)

        def call(self, prompts, *args, **options):
            given = prompts if isinstance(prompts, list | tuple) else [prompts]
            read[phase[0]].update(each.id for each in given)
            return real(self, prompts, *args, **options)

        patch.setattr(ChatModel, name, call)

    with pytest.MonkeyPatch.context() as patch:
        entering(refusalscope.dissect, "run_features", "search")
        entering(study, "measure_arms", "arms")
        for name in STAGES:
            spied(name)
        yield read


def prompts_of(found: Finished, split: str, variant: str = "base") -> list[list[int]]:
    """Token ids of the harmful prompts of a split."""
    table = found.view.table("prompts")
    mine = set(table[(table["split"] == split) & (table["label"] == "harmful")]["id"])
    pairs = bench(variant).organism.pairs
    rendered = bench(variant).chat.render([each for each in pairs.prompts() if each.id in mine])
    return [list(each.ids) for each in rendered]


def written(latents) -> dict[int, list[int]]:
    """Planted latents at the layers where the study has them."""
    return {layer: [i for i in known if i in latents] for layer, known in WRITERS.items()}


def by_layer(places, variant="base") -> dict[int, list[int]]:
    """(layer, latent) of the study as planted latents by layer."""
    found: dict[int, list[int]] = {layer: [] for layer in WRITERS}
    for layer, latent in places:
        found[layer].append(bench(variant).rows[layer][latent])
    return found


def margins(rows, ablated: dict[int, list[int]], variant="base") -> np.ndarray:
    """Margins with planted latents zeroed, by slow hooks."""
    model, hooks = bench(variant).organism.model, []
    for layer, mine in ablated.items():
        whole = tensors(bench(variant).organism, layer)

        def edit(module, args, x, mine=mine, d=whole):
            return x - oracle.latents_of(d, x)[..., mine] @ d["W_dec"][mine]

        hooks.append(model.model.layers[layer].register_forward_hook(edit))
    try:
        return oracle.margins(model, rows)
    finally:
        for hook in hooks:
            hook.remove()


def true_sets(rows, variant="base") -> list[set[int]]:
    """All sets of planted latents that flip every prompt and of which no subset does."""
    found: list[set[int]] = []
    writers = list(chain(*WRITERS.values()))
    for size in range(len(writers) + 1):
        for subset in map(set, combinations(writers, size)):
            if (
                not any(known <= subset for known in found)
                and (margins(rows, written(subset), variant) < 0).all()
            ):
                found.append(subset)
    return found
