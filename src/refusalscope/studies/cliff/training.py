"""Repair: fine-tune a model on selected rows and keep the best of it (refusal_cliff section 6).

trained = train_repair("builtin:reasoner", read_rows("rows.jsonl"))
trained.chat           # the repaired model, to be measured
trained.save(folder)   # once the measurement allows it
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from refusalscope.errors import InputError, ModelError
from refusalscope.model import ChatModel
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import PromptSet, split
from refusalscope.studies.cliff.masks import encode
from refusalscope.studies.cliff.trained import Trained, require_empty
from refusalscope.studies.cliff.training_file import TrainingRow

if TYPE_CHECKING:
    from refusalscope.studies.cliff.sft import Tuned

# Peak learning rates where none is given. All weights: 1e-3 for the three million of builtin:reasoner, falling
# with the square root of their number. An adapter: one rate does for models of many sizes.
FULL_RATE, MOST = 1.8, 1e-3
LORA_RATE = 2e-4


class TrainSettings(BaseModel):
    """How the repair is trained. The paper states no hyper-parameters, so all defaults are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Literal["auto", "full", "lora"] = Field(
        "auto", description="auto: all weights below `full_below` parameters, else a LoRA adapter"
    )
    full_below: int = Field(500_000_000, ge=0, description="parameters of the model")
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="peak; None: by the model's size")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="linear; then a cosine to zero")
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(3, ge=1)
    rows_at_once: int = Field(8, ge=1, description="rows a forward")
    accumulate: int = Field(1, ge=1, description="forwards a step")
    tail: int = Field(20, ge=1, description="thinking tokens the loss tail+response is on")
    general_per_repair: float = Field(
        2.0, ge=0, description="harmless rows mixed in for each repair row"
    )
    validation_share: float = Field(0.1, gt=0, lt=1, description="rows held out, of either kind")
    evaluations: int = Field(10, ge=1, description="of the validation loss, evenly over the steps")
    max_rise: float = Field(
        0.5, gt=0, description="nats a token over the best validation loss that stop the training"
    )
    seed: int = Field(0, ge=0)


def train_repair(
    model: ChatModel | str | Path,
    rows: Sequence[TrainingRow],
    settings: TrainSettings | None = None,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
) -> Trained:
    """Fine-tune on repair rows with general rows mixed in, and keep the best by held-out loss.

    A ChatModel is left as it is, and a copy of it is trained. out: where to `save` at once. A training that
    diverges (a loss that is no number, or a validation loss beyond `max_rise`) is stopped, and `stopped` and
    the warnings say so. Raises InputError for rows that cannot be used or too few of them, or without the
    extra `train`; ModelError for a model whose loss is no number to begin with.
    """
    settings = settings or TrainSettings()
    if out is not None:
        require_empty(out)
    require_training()
    from refusalscope.studies.cliff.sft import fine_tune

    train, validation, warnings = mix(rows, settings)
    chat = model if isinstance(model, ChatModel) else ChatModel.load(str(model))
    train_tokens, held_tokens = (encode(chat, part, settings.tail) for part in (train, validation))
    settings = _resolved(chat, settings)
    trainee = copy.deepcopy(chat.model) if isinstance(model, ChatModel) else chat.model
    dtype = chat.dtype
    if settings.weights == "full":
        # Steps of this size are lost in the rounding of half precision.
        trainee.float()
    track = (progress or Silent()).track("fine-tuning")
    tuned = fine_tune(trainee, chat.tokenizer, train_tokens, held_tokens, settings, track)
    if not np.isfinite(tuned.losses["validation_loss"].iloc[0]):
        raise ModelError(
            f"the loss of {chat.id} is no number before any training; load it in float32 and check it"
        )
    if tuned.adapter is not None:
        tuned.adapter.config.base_model_name_or_path = chat.id
    trained = Trained(
        chat=ChatModel.wrap(
            tuned.model.to(dtype), chat.tokenizer, id=f"{chat.id} (repaired)", plan=chat.plan
        ),
        settings=settings,
        n_train=len(train),
        n_general=sum(row.kind == "general" for row in train),
        n_validation=len(validation),
        trained_parameters=tuned.trained,
        losses=tuned.losses,
        best_step=tuned.best_step,
        stopped=tuned.stopped,
        warnings=(*warnings, *_warnings(tuned)),
        adapter=tuned.adapter,
    )
    return trained if out is None else trained.save(out)


def require_training() -> None:
    """Raises InputError without the extra `train`: to be asked before long work starts."""
    try:
        import refusalscope.studies.cliff.sft  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"fine-tuning needs trl, peft and datasets ({error}); pip install 'refusalscope[train]'"
        ) from error


def mix(
    rows: Sequence[TrainingRow], settings: TrainSettings
) -> tuple[list[TrainingRow], list[TrainingRow], list[str]]:
    """Rows to train on, rows held out, and warnings.

    General rows are drawn by the seed, `general_per_repair` for each repair row, before either kind is split;
    near-duplicates stay on one side. Raises InputError where there are too few repair rows to hold any out.
    """
    repair = [row for row in rows if row.kind == "repair"]
    general = [row for row in rows if row.kind == "general"]
    if len(repair) < 2:
        raise InputError(
            f"a repair needs at least two rows to train on, one of them held out, and got {len(repair)}; "
            f"select more"
        )
    wanted = round(settings.general_per_repair * len(repair))
    drawn = np.random.default_rng(settings.seed).permutation(len(general))[:wanted]
    warnings = []
    if len(drawn) < wanted:
        warnings.append(
            f"{wanted} general rows were to be mixed in, and {len(general)} were given: watch over-refusal "
            f"and replies to harmless prompts."
        )
    train, held = _hold_out(repair, settings)
    try:
        more, more_held = _hold_out([general[i] for i in sorted(drawn)], settings)
    except InputError:
        # So few or so alike that none can be held out: they all hold the rest in place.
        more, more_held = [general[i] for i in sorted(drawn)], []
    return train + more, held + more_held, warnings


def _resolved(chat: ChatModel, settings: TrainSettings) -> TrainSettings:
    """The settings with `weights` and `learning_rate` as they are for this model."""
    parameters = sum(weight.numel() for weight in chat.model.parameters())
    kind = settings.weights
    if kind == "auto":
        kind = "full" if parameters < settings.full_below else "lora"
    rate = min(MOST, FULL_RATE / parameters**0.5) if kind == "full" else LORA_RATE
    return settings.model_copy(
        update={"weights": kind, "learning_rate": settings.learning_rate or rate}
    )


def _hold_out(
    rows: Sequence[TrainingRow], settings: TrainSettings
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    share = max(settings.validation_share, 1 / max(len(rows), 2))
    sides = split(
        PromptSet(tuple(row.prompt for row in rows)),
        {"train": 1 - share, "validation": share},
        settings.seed,
    )
    held = {prompt.id for prompt in sides["validation"]}
    return (
        [row for row in rows if row.prompt.id not in held],
        [row for row in rows if row.prompt.id in held],
    )


def _warnings(tuned: Tuned) -> list[str]:
    found = []
    if tuned.stopped:
        found.append(
            f"The training diverged: {tuned.stopped}. It was stopped, and the best weights, of step "
            f"{tuned.best_step}, were kept; lower the learning rate."
        )
    if tuned.best_step == 0:
        found.append(
            "The validation loss never fell below that of the model as it was, so no weight was changed."
        )
    return found
