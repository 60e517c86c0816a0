"""What a guard's card says, from `guard.json` alone: parts with sentences and tables, as plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refusalscope.guard.record import GuardFile

NBSP = "\u00a0"
VARIANTS = {
    "centroid": "difference of cosines to the two class means, as in the paper",
    "centred": "difference of cosines to the two class means, after their midpoint is taken off",
    "lda": "linear discriminant with a shrunk covariance",
}
MATCHED = {
    "drawn": "prompts were drawn so that every kind of final mark is equally frequent in both classes",
    "rewritten": "every prompt stands there without a mark, with a full stop and with a question mark",
    "none": "final marks were not made alike, so the score may hold the mark itself",
}


@dataclass(frozen=True)
class Rows:
    """A table of a card: column names and rows of plain text."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A part of a card. warning: a sentence that must not be missed; code: lines to copy."""

    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Rows] = ()
    warning: str = ""
    listed: Sequence[str] = ()
    code: str = ""


def percent(rate: Any) -> str:
    """A rate as a percentage of three digits; a dash where there is none."""
    known = isinstance(rate, int | float) and math.isfinite(rate)
    return f"{100 * rate:.3g}{NBSP}%" if known else "\u2013"


def interval(row: Mapping[str, Any]) -> str:
    """A rate with its bounds, "3 % (1 % to 5 %)", of a record with rate, low and high."""
    return f"{percent(row['rate'])} ({percent(row['low'])} to {percent(row['high'])})"


def what(record: GuardFile) -> Part:
    """The guard's kind, its model, and where and how it reads."""
    model, settings = record.model.model_dump(), record.settings
    rows = record.rows
    where = f"{rows[0]} to {rows[-1]}" if len(rows) > 1 else ", ".join(map(str, rows))
    variant = str(settings.get("variant"))
    facts = [
        ("model", str(model["id"])),
        ("revision", str(model.get("revision") or "not stated")),
        (
            "architecture",
            f"{model['architecture']}, {model['n_layers']} layers, {model['d_model']} wide",
        ),
        ("precision", str(model["dtype"])),
        *(
            (f"{name} sha256", str(model.get(f"{name}_sha256") or "none"))
            for name in ("weights", "config", "tokenizer", "template")
        ),
        ("harm is read at", str(record.anchors[0])),
        ("refusal is read at", str(record.anchors[1]) if "refuse" in record.heads else "not read"),
        ("rows (states after so many layers)", where),
        ("score", f"{variant}: {VARIANTS.get(variant, 'not described')}; mean over the rows"),
        ("categories with a score of their own", ", ".join(_categories(record)) or "none"),
        ("seed", str(settings.get("seed"))),
        (
            "canary",
            f"{len(record.canary.scores)} prompts, each within {record.canary.tolerance[0]:.2g} on load",
        ),
        ("tensors sha256", record.tensors_sha256),
        ("written by", f"refusalscope {record.refusalscope}"),
    ]
    axes = "has a second axis for whether the model is about to refuse"
    if "refuse" not in record.heads:
        axes = "has no second axis for refusal: too few fit prompts were refused or answered"
    sentences = [
        "A belief guard scores a prompt by what the model itself takes it for: its states at the end of the "
        "request are held against the mean states of harmful and of harmless requests. Nothing is generated "
        "for it, and no second model is asked.",
        "It follows the Latent Guard of \u201cLLMs Encode Harmfulness and Refusal Separately\u201d (arXiv "
        f"2507.11878, section 5.1). This one {axes}.",
    ]
    return Part(
        "What it is", sentences, [Rows("Model, position and layers", ("what", "value"), facts)]
    )


def _categories(record: GuardFile) -> list[str]:
    return [name.removeprefix("category/") for name in record.heads if name.startswith("category/")]


def sources(record: GuardFile) -> Part:
    """The prompts it was fitted on, with licences and final marks."""
    rows, marks = [], []
    for label in ("harmful", "harmless"):
        side = record.fitted_on[label]
        rows += [
            (
                label,
                str(source["name"]),
                str(source.get("n")),
                str(source.get("licence") or "not stated"),
                str(source.get("sha256") or "none"),
            )
            for source in side["sources"]
        ]
        marks.append(
            (
                label,
                ", ".join(f"{mark} {percent(rate)}" for mark, rate in side["final_marks"].items()),
            )
        )
    harmful, harmless = (record.fitted_on[label] for label in ("harmful", "harmless"))
    told = f"Fitted on {harmful['n']} harmful and {harmless['n']} harmless prompts"
    if "refused" in harmful:
        told += f"; the model refused {harmful['refused']} of the first and answered "
        told += f"{harmless['answered']} of the second"
    how = MATCHED.get(record.matched, record.matched)
    return Part(
        "Sources",
        [f"{told}.", f"Final marks: {how}."],
        [
            Rows(
                "Sources of the prompts of the fit",
                ("label", "source", "prompts in it", "licence", "sha256"),
                rows,
            ),
            Rows("Final marks of the prompts of the fit", ("label", "marks"), marks),
        ],
    )


def loading(record: GuardFile, folder: str) -> Part:
    """How to load it, and when that is refused."""
    model = f"PLACE OF {record.model.id}" if record.model.local else record.model.id
    code = (
        "from refusalscope.guard.belief_guard import BeliefGuard\n"
        "from refusalscope.model import ChatModel\n\n"
        f"guard = BeliefGuard.load({folder!r}, ChatModel.load({model!r}))\n"
        "guard.beliefs(prompts)\n\n"
        f"# refusalscope guard score {folder} --prompts prompts.jsonl\n"
        f"# refusalscope guard serve {folder}"
    )
    return Part(
        "How to load it",
        [
            "Loading is refused for another model, tokenizer, template or precision, for a folder that is not "
            "whole, and where a canary prompt scores otherwise than when the guard was saved."
        ],
        code=code,
    )
