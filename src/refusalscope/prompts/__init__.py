"""Prompts: sets and pairs, readers, disjoint splits, checks, wrappers, punctuation variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusalscope._lazy import lazy
from refusalscope.prompts.bundled import bundled_pairs
from refusalscope.prompts.punctuation import final_character_class, punctuation_variants
from refusalscope.prompts.readers import read_pairs, read_prompts
from refusalscope.prompts.sets import (
    LABELS,
    BadRow,
    Label,
    Pair,
    PairSet,
    Prompt,
    PromptSet,
    Source,
    concat,
)
from refusalscope.prompts.wrappers import (
    WRAPPERS,
    LetterCipher,
    Wrapper,
    cipher_wrapper,
    get_wrapper,
    letter_cipher,
    register_wrapper,
    unwrap,
    wrap,
)

if TYPE_CHECKING:
    from refusalscope.prompts.checks import (
        Leak,
        check_leakage,
        check_overlap,
        find_leakage,
        require_enough,
    )
    from refusalscope.prompts.splits import split

# These need scikit-learn, which takes a second to import: resolved on first use.
_LAZY = {
    "Leak": "refusalscope.prompts.checks",
    "check_leakage": "refusalscope.prompts.checks",
    "check_overlap": "refusalscope.prompts.checks",
    "find_leakage": "refusalscope.prompts.checks",
    "require_enough": "refusalscope.prompts.checks",
    "split": "refusalscope.prompts.splits",
}

__all__ = [
    "LABELS",
    "WRAPPERS",
    "BadRow",
    "Label",
    "Leak",
    "LetterCipher",
    "Pair",
    "PairSet",
    "Prompt",
    "PromptSet",
    "Source",
    "Wrapper",
    "bundled_pairs",
    "check_leakage",
    "check_overlap",
    "cipher_wrapper",
    "concat",
    "final_character_class",
    "find_leakage",
    "get_wrapper",
    "letter_cipher",
    "punctuation_variants",
    "read_pairs",
    "read_prompts",
    "register_wrapper",
    "require_enough",
    "split",
    "unwrap",
    "wrap",
]

__getattr__ = lazy(__name__, _LAZY)
