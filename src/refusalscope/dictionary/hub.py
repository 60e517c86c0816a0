"""Dictionaries of the model hub by the names that SAELens gives them: a release and an id.

Gemma Scope and Llama Scope are resolved here. Every other release, and the `canonical` ids, stand in the
table that comes with SAELens, which is read where that library is installed (it is not imported). A
release `owner/name` is a repository with SAELens folders, the id a folder in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refusalscope.dictionary.dictionary import Dictionary
from refusalscope.dictionary.load import LAYOUTS, load_dictionary
from refusalscope.errors import InputError

GEMMA = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-res")
GEMMA_ID = re.compile(r"layer_\d+/width_\w+/average_l0_\d+")
LLAMA = re.compile(r"llama_scope_lxr_(8|32)x")
LLAMA_ID = re.compile(r"l(\d+)r_(8|32)x")
# The names of SAELens for the layouts that are read here.
CONVERSIONS = {
    None: "SAELens",
    "sae_lens": "SAELens",
    "gemma_2": "Gemma Scope",
    "llama_scope": "Llama Scope",
}


@dataclass(frozen=True)
class HubFolder:
    """A dictionary on the hub: its repository, its folder in it, its layout and, if known, its factor."""

    repository: str
    folder: str
    layout: str
    factor: float | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.folder}/{file}" for file in LAYOUTS[self.layout].files)


def resolve(release: str, sae_id: str) -> HubFolder:
    """Where on the hub a dictionary lies. Raises InputError for a release or id that is not known."""
    gemma, llama = GEMMA.fullmatch(release), LLAMA.fullmatch(release)
    if gemma and GEMMA_ID.fullmatch(sae_id):
        return HubFolder(f"google/{release}", sae_id, "Gemma Scope")
    llama_id = LLAMA_ID.fullmatch(sae_id)
    if llama and llama_id and llama[1] == llama_id[2]:
        width = f"{llama[1]}x"
        folder = f"Llama3_1-8B-Base-L{llama_id[1]}R-{width}"
        return HubFolder(f"fnlp/Llama3_1-8B-Base-LXR-{width}", folder, "Llama Scope")
    table = _table()
    if release in table:
        return _from_table(table[release], release, sae_id)
    if release.count("/") == 1 and not release.startswith((".", "/")):
        return HubFolder(release, sae_id, "SAELens")
    if gemma or llama:
        example = "layer_12/width_16k/average_l0_82" if gemma else f"l12r_{llama[1]}x"  # type: ignore[index]
        raise InputError(f"the release {release} has no id {sae_id!r}; write it as {example}")
    where = (
        "the table of SAELens" if table else "this package (SAELens, which has a table, is absent)"
    )
    raise InputError(
        f"the release {release!r} is not known to {where}; give owner/name of a hub repository, or a "
        f"local folder"
    )


def load_release(release: str, sae_id: str) -> Dictionary:
    """Fetch a dictionary by its SAELens names into the hub cache and load it; see `resolve`.

    Raises InputError where it cannot be fetched or read.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    # Its retries are told line by line; the one sentence below says it all.
    logging.set_verbosity_error()
    found = resolve(release, sae_id)
    local: list[Path] = []
    for file in found.files:
        try:
            local.append(Path(hf_hub_download(found.repository, file)))
        # The library passes on the errors of several network layers, without a common base.
        except Exception as error:  # noqa: BLE001
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{file} of {found.repository} could not be fetched from the hub ({reason[:160]}); check "
                f"the names and the connection, or give a local folder"
            ) from None
    return load_dictionary(local[0], factor=found.factor)


def _from_table(entry: dict[str, Any], release: str, sae_id: str) -> HubFolder:
    conversion = entry.get("conversion_func")
    if conversion not in CONVERSIONS:
        raise InputError(
            f"the release {release} keeps its dictionaries in the layout {conversion!r}; the layouts read "
            f"here are {', '.join(LAYOUTS)}, so load it with SAELens and save_model() it to a folder"
        )
    rows = {row["id"]: row for row in entry["saes"]}
    if sae_id not in rows:
        some = ", ".join(list(rows)[:3])
        raise InputError(f"the release {release} has no id {sae_id!r}; it has {some}, ...")
    layout = CONVERSIONS[conversion]
    factor = rows[sae_id].get("norm_scaling_factor") if layout == "SAELens" else None
    return HubFolder(entry["repo_id"], str(rows[sae_id]["path"]), layout, factor)


@cache
def _table() -> dict[str, Any]:
    """SAELens's table of releases, empty where the library is absent."""
    spec = find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        return {}
    import yaml

    path = Path(spec.submodule_search_locations[0]) / "pretrained_saes.yaml"
    if not path.is_file():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
