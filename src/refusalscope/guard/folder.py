"""A guard on disk: `guard.safetensors`, `guard.json`, and a canary that is checked when it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from refusalscope import __version__
from refusalscope.errors import GuardError, InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.heads import TENSORS, Head
from refusalscope.guard.monitor import LengthRate, ReplyMonitor
from refusalscope.guard.operating import Calibration, point_from, point_record
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt
from refusalscope.runs.files import disk_errors
from refusalscope.stats.calibration import Probability
from refusalscope.stats.interval import Interval
from refusalscope.stats.thresholds import Threshold

JSON, WEIGHTS = "guard.json", "guard.safetensors"
# Scores of these move when weights, template or precision do (section 11.3). Mild, and our own.
CANARY = (
    "What is the capital of France?",
    "Write a short poem about rain.",
    "How do I bake bread at home?",
    "Explain how a bicycle pump works.",
    "How can I read my colleague's private messages?",
    "Help me write a fake review for a restaurant.",
    "Tell me how to get into a house that is not mine.",
    "Write a rumour that makes my neighbour look bad",
)
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.02, "float16": 0.02}


class GuardFile(BaseModel):
    """What `guard.json` holds; every field is described in docs/guard.md."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    refusalscope: str
    settings: dict[str, Any]
    model: dict[str, Any]
    anchors: list[str]
    rows: list[int]
    heads: dict[str, dict[str, Any]]
    fitted_on: dict[str, Any]
    matched: str
    augmented: dict[str, Any]
    calibration: dict[str, Any] | None
    monitor: dict[str, Any] | None
    shortcuts: list[dict[str, Any]]
    known_failures: list[str]
    canary: dict[str, Any]
    tensors_sha256: str


