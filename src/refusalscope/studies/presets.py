"""Settings by the name of a preset, for every study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from refusalscope.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)


def from_preset(
    kind: type[Settings],
    presets: Mapping[str, Mapping[str, Any]],
    study: str,
    name: str,
    changes: Mapping[str, Any],
) -> Settings:
    """Settings of a preset, with single fields changed. Raises InputError for an unknown name or field."""
    if name not in presets:
        raise InputError(f"there is no preset {name!r}; choose one of {', '.join(presets)}")
    unknown = set(changes) - set(kind.model_fields)
    if unknown:
        raise InputError(f"the {study} study has no setting {sorted(unknown)[0]!r}")
    try:
        return kind(preset=name, **{**presets[name], **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(f"the setting {where} of the {study} study is wrong: {said}") from error
