"""The front door of the belief guard: fitted, scored and watched into run folders."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from refusalscope.audit import load_prompts
from refusalscope.errors import GuardError, InputError
from refusalscope.front import (
    PathLike,
    about_model,
    default_pairs,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.guard.against import against_table, read_scores
from refusalscope.guard.audit import audit
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.card import write_card
from refusalscope.guard.drift import drift
from refusalscope.guard.evaluate import (
    layers_table,
    metrics_table,
    points_table,
    rates_table,
    roc_table,
    score_table,
)
from refusalscope.guard.folder import read_record, read_reference
from refusalscope.guard.given import own_examples, require_enough, usable, within_context
from refusalscope.guard.monitor import ReplyMonitor, fit_monitor
from refusalscope.guard.settings import GuardSettings, preset
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress
from refusalscope.prompts import PairSet, PromptSet, read_prompts
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied, whole_or_absent
from refusalscope.studies.subject import spending

# Fit: the axes; select: thresholds and probability; report: all that is said.
FRACTIONS = {"fit": 0.3, "select": 0.4, "report": 0.3}
GUARD = "guard"


def fit_guard(
    model: str | ChatModel = "builtin:chat",
    *,
    pairs: PathLike | PairSet | None = None,
    harmful: PathLike | PromptSet | None = None,
    harmless: PathLike | PromptSet | None = None,
    augment: PathLike | PromptSet | None = None,
    against: PathLike | None = None,
    settings: GuardSettings | str = "recommended",
    out: PathLike = "runs/guard",
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Fit, calibrate and audit a belief guard; the run folder holds its tables, its report, and `guard/`.

    pairs, or harmful and harmless: files or sets; the bundled pairs without them. augment: a few harmful
    examples of one's own, added after a first calibration so that the rates before and after stand side by
    side. against: scores of other guards for the same prompts (`against.read_scores`). Raises InputError,
    LeakageError, ModelError, GuardError or RunError, each with one sentence on how to go on.
    """
    chosen = preset(settings) if isinstance(settings, str) else settings
    refuse_occupied(Path(out), resumable=False)
    others = None if against is None else read_scores(against)
    own = None if augment is None else _examples(augment)
    given = load_prompts(pairs, harmful, harmless)
    patient = load_patient(model, dtype=dtype, device=device, device_map=device_map)
    chat, chosen = patient.chat, with_needs(chosen, patient)
    said: list[str] = []
    data = usable(chat, given if given is not None else default_pairs(model), chosen, said)
    splits = dict(split_prompts(data, FRACTIONS, chosen.seed))
    sides = {name: (each.of("harmful"), each.of("harmless")) for name, each in splits.items()}
    require_enough(sides, chosen, FRACTIONS["select"])
    if own is not None:
        own = own_examples(chat, own, sides, said)
    run = Run.create(
        out,
        command="guard fit",
        settings=chosen.model_dump(mode="json"),
        inputs={"model": chat.fingerprint, "dtype": str(chat.dtype)},
    )
    with whole_or_absent(run):
        seeds = dict.fromkeys(("splits", "matching", "draws", "bootstrap"), chosen.seed)
        describe(run, chat, Judge.from_name(chosen.judge), data, splits, seeds)
        for text in said:
            run.warn(text)
        guard = _fitted(run, chat, sides, own, chosen, progress)
        _write_tables(run, guard, sides, others, chosen.seed, progress)
        if chosen.monitor:
            with spending(run, chat):
                guard.monitor_ = _monitor(run, guard, sides, chosen, progress)
        guard.save(Path(out) / GUARD)
        write_card(Path(out) / GUARD)
        run.finish()
    write_report(out)
    return open_run(out)


