"""Several dictionaries of one model, by what a user names: folders, releases, the package's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refusalscope.dictionary.builtin import BUILTIN, PREFIX
from refusalscope.dictionary.dictionary import Dictionary, require_fit
from refusalscope.dictionary.hub import LLAMA, load_release
from refusalscope.dictionary.load import LAYOUTS, builtin_dictionaries, load_dictionary
from refusalscope.errors import InputError
from refusalscope.model import Anatomy


def load_suite(names: Sequence[str], anatomy: Anatomy) -> dict[int, Dictionary]:
    """Dictionaries by layer, in the order of layers, each checked against the model's width and layers.

    A name is a dictionary's folder or file; a folder of such folders; `builtin:chat-sae`, all its layers, or
    `builtin:chat-sae/3`; `RELEASE:SAE_ID` as SAELens names them; or a Llama Scope release alone, which has one
    a layer. Weights stay on disk. Raises InputError for a name that is none, a dictionary that does not fit the
    model, or two of one layer.
    """
    found: dict[int, Dictionary] = {}
    for name in [names] if isinstance(names, str) else names:
        for dictionary in _named(name, anatomy):
            require_fit(dictionary, anatomy)
            layer = dictionary.site.layer
            if layer in found:
                raise InputError(
                    f"{found[layer].name} and {dictionary.name} are both dictionaries of layer {layer}; "
                    f"a study takes one a layer, so leave one of them out"
                )
            found[layer] = dictionary
    if not found:
        raise InputError("no dictionary was named; give --sae with a folder or RELEASE:SAE_ID")
    return dict(sorted(found.items()))


def _named(name: str, anatomy: Anatomy) -> list[Dictionary]:
    if name.removeprefix(PREFIX) in BUILTIN and name.startswith(PREFIX):
        return list(builtin_dictionaries(name.removeprefix(PREFIX)).values())
    path = Path(name).expanduser()
    if name.startswith(PREFIX) or path.exists():
        inside = [] if name.startswith(PREFIX) else _folders(path)
        return [load_dictionary(each) for each in inside] or [load_dictionary(name)]
    release, parted, sae_id = name.partition(":")
    if parted:
        return [load_release(release, sae_id)]
    llama = LLAMA.fullmatch(name)
    if llama:
        return [load_release(name, f"l{layer}r_{llama[1]}x") for layer in range(anatomy.n_layers)]
    raise InputError(
        f"there is no folder {name} and it names no dictionary; give a folder, builtin:chat-sae, or "
        f"RELEASE:SAE_ID such as gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82"
    )


def _folders(path: Path) -> list[Path]:
    """Folders of dictionaries right inside a folder that is none itself."""
    if not path.is_dir() or _is_one(path):
        return []
    return sorted(each for each in path.iterdir() if each.is_dir() and _is_one(each))


def _is_one(folder: Path) -> bool:
    return any((folder / file).is_file() for layout in LAYOUTS.values() for file in layout.files)
