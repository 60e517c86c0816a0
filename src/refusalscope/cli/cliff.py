"""`refusalscope cliff`, `refusalscope cliff rank` and `refusalscope repair`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from refusalscope.cli.audit import new_folder, say
from refusalscope.cli.placement import ANYWHERE, Placed
from refusalscope.cli.session import SESSION, Bars
from refusalscope.studies.cliff.repair_settings import RankSettings, RepairSettings
from refusalscope.studies.cliff.settings import CliffSettings
from refusalscope.studies.cliff.settings import preset as preset_settings

cliff = App(
    name="cliff",
    help="Where a reasoning model drops its refusal, and which heads push it.",
    help_epilogue="Example: `refusalscope cliff builtin:reasoner --out runs/cliff`",
    help_format="markdown",
    default_parameter=Parameter(negative_bool=(), negative_iterable=()),
)


@cliff.default
def measure(
    model: str = "builtin:reasoner",
    /,
    *,
    traces: str | None = None,
    pairs: str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    settings: Annotated[CliffSettings | None, Parameter(name="*", negative_iterable="no-")] = None,
    out: Path | None = None,
    resume: bool = False,
    keep_text: bool = False,
    placement: Placed = ANYWHERE,
) -> None:
    """Measure where a reasoning model drops its refusal, with every setting of the study at hand.

    A preset sets all fields; fields given beside it change it.
    Examples: `refusalscope cliff builtin:reasoner`,
    `refusalscope cliff my-org/my-reasoner --traces traces.jsonl --preset recommended --out runs/cliff`

    Parameters
    ----------
    model
        builtin:reasoner, builtin:planted-cliff (or builtin:planted-cliff:VARIANT), a folder, or a hub id.
    traces
        File of labelled prompts with their thinking: columns text, label, thinking (id, category).
    pairs
        File of matched pairs, for which the model thinks itself: columns harmful, harmless (id, category).
    harmful
        File of harmful prompts, for which the model thinks itself; goes with --harmless.
    harmless
        File of harmless prompts; goes with --harmful.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    keep_text
        Store prompts and replies in the run.
    """
    from refusalscope.cliff import measure_cliff

    given = settings or CliffSettings()
    changes = {name: getattr(given, name) for name in given.model_fields_set if name != "preset"}
    folder = out or new_folder("cliff", resume)
    with Bars() as bars:
        run = measure_cliff(
            model,
            traces=traces,
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


@cliff.command(
    help_epilogue="Example: `refusalscope cliff rank builtin:reasoner --k 50 --out runs/rank`"
)
def rank(
    model: str = "builtin:reasoner",
    /,
    *,
    pool: str | None = None,
    traces: str | None = None,
    settings: Annotated[RankSettings | None, Parameter(name="*")] = None,
    out: Path | None = None,
    placement: Placed = ANYWHERE,
) -> None:
    """Rank a pool by misalignment and write the training file of the worst.

    Parameters
    ----------
    model
        builtin:reasoner, a folder, or a hub id.
    pool
        File of harmful prompts, with their thinking or without (the model thinks itself then).
    traces
        File of labelled prompts with their thinking, which the probe is fitted on.
    out
        The run folder; a new one under runs/ without it.
    """
    from refusalscope.repair import TRAIN_FILE, rank_pool

    folder = out or new_folder("rank", False)
    with Bars() as bars:
        run = rank_pool(
            model,
            pool=pool,
            traces=traces,
            settings=settings,
            out=folder,
            **asdict(placement),
            progress=bars,
        )
    say(run, folder)
    SESSION.out.print(f"training file: {folder / TRAIN_FILE}", soft_wrap=True, highlight=False)


def repair(
    model: str = "builtin:reasoner",
    /,
    *,
    pool: str | None = None,
    traces: str | None = None,
    settings: Annotated[RepairSettings | None, Parameter(name="*")] = None,
    out: Path | None = None,
    export: Path | None = None,
    placement: Placed = ANYWHERE,
) -> None:
    """Fine-tune a reasoning model on the worst of a pool, and measure it before and after.

    Needs the extra `train` (TRL and PEFT).
    Example: `refusalscope repair builtin:reasoner --k 50 --export models/repaired`

    Parameters
    ----------
    model
        builtin:reasoner, a folder, or a hub id.
    pool
        File of harmful prompts, with their thinking or without (the model thinks itself then).
    traces
        File of labelled prompts with their thinking: the probe is fitted on some, the rest is held out.
    out
        The run folder; a new one under runs/ without it.
    export
        A new folder for the repaired model or adapter, with a card of what was measured.
    """
    from refusalscope.repair import repair_model

    folder = out or new_folder("repair", False)
    with Bars() as bars:
        run = repair_model(
            model,
            pool=pool,
            traces=traces,
            settings=settings,
            out=folder,
            export=export,
            **asdict(placement),
            progress=bars,
        )
    say(run, folder)
    if export is not None and export.exists():
        SESSION.out.print(f"model: {export}", soft_wrap=True, highlight=False)
