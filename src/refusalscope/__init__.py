"""See how a chat model refuses, prove it, watch it, mend it."""

from __future__ import annotations

from refusalscope._lazy import lazy

__version__ = "0.1.0"

# Name -> module. Resolved on first use, so that `import refusalscope` stays light.
_EXPORTS = {
    "ChatModel": "refusalscope.model",
    "Prompt": "refusalscope.prompts",
    "PromptSet": "refusalscope.prompts",
    "PairSet": "refusalscope.prompts",
    "read_prompts": "refusalscope.prompts",
    "read_pairs": "refusalscope.prompts",
    "bundled_pairs": "refusalscope.prompts",
    "open_run": "refusalscope.runs",
    "audit_model": "refusalscope.audit",
    "study_belief": "refusalscope.belief",
    "RefusalscopeError": "refusalscope.errors",
}

__all__ = ["__version__", *_EXPORTS]


__getattr__ = lazy(__name__, _EXPORTS)


def __dir__() -> list[str]:
    return sorted(__all__)
