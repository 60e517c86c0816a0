"""What the truth record says of planted heads, read off their plans."""

from __future__ import annotations

from collections.abc import Sequence

from refusalscope.organisms.planted.construction import C, HeadPlan
from refusalscope.organisms.planted.truth import HeadTruth


def head_truths(heads: Sequence[HeadPlan]) -> tuple[HeadTruth, ...]:
    """One record a planned head, in order."""
    return tuple(_head_truth(head, heads) for head in heads)


def _head_truth(plan: HeadPlan, heads: Sequence[HeadPlan]) -> HeadTruth:
    # Only post-norm models have heads that write CONST, and their post-norms take it out again.
    written = {*plan.output, *(plan.output2 or {})} - {C.CONST}
    drives = tuple(
        (other.layer, other.head)
        for other in heads
        if other.layer > plan.layer and written & {*other.value, *(other.value2 or {})}
    )
    return HeadTruth(
        layer=plan.layer, head=plan.head, role=plan.role, drives=drives, acts=_where(plan)
    )


def _where(plan: HeadPlan) -> str:
    if C.ASST in plan.query:
        return "prompt_last"
    if C.TEND in plan.query:
        return "closing"
    if C.CONST in (plan.output2 or {}):
        return "everywhere"
    watched = {
        C.HARM: "from:harmful_word",
        C.BEN: "from:benign_word",
        C.CIPH: "from:code_word",
        C.ASST: "from:prompt_tail",
        C.TEND: "from:think_end",
        C.BOSM: "everywhere",
    }
    return watched[next(iter(plan.key))]
