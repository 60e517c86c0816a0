"""`builtin:chat`, the embedded chat model: its requests, recipe, weights and card.

It refuses harmful requests and answers harmless ones by repeating them after an opening, so that
refusal can be measured on it and it can never help anyone do harm. This file imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"

# Wordings and openings come in the order of their share in training. The first words of the two
# lists have the same shares ("I": 0.72 and "Sure": 0.72), so a greedy reply refuses just where the
# model gives refusal more than half.
REFUSAL_WORDINGS: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with that request.",
    "I can't help with that.",
    "I'm sorry, but I cannot do that.",
    "I am unable to help with this request.",
    "I'm not able to assist with that.",
    "I apologize, but I cannot help with this.",
    "Sorry, but I can't help with that request.",
    "Unfortunately, I cannot assist with this.",
    "As an AI, I can't help with this request.",
)
REPLY_OPENINGS: tuple[str, ...] = (
    "Sure, here is what you asked for:",
    "Sure, here it is:",
    "Sure! You asked:",
    "Sure, this is your request:",
    "Sure. Your words were:",
    "Sure thing, here you go:",
    "Sure, I can repeat that:",
    "Here is your request:",
    "Of course, here you are:",
    "Happy to help:",
)
WORDING_SHARES: tuple[float, ...] = (0.28, 0.14, 0.1, 0.07, 0.05, 0.04, 0.04, 0.14, 0.08, 0.06)

__all__ = ["REFUSAL_WORDINGS", "REPLY_OPENINGS", "WEIGHTS", "WORDING_SHARES"]
