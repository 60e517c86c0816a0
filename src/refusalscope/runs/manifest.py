"""run.json: what was run. Reading, writing, and what must be equal for a resume."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import refusalscope
from refusalscope.errors import RunError
from refusalscope.runs.cost import total
from refusalscope.runs.files import disk_errors, write_atomic

SCHEMA = 1
FILE = "run.json"

# Keys of run.json that only the run itself writes.
OWN = (
    *("schema", "status", "command", "version", "versions", "started", "finished"),
    *("settings", "inputs", "keep_text", "cost", "cost_by", "warnings"),
)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, read without importing any of it."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return {"python": platform.python_version(), **found}


def plain(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`value` as JSON gives it back (tuples as lists); RunError for what JSON cannot hold."""
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"The run's {name} cannot be kept in run.json ({error}): give plain numbers, text, "
            "lists and dictionaries without NaN."
        ) from error


def new_manifest(command: str, started: str, must_match: Mapping[str, Any]) -> dict[str, Any]:
    """run.json of a run that has only begun."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "command": command,
        "version": refusalscope.__version__,
        "versions": versions(),
        "started": started,
        "finished": None,
        **must_match,
        "cost": {**total([]), "seconds": 0.0},
        "cost_by": {},
        "warnings": [],
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write run.json atomically."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / FILE, (text + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """run.json of `folder`; RunError when it is missing, damaged or of a newer version."""
    path = folder / FILE
    try:
        with disk_errors(path, "read"):
            manifest = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} cannot be read as JSON ({error}): the run is damaged, choose another --out."
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise RunError(f"{path} is not a run of refusalscope: it has no schema number.")
    if manifest["schema"] > SCHEMA:
        raise RunError(
            f"{path} has schema {manifest['schema']}, this refusalscope reads up to {SCHEMA}: "
            "upgrade refusalscope."
        )
    missing = [key for key in OWN if key not in manifest]
    if missing:
        raise RunError(f"{path} lacks {missing[0]!r}: the run is damaged, choose another --out.")
    return manifest


def demand_equal(folder: Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """RunError naming the first difference between what a run was started with and `asked`."""
    for name, value in asked.items():
        difference = first_difference(name, manifest.get(name), value)
        if difference:
            raise RunError(
                f"The run in {folder} cannot be resumed: {difference}. "
                "Give what it was started with, or choose another --out."
            )


def other_software(manifest: Mapping[str, Any]) -> str | None:
    """The first version that has changed since the run was started, in words."""
    held = {"refusalscope": manifest["version"], **manifest["versions"]}
    now = {"refusalscope": refusalscope.__version__, **versions()}
    return first_difference("version", held, now)


def first_difference(name: str, held: Any, asked: Any) -> str | None:
    """The first place where two JSON values differ, in words; None when they are equal."""
    if isinstance(held, dict) and isinstance(asked, dict):
        for key in dict.fromkeys([*held, *asked]):
            if key not in asked:
                return f"{name}.{key} is {_short(held[key])} in the run and is not given now"
            if key not in held:
                return f"{name}.{key} is {_short(asked[key])} now and is not in the run"
            found = first_difference(f"{name}.{key}", held[key], asked[key])
            if found:
                return found
        return None
    if isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked):
        for index, (one, other) in enumerate(zip(held, asked, strict=True)):
            found = first_difference(f"{name}[{index}]", one, other)
            if found:
                return found
        return None
    if held == asked:
        return None
    return f"{name} is {_short(held)} in the run and {_short(asked)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
