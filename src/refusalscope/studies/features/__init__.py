"""Features: which SAE latents carry a refusal, in sets that are run and proven minimal (arXiv 2509.09708)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusalscope._lazy import lazy

if TYPE_CHECKING:
    from refusalscope.studies.features.contrast import Contrast, LatentInputs, fit_contrast
    from refusalscope.studies.features.interactions import (
        Moments,
        corner_sets,
        pair_moments,
        random_masks,
        two_by_two,
    )
    from refusalscope.studies.features.machine import FactorizationMachine
    from refusalscope.studies.features.nulls import Matched, matched_sets, waking_table
    from refusalscope.studies.features.one_set import MinimalSet, Repair
    from refusalscope.studies.features.overlap import Stability, stability
    from refusalscope.studies.features.published import BlockGreedy, block_greedy
    from refusalscope.studies.features.readouts import latent_scores, pair_weights, top_latents
    from refusalscope.studies.features.search import Search, mended_set, minimal_sets
    from refusalscope.studies.features.settings import PRESETS, FeaturesSettings, preset
    from refusalscope.studies.features.study import run_features
    from refusalscope.studies.features.trial import Outcome, Trial

__all__ = [
    "PRESETS",
    "BlockGreedy",
    "Contrast",
    "FactorizationMachine",
    "FeaturesSettings",
    "LatentInputs",
    "Matched",
    "MinimalSet",
    "Moments",
    "Outcome",
    "Repair",
    "Search",
    "Stability",
    "Trial",
    "block_greedy",
    "corner_sets",
    "fit_contrast",
    "latent_scores",
    "matched_sets",
    "mended_set",
    "minimal_sets",
    "pair_moments",
    "pair_weights",
    "preset",
    "random_masks",
    "run_features",
    "stability",
    "top_latents",
    "two_by_two",
    "waking_table",
]
_NAMES = {
    "contrast": ("Contrast", "LatentInputs", "fit_contrast"),
    "interactions": ("Moments", "corner_sets", "pair_moments", "random_masks", "two_by_two"),
    "machine": ("FactorizationMachine",),
    "nulls": ("Matched", "matched_sets", "waking_table"),
    "one_set": ("MinimalSet", "Repair"),
    "overlap": ("Stability", "stability"),
    "published": ("BlockGreedy", "block_greedy"),
    "readouts": ("latent_scores", "pair_weights", "top_latents"),
    "search": ("Search", "mended_set", "minimal_sets"),
    "settings": ("PRESETS", "FeaturesSettings", "preset"),
    "study": ("run_features",),
    "trial": ("Outcome", "Trial"),
}
__getattr__ = lazy(
    __name__,
    {
        name: f"refusalscope.studies.features.{part}"
        for part, names in _NAMES.items()
        for name in names
    },
)
