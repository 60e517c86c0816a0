"""`refusalscope features`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from refusalscope.cli.audit import new_folder, say
from refusalscope.cli.placement import ANYWHERE, Placed
from refusalscope.cli.session import Bars
from refusalscope.studies.features.settings import FeaturesSettings
from refusalscope.studies.features.settings import preset as preset_settings


def features(
    model: str = "builtin:chat",
    /,
    *,
    sae: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    pairs: str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    settings: Annotated[
        FeaturesSettings | None, Parameter(name="*", negative_iterable="no-")
    ] = None,
    out: Path | None = None,
    resume: bool = False,
    keep_text: bool = False,
    placement: Placed = ANYWHERE,
) -> None:
    """Find the SAE latents that carry a model's refusal, with every setting of the study at hand.

    A preset sets all fields; fields given beside it change it.
    Examples: `refusalscope features builtin:chat`,
    `refusalscope features my-org/my-model --sae saes/ --max-forwards 20000 --out runs/features`

    Parameters
    ----------
    model
        builtin:chat, builtin:planted-hydra (or builtin:planted-hydra:VARIANT), a folder, or a hub id.
    sae
        Dictionaries, one a layer: folders, a folder of such folders, builtin:chat-sae, or RELEASE:SAE_ID as
        SAELens names them. A builtin model's own without it.
    pairs
        File of matched pairs: columns harmful, harmless (id, category). Bundled pairs without it.
    harmful
        File of harmful prompts (CSV, JSONL, JSON, TXT, Parquet); goes with --harmless.
    harmless
        File of harmless prompts; goes with --harmful.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    keep_text
        Store prompts and replies in the run.
    """
    from refusalscope.dissect import dissect_model

    given = settings or FeaturesSettings()
    changes = {name: getattr(given, name) for name in given.model_fields_set if name != "preset"}
    folder = out or new_folder("features", resume)
    with Bars() as bars:
        run = dissect_model(
            model,
            sae=sae or (),
            pairs=pairs,
            harmful=harmful,
            harmless=harmless,
            settings=preset_settings(given.preset, **changes),
            out=folder,
            resume=resume,
            keep_text=keep_text,
            **asdict(placement),
            progress=bars,
        )
    say(run, folder)
