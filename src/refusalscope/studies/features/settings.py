"""Settings of the features study, with where each default comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from refusalscope.studies.features.nulls import MIN_DRAWS
from refusalscope.studies.features.pool import By, Scope
from refusalscope.studies.features.published import Reading
from refusalscope.studies.features.readouts import Readout
from refusalscope.studies.presets import from_preset

PresetName = Literal["recommended", "prakash2025", "yeo2025"]
Inputs = Literal["natural", "post_ablation", "masks"]
Class = Literal["all", "no_bos", "instruction", "template", "last"]
Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class FeaturesSettings(BaseModel):
    """What the features study does.

    Sources: (s) arXiv 2509.09708 by secondary sources, its text was not at hand; (y) arXiv 2505.23556 and its
    authors' code; (a) arXiv 2406.11717; (o) ours, to correct a known defect or where nothing is published. The
    fields block, orders, taus and readings act in the block-greedy search alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: PresetName = Field("recommended", description="named set of settings")
    direction: Literal["selected", "last"] = Field(
        "selected",
        description="refusal direction: chosen over all anchors (a), or at the last token alone (s, y)",
    )
    direction_layer: int | None = Field(
        None,
        description="block whose input the direction is taken from, at the last token; chosen by the "
        "sweep without it",
    )
    pool_k: Some | Literal["elbow"] = Field(
        10,
        description="latents kept by each measure, of a layer or of all: 10 for Llama (s, y), 200 for "
        "Gemma (s), or elbow, read off the attribution (o)",
    )
    pool_scope: Scope = Field(
        "layer", description="keep so many of each layer (s), or of all layers together"
    )
    pool_by: By = Field(
        "union",
        description="keep by cosine with the direction (s, y), by attribution, or by both (o)",
    )
    part: Literal["execution", "both"] = Field(
        "execution",
        description="candidates that carry refusal out alone (o), or those that recognise harm too (s, y)",
    )
    unit: Literal["write", "latent"] = Field(
        "write",
        description="what a set is made of: a latent with those of other layers that show the same write "
        "(o), or single latents of single layers (s, y)",
    )
    positions: Class = Field(
        "no_bos", description="tokens that are edited and read; all, BOS included, in (s)"
    )
    search: Literal["bisection", "block_greedy", "top_attribution"] = Field(
        "bisection",
        description="attribution order, bisection and a one-minimal pass (o), block greedy (s), or the top "
        "latents by integrated gradients within the pool (y)",
    )
    share: Share = Field(0.9, description="share of the prompts that a pooled set must flip (o)")
    n_search: Some = Field(
        32, description="refused prompts that the sets are searched on, drawn by the seed (o)"
    )
    n_sets: Some = Field(3, description="distinct pooled sets searched for (o)")
    n_prompts: Count = Field(12, description="prompts that get a minimal set of their own (o)")
    n_halves: Count = Field(
        2, description="random halvings of the prompts, a set searched on each half (o)"
    )
    max_forwards: Annotated[int, Field(ge=100)] = Field(
        40_000,
        description="prompts run through the model by all searches together; the best so far when it "
        "runs out (o)",
    )
    block: Some = Field(5, description="latents of a block (s)")
    orders: Some = Field(3, description="random orders whose sets are intersected (s)")
    taus: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5,),
        description="probability of the refusal's opening below which a run is flipped; .1 to .8 in (s)",
    )
    readings: tuple[Reading, ...] = Field(
        ("restore",),
        description="how a block is judged: restore, delta, or both; not stated in (s)",
    )
    draws: Annotated[int, Field(ge=MIN_DRAWS)] = Field(
        MIN_DRAWS, description="random edits behind every null (o)"
    )
    n_masks: Count = Field(1000, description="random ablation masks; 0 leaves them out (o)")
    n_masked: Annotated[int, Field(ge=2)] = Field(
        60, description="latents under the masks, the set and the strongest others (o)"
    )
    n_pairs: Count = Field(
        12, description="strongest pairs that are run as an exact two by two (o)"
    )
    pair_floor: Annotated[float, Field(gt=0)] = Field(
        0.1, description="smallest interaction that matters, in nats of the refusal margin (o)"
    )
    machine_inputs: tuple[Inputs, ...] = Field(
        ("natural", "post_ablation", "masks"),
        description="what the factorization machine learns from: natural (s), and the two that it needs to "
        "see dormant latents (o)",
    )
    machine_k: tuple[Some, ...] = Field(
        (20,), description="latents that it ranks highest, ablated; 100 to 2,000 in (s)"
    )
    readout: Readout = Field(
        "pairs", description="ranking by the machine: pairs, linear_pairs or norm (o)"
    )
    n_top: Some = Field(20, description="latents of each ranked baseline (y)")
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0),
        description="share of a latent that is taken out, 1 to zero it (s), 2 and 4 for the factors -1 and "
        "-3 of (y)",
    )
    n_report: Annotated[int, Field(ge=8)] = Field(
        100, description="unseen prompts a label that the arms are measured on, at most (o)"
    )
    max_new_tokens: Some = Field(24, description="length of the replies that are judged (o)")
    judge: str = Field(
        "text",
        description="judge of the replies: text, phrases:PRESET, classifier:NAME, endpoint:MODEL",
    )
    seed: int = Field(0, description="seed of splits, draws, masks, orders and bootstraps")

    @field_validator("strengths")
    @classmethod
    def _with_one(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in strengths or sorted(set(strengths)) != list(strengths):
            raise ValueError("the strengths must rise and hold 1, which zeroes a latent")
        return strengths


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "prakash2025": {
        "direction": "last",
        "pool_by": "cosine",
        "part": "both",
        "unit": "latent",
        "positions": "all",
        "search": "block_greedy",
        "taus": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        "readings": ("restore", "delta"),
        "n_masks": 0,
        "n_pairs": 0,
        "machine_inputs": ("natural",),
        "machine_k": (100, 200, 500, 1000, 2000),
        "strengths": (1.0,),
    },
    "yeo2025": {
        "direction": "last",
        "pool_by": "cosine",
        "part": "both",
        "unit": "latent",
        "positions": "all",
        "search": "top_attribution",
        "n_masks": 0,
        "n_pairs": 0,
        "machine_inputs": (),
        "strengths": (1.0, 2.0, 4.0),
    },
}


def preset(name: str, **changes: Any) -> FeaturesSettings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(FeaturesSettings, PRESETS, "features", name, changes)
