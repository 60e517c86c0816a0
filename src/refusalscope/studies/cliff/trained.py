"""What a repair gives: the model in memory, how it was trained, and its files."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from refusalscope.errors import InputError, ModelError, RunError
from refusalscope.model import ChatModel
from refusalscope.model.chat_model import without_bars
from refusalscope.runs.files import disk_errors
from refusalscope.studies.cliff.tidy import quiet

if TYPE_CHECKING:
    from refusalscope.studies.cliff.training import TrainSettings


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: its weights by PEFT's names, and PEFT's configuration of it."""

    weights: dict[str, Tensor]
    config: Any


@dataclass(frozen=True, eq=False)
class Trained:
    """A fine-tuned model and how it came about; nothing is on disk before `save`.

    chat: ready for measurement, an adapter merged into it. settings: with `weights` and `learning_rate` as
    they were used. n_train, n_general, n_validation: rows; n_general of the n_train are harmless. losses:
    step, loss, validation_loss in nats a token (step 0: before). best_step: whose weights were kept; 0 where
    nothing was learnt. stopped: why the training ended early, empty where it did not. files: what `save` wrote.
    A model in half precision is trained in float32 and rounded back, so its losses are from before that.
    """

    chat: ChatModel
    settings: TrainSettings
    n_train: int
    n_general: int
    n_validation: int
    trained_parameters: int
    losses: pd.DataFrame
    best_step: int
    stopped: str
    warnings: tuple[str, ...]
    adapter: Adapter | None = field(default=None, repr=False)
    files: tuple[str, ...] = ()

    def save(self, out: Path) -> Trained:
        """Write the model, or the adapter, in safetensors, with the tokenizer; returns self with `files`.

        Whole or not at all. Raises InputError where `out` holds files, RunError for a disk that fails.
        """
        require_empty(out)
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
                folder = Path(made) / "model"
                folder.mkdir()
                try:
                    self._write(folder)
                except SafetensorError as error:
                    raise RunError(
                        f"Cannot write {out}: {error}; check the disk or name another folder."
                    ) from error
                os.replace(folder, out)
        return replace(self, files=tuple(sorted(path.name for path in out.iterdir())))

    def _write(self, folder: Path) -> None:
        if self.adapter is None:
            with without_bars():
                self.chat.model.save_pretrained(folder)
        else:
            save_file(self.adapter.weights, folder / "adapter_model.safetensors")
            self.adapter.config.save_pretrained(str(folder))
        self.chat.tokenizer.save_pretrained(folder)


def require_empty(out: Path) -> None:
    """Raises InputError where `out` is a file or holds files: to be asked before long work starts."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} holds files already; name a new folder for the repaired model")


def load_adapter(base: ChatModel | str | Path, folder: Path | str) -> ChatModel:
    """A model with a saved adapter merged into a copy of it.

    Raises InputError where the folder holds no adapter, ModelError where it does not fit the model.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds no adapter_config.json, so it is not a saved adapter")
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(
            f"an adapter needs peft ({error}); pip install 'refusalscope[train]'"
        ) from error
    chat = base if isinstance(base, ChatModel) else ChatModel.load(str(base))
    model = copy.deepcopy(chat.model) if isinstance(base, ChatModel) else chat.model
    try:
        with quiet():
            merged: Any = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"the adapter in {folder} does not fit {chat.id} ({reason}); name the model it was trained on"
        ) from error
    model = merged.merge_and_unload().requires_grad_(True)
    return ChatModel.wrap(model, chat.tokenizer, id=f"{chat.id} (repaired)", plan=chat.plan)
