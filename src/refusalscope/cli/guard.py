"""`refusalscope guard fit|card|score|serve|drift`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from refusalscope.cli.audit import new_folder, say
from refusalscope.cli.placement import ANYWHERE, Placed
from refusalscope.cli.session import SESSION, Bars
from refusalscope.guard.serve.settings import ServeSettings
from refusalscope.guard.settings import GuardSettings
from refusalscope.guard.settings import preset as preset_settings

guard = App(
    name="guard",
    help="The model's own belief of harm as a calibrated guard: fit, card, score, serve, drift.",
    help_epilogue="Example: `refusalscope guard fit builtin:chat --out runs/guard`",
    help_format="markdown",
    default_parameter=Parameter(negative_bool=(), negative_iterable=()),
)


@guard.command(
    help_epilogue="Example: `refusalscope guard fit builtin:chat --fpr 0.05 --out runs/guard`"
)
def fit(
    model: str = "builtin:chat",
    /,
    *,
    pairs: str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    augment: str | None = None,
    against: str | None = None,
    settings: Annotated[GuardSettings | None, Parameter(name="*", negative_iterable="no-")] = None,
    out: Path | None = None,
    placement: Placed = ANYWHERE,
) -> None:
    """Fit, calibrate and audit a belief guard; it lies in the folder `guard` of the run.

    A preset sets all fields; fields given beside it change it.

    Parameters
    ----------
    model
        builtin:chat, a folder, or a hub id.
    pairs
        File of matched pairs: columns harmful, harmless (id, category). The bundled pairs without it.
    harmful
        File of harmful prompts; goes with --harmless.
    harmless
        File of harmless prompts; goes with --harmful.
    augment
        File of a few harmful prompts of your own, added to the fit; rates before and after are shown.
    against
        File of other guards' scores for the same prompts: columns id, score (guard).
    out
        The run folder; a new one under runs/ without it.
    """
    from refusalscope.guarding import GUARD, fit_guard

    given = settings or GuardSettings()
    changes = {name: getattr(given, name) for name in given.model_fields_set if name != "preset"}
    folder = out or new_folder("guard", False)
    with Bars() as bars:
        run = fit_guard(
            model,
            pairs=pairs,
            harmful=harmful,
            harmless=harmless,
            augment=augment,
            against=against,
            settings=preset_settings(given.preset, **changes),
            out=folder,
            **asdict(placement),
            progress=bars,
        )
    say(run, folder)
    SESSION.out.print(f"guard: {folder / GUARD}", soft_wrap=True, highlight=False)


@guard.command(help_epilogue="Example: `refusalscope guard card runs/guard/guard`")
def card(folder: Path, /) -> None:
    """Write the card of a guard, HTML and Markdown, into its folder.

    Parameters
    ----------
    folder
        The guard's folder.
    """
    from refusalscope.guard.card import write_card

    for path in write_card(folder):
        SESSION.out.print(f"card: {path}", soft_wrap=True, highlight=False)


@guard.command(
    help_epilogue="Example: `refusalscope guard score runs/guard/guard --prompts prompts.csv`"
)
def score(
    folder: Path,
    /,
    *,
    prompts: str,
    model: str | None = None,
    against: str | None = None,
    operating_point: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    placement: Placed = ANYWHERE,
) -> None:
    """Score prompts; where they have labels, measure the guard on them too.

    Parameters
    ----------
    folder
        The guard's folder.
    prompts
        File of prompts, with labels or without.
    model
        The model the guard was fitted to, where it lies elsewhere than the guard remembers.
    against
        File of other guards' scores for the same prompts: columns id, score (guard).
    operating_point
        One of the guard's, such as fpr=0.05; the first without it.
    seed
        Seed of the bootstrap.
    out
        The run folder; a new one under runs/ without it.
    """
    from refusalscope.guarding import score_guard

    target = out or new_folder("score", False)
    with Bars() as bars:
        run = score_guard(
            folder,
            prompts,
            model=model,
            against=against,
            operating_point=operating_point,
            seed=seed,
            out=target,
            **asdict(placement),
            progress=bars,
        )
    say(run, target)


@guard.command(help_epilogue="Example: `refusalscope guard serve runs/guard/guard --blocking flag`")
def serve(
    folder: Path,
    /,
    *,
    model: str | None = None,
    settings: Annotated[ServeSettings | None, Parameter(name="*")] = None,
    placement: Placed = ANYWHERE,
) -> None:
    """Serve the guarded model with OpenAI's moderation and chat calls, and a playground.

    Needs the extra `serve` (FastAPI, uvicorn). The key is read from REFUSALSCOPE_API_KEY.

    Parameters
    ----------
    folder
        The guard's folder.
    model
        The model the guard was fitted to, where it lies elsewhere than the guard remembers.
    """
    from refusalscope.guard.serve.run import serve as run_server
    from refusalscope.guarding import open_guard

    bound = open_guard(folder, model, **asdict(placement))
    given = settings or ServeSettings()
    card = folder / "card.html"
    if given.card is None and card.is_file():
        given = given.model_copy(update={"card": card})
    longest = bound.monitor_.tokens if bound.monitor_ is not None else given.max_new_tokens
    if given.max_new_tokens > longest:
        SESSION.out.print(
            f"[yellow]warning:[/yellow] the monitor's threshold holds for replies of up to {longest} tokens; "
            f"replies may have {given.max_new_tokens} here"
        )
    where = f"http://{given.host}:{given.port}"
    SESSION.out.print(f"serving {bound.chat_.id} at {where}, playground at {where}/playground")
    run_server(bound, given)


@guard.command(
    help_epilogue="Example: `refusalscope guard drift runs/guard/guard --log scores.jsonl`"
)
def drift(folder: Path, /, *, log: Path, out: Path | None = None) -> None:
    """Compare a log of scores with the guard's calibration; nothing is moved.

    Parameters
    ----------
    folder
        The guard's folder.
    log
        The server's score log (JSON lines), or a run of guard score.
    out
        The run folder; a new one under runs/ without it.
    """
    from refusalscope.guarding import drift_guard

    target = out or new_folder("drift", False)
    say(drift_guard(folder, log, out=target), target)
