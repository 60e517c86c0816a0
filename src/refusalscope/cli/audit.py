"""`refusalscope audit` and `refusalscope directions`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from refusalscope.cli.placement import ANYWHERE, Placed
from refusalscope.cli.session import SESSION, Bars
from refusalscope.studies.directions.settings import DirectionsSettings, PresetName
from refusalscope.studies.directions.settings import preset as preset_settings

if TYPE_CHECKING:
    from refusalscope.runs import RunView

RUNS = Path("runs")


def audit(
    model: str = "builtin:chat",
    /,
    *,
    pairs: str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    preset: PresetName = "recommended",
    judge: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    keep_text: bool = False,
    placement: Placed = ANYWHERE,
) -> None:
    """Audit a chat model into a run folder with a report.

    Examples: `refusalscope audit`, `refusalscope audit my-org/my-model --pairs pairs.csv --out runs/mine`

    Parameters
    ----------
    model
        builtin:chat, a folder with a saved model, or a hub id.
    pairs
        File of matched pairs: columns harmful, harmless (id, category). Bundled pairs without it.
    harmful
        File of harmful prompts (CSV, JSONL, JSON, TXT, Parquet); goes with --harmless.
    harmless
        File of harmless prompts; goes with --harmful.
    preset
        recommended, or a paper's procedure: arditi2024, zhao2025.
    judge
        Judge of the replies, such as text, phrases:layered or endpoint:MODEL; the preset's own without it.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    keep_text
        Store prompts and replies in the run; without it scores alone are stored.
    """
    settings = preset_settings(preset, **({} if judge is None else {"judge": judge}))
    where = asdict(placement)
    _run("audit", model, pairs, harmful, harmless, settings, out, resume, keep_text, where)


def directions(
    model: str = "builtin:chat",
    /,
    *,
    pairs: str | None = None,
    harmful: str | None = None,
    harmless: str | None = None,
    settings: Annotated[DirectionsSettings | None, Parameter(name="*")] = None,
    out: Path | None = None,
    resume: bool = False,
    keep_text: bool = False,
    placement: Placed = ANYWHERE,
) -> None:
    """Find the refusal and harmfulness directions, with every setting of the study at hand.

    A preset sets all fields; fields given beside it change it.
    Example: `refusalscope directions --preset arditi2024 --max-kl 0.2 --out runs/directions`

    Parameters
    ----------
    model
        builtin:chat, a folder with a saved model, or a hub id.
    pairs
        File of matched pairs: columns harmful, harmless (id, category). Bundled pairs without it.
    harmful
        File of harmful prompts; goes with --harmless.
    harmless
        File of harmless prompts; goes with --harmful.
    out
        The run folder; a new one under runs/ without it.
    resume
        Go on with a run that was stopped.
    keep_text
        Store prompts and replies in the run.
    """
    given = settings or DirectionsSettings()
    changes = {k: getattr(given, k) for k in given.model_fields_set if k != "preset"}
    chosen = preset_settings(given.preset, **changes)
    where = asdict(placement)
    _run("directions", model, pairs, harmful, harmless, chosen, out, resume, keep_text, where)


def _run(
    command: str,
    model: str,
    pairs: str | None,
    harmful: str | None,
    harmless: str | None,
    settings: DirectionsSettings,
    out: Path | None,
    resume: bool,
    keep_text: bool,
    where: dict[str, Any],
) -> None:
    from refusalscope.audit import audit_model

    folder = out or new_folder(command, resume)
    with Bars() as bars:
        run = audit_model(
            model,
            pairs=pairs,
            harmful=harmful,
            harmless=harmless,
            settings=settings,
            out=folder,
            resume=resume,
            keep_text=keep_text,
            **where,
            progress=bars,
            command=command,
        )
    say(run, folder)


def say(run: RunView, folder: Path) -> None:
    """Print what a run found, its warnings, and where its report is."""
    from refusalscope.report.verdict import verdict

    if not SESSION.quiet:
        for sentence in verdict(run):
            SESSION.out.print(escape(sentence.text))
        for warning in run.info["warnings"]:
            SESSION.out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    SESSION.out.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


def new_folder(command: str, resume: bool) -> Path:
    """A new folder under runs/, or the newest one of this command when resuming."""
    number = 1
    while (RUNS / f"{command}-{number}").exists():
        number += 1
    return RUNS / f"{command}-{max(1, number - 1) if resume else number}"
