"""Load a dictionary from a folder or file; which layout it has is told by the files in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from refusalscope.dictionary import gemma_scope, llama_scope, saelens
from refusalscope.dictionary.builtin import PREFIX, builtin_folder, builtin_layers
from refusalscope.dictionary.dictionary import Dictionary
from refusalscope.dictionary.weights import PICKLED
from refusalscope.errors import InputError
from refusalscope.model import Site


@dataclass(frozen=True)
class Layout:
    """One way of keeping a dictionary: the files that tell it, and how a folder of it is read.

    read: (folder, site or None, factor or None) -> Dictionary; takes_site, takes_factor: whether a
    caller may give these.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path, Site | None, float | None], Dictionary]
    takes_site: bool = False
    takes_factor: bool = False


LAYOUTS: dict[str, Layout] = {}


def register(layout: Layout) -> None:
    """Make a layout known. Raises InputError when its name is taken."""
    if layout.name in LAYOUTS:
        raise InputError(f"the dictionary layout {layout.name} is registered already")
    LAYOUTS[layout.name] = layout


register(
    Layout(
        "SAELens",
        (saelens.CONFIG, saelens.WEIGHTS),
        lambda folder, site, factor: saelens.read_saelens(folder, factor),
        takes_factor=True,
    )
)
register(
    Layout(
        "Gemma Scope",
        (gemma_scope.WEIGHTS,),
        lambda folder, site, factor: gemma_scope.read_gemma_scope(folder, site),
        takes_site=True,
    )
)
register(
    Layout(
        "Llama Scope",
        (llama_scope.SETTINGS, llama_scope.WEIGHTS),
        lambda folder, site, factor: llama_scope.read_llama_scope(folder),
    )
)


def load_dictionary(
    path: str | Path, *, site: Site | None = None, factor: float | None = None
) -> Dictionary:
    """A dictionary from a folder, one of the files in it, or the package (`builtin:chat-sae/3`).

    Weights stay on disk until used.

    site: where it reads, for a Gemma Scope file whose path does not say. factor: the normalisation
    factor of a SAELens dictionary that does not carry its own. Raises InputError, in one sentence, for
    what cannot be read: no folder, no or pickled weights, an unknown architecture, another hook point, a
    damaged file, a missing factor.
    """
    builtin = str(path) if str(path).startswith(PREFIX) else None
    folder = builtin_folder(builtin) if builtin else _folder(Path(path).expanduser())
    layout = _layout(folder)
    for name, given, taken in (
        ("site", site, layout.takes_site),
        ("factor", factor, layout.takes_factor),
    ):
        if given is not None and not taken:
            raise InputError(
                f"{folder} is a {layout.name} dictionary, whose files give its {name}; leave {name}= out"
            )
    found = layout.read(folder, site, factor)
    # Where the package is installed says nothing to a reader of a run on another machine.
    return replace(found, name=builtin) if builtin else found


def builtin_dictionaries(name: str = "chat-sae") -> dict[int, Dictionary]:
    """The dictionaries of the package by layer. Raises InputError for no such suite."""
    return {layer: load_dictionary(f"{PREFIX}{name}/{layer}") for layer in builtin_layers(name)}


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}; give the folder of a dictionary")
    if path.suffix in PICKLED:
        raise InputError(
            f"{path} is a pickled file, which can run code when it is read; convert it to safetensors"
        )
    for layout in LAYOUTS.values():
        for file in layout.files:
            if path.parts[-len(Path(file).parts) :] == Path(file).parts:
                return path.parents[len(Path(file).parts) - 1]
    raise InputError(f"{path} is not a file of a dictionary; the files are {_expected()}")


def _layout(folder: Path) -> Layout:
    for layout in LAYOUTS.values():
        if all((folder / file).is_file() for file in layout.files):
            return layout
    for layout in LAYOUTS.values():
        missing = [file for file in layout.files if not (folder / file).is_file()]
        if len(missing) < len(layout.files):
            raise InputError(
                f"{folder} lacks {missing[0]}, so its {layout.name} dictionary is not whole"
            )
    pickled = [file.name for file in sorted(folder.rglob("*")) if file.suffix in PICKLED]
    if pickled:
        raise InputError(
            f"{folder} holds a pickled dictionary ({pickled[0]}), which can run code when it is read; "
            f"convert it to safetensors"
        )
    raise InputError(f"the folder {folder} holds no dictionary; one is made of {_expected()}")


def _expected() -> str:
    return ", or ".join(" and ".join(layout.files) for layout in LAYOUTS.values())
