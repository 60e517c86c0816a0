"""What must hold before prompts are used: sides disjoint, labels apart, enough of each.

Messages name prompts by id and never print their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from refusalscope.errors import InputError, LeakageError
from refusalscope.prompts.sets import LABELS, PairSet, PromptSet
from refusalscope.prompts.similarity import THRESHOLD, embed, normalise, similar_rows

MINIMUM = 8
_SHOWN = 5


@dataclass(frozen=True)
class Leak:
    """Two prompts on two sides that are the same request. `similarity` is 1 where exact."""

    side_a: str
    id_a: str
    side_b: str
    id_b: str
    similarity: float
    exact: bool

    def __str__(self) -> str:
        how = "same text" if self.exact else f"similarity {self.similarity:.2f}"
        return f"{self.side_a}:{self.id_a} and {self.side_b}:{self.id_b} ({how})"


def find_leakage(
    sides: Mapping[str, PromptSet | PairSet], threshold: float = THRESHOLD
) -> tuple[Leak, ...]:
    """Every pair of prompts on two sides whose texts are equal once normalised, or similar.

    Similarity and its scale are those of `similarity.py`, over the texts of all sides together.
    Most similar first.
    """
    sets = {name: _prompts(side) for name, side in sides.items()}
    texts = [text for side in sets.values() for text in side.texts]
    if not texts:
        return ()
    plain = [normalise(text) for text in texts]
    vectors = embed(texts)
    bounds = np.cumsum([0, *(len(side) for side in sets.values())])
    leaks = []
    for (a, name_a), (b, name_b) in combinations(enumerate(sets), 2):
        rows, columns, cosines = similar_rows(
            vectors[bounds[a] : bounds[a + 1]], vectors[bounds[b] : bounds[b + 1]], threshold
        )
        for i, j, cosine in zip(rows.tolist(), columns.tolist(), cosines.tolist(), strict=True):
            exact = plain[bounds[a] + i] == plain[bounds[b] + j]
            ids = (sets[name_a][i].id, sets[name_b][j].id)
            leaks.append(Leak(name_a, ids[0], name_b, ids[1], min(cosine, 1.0), exact))
    return tuple(sorted(leaks, key=lambda leak: (-leak.exact, -leak.similarity)))


def check_leakage(sides: Mapping[str, PromptSet | PairSet], threshold: float = THRESHOLD) -> None:
    """Raises LeakageError where two sides hold the same or nearly the same request.

    For sides of one kind (fit, select, report): the matched controls of a pair are similar by
    design, so harmful against harmless is a matter for `check_overlap`.
    """
    leaks = find_leakage(sides, threshold)
    if leaks:
        exact = sum(leak.exact for leak in leaks)
        raise LeakageError(
            f"{len(leaks)} prompt pair(s) stand on two sides that must be disjoint "
            f"({exact} with the same text, {len(leaks) - exact} with similarity of at least "
            f"{threshold:g}): {_some(leaks)}; drop one of each, or split all prompts anew with "
            "refusalscope.prompts.split, which keeps near-duplicates together"
        )


def check_overlap(harmful: PromptSet, harmless: PromptSet) -> None:
    """Raises InputError where a text stands on the harmful and on the harmless side."""
    by_text = {normalise(prompt.text): prompt.id for prompt in harmful}
    overlap = [
        Leak("harmful", by_text[normalise(p.text)], "harmless", p.id, 1.0, True)
        for p in harmless
        if normalise(p.text) in by_text
    ]
    if overlap:
        raise InputError(
            f"{len(overlap)} prompt(s) stand on both the harmful and the harmless side: "
            f"{_some(overlap)}; take each out of one of the two files"
        )


def require_enough(
    prompts: PromptSet | PairSet, minimum: int = MINIMUM, side: str | None = None
) -> None:
    """Raises InputError where a label has fewer than `minimum` prompts.

    `side` names the split or file in the message.
    """
    members = _prompts(prompts)
    where = f" of {side}" if side else ""
    lost = "; ".join(f"line {row.line}: {row.reason}" for row in prompts.skipped[:_SHOWN])
    skipped = f" (not used: {lost})" if lost else ""
    for label in LABELS:
        found = len(members.of(label))
        if found < minimum:
            raise InputError(
                f"the {label} side{where} has {found} prompt(s), at least {minimum} are needed; "
                f"add prompts, or mend the skipped rows of the file{skipped}"
            )


def _prompts(side: PromptSet | PairSet) -> PromptSet:
    return side.prompts() if isinstance(side, PairSet) else side


def _some(leaks: tuple[Leak, ...] | list[Leak]) -> str:
    more = f" and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
    return "; ".join(str(leak) for leak in leaks[:_SHOWN]) + more
