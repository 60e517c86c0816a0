"""Where a guard's prompts come from, and each of them once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from refusalscope.guard.reading import Prompts
from refusalscope.prompts import Prompt, PromptSet


def sources_of(prompts: Prompts) -> list[dict[str, Any]]:
    """Where prompts came from, counted; hash and licence where they are of a file that the set knows."""
    files = prompts.sources if isinstance(prompts, PromptSet) else ()
    known = {source.name: source for source in files}
    found = []
    for name, n in sorted(Counter(prompt.source or "unnamed" for prompt in prompts).items()):
        file = known.get(name) or (files[0] if len(files) == 1 else None)
        found.append(
            {
                "name": name,
                "sha256": file.sha256 if file else None,
                "licence": file.licence if file else None,
                "n": n,
            }
        )
    return found


def distinct(prompts: Prompts) -> list[Prompt]:
    """The prompts without those whose conversation stands there already: copies promise nothing."""
    seen = {(p.system, p.history, " ".join(p.text.split())): p for p in reversed(list(prompts))}
    return list(reversed(seen.values()))
