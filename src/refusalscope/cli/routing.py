"""`refusalscope routing`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from refusalscope.cli.audit import new_folder, say
from refusalscope.cli.placement import ANYWHERE, Placed
from refusalscope.cli.session import Bars
from refusalscope.studies.routing.settings import RoutingSettings
from refusalscope.studies.routing.settings import preset as preset_settings


def routing(
    model: str = "builtin:chat",
    /,
    *,
    pairs: str | None = None,
    against: str | None = None,
    settings: Annotated[
        RoutingSettings | None, Parameter(name="*", negative_iterable="no-")
    ] = None,
    out: Path | None = None,
    resume: bool = False,
    keep_text: bool = False,
    placement: Placed = ANYWHERE,
) -> None:
    """Find the attention heads that carry a model's refusal, with every setting of the study at hand.

    A preset sets all fields; fields given beside it change it.
    Examples: `refusalscope routing builtin:planted-routes`,
    `refusalscope routing my-org/my-model --pairs pairs.csv --preset recommended --out runs/routing`

    Parameters
    ----------
    model
        builtin:chat, builtin:planted-routes (or builtin:planted-routes:VARIANT), a folder, or a hub id.
    pairs
        File of matched pairs: columns harmful, harmless (id, category, language). Bundled pairs without it.
    against
        Another checkpoint of the same shape: which heads moved between the two.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    keep_text
        Store prompts and replies in the run.
    """
    from refusalscope.route import route_model

    given = settings or RoutingSettings()
    changes = {name: getattr(given, name) for name in given.model_fields_set if name != "preset"}
    folder = out or new_folder("routing", resume)
    with Bars() as bars:
        run = route_model(
            model,
            pairs=pairs,
            against=against,
            settings=preset_settings(given.preset, **changes),
            out=folder,
            resume=resume,
            keep_text=keep_text,
            **asdict(placement),
            progress=bars,
        )
    say(run, folder)
