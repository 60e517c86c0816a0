"""The refusal cliff: refusal that holds while a model thinks and falls when it stops (arXiv 2510.06036)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusalscope._lazy import lazy

if TYPE_CHECKING:
    from refusalscope.studies.cliff.curves import drops, mean_curve, prompt_table
    from refusalscope.studies.cliff.probe import Fitted, Probe, fit_published, fit_recommended
    from refusalscope.studies.cliff.scores import score_probes, score_tokens
    from refusalscope.studies.cliff.separation import bag_of_words, separation_table, unreadable
    from refusalscope.studies.cliff.traces import Trace, markers_of, think, traces_of
    from refusalscope.studies.cliff.verdict import (
        ModelCliff,
        cases_of,
        drop_contrast,
        judge_cliff,
    )

__all__ = [
    "Fitted",
    "ModelCliff",
    "Probe",
    "Trace",
    "bag_of_words",
    "cases_of",
    "drop_contrast",
    "drops",
    "fit_published",
    "fit_recommended",
    "judge_cliff",
    "markers_of",
    "mean_curve",
    "prompt_table",
    "score_probes",
    "score_tokens",
    "separation_table",
    "think",
    "traces_of",
    "unreadable",
]
_NAMES = {
    "curves": ("drops", "mean_curve", "prompt_table"),
    "probe": ("Fitted", "Probe", "fit_published", "fit_recommended"),
    "scores": ("score_probes", "score_tokens"),
    "separation": ("bag_of_words", "separation_table", "unreadable"),
    "traces": ("Trace", "markers_of", "think", "traces_of"),
    "verdict": ("ModelCliff", "cases_of", "judge_cliff", "drop_contrast"),
}
__getattr__ = lazy(
    __name__,
    {
        name: f"refusalscope.studies.cliff.{part}"
        for part, names in _NAMES.items()
        for name in names
    },
)
