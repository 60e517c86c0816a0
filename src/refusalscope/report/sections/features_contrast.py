"""Harmful against harmless by latents: accuracies, and the latents that the machine ranks highest."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.numbers import ABSENT, decimal, finite, percent, rate_span, whole
from refusalscope.report.tables import records

INPUTS = {
    "natural": "runs without an edit",
    "post_ablation": "runs with the set taken out",
    "masks": "runs under random masks",
}

# Of each ranking so many latents are listed.
MAX_PLACES = 10


def contrast_table(contrast: pd.DataFrame) -> Table:
    """How well both models tell harmful from harmless by their latents, for each kind of inputs."""
    return Table(
        "Harmful against harmless by latents: factorization machine and linear probe",
        ("inputs", "latents", "machine", "95 % interval", "linear probe", "95 % interval"),
        [
            (
                INPUTS.get(row["inputs"], str(row["inputs"])),
                Cell(whole(row["n_latents"]), number=True),
                Cell(percent(row["machine_accuracy"]), number=True),
                Cell(rate_span(row["machine_low"], row["machine_high"]), number=True),
                Cell(percent(row["probe_accuracy"]), number=True),
                Cell(rate_span(row["probe_low"], row["probe_high"]), number=True),
            )
            for row in records(contrast)
        ],
        "Accuracy on prompts left out of the training. Both labels are easy to tell apart, so a high accuracy "
        "says nothing of what causes the refusal; latents that are never active in the inputs have no weight. "
        "Under random masks the machine learns the fall of the margin instead, which has no accuracy.",
        id="table-features-contrast",
        name="contrast",
    )


def machine_table(machine: pd.DataFrame) -> Table:
    """The latents that the factorization machine or the linear probe ranks highest, by kind of inputs."""
    ranked = machine.sort_values("place", kind="stable")
    first = (ranked["place"] < MAX_PLACES) | (ranked["probe_place"] < MAX_PLACES)
    parts = [part for _, part in ranked[first].groupby("inputs", sort=False)]
    rows = pd.concat(parts) if parts else ranked.head(MAX_PLACES)
    return Table(
        "The latents that machine and probe rank highest",
        ("inputs", "latent", "place", "score", "place in the probe", "weight in the probe"),
        [
            (
                INPUTS.get(row["inputs"], str(row["inputs"])),
                Cell(row["at"], strong=True),
                Cell(_place(row["place"]), number=True),
                Cell(decimal(row["score"], 3), number=True),
                Cell(_place(row["probe_place"]), number=True),
                Cell(decimal(row["probe_weight"], 3), number=True),
            )
            for row in records(rows)
        ],
        f"The first {MAX_PLACES} of either ranking, the machine's first; the probe ranks by the size of its "
        "weight. Rankings by observation; what their top latents do when taken out stands among the baselines. "
        "A dash: not among the first, or no probe.",
        folded=True,
    )


def _place(place: float) -> str:
    """A rank from 0 as a reader counts it."""
    return whole(place + 1) if finite(place) else ABSENT
