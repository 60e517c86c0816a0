"""The card of a repaired model: what was done to it, and what held-out prompts say of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from refusalscope.runs.files import write_atomic
from refusalscope.studies.cliff.trained import Trained

NAME = "README.md"


def write_card(
    folder: Path, model: str, made: Trained, settings: Mapping[str, Any], effects: pd.DataFrame
) -> None:
    """Write README.md into the folder of a repaired model.

    effects: the rows of `repair.effects` of the ranking that was exported.
    """
    what = "LoRA adapter" if made.adapter is not None else "model"
    lines = [
        f"# Repaired {what}: {model}",
        "",
        f"Fine-tuned on {made.n_train - made.n_general} harmful requests with the model's own thinking and a "
        f"corrected answer, ranked by {settings['rank_by']}, and {made.n_general} harmless ones with its own "
        f"replies; {made.trained_parameters:,} parameters trained at a rate of "
        f"{made.settings.learning_rate:.2g}; weights of step {made.best_step} by held-out loss.",
        "",
        "On held-out prompts, with 95 % intervals:",
        "",
        "| quantity | n | before | after | change |",
        "|---|---|---|---|---|",
    ]
    for row in effects.to_dict("records"):
        lines.append(
            f"| {row['quantity']} | {row['n']} | {row['before']:.3f} | "
            f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | "
            f"{row['change']:+.3f} ({row['change_low']:+.3f} to {row['change_high']:+.3f}) |"
        )
    lines += ["", *(f"- {text}" for text in made.warnings)]
    write_atomic(folder / NAME, ("\n".join(lines).rstrip() + "\n").encode())
