"""Models whose circuit is planted by hand into a small Llama, with the truth beside them."""

from refusalscope.organisms.planted.organism import (
    BuiltinOrganism,
    Planted,
    build,
    list_builtin,
    save,
)
from refusalscope.organisms.planted.truth import Truth, read_truth

__all__ = [
    "BuiltinOrganism",
    "Planted",
    "Truth",
    "build",
    "list_builtin",
    "read_truth",
    "save",
]
