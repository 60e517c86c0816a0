"""The dictionaries that ship in the package: builtin:chat-sae/LAYER, on builtin:chat."""

from __future__ import annotations

from pathlib import Path

from refusalscope.errors import InputError

PREFIX = "builtin:"
# One SAELens folder a layer, named by its number.
BUILTIN = {"chat-sae": Path(__file__).parent / "weights_chat"}


def builtin_layers(name: str = "chat-sae") -> tuple[int, ...]:
    """The layers that a suite of the package has a dictionary for. Raises InputError for no such suite."""
    if name not in BUILTIN:
        raise InputError(
            f"there are no builtin dictionaries {name!r}; there are {', '.join(BUILTIN)}"
        )
    return tuple(sorted(int(path.name) for path in BUILTIN[name].iterdir() if path.name.isdigit()))


def builtin_folder(name: str) -> Path:
    """The folder of `builtin:SUITE/LAYER`. Raises InputError where there is no such dictionary."""
    suite, _, layer = name.removeprefix(PREFIX).partition("/")
    layers = builtin_layers(suite)
    if layer not in map(str, layers):
        known = ", ".join(f"{PREFIX}{suite}/{k}" for k in layers)
        raise InputError(f"there is no dictionary {name}; there are {known}")
    return BUILTIN[suite] / layer
