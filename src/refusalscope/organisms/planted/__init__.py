"""Models in which something is planted, by hand or by training, with the truth beside them."""

from refusalscope.organisms.planted.beliefs import (
    TwoBeliefs,
    build_two_beliefs,
    refuse_finetuned,
    two_beliefs_by_name,
)
from refusalscope.organisms.planted.beliefs_truth import BeliefsTruth
from refusalscope.organisms.planted.organism import (
    BuiltinOrganism,
    Planted,
    build,
    list_builtin,
    save,
)
from refusalscope.organisms.planted.truth import Truth, read_truth

__all__ = [
    "BeliefsTruth",
    "BuiltinOrganism",
    "Planted",
    "Truth",
    "TwoBeliefs",
    "build",
    "build_two_beliefs",
    "list_builtin",
    "read_truth",
    "refuse_finetuned",
    "save",
    "two_beliefs_by_name",
]
