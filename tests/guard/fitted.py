"""A guard of builtin:chat, fitted and calibrated once for all tests of a process."""

from __future__ import annotations

from functools import cache

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.model import ChatModel
from refusalscope.prompts import PromptSet, bundled_pairs, split


@cache
def chat() -> ChatModel:
    return ChatModel.load("builtin:chat")


@cache
def sides() -> dict[str, tuple[PromptSet, PromptSet]]:
    """fit, select, report -> harmful and harmless prompts."""
    found = split(bundled_pairs(), {"fit": 0.3, "select": 0.4, "report": 0.3})
    return {name: (each.of("harmful"), each.of("harmless")) for name, each in found.items()}


def fitted(variant: str = "centroid", **changes) -> BeliefGuard:
    """A new guard, not calibrated."""
    return BeliefGuard(variant, max_new_tokens=8, **changes).fit(chat(), *sides()["fit"])


@cache
def calibrated() -> BeliefGuard:
    harmful, harmless = sides()["select"]
    return fitted().calibrate(harmless, harmful)