def score_guard(
    guard: PathLike,
    prompts: PathLike | PromptSet,
    *,
    model: str | ChatModel | None = None,
    against: PathLike | None = None,
    operating_point: str | None = None,
    out: PathLike = "runs/scores",
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Score prompts with a guard; with labels, how well it did too.

    model: the one it was fitted to, by its name in the guard's folder unless given. A prompt that is longer
    than the context is named in a warning and left out. Raises as `fit_guard` does.
    """
    refuse_occupied(Path(out), resumable=False)
    others = None if against is None else read_scores(against)
    given = _read(prompts)
    bound = open_guard(guard, model, dtype=dtype, device=device, device_map=device_map)
    chat = bound.chat_
    if operating_point is not None:
        bound.point(operating_point)
    said: list[str] = []
    kept = within_context(chat, given, said)
    said += _seen(bound, kept)
    if not len(kept):
        raise InputError(f"no prompt fits the context of the model; the first: {said[0]}")
    run = Run.create(
        out,
        command="guard score",
        settings={"operating_point": operating_point, "seed": seed},
        inputs={"model": chat.fingerprint, "guard": bound.sha256_},
    )
    with whole_or_absent(run):
        run.update(
            model=about_model(chat),
            sources=[
                {"name": s.name, "sha256": s.sha256, "licence": s.licence, "n": s.n}
                for s in kept.sources
            ],
        )
        for text in said:
            run.warn(text)
        with spending(run, chat):
            beliefs = bound.beliefs(kept.items, operating_point, progress)
        scores = score_table(kept.items, beliefs, "scored")
        run.write_table("guard.scores", scores)
        _measured(run, bound, scores, others, seed)
        run.finish()
    write_report(out)
    return open_run(out)


def open_guard(
    guard: PathLike,
    model: str | ChatModel | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
) -> BeliefGuard:
    """The guard of a folder with its model, which is the one it names unless another place is given.

    Raises GuardError for a folder that is no guard, and where it was fitted to a model in a folder whose place
    is not given; ModelError for a model that is not there.
    """
    about, revision = read_record(guard).model, None
    if model is None:
        if about.local:
            raise GuardError(
                f"the guard was fitted to a model in a folder called {about.id!r}; give its place with --model"
            )
        model, revision = about.id, about.revision
    patient = load_patient(
        model, dtype=dtype, device=device, device_map=device_map, revision=revision
    )
    return BeliefGuard.load(guard, patient.chat)


def drift_guard(guard: PathLike, log: PathLike, *, out: PathLike = "runs/drift") -> RunView:
    """Compare a log of scores with the guard's calibration; nothing is moved by it.

    log: the JSON lines that the server writes, or a run folder of `guard score`. Raises InputError for too few
    rows and for a log of another guard, GuardError for a folder that is no guard.
    """
    refuse_occupied(Path(out), resumable=False)
    record = read_record(guard)
    reference = read_reference(guard)
    rows = read_log(log)
    if "guard" in rows and (rows["guard"].dropna() != record.tensors_sha256).any():
        raise InputError(f"{log} holds scores of another guard; give a log of the guard in {guard}")
    point = record.calibration.points[0] if record.calibration is not None else None
    if point is not None and "delta_harmful" in rows:
        # By this point, whichever the server flagged by.
        rows = rows.assign(
            flagged=pd.to_numeric(rows["delta_harmful"], errors="coerce") > point.tau
        )
    run = Run.create(
        out, command="guard drift", settings={}, inputs={"guard": record.tensors_sha256}
    )
    with whole_or_absent(run):
        run.update(model={"id": record.model.id, "sha256": record.model.weights_sha256})
        harmless = reference[reference["label"] == "harmless"]
        run.write_table("guard.drift", drift(harmless, rows, point.alpha if point else None))
        run.finish()
    write_report(out)
    return open_run(out)


def read_log(path: PathLike) -> pd.DataFrame:
    """Scores from the server's log (JSON lines) or from a run folder with the table guard.scores."""
    where = Path(path)
    if where.is_dir():
        view = open_run(where)
        return view.table("guard.scores").assign(guard=view.info["inputs"].get("guard"))
    if not where.is_file():
        raise InputError(
            f"{path} is no log and no run folder; give the server's score log or a run"
        )
    try:
        rows = [json.loads(line) for line in where.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise InputError(
            f"{path} is not a log of scores in JSON lines ({error}); give the server's score log"
        ) from error
    return pd.DataFrame(rows)


def _fitted(
    run: Run,
    chat: ChatModel,
    sides: dict[str, tuple[PromptSet, PromptSet]],
    own: PromptSet | None,
    settings: GuardSettings,
    progress: Progress | None,
) -> BeliefGuard:
    names = ("variant", "rows", "anchor", "match_punctuation", "min_category", "judge")
    guard = BeliefGuard(
        **{name: getattr(settings, name) for name in names},
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    with spending(run, chat):
        guard.fit(chat, *sides["fit"], progress)
        if guard.matched_ == "none":
            run.warn("Final marks were not made alike, so the guard may have learnt them.")
        if guard.refuse_ is None:
            run.warn(
                "The model refuses too few harmful prompts, or answers too few harmless ones, for a "
                "refusal axis; the guard has the harm axis alone."
            )
        _calibrate(guard, sides, settings, progress)
        if own is not None:
            guard.augment(own, progress)
            _calibrate(guard, sides, settings, progress)
            rates = guard.compare_augmented(*sides["report"])
            run.write_table("guard.augmented", pd.DataFrame(rates))
    return guard


def _calibrate(
    guard: BeliefGuard,
    sides: dict[str, tuple[PromptSet, PromptSet]],
    settings: GuardSettings,
    progress: Progress | None,
) -> None:
    harmful, harmless = sides["select"]
    guard.calibrate(
        harmless,
        harmful,
        fpr=settings.fpr,
        rule=settings.rule,
        confidence=settings.confidence,
        method=settings.probability,
        progress=progress,
    )


def _write_tables(
    run: Run,
    guard: BeliefGuard,
    sides: dict[str, tuple[PromptSet, PromptSet]],
    others: pd.DataFrame | None,
    seed: int,
    progress: Progress | None,
) -> None:
    report = [*sides["report"][0], *sides["report"][1]]
    with spending(run, guard.chat_):
        scores = score_table(report, guard.beliefs(report, progress=progress), "report")
        found = audit(guard, sides["fit"], sides["report"], seed=seed, progress=progress)
    run.write_table("guard.scores", scores)
    _measured(run, guard, scores, others, seed)
    for name in ("shortcuts", "verdict", "sources", "variants", "wrappers"):
        run.write_table(f"guard.{name}", getattr(found, name))
    guard.shortcuts_ = json.loads(found.shortcuts.to_json(orient="records"))
    guard.known_failures_ = list(found.known_failures)


def _measured(
    run: Run, guard: BeliefGuard, scores: pd.DataFrame, others: pd.DataFrame | None, seed: int
) -> None:
    """Tables that need labels: those of the rows that have one, where both labels are there."""
    labelled = scores[scores["label"].notna()].reset_index(drop=True)
    if labelled["label"].nunique() < 2:
        if others is not None:
            raise InputError(
                "guards are compared on prompts of both labels; give labels to the prompts"
            )
        return
    points = () if guard.calibration_ is None else guard.calibration_.points
    run.write_table("guard.metrics", metrics_table(labelled, seed))
    run.write_table("guard.roc", roc_table(labelled))
    run.write_table("guard.layers", layers_table(labelled, guard.rows_, seed))
    run.write_table("guard.points", points_table(points, labelled))
    run.write_table("guard.rates", rates_table(points, labelled))
    if others is not None:
        run.write_table("guard.against", against_table(points, labelled, others, seed))


def _monitor(
    run: Run,
    guard: BeliefGuard,
    sides: dict[str, tuple[PromptSet, PromptSet]],
    settings: GuardSettings,
    progress: Progress | None,
) -> ReplyMonitor:
    monitor = fit_monitor(
        guard,
        sides["fit"],
        sides["select"],
        fpr=settings.fpr[0],
        rule=settings.rule,
        confidence=settings.confidence,
        max_new_tokens=settings.reply_tokens,
        hold_back=settings.hold_back,
        progress=progress,
    )
    rows = [
        *({"kind": "benign", **asdict(part)} for part in monitor.by_length),
        {"kind": "harmful, opened", **asdict(monitor.harmful)},
        {"kind": "benign, opened", **asdict(monitor.opened)},
    ]
    run.write_table("guard.monitor", pd.DataFrame(rows).assign(tau=monitor.tau))
    return monitor


def _read(prompts: PathLike | PromptSet) -> PromptSet:
    return prompts if isinstance(prompts, PromptSet) else read_prompts(prompts)


def _examples(prompts: PathLike | PromptSet) -> PromptSet:
    """A user's own harmful examples; a row that is labelled harmless is not one."""
    if not isinstance(prompts, PromptSet):
        return read_prompts(prompts, label="harmful")
    wrong = [prompt for prompt in prompts if prompt.label == "harmless"]
    if wrong:
        raise InputError(
            f"prompt {wrong[0].id!r} is labelled harmless; give harmful examples of your own only"
        )
    return prompts


def _seen(guard: BeliefGuard, given: PromptSet) -> list[str]:
    """A warning where a file is one that the guard was fitted on."""
    known = {
        source["sha256"] for side in guard.fitted_on_.values() for source in side.get("sources", [])
    } - {None}
    return [
        f"{source.name} is a file that the guard was fitted or calibrated on, so what is measured flatters it."
        for source in given.sources
        if source.sha256 in known
    ]
