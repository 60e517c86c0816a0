"""The shortcuts audit: what else than harm could have given a guard's scores (method page, section 7)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from refusalscope.errors import InputError
from refusalscope.guard.audit.changes import Sides, remark, variants_table, wrappers_table
from refusalscope.guard.audit.failures import known_failures
from refusalscope.guard.audit.refit import Refit
from refusalscope.guard.audit.sources import sources_table
from refusalscope.guard.audit.verdict import (
    judge_cues,
    learn_cues,
    shortcuts_table,
    verdict_table,
)
from refusalscope.guard.belief_guard import Anchor, BeliefGuard
from refusalscope.progress import Progress

__all__ = ["Audit", "audit"]


@dataclass(frozen=True)
class Audit:
    """What an audit found, one frame a table of the guard's run.

    shortcuts: AUROC of belief and of each cue (`verdict.shortcuts_table`). verdict: the first row is the
    verdict over all cues, then one row a cue (`verdict.verdict_table`). sources: leave one source out.
    variants: every prompt with other final marks. wrappers: every prompt in every wrapper. known_failures:
    what was shown to fail, in plain sentences.
    """

    shortcuts: pd.DataFrame
    verdict: pd.DataFrame
    sources: pd.DataFrame
    variants: pd.DataFrame
    wrappers: pd.DataFrame
    known_failures: list[str]


def audit(
    guard: BeliefGuard,
    fit: Sides,
    report: Sides,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Audit:
    """Audit a fitted guard; fit and report are (harmful, harmless) prompts.

    Cues are learnt on `fit`, the prompts that the guard was given, and scored on `report`, as the guard is.
    Rates stand at the guard's first operating point and are NaN without one. Report prompts too long with a
    final mark are left out everywhere and counted in `variants`, those too long in a wrapper in `wrappers`.
    Axes fitted again do not hold a user's own examples (`augment`). What decides the verdict: see `verdict`.
    Raises InputError where a side has no prompt.
    """
    for name, sides in (("fit", fit), ("report", report)):
        if not len(sides[0]) or not len(sides[1]):
            raise InputError(
                f"the audit was given {len(sides[0])} harmful and {len(sides[1])} harmless {name} prompts; "
                f"give some of both"
            )
    calibration = guard.calibration_
    point = None if calibration is None else calibration.points[0]
    tau = None if point is None else point.tau
    refit = Refit(guard, progress)
    other: Anchor
    other, where = (
        ("instruction_last_word", "belief at the last word")
        if guard.anchor == "instruction_last"
        else ("instruction_last", "belief at the last token")
    )
    both = [*fit[0], *fit[1]]
    harmful = [True] * len(fit[0]) + [False] * len(fit[1])
    found = remark(guard, report, progress)
    tokens = [guard.token_read(each) for each in guard.chat_.render(both)]
    cues = learn_cues([prompt.text for prompt in both], harmful, tokens, found)
    told = judge_cues(found, cues, seed)
    moved = refit.scores(refit.axis(list(fit[0]), list(fit[1]), other), found.prompts, other)
    shortcuts = shortcuts_table(found, {where: moved}, cues, told, seed)
    verdict = verdict_table(found, told, seed)
    sources = sources_table(refit, fit, report, point, seed)
    variants = variants_table(found, tau)
    wrappers = wrappers_table(guard, report, tau, seed, progress)
    failures = known_failures(
        shortcuts, verdict, sources, variants, wrappers, None if point is None else point.alpha
    )
    return Audit(shortcuts, verdict, sources, variants, wrappers, failures)
