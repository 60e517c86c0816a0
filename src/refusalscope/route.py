"""The front door of the routing study: which heads carry a model's refusal, into a run folder with a report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from refusalscope.errors import InputError
from refusalscope.front import (
    PathLike,
    about_model,
    default_pairs,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress
from refusalscope.prompts import PairSet, Prompt, PromptSet, read_pairs
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied
from refusalscope.studies.heads import MIN_PAIRS
from refusalscope.studies.routing import RoutingSettings, preset, run_drift, run_routing
from refusalscope.studies.routing.compare import require_alike
from refusalscope.studies.subject import prepare

# A quarter teaches the refusal margin and the dose's direction; the rest is what is reported.
FRACTIONS = {"fit": 0.25, "report": 0.75}


def route_model(
    model: str | ChatModel = "builtin:chat",
    *,
    pairs: PathLike | PairSet | None = None,
    against: str | ChatModel | None = None,
    settings: RoutingSettings | str = "recommended",
    out: PathLike = "runs/routing",
    resume: bool = False,
    keep_text: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Find the heads that carry a model's refusal and write a run folder with tables and `report.html`.

    model: `builtin:chat`, `builtin:planted-routes`, a folder, a hub id, or a loaded ChatModel. pairs: a file or
    set of harmful requests with matched controls; the bundled pairs (a planted model's own) without it.
    against: another checkpoint of the same shape, whose circuit is compared. settings: a preset's name or
    settings. Raises InputError, LeakageError, ModelError or RunError, each with one sentence on how to go on;
    `resume=True` goes on with a run that was stopped.
    """
    chosen = preset(settings) if isinstance(settings, str) else settings
    if not resume:
        refuse_occupied(Path(out))
    data = _pairs(model, pairs)
    splits = split_prompts(data, FRACTIONS, chosen.seed)
    reported = splits["report"]
    assert isinstance(reported, PairSet)
    if len(reported) < MIN_PAIRS:
        raise InputError(
            f"{len(data)} pairs leave {len(reported)} to test heads on, and the sign-flip test needs "
            f"{MIN_PAIRS}: give {MIN_PAIRS * 4 // 3 + 2} pairs or more"
        )
    load = partial(load_patient, dtype=dtype, device=device, device_map=device_map)
    patient = load(model)
    other = load(against) if against is not None else None
    chat, chosen = patient.chat, with_needs(chosen, patient)
    judge = Judge.from_name(chosen.judge)
    prompts = {
        "select": PromptSet(()),
        **{n: s.prompts() if isinstance(s, PairSet) else s for n, s in splits.items()},
    }
    _check(chat, reported, [prompt for side in prompts.values() for prompt in side])
    if other is not None:
        require_alike(chat, other.chat, list(reported.prompts()))
    run = Run.create(
        out,
        command="routing",
        settings=chosen.model_dump(mode="json"),
        inputs={
            "model": chat.fingerprint,
            "against": other.chat.fingerprint if other else None,
            "dtype": str(chat.dtype),
            "sources": [source.sha256 for source in data.sources],
            "prompts": {name: [prompt.id for prompt in side] for name, side in prompts.items()},
        },
        resume=resume,
        keep_text=keep_text,
    )
    if not run.finished:
        seeds = dict.fromkeys(("splits", "donors", "flips", "bootstrap"), chosen.seed)
        describe(run, chat, judge, data, splits, seeds)
        if other is not None:
            run.update(against=about_model(other.chat))
        subject = prepare(
            run,
            chat,
            prompts,
            judge=judge,
            max_new_tokens=chosen.max_new_tokens,
            seed=chosen.seed,
            progress=progress,
        )
        run_routing(run, subject, reported, chosen, progress, patient.wrappers)
        if other is not None:
            run_drift(run, subject, other.chat, reported, chosen, progress)
        if judge.cost:
            run.update(judge={**run.info["judge"], "cost": judge.cost})
        run.finish()
    write_report(out)
    return open_run(out)


def _check(chat: ChatModel, pairs: PairSet, prompts: Sequence[Prompt]) -> None:
    """Raises InputError, before a run is begun, for a prompt that is too long or a pair of equal members."""
    chat.render(prompts)
    for pair in pairs:
        harmful, control = chat.render(pair.prompts())
        if harmful.ids == control.ids:
            raise InputError(
                f"the members of pair {pair.id!r} are the same tokens to {chat.id}, so a swap changes "
                f"nothing; take the pair out"
            )


def _pairs(model: str | ChatModel, pairs: PathLike | PairSet | None) -> PairSet:
    if pairs is None:
        return default_pairs(model)
    return pairs if isinstance(pairs, PairSet) else read_pairs(pairs)
