"""The front door of the cliff study: where a reasoning model drops its refusal, into a run folder."""

from __future__ import annotations

from pathlib import Path

from refusalscope.audit import load_prompts
from refusalscope.errors import InputError
from refusalscope.front import (
    PathLike,
    default_traces,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress
from refusalscope.prompts import PairSet, PromptSet, read_prompts
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied
from refusalscope.studies.cliff.probe import harmful_of
from refusalscope.studies.cliff.settings import CliffSettings, preset
from refusalscope.studies.cliff.study import run_cliff
from refusalscope.studies.cliff.traces import think, traces_of
from refusalscope.studies.subject import SPLITS, prepare

# Fit: the probe; select: its scale; report: all that is said.
FRACTIONS = {"fit": 0.35, "select": 0.25, "report": 0.4}


def measure_cliff(
    model: str | ChatModel = "builtin:reasoner",
    *,
    traces: PathLike | PromptSet | None = None,
    pairs: PathLike | PairSet | None = None,
    harmful: PathLike | PromptSet | None = None,
    harmless: PathLike | PromptSet | None = None,
    settings: CliffSettings | str = "recommended",
    out: PathLike = "runs/cliff",
    resume: bool = False,
    keep_text: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Measure where a reasoning model drops its refusal and write a run folder with `report.html`.

    model: `builtin:reasoner`, `builtin:planted-cliff`, a folder, a hub id, or a loaded ChatModel. traces: a
    file or set of labelled prompts with their thinking. pairs, or harmful and harmless: prompts for which the
    model thinks itself, greedily. A builtin model's own traces without any of them. settings: a preset's name
    or settings. Raises InputError, LeakageError, ModelError or RunError, each with one sentence on what to do;
    `resume=True` goes on with a run that was stopped.
    """
    chosen = preset(settings) if isinstance(settings, str) else settings
    if not resume:
        refuse_occupied(Path(out))
    if traces is not None and any(each is not None for each in (pairs, harmful, harmless)):
        raise InputError("give either traces, or prompts to think about, not both")
    given = load_prompts(pairs, harmful, harmless)
    patient = load_patient(model, dtype=dtype, device=device, device_map=device_map)
    chat, chosen = patient.chat, with_needs(chosen, patient)
    data = _traces(model, traces, given)
    silent: list[str] = []
    data = with_thinking(chat, data, chosen.thinking_tokens, silent, progress)
    splits = dict(split_prompts(data, FRACTIONS, chosen.seed))
    judge = Judge.from_name(chosen.judge)
    prompts = {n: s.prompts() if isinstance(s, PairSet) else s for n, s in splits.items()}
    harmful_of([trace for name in SPLITS for trace in traces_of(chat, list(prompts[name]))])
    run = Run.create(
        out,
        command="cliff",
        settings=chosen.model_dump(mode="json"),
        inputs={
            "model": chat.fingerprint,
            "dtype": str(chat.dtype),
            "sources": [source.sha256 for source in data.sources],
            "prompts": {name: [prompt.id for prompt in prompts[name]] for name in SPLITS},
        },
        resume=resume,
        keep_text=keep_text,
    )
    if not run.finished:
        seeds = dict.fromkeys(("splits", "probes", "draws", "flips", "bootstrap"), chosen.seed)
        describe(run, chat, judge, data, splits, seeds)
        for text in silent:
            run.warn(text)
        subject = prepare(
            run,
            chat,
            prompts,
            judge=judge,
            max_new_tokens=chosen.max_new_tokens,
            seed=chosen.seed,
            progress=progress,
        )
        run_cliff(run, subject, chosen, progress)
        if judge.cost:
            run.update(judge={**run.info["judge"], "cost": judge.cost})
        run.finish()
    write_report(out)
    return open_run(out)


def _traces(
    model: str | ChatModel,
    traces: PathLike | PromptSet | None,
    given: PairSet | PromptSet | None,
) -> PromptSet:
    if isinstance(traces, PromptSet):
        return traces
    if traces is not None:
        return read_prompts(traces)
    if given is not None:
        return given.prompts() if isinstance(given, PairSet) else given
    return default_traces(model)


def with_thinking(
    chat: ChatModel,
    data: PromptSet,
    thinking_tokens: int,
    said: list[str],
    progress: Progress | None,
) -> PromptSet:
    """The prompts with their thinking, the model's own where none brings any; InputError where only some do."""
    own = [prompt for prompt in data if prompt.thinking is None]
    if not own:
        return data
    if len(own) < len(data):
        raise InputError(
            f"the thinking of prompt {own[0].id!r} is empty or missing ({len(own)} of {len(data)} prompts); "
            f"leave such prompts out, or give none its thinking and the model thinks itself"
        )
    found = think(chat, own, thinking_tokens, warn=said.append, progress=progress)
    return PromptSet(tuple(found), data.sources, data.skipped)
