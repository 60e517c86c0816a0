"""Fine-tuning by TRL's SFTTrainer: the best weights are kept, a run that diverges is stopped.

Imported only where a fine-tune is asked for: it needs the extra `train`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from refusalscope.studies.cliff.masks import Encoded
from refusalscope.studies.cliff.tidy import left_as_found, quiet, random_states_kept
from refusalscope.studies.cliff.trained import Adapter

if TYPE_CHECKING:
    from refusalscope.studies.cliff.training import TrainSettings


@dataclass(frozen=True)
class Tuned:
    """model: plain, with the best weights (an adapter is merged). losses: step, loss, validation_loss.

    adapter: what LoRA learnt; None where all weights were trained.
    """

    model: Any
    losses: pd.DataFrame
    best_step: int
    trained: int
    stopped: str
    adapter: Adapter | None = None


class _Trainer(SFTTrainer):
    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""


@dataclass
class _Watch(TrainerCallback):
    """Evaluates at even steps, keeps the best weights and says why it stopped."""

    model: nn.Module
    at: frozenset[int]
    max_rise: float
    progress: Callable[[int, int], None]
    best: float = math.inf
    best_step: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    stopped: str = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.progress(state.global_step, state.max_steps)
        control.should_evaluate = state.global_step in self.at

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if logs and "loss" in logs:
            self.losses.setdefault(state.global_step, {})["loss"] = logs["loss"]
            if not math.isfinite(logs["loss"]):
                self._stop(state, control, "the training loss was no number")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any
    ) -> None:
        loss = metrics["eval_loss"]
        self.losses.setdefault(state.global_step, {})["validation_loss"] = loss
        if not math.isfinite(loss):
            self._stop(state, control, "the validation loss was no number")
        elif loss < self.best:
            self.best, self.best_step = loss, state.global_step
            self.kept = {name: w.detach().to("cpu", copy=True) for name, w in self.trainable()}
        elif loss > self.best + self.max_rise:
            rise = f"{loss:.3g} nats a token, from {self.best:.3g} at step {self.best_step}"
            self._stop(state, control, f"the validation loss rose to {rise}")

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, w) for name, w in self.model.named_parameters() if w.requires_grad)

    @torch.no_grad()
    def restore(self) -> None:
        for name, weight in self.trainable():
            weight.copy_(self.kept[name])

    def _stop(self, state: Any, control: Any, why: str) -> None:
        self.stopped = self.stopped or f"at step {state.global_step} {why}"
        control.should_training_stop = True


def fine_tune(
    model: Any,
    tokenizer: Any,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    settings: TrainSettings,
    progress: Callable[[int, int], None],
) -> Tuned:
    """Train `model` in place and return it with its best weights, those at the start included.

    Losses are in nats a token: of a batch, and for validation the mean over rows of each row's own mean (of a
    mixture of experts with its balance loss).
    The global random states are left as they were; on a CPU the same seed gives the same weights.
    """
    with TemporaryDirectory() as folder, quiet(), random_states_kept(), left_as_found(model):
        trainer = _trainer(model, copy.deepcopy(tokenizer), train, validation, settings, folder)
        # It prints every loss.
        trainer.remove_callback(PrinterCallback)
        total, count = _steps(len(train), settings), settings.evaluations
        tuned: Any = trainer.model
        at = frozenset(math.ceil(total * (i + 1) / count) for i in range(count))
        watch = _Watch(tuned, at, settings.max_rise, progress)
        trainer.add_callback(watch)
        if settings.weights == "lora":
            # Switched on here: by the trainer's own setting, a hook would stay on the embedding.
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = sum(weight.numel() for _, weight in watch.trainable())
        trainer.train()
        if watch.kept:
            watch.restore()
        adapter = None
        if settings.weights == "lora":
            state = get_peft_model_state_dict(tuned)
            learnt = {name: w.detach().to("cpu", copy=True) for name, w in state.items()}
            adapter = Adapter(learnt, tuned.peft_config["default"])
            model = tuned.merge_and_unload()
    rows = [{"step": step, **found} for step, found in sorted(watch.losses.items())]
    losses = pd.DataFrame(rows, columns=["step", "loss", "validation_loss"])
    return Tuned(model, losses, watch.best_step, trained, watch.stopped, adapter)


def _trainer(
    model: Any,
    tokenizer: Any,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    settings: TrainSettings,
    folder: str,
) -> SFTTrainer:
    lora = settings.weights == "lora"
    config = SFTConfig(
        output_dir=folder,
        use_cpu=model.device.type == "cpu",
        learning_rate=settings.learning_rate or 0.0,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.rows_at_once,
        gradient_accumulation_steps=settings.accumulate,
        # One row a batch, so that the validation loss does not depend on batch company.
        per_device_eval_batch_size=1,
        warmup_steps=round(settings.warmup_share * _steps(len(train), settings)),
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        seed=settings.seed,
        bf16=False,
        gradient_checkpointing=False,
        eval_strategy="no",
        eval_on_start=True,
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    # One process trains on one device, however many there are.
    config._n_gpu = min(config.n_gpu, 1)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return _Trainer(
        model,
        config,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=pad or 0),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(validation),
        processing_class=tokenizer,
        peft_config=_lora(settings) if lora else None,
    )


def _steps(rows: int, settings: TrainSettings) -> int:
    batches = math.ceil(rows / settings.rows_at_once)
    return settings.epochs * math.ceil(batches / settings.accumulate)


def _lora(settings: TrainSettings) -> LoraConfig:
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _dataset(rows: Sequence[Encoded]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [list(row.ids) for row in rows], "labels": [row.labels for row in rows]}
    )
