"""Final punctuation: its class, and the variants that show whether a score hangs on it.

The last instruction token is often the punctuation mark itself, so a probe read there can tell
"." from "?" instead of harm from no harm. Scoring every prompt in four variants shows it.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

FinalClass = Literal["period", "question", "exclamation", "other", "none", "empty"]

_MARKS: dict[str, FinalClass] = {
    ".": "period",
    "…": "period",
    "。": "period",
    "।": "period",
    "?": "question",
    "？": "question",
    "؟": "question",
    "!": "exclamation",
    "！": "exclamation",
}


def final_character_class(text: str) -> FinalClass:
    """The class of the last character that is not white space.

    "none" is a letter, digit or other sign that is no punctuation; "other" a quote, bracket,
    colon or other mark that does not end a sentence; "empty" a text without characters.
    """
    stripped = text.rstrip()
    if not stripped:
        return "empty"
    last = stripped[-1]
    if last in _MARKS:
        return _MARKS[last]
    return "other" if unicodedata.category(last).startswith("P") else "none"


def punctuation_variants(text: str) -> dict[str, str]:
    """The text as it is, without its final marks, with one full stop, with one question mark.

    Only sentence-ending marks and white space at the end are touched. A text of nothing but marks
    is its own stripped variant.
    """
    bare = text.rstrip().rstrip("".join(_MARKS) + " \t\n\r") or text.rstrip()
    return {"as_is": text, "stripped": bare, "period": f"{bare}.", "question": f"{bare}?"}
