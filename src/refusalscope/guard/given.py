"""The prompts a guard is given, made fit for it before any work: in the context, once each, enough, apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from refusalscope.errors import InputError
from refusalscope.guard.reading import that_fit
from refusalscope.guard.settings import GuardSettings
from refusalscope.guard.sources import distinct
from refusalscope.model import ChatModel
from refusalscope.prompts import PairSet, Prompt, PromptSet, find_leakage
from refusalscope.prompts.sets import LABELS
from refusalscope.stats.thresholds import negatives_needed

SHOWN = 5
Sides = Mapping[str, tuple[PromptSet, PromptSet]]


def usable(
    chat: ChatModel, data: PairSet | PromptSet, settings: GuardSettings, said: list[str]
) -> PairSet | PromptSet:
    """At most `n_prompts` a label (or pairs), each once, none too long; `said` tells what was left out."""
    rng = np.random.default_rng(settings.seed)
    if isinstance(data, PairSet):
        drawn = _drawn(len(data), "pairs", settings.n_prompts, rng, said)
        kept = replace(data, items=tuple(data[i] for i in drawn))
        fit = {prompt.id for prompt in within_context(chat, kept.prompts(), said)}
        return replace(
            kept, items=tuple(pair for pair in kept if {p.id for p in pair.prompts()} <= fit)
        )
    prompts: list[Prompt] = []
    for label in LABELS:
        side = distinct(data.of(label))
        if len(side) < len(data.of(label)):
            said.append(
                f"{len(data.of(label)) - len(side)} {label} prompts are copies of others; each counts once."
            )
        drawn = _drawn(len(side), f"{label} prompts", settings.n_prompts, rng, said)
        prompts += [side[i] for i in drawn]
    return within_context(chat, replace(data, items=tuple(prompts)), said)


def within_context(chat: ChatModel, data: PromptSet, said: list[str]) -> PromptSet:
    """The prompts that fit the model's context; what is left out is told in `said`."""
    kept, left_out = that_fit(chat, data.items)
    said += [f"Left out: {reason}." for reason in left_out[:SHOWN]]
    if len(left_out) > SHOWN:
        said.append(f"{len(left_out) - SHOWN} more prompts were left out for their length.")
    return replace(data, items=tuple(kept))


def require_enough(sides: Sides, settings: GuardSettings, share: float) -> None:
    """Refuse before any work what calibration would refuse after it. share: of the prompts, that calibrate."""
    for name, (harmful, harmless) in sides.items():
        if not len(harmful) or not len(harmless):
            raise InputError(
                f"the {name} split holds {len(harmful)} harmful and {len(harmless)} harmless prompts; give "
                f"more of both, each with its label"
            )
    given = len(sides["select"][1])
    for rate in settings.fpr:
        needed = negatives_needed(rate, settings.rule, settings.confidence)
        if given < needed:
            raise InputError(
                f"a false-positive rate of {100 * rate:g} % by the rule {settings.rule} needs {needed} "
                f"harmless prompts to calibrate on, and {given} of those given are for that; give "
                f"{math.ceil(needed / share)} or more in all, or ask for a higher rate"
            )


def own_examples(chat: ChatModel, own: PromptSet, sides: Sides, said: list[str]) -> PromptSet:
    """A user's own harmful examples without those that are nearly a prompt the guard is measured on.

    Raises InputError where none is left.
    """
    held = {
        name: replace(harmful, items=(*harmful.items, *harmless.items))
        for name, (harmful, harmless) in sides.items()
        if name != "fit"
    }
    found = find_leakage({"own": own, **held})
    known = {
        leak.id_a if leak.side_a == "own" else leak.id_b
        for leak in found
        if "own" in (leak.side_a, leak.side_b)
    }
    if known:
        said.append(
            f"{len(known)} examples of your own are nearly a prompt that the guard is calibrated or measured "
            f"on; they were left out."
        )
    kept = replace(own, items=tuple(prompt for prompt in own if prompt.id not in known))
    kept = within_context(chat, kept, said)
    if not len(kept):
        raise InputError(
            "no example of your own is left to add; give some that differ from the other prompts"
        )
    return kept


def _drawn(n: int, what: str, most: int, rng: np.random.Generator, said: list[str]) -> list[int]:
    if n > most:
        said.append(f"{most} of {n} {what} were drawn: n_prompts takes that many.")
    return sorted(int(i) for i in rng.permutation(n)[:most])
