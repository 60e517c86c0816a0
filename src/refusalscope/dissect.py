"""The front door of the features study: which latents carry a model's refusal, into a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from refusalscope.audit import load_prompts
from refusalscope.dictionary import Dictionary, load_suite
from refusalscope.dictionary.activation import COMPETING
from refusalscope.dictionary.dictionary import require_fit
from refusalscope.errors import InputError
from refusalscope.front import (
    PathLike,
    default_dictionaries,
    default_pairs,
    describe,
    load_patient,
    split_prompts,
    with_needs,
)
from refusalscope.judge import Judge
from refusalscope.model import ChatModel
from refusalscope.progress import Progress
from refusalscope.prompts import PairSet, PromptSet
from refusalscope.report import write_report
from refusalscope.runs import Run, RunView, open_run, refuse_occupied
from refusalscope.studies.directions import DirectionsSettings, find_directions
from refusalscope.studies.features import FeaturesSettings, preset, run_features
from refusalscope.studies.features.work import Direction
from refusalscope.studies.subject import SPLITS, Subject, prepare

# Fit: margin and direction; select: pool, sets and what follows; report: all arms, unseen before.
FRACTIONS = {"fit": 0.35, "select": 0.3, "report": 0.35}
# Latents of a dictionary that are read to tell it from another.
MARKED = 16


def dissect_model(
    model: str | ChatModel = "builtin:chat",
    *,
    sae: Sequence[str] | dict[int, Dictionary] = (),
    pairs: PathLike | PairSet | None = None,
    harmful: PathLike | PromptSet | None = None,
    harmless: PathLike | PromptSet | None = None,
    settings: FeaturesSettings | str = "recommended",
    out: PathLike = "runs/features",
    resume: bool = False,
    keep_text: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    progress: Progress | None = None,
) -> RunView:
    """Find the latents that carry a model's refusal and write a run folder with tables and `report.html`.

    model: `builtin:chat`, a folder, a hub id, or a loaded ChatModel. sae: dictionaries by layer, or names that
    `load_suite` knows; a builtin model's own without it. pairs, or harmful and harmless: files or sets of
    prompts; the bundled pairs (a planted model's own) without them. settings: a preset's name or settings.
    Raises InputError, LeakageError, ModelError or RunError, each with one sentence on how to go on;
    `resume=True` goes on with a run that was stopped.
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
    dictionaries = _dictionaries(model, sae, chat)
    _check_layer(chosen, chat)
    judge = Judge.from_name(chosen.judge)
    # A prompt that the model cannot take is said before there is a run.
    for name in SPLITS:
        chat.render(list(splits[name]))
    run = Run.create(
        out,
        command="features",
        settings=chosen.model_dump(mode="json"),
        inputs={
            "model": chat.fingerprint,
            "dictionaries": {str(k): _mark(each) for k, each in dictionaries.items()},
            "dtype": str(chat.dtype),
            "sources": [source.sha256 for source in data.sources],
            "prompts": {name: [prompt.id for prompt in splits[name]] for name in SPLITS},
        },
        resume=resume,
        keep_text=keep_text,
    )
    if not run.finished:
        seeds = dict.fromkeys(("splits", "draws", "masks", "orders", "bootstrap"), chosen.seed)
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
        direction = _direction(run, subject, chosen, progress)
        if direction is not None:
            run_features(run, subject, dictionaries, direction, chosen, progress)
        if judge.cost:
            run.update(judge={**run.info["judge"], "cost": judge.cost})
        run.finish()
    write_report(out)
    return open_run(out)


def _dictionaries(
    model: str | ChatModel, sae: Sequence[str] | dict[int, Dictionary], chat: ChatModel
) -> dict[int, Dictionary]:
    """Dictionaries that fit the model and can be edited. Raises InputError for any that cannot."""
    if isinstance(sae, dict):
        found = sae
    else:
        found = load_suite(sae, chat.anatomy) if sae else default_dictionaries(model, chat)
    if not found:
        raise InputError("no dictionary was given; give one for at least one layer of the model")
    for layer, each in found.items():
        require_fit(each, chat.anatomy)
        if layer != each.site.layer:
            raise InputError(
                f"the dictionary {each.name} was given for layer {layer} and reads {each.site}; give it "
                f"under its own layer"
            )
        if each.architecture in COMPETING:
            each.slice()
    return found


def _mark(dictionary: Dictionary) -> str:
    """What tells a dictionary from another on resume: a hash of its first latents, whatever its folder."""
    return dictionary.slice(range(min(MARKED, dictionary.d_sae))).digest


def _check_layer(settings: FeaturesSettings, chat: ChatModel) -> None:
    n = chat.anatomy.n_layers
    if settings.direction_layer is not None and not 0 <= settings.direction_layer < n:
        raise InputError(
            f"direction_layer is {settings.direction_layer} and the model's layers are 0 to {n - 1}"
        )


def _direction(
    run: Run, subject: Subject, settings: FeaturesSettings, progress: Progress | None
) -> Direction | None:
    """The refusal direction of the fit split; None, with a warning in the run, where there is none."""
    last = settings.direction == "last" or settings.direction_layer is not None
    anchors: Literal["last", "template_and_instruction"] = (
        "last" if last else "template_and_instruction"
    )
    found = find_directions(
        run,
        subject,
        DirectionsSettings(anchors=anchors, judge=settings.judge, seed=settings.seed),
        progress,
    )
    left_out = "The features study was left out:"
    if found is None:
        run.warn(f"{left_out} without enough refusals and answers it has nothing to go by.")
        return None
    if settings.direction_layer is not None:
        layer, anchor = settings.direction_layer, "template[-1]"
        vector = found["candidates"][0, layer]
    elif "refusal" in found:
        table = run.table("directions.candidates")
        row = table[table["chosen"].astype(bool)].iloc[0]
        vector, layer, anchor = found["refusal"], int(row["layer"]), str(row["anchor"])
    else:
        run.warn(f"{left_out} there is no refusal direction to start from.")
        return None
    if not float(vector.norm()) > 0:
        run.warn(
            f"{left_out} at layer {layer} the last token's state is the same for all prompts, so there is "
            f"no direction; choose a later direction_layer."
        )
        return None
    ends = found["refuse_direction"][layer], found["harmfulness"][layer]
    return Direction(vector, layer, anchor, *ends)
