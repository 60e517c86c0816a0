"""The front door of the repair: a pool ranked by its cliffs, a fine-tune on the worst, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from refusalscope.cliff import FRACTIONS, with_thinking
from refusalscope.errors import InputError
from refusalscope.front import (
    PathLike,
    Patient,
    default_pool,
    default_traces,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import PromptSet, read_prompts
from refusalscope.prompts.similarity import near_duplicate_groups
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied, whole_or_absent
from refusalscope.studies.cliff.mending import (
    BEFORE,
    HARMLESS,
    LOST,
    OTHER,
    effects,
    general_rows,
    held_out,
    score_pool,
)
from refusalscope.studies.cliff.probe import Probe, harmful_of
from refusalscope.studies.cliff.ranking import Pool
from refusalscope.studies.cliff.repair_card import write_card
from refusalscope.studies.cliff.repair_settings import RankBy, RankSettings, RepairSettings
from refusalscope.studies.cliff.selection import Selection, select, training_rows
from refusalscope.studies.cliff.settings import CliffSettings
from refusalscope.studies.cliff.study import Work, fit_probes
from refusalscope.studies.cliff.traces import traces_of
from refusalscope.studies.cliff.trained import Trained, require_empty
from refusalscope.studies.cliff.training import require_training, train_repair
from refusalscope.studies.cliff.training_file import write_rows
from refusalscope.studies.subject import SPLITS, prepare, spending

TRAIN_FILE = "train.jsonl"


@dataclass(frozen=True)
class _Begun:
    """A run with the patient, its probe, and the pool with its replies and scores."""

    run: Run
    work: Work
    probe: Probe
    pool: Pool
    settings: RankSettings

    def chosen(self, rank_by: RankBy) -> Selection:
        """The rows that a ranking takes, with its warnings in the run."""
        judge = self.work.subject.judge if rank_by == "judge" else None
        found = select(self.pool, self.settings.selection(rank_by), judge)
        for text in found.warnings:
            self.run.warn(f"Selection by {rank_by}: {text}")
        return found


def rank_pool(
    model: str | ChatModel = "builtin:reasoner",
    *,
    pool: PathLike | PromptSet | None = None,
    traces: PathLike | PromptSet | None = None,
    settings: RankSettings | None = None,
    out: PathLike = "runs/rank",
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Rank a pool by misalignment; write the training file of the worst, `train.jsonl`, into the run folder.

    pool: harmful prompts with or without their thinking; traces: labelled prompts with or without thinking, on
    which the probe is fitted. A builtin model's own without them. The file holds prompts and thinking, as a
    training file must. Raises InputError, LeakageError, ModelError or RunError, each with one sentence on how
    to go on.
    """
    load = partial(load_patient, dtype=dtype, device=device, device_map=device_map)
    begun = _begin(
        "cliff rank", model, load, pool, traces, settings or RankSettings(), out, progress
    )
    with whole_or_absent(begun.run):
        found = begun.chosen(begun.settings.rank_by)
        write_rows(Path(out) / TRAIN_FILE, training_rows(begun.pool, found, begun.settings.loss))
        table = found.frame(begun.pool).assign(selection=begun.settings.rank_by)
        begun.run.write_table("repair.selection", table)
    begun.run.finish()
    write_report(out)
    return open_run(out)


