"""OpenAI's moderation categories, and which of a guard's own speak for them.

Source: method page, section 11.1 (the categories of CatQA beside OpenAI's).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from refusalscope.guard.readings import Belief
from refusalscope.guard.serve.wire_replies import AppliedTypes, Latent, ModerationResult

KEYS = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
# First word of a name of CatQA -> OpenAI's keys. Political, privacy and financial have none.
TABLE = {
    "illegal": ("illicit",),
    "malware": ("illicit",),
    "economic": ("illicit",),
    "fraud": ("illicit",),
    "physical": ("violence", "illicit/violent"),
    "hate": ("hate", "harassment", "violence"),
    "adult": ("sexual",),
    "child": ("sexual/minors",),
}


def keys_of(category: str) -> tuple[str, ...]:
    """OpenAI's keys that a category of a guard speaks for: the key of its own name, else by the table."""
    if category in KEYS:
        return (category,)
    first = re.split(r"[^a-z]+", category.strip().lower(), maxsplit=1)[0]
    return TABLE.get(first, ())


def result(belief: Belief, fpr_target: float, card: str | None) -> ModerationResult:
    """A belief in OpenAI's shape: its 13 keys, and the guard's own beside them.

    A score there is the category's own cut to 0..1, as the format has it, and 0 for a key that the guard
    knows no category of; `latent` holds the scores as they are, and None for the unknown.
    """
    per_category = _by_key(belief.per_category)
    over = {key for name in belief.flagged_categories for key in (name, *keys_of(name))}
    assert belief.threshold is not None
    return ModerationResult(
        flagged=bool(belief.flagged),
        categories={key: key in over for key in per_category},
        category_scores={
            key: 0.0 if score is None else min(max(score, 0.0), 1.0)
            for key, score in per_category.items()
        },
        category_applied_input_types=applied_types(per_category),
        latent=Latent(
            delta_harmful=belief.delta_harmful,
            delta_refuse=None if math.isnan(belief.delta_refuse) else belief.delta_refuse,
            quadrant=belief.quadrant,
            p_harmful=belief.p_harmful,
            p_low=belief.p_low,
            p_high=belief.p_high,
            threshold=belief.threshold,
            fpr_target=fpr_target,
            abstain=belief.abstain,
            t_inst_token=belief.t_inst_token,
            per_layer=list(belief.per_layer),
            per_category=per_category,
            card=card,
        ),
    )


def applied_types(keys: Mapping[str, object]) -> AppliedTypes:
    """Which kinds of input the scores are of: text, the only one that is read."""
    return {key: ["text"] for key in keys}


def _by_key(own: Mapping[str, float]) -> dict[str, float | None]:
    """The 13 keys and the guard's own, each with its score; of several categories the highest."""
    found: dict[str, float | None] = dict.fromkeys(KEYS)
    for name, score in own.items():
        for key in {name, *keys_of(name)}:
            known = found.get(key)
            found[key] = score if known is None else max(known, score)
    return found
