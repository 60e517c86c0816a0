"""A guard on disk: `guard.safetensors`, `guard.json`, and a canary that is checked when it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from refusalscope import __version__
from refusalscope.errors import GuardError, InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.heads import TENSORS, Head
from refusalscope.guard.monitor import ReplyMonitor
from refusalscope.guard.operating import Calibration
from refusalscope.guard.record import (
    CANARY,
    CalibrationRecord,
    Canary,
    GuardFile,
    HeadRecord,
    ModelRecord,
    MonitorRecord,
)
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt
from refusalscope.runs.files import disk_errors
from refusalscope.stats.calibration import Probability

JSON, WEIGHTS = "guard.json", "guard.safetensors"
# How far they may move, in standard deviations of an axis over the calibration prompts.
TOLERANCE, HALF_TOLERANCE = 0.01, 0.1


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
    guard.sha256_ = hashlib.sha256(payload).hexdigest()
    record = _record(guard, guard.sha256_)
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
    except (
        *(SafetensorError, InputError, LookupError, TypeError, ValueError),
        *(AttributeError, RuntimeError),
    ) as error:
        raise GuardError(
            f"{folder} is not a whole guard of this version ({error}); fit the guard again"
        ) from error


def canary_scores(guard: BeliefGuard) -> list[tuple[float, float | None]]:
    """delta_harmful and delta_refuse (None without that axis) of the canary prompts."""
    readings, _ = guard.read([Prompt(f"canary-{i}", text) for i, text in enumerate(CANARY)])
    refuse = [None if guard.refuse_ is None else value for value in readings.refuse.tolist()]
    return list(zip(readings.harmful.tolist(), refuse, strict=True))


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
        anchors=guard.anchors,
        rows=guard.rows_,
        heads={
            name: HeadRecord(variant=head.variant, n_towards=head.n_towards, n_away=head.n_away)
            for name, head in _heads(guard).items()
        },
        fitted_on=guard.fitted_on_,
        matched=guard.matched_,
        augmented=guard.augmented_,
        calibration=_calibration_record(guard.calibration_),
        monitor=_monitor_record(guard.monitor_),
        shortcuts=guard.shortcuts_,
        known_failures=guard.known_failures_,
        canary=_canary(guard),
        tensors_sha256=sha256,
    )


def _canary(guard: BeliefGuard) -> Canary:
    """The scores now, and a tolerance in the spread of the calibration prompts, or of the canary's without."""
    scores = canary_scores(guard)
    spread = [float(np.std([score[axis] or 0.0 for score in scores])) for axis in (0, 1)]
    if guard.calibration_ is not None:
        reference = guard.calibration_.reference
        spread = [reference[axis].std() for axis in ("delta_harmful", "delta_refuse")]
    share = TOLERANCE if guard.chat_.dtype.itemsize >= 4 else HALF_TOLERANCE
    # An axis that is not there has no spread, and nothing is compared on it.
    moved = [share * float(each) if np.isfinite(each) else 0.0 for each in spread]
    return Canary(tolerance=(moved[0], moved[1]), scores=scores)


def about(chat: ChatModel) -> ModelRecord:
    """What binds a guard to its model. A folder is named without its path: a guard may be shown to others."""
    local = Path(chat.id).is_dir()
    return ModelRecord(
        id=Path(chat.id).resolve().name if local else chat.id,
        local=local,
        revision=getattr(chat.model.config, "_commit_hash", None),
        architecture=chat.anatomy.architecture.name,
        n_layers=chat.anatomy.n_layers,
        d_model=chat.anatomy.d_model,
        dtype=str(chat.dtype).removeprefix("torch."),
        **chat.fingerprint,
    )


def _calibration_record(found: Calibration | None) -> CalibrationRecord | None:
    if found is None:
        return None
    return CalibrationRecord(
        points=list(found.points),
        probability=None if found.probability is None else found.probability.to_dict(),
        likeness_floor=found.likeness_floor,
        labels=found.reference["label"].tolist(),
        classes=found.reference["t_inst_class"].tolist(),
    )


def _monitor_record(monitor: ReplyMonitor | None) -> MonitorRecord | None:
    if monitor is None:
        return None
    shared = {name: getattr(monitor, name) for name in MonitorRecord.model_fields}
    return MonitorRecord(**{**shared, "by_length": list(monitor.by_length)})


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
        if getattr(known, key) != getattr(own, key):
            shown = f" ({own.dtype} for {known.dtype})" if key == "dtype" else ""
            raise GuardError(
                f"the guard was fitted to {known.id}, and {own.id} has {what}{shown}, so its scores "
                f"would mean nothing; fit a guard to this model"
            )


def _rebuilt(record: GuardFile, tensors: dict[str, Tensor], chat: ChatModel) -> BeliefGuard:
    guard = BeliefGuard(**record.settings)
    if guard.anchors != record.anchors:
        raise ValueError("its settings and its anchors do not agree")
    heads = {
        name: Head(
            kept.variant,
            n_towards=kept.n_towards,
            n_away=kept.n_away,
            **{
                part: tensors[f"{name}/{part}"]
                for part in TENSORS
                if part in ("towards", "away") or kept.variant == "lda"
            },
        )
        for name, kept in record.heads.items()
    }
    shape = (len(record.rows), chat.anatomy.d_model)
    held = {name.rpartition("/")[0] for name in tensors} - {"calibration"}
    if held != set(heads) or any(head.towards.shape != shape for head in heads.values()):
        raise ValueError("its arrays are not those that it names")
    guard.chat_, guard.rows_, guard.sha256_ = chat, record.rows, record.tensors_sha256
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


def _calibration(
    record: CalibrationRecord | None, tensors: dict[str, Tensor]
) -> Calibration | None:
    if record is None:
        return None
    reference = pd.DataFrame(
        {
            "label": record.labels,
            **{
                column: tensors[f"calibration/{column}"].tolist()
                for column in ("delta_harmful", "delta_refuse", "per_layer")
            },
            "t_inst_class": record.classes,
        }
    )
    probability = record.probability
    return Calibration(
        tuple(record.points),
        None if probability is None else Probability.from_dict(probability),
        record.likeness_floor,
        reference,
    )


def _monitor(record: MonitorRecord | None, heads: dict[str, Head]) -> ReplyMonitor | None:
    if record is None:
        return None
    shared = {name: getattr(record, name) for name in MonitorRecord.model_fields}
    return ReplyMonitor(head=heads["reply"], **{**shared, "by_length": tuple(record.by_length)})


def _check_canary(guard: BeliefGuard, record: GuardFile) -> None:
    for stored, now in zip(record.canary.scores, canary_scores(guard), strict=True):
        for was, found, moved in zip(stored, now, record.canary.tolerance, strict=True):
            # Not a number is never near enough.
            if was is not None and not (found is not None and abs(found - was) <= moved):
                raise GuardError(
                    f"a canary prompt scores {found or np.nan:.4f} and scored {was:.4f} when the guard was "
                    f"saved, so the model does not run as it did (merged adapter, quantisation, another "
                    f"library); fit the guard again"
                )
