"""The front door: audit a chat model into a run folder with a report."""

from __future__ import annotations

from pathlib import Path

from refusalscope.errors import InputError
from refusalscope.front import (
    PathLike,
    default_pairs,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress
from refusalscope.prompts import (
    PairSet,
    PromptSet,
    check_overlap,
    concat,
    read_pairs,
    read_prompts,
)
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied
from refusalscope.studies.directions import DirectionsSettings, preset, run_directions
from refusalscope.studies.subject import SPLITS, prepare

FRACTIONS = {"fit": 0.5, "select": 0.2, "report": 0.3}


def audit_model(
    model: str | ChatModel = "builtin:chat",
    *,
    pairs: PathLike | PairSet | None = None,
    harmful: PathLike | PromptSet | None = None,
    harmless: PathLike | PromptSet | None = None,
    settings: DirectionsSettings | str = "recommended",
    out: PathLike = "runs/audit",
    resume: bool = False,
    keep_text: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
    command: str = "audit",
) -> RunView:
    """Measure how a model refuses and write a run folder with tables, arrays and `report.html`.

    model: `builtin:chat`, a folder, a hub id, or a loaded ChatModel. pairs, or harmful and harmless: files or
    sets of prompts; none of them means the bundled pairs. settings: a preset's name or settings. keep_text
    stores prompts and replies; without it scores alone are stored. Raises InputError, LeakageError, ModelError
    or RunError, each with one sentence on how to go on; nothing is half-written, and `resume=True` goes on.
    """
    chosen = preset(settings) if isinstance(settings, str) else settings
    if not resume:
        refuse_occupied(Path(out))
    data = load_prompts(pairs, harmful, harmless) or default_pairs(model)
    splits = {
        name: side.prompts() if isinstance(side, PairSet) else side
        for name, side in split_prompts(data, FRACTIONS, chosen.seed).items()
    }
    patient = load_patient(model, dtype=dtype, device=device, device_map=device_map)
    chat, chosen = patient.chat, with_needs(chosen, patient)
    judge = Judge.from_name(chosen.judge)
    run = Run.create(
        out,
        command=command,
        settings=chosen.model_dump(),
        inputs={
            "model": chat.fingerprint,
            "dtype": str(chat.dtype),
            "sources": [source.sha256 for source in data.sources],
            "prompts": {name: [prompt.id for prompt in splits[name]] for name in SPLITS},
        },
        resume=resume,
        keep_text=keep_text,
    )
    if not run.finished:
        seeds = dict.fromkeys(("splits", "bootstrap", "random_directions"), chosen.seed)
        describe(run, chat, judge, data, splits, seeds)
        subject = prepare(
            run,
            chat,
            splits,
            judge=judge,
            max_new_tokens=chosen.max_new_tokens,
            seed=chosen.seed,
            progress=progress,
        )
        run_directions(run, subject, chosen, progress)
        if judge.cost:
            run.update(judge={**run.info["judge"], "cost": judge.cost})
        run.finish()
    write_report(out)
    return open_run(out)


def load_prompts(
    pairs: PathLike | PairSet | None,
    harmful: PathLike | PromptSet | None,
    harmless: PathLike | PromptSet | None,
) -> PairSet | PromptSet | None:
    """Read what the user gave, if anything; prompts of two files come back as one set."""
    if pairs is not None and (harmful is not None or harmless is not None):
        raise InputError("give either pairs, or harmful and harmless prompts, not both")
    if (harmful is None) != (harmless is None):
        missing = "harmful" if harmful is None else "harmless"
        raise InputError(
            f"the {missing} prompts are missing: give --harmful and --harmless together"
        )
    if harmful is None or harmless is None:
        return pairs if pairs is None or isinstance(pairs, PairSet) else read_pairs(pairs)
    bad = harmful if isinstance(harmful, PromptSet) else read_prompts(harmful, label="harmful")
    good = harmless if isinstance(harmless, PromptSet) else read_prompts(harmless, label="harmless")
    check_overlap(bad, good)
    return concat(bad, good)
