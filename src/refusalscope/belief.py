"""The front door of the belief study: harm and refusal as two beliefs of a model, into a run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from refusalscope.audit import load_prompts
from refusalscope.errors import InputError
from refusalscope.front import (
    PathLike,
    about_model,
    default_pairs,
    default_splits,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress
from refusalscope.prompts import PairSet, PromptSet, concat
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied
from refusalscope.studies.directions.belief import belief_rows
from refusalscope.studies.directions.belief_settings import BeliefSettings, preset
from refusalscope.studies.directions.belief_shortcuts import other_marks
from refusalscope.studies.directions.belief_study import run_belief
from refusalscope.studies.directions.tuned import require_same_shape
from refusalscope.studies.subject import SPLITS, prepare

# Fit: the centroids and the directions of categories; select: the layer that each direction is told at;
# report: all that is said.
FRACTIONS = {"fit": 0.55, "select": 0.1, "report": 0.35}


def study_belief(
    model: str | ChatModel = "builtin:chat",
    *,
    pairs: PathLike | PairSet | None = None,
    harmful: PathLike | PromptSet | None = None,
    harmless: PathLike | PromptSet | None = None,
    tuned: str | ChatModel | None = None,
    settings: BeliefSettings | str = "recommended",
    out: PathLike = "runs/belief",
    resume: bool = False,
    keep_text: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Measure what a model believes of prompts apart from what it does, into a run folder with `report.html`.

    model: `builtin:chat`, a planted model, a folder, a hub id, or a loaded ChatModel. pairs, or harmful and
    harmless: files or sets of prompts; none of them means the model's own. tuned: the model after fine-tuning,
    whose belief is read beside. settings: a preset's name or settings. Raises InputError, LeakageError,
    ModelError or RunError, each with one sentence on what to do; `resume=True` goes on with a stopped run.
    """
    chosen = preset(settings) if isinstance(settings, str) else settings
    if not resume:
        refuse_occupied(Path(out))
    given = load_prompts(pairs, harmful, harmless)
    own = default_splits(model) if given is None else None
    data = concat(*own.values()) if own else given or default_pairs(model)
    splits = own or split_prompts(data, FRACTIONS, chosen.seed)
    prompts = {n: s.prompts() if isinstance(s, PairSet) else s for n, s in splits.items()}
    load = partial(load_patient, dtype=dtype, device=device, device_map=device_map)
    patient = load(model)
    other = load(tuned).chat if tuned is not None else None
    chat, chosen = patient.chat, with_needs(chosen, patient)
    judge = Judge.from_name(chosen.judge)
    if other is not None:
        require_same_shape(chat, other)
    # What cannot be studied is told before a run is begun: layers, and prompts that are too long.
    _require_layers(chosen, chat)
    chat.render([prompt for name in SPLITS for prompt in prompts[name]])
    chat.render(other_marks(prompts["report"].items))
    run = Run.create(
        out,
        command="belief",
        settings=chosen.model_dump(mode="json"),
        inputs={
            "model": chat.fingerprint,
            "tuned": other.fingerprint if other is not None else None,
            "dtype": str(chat.dtype),
            "sources": [source.sha256 for source in data.sources],
            "prompts": {name: [prompt.id for prompt in prompts[name]] for name in SPLITS},
        },
        resume=resume,
        keep_text=keep_text,
    )
    if not run.finished:
        seeds = dict.fromkeys(("splits", "draws", "rotations", "bootstrap"), chosen.seed)
        describe(run, chat, judge, data, splits, seeds)
        if other is not None:
            run.update(tuned=about_model(other))
        subject = prepare(
            run,
            chat,
            prompts,
            judge=judge,
            max_new_tokens=chosen.max_new_tokens,
            seed=chosen.seed,
            progress=progress,
        )
        run_belief(run, subject, chosen, other, progress, patient.wrappers)
        if judge.cost:
            run.update(judge={**run.info["judge"], "cost": judge.cost})
        run.finish()
    write_report(out)
    return open_run(out)


def _require_layers(settings: BeliefSettings, chat: ChatModel) -> None:
    """Raises InputError for a model of too few layers, and for a layer to steer at that it has not."""
    belief_rows(settings.rows, chat.anatomy.n_layers)
    outside = [row for row in settings.steer_rows or () if row >= chat.anatomy.n_layers]
    if outside:
        raise InputError(
            f"steer_rows names layer {outside[0]}, the layers of {chat.id} are 0 to "
            f"{chat.anatomy.n_layers - 1}; name layers among these"
        )
