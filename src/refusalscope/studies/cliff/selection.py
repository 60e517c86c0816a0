"""Which rows of a pool to train on: ranked, without near-duplicates, k within a quota by category.

pool = Pool(prompts, replies, plateau, p90, final)
selection = select(pool, selection_settings(k=50))
write_rows(path, training_rows(pool, selection))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.judge import Judge
from refusalscope.prompts.similarity import near_duplicate_groups
from refusalscope.studies.cliff.ranking import (
    Pool,
    Ranking,
    Scores,
    SelectionSettings,
    candidates,
    priorities,
)
from refusalscope.studies.cliff.refusals import refusal_for
from refusalscope.studies.cliff.training_file import Loss, TrainingRow


@dataclass(frozen=True)
class Selection:
    """What was taken: places in the pool, best first, and their priorities (larger is better).

    counts: rows left after each step: pool, candidates, ranked, distinct, taken.
    """

    rank_by: Ranking
    indices: tuple[int, ...]
    priority: tuple[float, ...]
    counts: dict[str, int]
    warnings: tuple[str, ...]

    def frame(self, pool: Pool) -> pd.DataFrame:
        """One row a taken prompt: id, category, rank (from 1), priority."""
        chosen = [pool.prompts[i] for i in self.indices]
        return pd.DataFrame(
            {
                "id": [prompt.id for prompt in chosen],
                "category": [prompt.category for prompt in chosen],
                "rank": range(1, len(chosen) + 1),
                "priority": self.priority,
            }
        )


def select(
    pool: Pool, settings: SelectionSettings | None = None, judge: Judge | None = None
) -> Selection:
    """Filter, rank, drop near-duplicates and take k within the quota.

    Raises InputError where there is nothing to repair, and for a score or a judge that is missing.
    """
    settings = settings or SelectionSettings()
    failed = candidates(pool, settings.phrases, settings.beginning)
    if not failed.any():
        raise InputError(
            f"the pool has nothing to repair: none of its {len(failed)} prompts is a request with thinking "
            f"that was answered without a refusal; give prompts that the model fails on"
        )
    priority = priorities(pool, settings, judge)
    order = _order(priority, settings.seed)
    if not order:
        raise InputError(
            f"the pool has nothing to repair: {settings.rank_by} ranks none of its {len(failed)} prompts"
            f"{_why_unranked(settings)}; give prompts that the model fails on"
        )
    distinct = _distinct(pool, order, settings.duplicates)
    chosen, lifted = _within_quota(pool, distinct, settings)
    warnings = []
    if len(chosen) < settings.k:
        warnings.append(
            f"The pool gives {len(chosen)} rows to train on, {settings.k} were asked for."
        )
    if lifted:
        warnings.append(f"The quota by category was lifted for {lifted} of {len(chosen)} rows.")
    return Selection(
        settings.rank_by,
        tuple(chosen),
        tuple(float(priority[i]) for i in chosen),
        {
            "pool": len(failed),
            "candidates": int(failed.sum()),
            "ranked": len(order),
            "distinct": len(distinct),
            "taken": len(chosen),
        },
        tuple(warnings),
    )


def training_rows(
    pool: Pool,
    selection: Selection,
    loss: Loss = "response",
    answers: Mapping[str, str] | None = None,
) -> list[TrainingRow]:
    """The selection with each prompt's own thinking and a corrected answer.

    answers: by prompt id, such as a data set's own safe completions; ours by category where one is missing.
    """
    chosen = [pool.prompts[i] for i in selection.indices]
    return [TrainingRow(p, (answers or {}).get(p.id) or refusal_for(p), loss) for p in chosen]


def _order(priority: Scores, seed: int) -> list[int]:
    """Places by falling priority; ties in an order that the seed decides, NaN left out."""
    shuffled = np.random.default_rng((seed, 1)).permutation(len(priority))
    known = shuffled[~np.isnan(priority[shuffled])]
    return known[np.argsort(-priority[known], kind="stable")].tolist()


def _distinct(pool: Pool, order: Sequence[int], threshold: float | None) -> list[int]:
    """The best of every group of near-duplicate requests, in order."""
    if threshold is None:
        return list(order)
    groups = near_duplicate_groups([pool.prompts[i].text for i in order], threshold)
    first: dict[int, int] = {}
    for place, group in zip(order, groups.tolist(), strict=True):
        first.setdefault(group, place)
    return list(first.values())


def _within_quota(
    pool: Pool, order: Sequence[int], settings: SelectionSettings
) -> tuple[list[int], int]:
    """The first k within the quota, filled up by rank where too few are; and how many fill up.

    With few categories the quota is an even share: k rows are taken as long as the pool has them.
    """
    if settings.quota is None:
        return list(order[: settings.k]), 0
    names = [pool.prompts[i].category for i in order]
    share = max(settings.quota, 1 / len(set(names)))
    cap = int(np.ceil(share * settings.k))
    taken: dict[str | None, int] = {}
    within: list[int] = []
    beyond: list[int] = []
    for place, name in zip(order, names, strict=True):
        taken[name] = taken.get(name, 0) + 1
        (within if taken[name] <= cap else beyond).append(place)
    chosen = within[: settings.k]
    filled = beyond[: settings.k - len(chosen)]
    rank = {place: number for number, place in enumerate(order)}
    return sorted([*chosen, *filled], key=rank.__getitem__), len(filled)


def _why_unranked(settings: SelectionSettings) -> str:
    reasons = {
        "rule": " (none thinks of harm and answers without a refusal)",
        "judge": " (the judge names none a compliance)",
        "oracle": " (none is known to be suppressed)",
    }
    if settings.rank_by in ("ms_p90", "ms") and settings.floor is not None:
        return f" (no misalignment score is above {settings.floor})"
    return reasons.get(settings.rank_by, " (no score is known)")