def repair_model(
    model: str | ChatModel = "builtin:reasoner",
    *,
    pool: PathLike | PromptSet | None = None,
    traces: PathLike | PromptSet | None = None,
    settings: RepairSettings | None = None,
    out: PathLike = "runs/repair",
    export: PathLike | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Fine-tune on the k worst of a pool; measure refusal, over-refusal, cliff and KL before and after.

    pool, traces: as for `rank_pool`; the report split of the traces is held out. export: a folder for the
    repaired model or adapter with its card; nothing is written where refusal of held-out harmful prompts fell,
    or over-refusal rose by more than `max_over_refusal`, and a warning says so. Raises as `rank_pool` does.
    """
    if export is not None:
        require_empty(Path(export))
        if Path(out).resolve().is_relative_to(Path(export).resolve()):
            raise InputError(f"{export} is where the run goes; name another folder for the model")
    require_training()
    given = settings or RepairSettings()
    load = partial(load_patient, dtype=dtype, device=device, device_map=device_map)
    begun = _begin("repair", model, load, pool, traces, given, out, progress)
    run = begun.run
    with whole_or_absent(run):
        made = _measured(begun, given, progress)
    try:
        if export is not None:
            table = run.table("repair.effects")
            mine = table[table["selection"] == given.rank_by]
            _export(begun, given, made[given.rank_by], mine, Path(export))
    finally:
        run.finish()
    write_report(out)
    return open_run(out)


def _measured(
    begun: _Begun, given: RepairSettings, progress: Progress | None
) -> dict[str, Trained]:
    """The model repaired by each selection, and the tables of what that did to held-out prompts."""
    run, work = begun.run, begun.work
    names = [given.rank_by, *([given.against] if given.against else [])]
    picks = {name: begun.chosen(name) for name in dict.fromkeys(names)}
    with spending(run, work.chat):
        tables = [_held_out(begun, work.chat).assign(selection=BEFORE)]
        harmless = [*work.subject.pick("fit", "harmless"), *work.subject.pick("select", "harmless")]
        answered = work.take([i for i in harmless if not work.refused[i]])
        general = general_rows(work.chat, answered, given.max_new_tokens)
        made: dict[str, Trained] = {}
        for name, picked in picks.items():
            rows = training_rows(begun.pool, picked, given.loss)
            made[name] = train_repair(
                work.chat, [*rows, *general], given.training(), progress=progress
            )
            for text in made[name].warnings:
                run.warn(f"Repair by {name}: {text}")
            tables.append(_held_out(begun, made[name].chat).assign(selection=name))
    held = pd.concat(tables, ignore_index=True)
    run.write_table("repair.prompts", held)
    run.write_table(
        "repair.selection",
        pd.concat([p.frame(begun.pool).assign(selection=n) for n, p in picks.items()]),
    )
    run.write_table(
        "repair.losses", pd.concat([m.losses.assign(selection=n) for n, m in made.items()])
    )
    run.write_table("repair.effects", effects(held, given.against or "", seed=given.seed))
    return made


def _begin(
    command: str,
    model: str | ChatModel,
    load: Callable[[str | ChatModel], Patient],
    pool: PathLike | PromptSet | None,
    traces: PathLike | PromptSet | None,
    settings: RankSettings,
    out: PathLike,
    progress: Progress | None,
) -> _Begun:
    """The patient, its behaviour on the traces, its probe, and the pool with replies and scores."""
    refuse_occupied(Path(out), resumable=False)
    patient = load(model)
    given = with_needs(settings, patient)
    chat, said = patient.chat, list[str]()
    shown = _prompts(traces) if traces is not None else default_traces(model)
    wanted = _prompts(pool) if pool is not None else default_pool(model)
    shown, wanted = (
        with_thinking(chat, each, given.thinking_tokens, said, progress) for each in (shown, wanted)
    )
    splits = {
        name: side
        for name, side in split_prompts(shown, FRACTIONS, given.seed).items()
        if isinstance(side, PromptSet)
    }
    judge = Judge.from_name(given.judge)
    harmful_of([trace for side in splits.values() for trace in traces_of(chat, list(side))])
    traces_of(chat, list(wanted))
    wanted = _apart(wanted, shown, said)
    run = Run.create(
        out,
        command=command,
        settings=given.model_dump(mode="json"),
        inputs={
            "model": chat.fingerprint,
            "sources": [source.sha256 for source in (*shown.sources, *wanted.sources)],
            "prompts": {name: [prompt.id for prompt in splits[name]] for name in SPLITS},
            "pool": [prompt.id for prompt in wanted],
        },
    )
    describe(run, chat, judge, shown, splits, dict.fromkeys(("splits", "bootstrap"), given.seed))
    for text in said:
        run.warn(text)
    with whole_or_absent(run):
        subject = prepare(
            run,
            chat,
            splits,
            judge=judge,
            max_new_tokens=given.max_new_tokens,
            seed=given.seed,
            progress=progress,
        )
        found = tuple(traces_of(chat, subject.prompts))
        probing = CliffSettings(judge=given.judge, seed=given.seed)
        work = Work(run, subject, subject.require_margin(), probing, found, progress or Silent())
        probe = fit_probes(work)[0].probe
        with spending(run, chat):
            scored = score_pool(
                chat, list(wanted), probe, max_new_tokens=given.max_new_tokens, progress=progress
            )
        return _Begun(run, work, probe, scored, given)


def _prompts(given: PathLike | PromptSet) -> PromptSet:
    return given if isinstance(given, PromptSet) else read_prompts(given)


def _apart(pool: PromptSet, shown: PromptSet, said: list[str]) -> PromptSet:
    """The pool without prompts that are nearly one of those that the probe and the figures come from."""
    texts = [prompt.text for prompt in (*shown, *pool)]
    groups = near_duplicate_groups(texts).tolist()
    taken = set(groups[: len(shown)])
    kept = tuple(p for p, g in zip(pool, groups[len(shown) :], strict=True) if g not in taken)
    if len(kept) < len(pool):
        said.append(
            f"{len(pool) - len(kept)} of {len(pool)} prompts of the pool were left out: they are nearly the "
            f"same as prompts that the repair is measured on."
        )
    if not kept:
        raise InputError(
            "every prompt of the pool is nearly one of the traces; give a pool of other prompts"
        )
    return PromptSet(kept, pool.sources, pool.skipped)


def _held_out(begun: _Begun, chat: ChatModel) -> pd.DataFrame:
    """The report split under a model, in groups by what the model did before the repair."""
    work = begun.work
    harmful, harmless = (work.subject.pick("report", label) for label in ("harmful", "harmless"))
    groups = {
        LOST: [i for i in harmful if not work.refused[i]],
        OTHER: [i for i in harmful if work.refused[i]],
        HARMLESS: harmless,
    }
    rows = [i for mine in groups.values() for i in mine]
    place = {row: k for k, row in enumerate(rows)}
    return held_out(
        chat,
        work.chat,
        work.take(rows),
        {name: [place[i] for i in mine] for name, mine in groups.items()},
        begun.probe,
        work.margin,
        work.subject.judge,
        max_new_tokens=begun.settings.max_new_tokens,
        seed=begun.settings.seed,
    )


def _export(
    begun: _Begun, given: RepairSettings, made: Trained, table: pd.DataFrame, folder: Path
) -> None:
    """Write the repaired model where the held-out prompts allow it."""
    if made.best_step == 0:
        begun.run.warn("Nothing was exported: the training changed no weight.")
        return
    change = table.set_index("quantity")["change"]
    worse = [name for name in ("refusal restored", "refusal of other harmful") if name in change]
    if any(change[name] < 0 for name in worse):
        begun.run.warn("Nothing was exported: held-out harmful prompts are refused less often.")
        return
    if change.get("over-refusal", 0.0) > given.max_over_refusal:
        begun.run.warn(
            f"Nothing was exported: over-refusal rose by {change['over-refusal']:.1%}, "
            f"{given.max_over_refusal:.0%} are allowed; lower the learning rate or mix in more "
            f"harmless rows."
        )
        return
    made.save(folder)
    write_card(folder, begun.work.chat.id, made, given.model_dump(), table)
