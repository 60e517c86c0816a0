"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "refusalscope"
# Top to bottom: a room imports only from rooms above it. Rooms of one line never import each other.
ORDER = [
    {"errors", "_lazy", "progress"},
    {"prompts"},
    {"stats"},
    {"runs"},
    {"model"},
    {"dictionary"},
    {"judge"},
    {"studies.subject", "studies.presets", "studies.frozen_norms", "studies.heads"},
    {"studies.directions", "studies.features", "studies.routing", "studies.cliff"},
    {"organisms"},
    {"guard"},
    {"report"},
    {"front"},
    {"audit"},
    {"belief", "cliff", "dissect", "guarding", "route"},
    {"repair"},
    {"cli"},
]


def room(module: str) -> str:
    parts = module.split(".")[1:]
    if not parts:
        return ""
    return ".".join(parts[:2]) if parts[0] == "studies" and len(parts) > 1 else parts[0]


def rank(name: str) -> int:
    return next(i for i, rooms in enumerate(ORDER) if name in rooms)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("refusalscope")
        ):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("refusalscope")}
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_a_room_imports_only_from_rooms_above_it(path):
    module = ".".join(["refusalscope", *path.relative_to(SOURCE).with_suffix("").parts])
    mine = room(module.removesuffix(".__init__"))
    if mine in ("", "__init__", "studies"):
        return
    for other in imports(path):
        name = room(other)
        if name in ("", mine):
            continue
        assert rank(name) < rank(mine), f"{module} imports {other}"


def test_the_package_names_no_path_of_a_machine_and_unpickles_nothing():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        for word in (
            "torch.load(",
            "import pickle",
            "pickle.load",
            "trust_remote_code=True",
            # Written apart, so that this file does not name what it forbids.
            *(f"/{folder}/" for folder in ("work", "tmp", "root", "home")),
        ):
            assert word not in text, f"{path.name} holds {word}"


def test_importing_the_package_is_light():
    """No heavy library is imported before it is used; a count that does not vary stands for the time."""
    code = (
        "import sys, refusalscope, refusalscope.cli.app;"
        "print([m for m in ('torch','transformers','pandas','plotly','sklearn','scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_of_the_package_resolves():
    import refusalscope

    for name in refusalscope.__all__:
        assert getattr(refusalscope, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        refusalscope.nope  # noqa: B018
