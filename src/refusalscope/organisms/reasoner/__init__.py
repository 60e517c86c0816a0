"""`builtin:reasoner`: a small reasoning chat model with a planted suppression of its refusal.

It thinks in a few plain sentences between `<think>` and `</think>`, then refuses a harmful request or
repeats a harmless one. A few late heads were then trained to push the refusal away at the closing
tokens where the thinking talks itself into an exception: a refusal cliff whose heads are known. What it
says instead of refusing is only the request itself. This file imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"

__all__ = ["WEIGHTS"]
