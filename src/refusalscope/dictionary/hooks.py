"""Which site a dictionary reads, from the hook name that its files carry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from refusalscope.errors import InputError
from refusalscope.model import Site

RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
# SAELens names a Hugging Face module where a dictionary was trained without TransformerLens.
BLOCK = re.compile(r"(?:model\.)?layers\.(\d+)")


def site_of_hook(hook: object, name: str) -> Site:
    """The residual site of a hook name. The input of block l is the output of block l - 1.

    Raises InputError for a hook that is not on the residual stream after a block.
    """
    text = str(hook or "")
    block = BLOCK.fullmatch(text)
    if block:
        return Site("resid_post", int(block[1]))
    residual = RESIDUAL.fullmatch(text)
    if residual is None:
        found = f"the hook point {text!r}" if text else "no hook point in its config"
        raise InputError(
            f"the dictionary {name} has {found}; only dictionaries of the residual stream are read "
            f"(blocks.N.hook_resid_post)"
        )
    layer = int(residual[1])
    if residual[2] == "post":
        return Site("resid_post", layer)
    if layer == 0:
        raise InputError(
            f"the dictionary {name} reads blocks.0.hook_resid_pre, the embeddings; take one that reads "
            f"the residual stream after a block"
        )
    return Site("resid_post", layer - 1)


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises InputError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object with the settings of a dictionary")
    return found


def number(settings: dict[str, Any], key: str, path: Path) -> float:
    """A positive number of a settings file. Raises InputError where it is missing or no such number."""
    value = settings.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InputError(f"{path} needs {key}, a positive number, and has {value!r}")
    return float(value)