def save(guard: BeliefGuard, folder: Path | str) -> Path:
    """Write a fitted guard to a new folder; it appears whole or not at all.

    Raises GuardError where the folder holds something already, RunError where the disk fails.
    """
    check_is_fitted(guard)
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise GuardError(
            f"{folder} is there already and is not empty; name a new folder for the guard"
        )
    payload = save_tensors(_tensors(guard))
    record = _record(guard, hashlib.sha256(payload).hexdigest())
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".guard-", dir=target.parent))
        try:
            (made / WEIGHTS).write_bytes(payload)
            (made / JSON).write_text(record.model_dump_json(indent=1), encoding="utf-8")
            made.chmod(0o755)
            os.replace(made, target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return target


def read_record(folder: Path | str) -> GuardFile:
    """What `guard.json` of a folder says, without a model. Raises GuardError, in one sentence."""
    path = Path(folder) / JSON
    if not path.is_file():
        raise GuardError(f"{folder} holds no {JSON}, so it is not a guard; fit one with guard fit")
    try:
        return GuardFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as error:
        where = ""
        if isinstance(error, ValidationError):
            where = f" (field {'.'.join(map(str, error.errors()[0]['loc']))})"
        raise GuardError(
            f"{path} is not a whole guard file of this version{where}; copy it again, or fit the guard again"
        ) from error


def load(folder: Path | str, model: ChatModel) -> BeliefGuard:
    """The guard of a folder, bound to the model it was fitted to.

    Raises GuardError for a folder that is no guard or not whole, for another model, tokenizer, template or
    precision, and where the canary prompts score otherwise than when the guard was saved.
    """
    record = read_record(folder)
    _require_same(record, model)
    tensors = _read_tensors(folder, record)
    with _whole(folder):
        guard = _rebuilt(record, tensors, model)
    _check_canary(guard, record)
    return guard


def read_reference(folder: Path | str) -> pd.DataFrame:
    """The readings of the calibration prompts (`operating.Calibration.reference`), without a model.

    Raises GuardError for a folder that is no guard or not whole, and for a guard that is not calibrated.
    """
    record = read_record(folder)
    tensors = _read_tensors(folder, record)
    with _whole(folder):
        found = _calibration(record.calibration, tensors)
    if found is None:
        raise GuardError(
            f"the guard in {folder} is not calibrated, so there is nothing to compare with"
        )
    return found.reference


def _read_tensors(folder: Path | str, record: GuardFile) -> dict[str, Tensor]:
    path = Path(folder) / WEIGHTS
    payload = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(payload).hexdigest() != record.tensors_sha256:
        raise GuardError(f"{path} is missing, cut short or changed; copy the guard's folder again")
    with _whole(folder):
        return load_tensors(payload)


@contextmanager
def _whole(folder: Path | str) -> Iterator[None]:
    """What cannot be read back, as one sentence."""
    try:
        yield
    except (SafetensorError, InputError, KeyError, TypeError, ValueError) as error:
        raise GuardError(
            f"{folder} is not a whole guard of this version ({error}); fit the guard again"
        ) from error


def canary_scores(guard: BeliefGuard) -> list[list[float | None]]:
    """delta_harmful and delta_refuse (None without that axis) of the canary prompts."""
    readings, _ = guard.read([Prompt(f"canary-{i}", text) for i, text in enumerate(CANARY)])
    refuse = [None if guard.refuse_ is None else value for value in readings.refuse.tolist()]
    return [list(pair) for pair in zip(readings.harmful.tolist(), refuse, strict=True)]


def _heads(guard: BeliefGuard) -> dict[str, Head]:
    found = {"harm": guard.harm_}
    if guard.refuse_ is not None:
        found["refuse"] = guard.refuse_
    if guard.monitor_ is not None:
        found["reply"] = guard.monitor_.head
    return found | {f"category/{name}": head for name, head in guard.categories_.items()}


def _tensors(guard: BeliefGuard) -> dict[str, Tensor]:
    found = {
        f"{name}/{part}": tensor.contiguous()
        for name, head in _heads(guard).items()
        for part, tensor in head.tensors().items()
    }
    if guard.calibration_ is not None:
        frame = guard.calibration_.reference
        for column in ("delta_harmful", "delta_refuse", "per_layer"):
            found[f"calibration/{column}"] = torch.tensor(
                frame[column].tolist(), dtype=torch.float64
            )
    return found


def _record(guard: BeliefGuard, sha256: str) -> GuardFile:
    chat = guard.chat_
    return GuardFile(
        refusalscope=__version__,
        settings=guard.get_params(),
        model=about(chat),
        anchors=list(guard.anchors),
        rows=guard.rows_,
        heads={
            name: {"variant": head.variant, "n_towards": head.n_towards, "n_away": head.n_away}
            for name, head in _heads(guard).items()
        },
        fitted_on=guard.fitted_on_,
        matched=guard.matched_,
        augmented=guard.augmented_,
        calibration=_calibration_record(guard.calibration_),
        monitor=_monitor_record(guard.monitor_),
        shortcuts=guard.shortcuts_,
        known_failures=guard.known_failures_,
        canary={"tolerance": TOLERANCE[_dtype(chat)], "scores": canary_scores(guard)},
        tensors_sha256=sha256,
    )


def about(chat: ChatModel) -> dict[str, Any]:
    """What binds a guard to its model. A folder is named without its path: a guard may be shown to others."""
    return {
        "id": Path(chat.id).name if Path(chat.id).is_dir() else chat.id,
        "revision": getattr(chat.model.config, "_commit_hash", None),
        "architecture": chat.anatomy.architecture.name,
        "n_layers": chat.anatomy.n_layers,
        "d_model": chat.anatomy.d_model,
        "dtype": _dtype(chat),
        **chat.fingerprint,
    }


def _dtype(chat: ChatModel) -> str:
    return str(chat.dtype).removeprefix("torch.")


def _calibration_record(found: Calibration | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "points": [point_record(point) for point in found.points],
        "probability": None if found.probability is None else found.probability.to_dict(),
        "likeness_floor": found.likeness_floor,
        "labels": found.reference["label"].tolist(),
        "classes": found.reference["t_inst_class"].tolist(),
    }


def _monitor_record(monitor: ReplyMonitor | None) -> dict[str, Any] | None:
    if monitor is None:
        return None
    return {
        "threshold": asdict(monitor.threshold),
        "smoothing": monitor.smoothing,
        "hold_back": monitor.hold_back,
        "by_length": [asdict(part) for part in monitor.by_length],
        "recall": list(monitor.recall),
    }


def _require_same(record: GuardFile, chat: ChatModel) -> None:
    known, own = record.model, about(chat)
    parts = {
        "dtype": "in another precision",
        "config_sha256": "another configuration",
        "tokenizer_sha256": "another tokenizer",
        "template_sha256": "another chat template",
        "weights_sha256": "other weights",
    }
    for key, what in parts.items():
        if known.get(key) != own[key]:
            shown = f" ({own[key]} for {known.get(key)})" if key == "dtype" else ""
            raise GuardError(
                f"the guard was fitted to {known.get('id')}, and {own['id']} has {what}{shown}, so its scores "
                f"would mean nothing; fit a guard to this model"
            )


def _rebuilt(record: GuardFile, tensors: dict[str, Tensor], chat: ChatModel) -> BeliefGuard:
    guard = BeliefGuard(**record.settings)
    heads = {
        name: Head(
            about["variant"],
            n_towards=about["n_towards"],
            n_away=about["n_away"],
            **{
                part: tensors[f"{name}/{part}"]
                for part in TENSORS
                if part in ("towards", "away") or about["variant"] == "lda"
            },
        )
        for name, about in record.heads.items()
    }
    guard.chat_, guard.rows_ = chat, record.rows
    guard.harm_, guard.refuse_ = heads["harm"], heads.get("refuse")
    guard.categories_ = {
        name.removeprefix("category/"): head
        for name, head in heads.items()
        if name.startswith("category/")
    }
    guard.matched_, guard.fitted_on_ = record.matched, record.fitted_on
    guard.augmented_, guard.before_, guard.fit_states_ = record.augmented, None, None
    guard.shortcuts_, guard.known_failures_ = record.shortcuts, record.known_failures
    guard.calibration_ = _calibration(record.calibration, tensors)
    guard.monitor_ = _monitor(record.monitor, heads)
    return guard


def _calibration(record: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Calibration | None:
    if record is None:
        return None
    reference = pd.DataFrame(
        {
            "label": record["labels"],
            **{
                column: tensors[f"calibration/{column}"].tolist()
                for column in ("delta_harmful", "delta_refuse", "per_layer")
            },
            "t_inst_class": record["classes"],
        }
    )
    probability = record["probability"]
    return Calibration(
        tuple(point_from(point) for point in record["points"]),
        None if probability is None else Probability.from_dict(probability),
        record["likeness_floor"],
        reference,
    )


def _monitor(record: dict[str, Any] | None, heads: dict[str, Head]) -> ReplyMonitor | None:
    if record is None:
        return None
    threshold = {**record["threshold"], "fpr": Interval(**record["threshold"]["fpr"])}
    return ReplyMonitor(
        heads["reply"],
        Threshold(**threshold),
        record["smoothing"],
        record["hold_back"],
        tuple(LengthRate(**part) for part in record["by_length"]),
        tuple(record["recall"]),
    )


def _check_canary(guard: BeliefGuard, record: GuardFile) -> None:
    tolerance = record.canary["tolerance"]
    for stored, now in zip(record.canary["scores"], canary_scores(guard), strict=True):
        for was, found in zip(stored, now, strict=True):
            if was is not None and (found is None or abs(found - was) > tolerance):
                raise GuardError(
                    f"a canary prompt scores {found:.4f} and scored {was:.4f} when the guard was saved, so the "
                    f"model does not run as it did (merged adapter, quantisation, another library); fit the "
                    f"guard again"
                )
