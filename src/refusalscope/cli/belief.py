"""`refusalscope belief`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from refusalscope.cli.audit import new_folder, say
from refusalscope.cli.placement import ANYWHERE, Placed
from refusalscope.cli.session import Bars
from refusalscope.studies.directions.belief_settings import BeliefSettings
from refusalscope.studies.directions.belief_settings import preset as preset_settings


def belief(
    model: str = "builtin:chat",
    /,
    *,
    pairs: str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    tuned: str | None = None,
    settings: Annotated[BeliefSettings | None, Parameter(name="*", negative_iterable="no-")] = None,
    out: Path | None = None,
    resume: bool = False,
    keep_text: bool = False,
    placement: Placed = ANYWHERE,
) -> None:
    """Measure harm and refusal as two beliefs of a model, with every setting of the study at hand.

    A preset sets all fields; fields given beside it change it.
    Examples: `refusalscope belief builtin:chat`,
    `refusalscope belief my-org/my-model --pairs pairs.csv --tuned my-org/my-tuned --out runs/belief`

    Parameters
    ----------
    model
        builtin:chat, a planted model, a folder with a saved model, or a hub id.
    pairs
        File of matched pairs: columns harmful, harmless (id, category). The model's own without it.
    harmful
        File of harmful prompts (CSV, JSONL, JSON, TXT, Parquet); goes with --harmless.
    harmless
        File of harmless prompts; goes with --harmful.
    tuned
        The model after fine-tuning: its belief is read beside, on the same prompts.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    keep_text
        Store prompts and replies in the run.
    """
    from refusalscope.belief import study_belief

    given = settings or BeliefSettings()
    changes = {name: getattr(given, name) for name in given.model_fields_set if name != "preset"}
    folder = out or new_folder("belief", resume)
    with Bars() as bars:
        run = study_belief(
            model,
            pairs=pairs,
            harmful=harmful,
            harmless=harmless,
            tuned=tuned,
            settings=preset_settings(given.preset, **changes),
            out=folder,
            resume=resume,
            keep_text=keep_text,
            **asdict(placement),
            progress=bars,
        )
    say(run, folder)
