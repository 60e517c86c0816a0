"""Plateau, final score and cliff of every trace, and the mean curve over traces.

Definitions: refusal_cliff sections 3.1 to 3.3. A score is the sigmoid of a probe's logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from refusalscope.errors import InputError
from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]
# Thinking tokens whose median stands for what the thinking came to, and the window of the permutation.
LATE, WINDOW = 20, 64
# A trace whose score falls by more than this at its end has a cliff.
FALL = 0.2
Rank = Literal["ms", "ms_p90", "final"]


def prompt_table(
    traces: Sequence[Trace], logits: Sequence[Array], *, n_permutations: int = 999, seed: int
) -> pd.DataFrame:
    """A row a trace, from a probe's logits [tokens] of each.

    plateau, plateau_p90, plateau_median: maximum (as published), 90th percentile and median of the thinking;
    final: at the last closing token. ms, ms_p90, ms_median: those minus the final score. late: median of the
    last 20 thinking tokens; drop: late minus final (D); p: of a drop as large where the positions of the last
    64 tokens are in any order; fall: plateau_p90 minus late, what had fallen before the end. at
    closing[i]: the fall from the token before (late, for the first); they sum to the drop.
    rank_ms, rank_ms_p90, rank_final: 1 is the most misaligned, in the order of the traces where equal.
    """
    rng = np.random.default_rng(seed)
    rows = [
        _row(trace, values, n_permutations, rng)
        for trace, values in zip(traces, logits, strict=True)
    ]
    table = pd.DataFrame(rows)
    for name, key in {
        "ms": -table["ms"],
        "ms_p90": -table["ms_p90"],
        "final": table["final"],
    }.items():
        table[f"rank_{name}"] = key.rank(method="first").astype(int)
    return table


def drops(traces: Sequence[Trace], logits: Sequence[Array]) -> Array:
    """D of every trace, as in `prompt_table`: [traces]."""
    scores = [expit(values) for values in logits]
    late = [
        np.median(values[list(trace.thinking)][-LATE:])
        for trace, values in zip(traces, scores, strict=True)
    ]
    return np.array(late) - np.array([values[-1] for values in scores])


def _row(
    trace: Trace, logits: Array, n_permutations: int, rng: np.random.Generator
) -> dict[str, object]:
    if len(logits) != len(trace):
        raise InputError(
            f"trace {trace.prompt.id!r} has {len(trace)} tokens and {len(logits)} logits; score it again"
        )
    scores = expit(logits)
    thinking, closing = scores[list(trace.thinking)], scores[list(trace.closing)]
    late, final = float(np.median(thinking[-LATE:])), float(closing[-1])
    plateaus = {
        "plateau": float(thinking.max()),
        "plateau_p90": float(np.quantile(thinking, 0.9)),
        "plateau_median": float(np.median(thinking)),
    }
    steps = -np.diff(np.array([late, *closing]))
    return {
        "id": trace.prompt.id,
        "label": trace.prompt.label,
        "category": trace.prompt.category,
        "n_thinking": len(thinking),
        **plateaus,
        "late": late,
        "final": final,
        **{name.replace("plateau", "ms"): value - final for name, value in plateaus.items()},
        "drop": late - final,
        "p": _permuted(scores[trace.thinking.start :][-WINDOW:], len(closing), n_permutations, rng),
        "fall": plateaus["plateau_p90"] - late,
        **{f"at closing[{i}]": float(step) for i, step in enumerate(steps)},
    }


def _permuted(window: Array, n_closing: int, n: int, rng: np.random.Generator) -> float:
    """One-sided p of the drop where all positions of the window are exchanged.

    Neighbouring tokens have like scores, so it is a screen and no proof; it cannot fall below the share of
    closing tokens that are as low as the last.
    """
    shuffled = rng.permuted(np.tile(window, (n, 1)), axis=1)
    late = slice(max(0, len(window) - n_closing - LATE), len(window) - n_closing)
    if late.stop <= 0:
        return 1.0
    drops = np.median(shuffled[:, late], axis=1) - shuffled[:, -1]
    observed = np.median(window[late]) - window[-1]
    return float((1 + (drops >= observed - 1e-12).sum()) / (n + 1))


def mean_curve(
    scores: Sequence[Array], *, n_resamples: int = 1000, level: float = 0.95, seed: int
) -> pd.DataFrame:
    """Mean over traces by position from the end, of scores [tokens] a trace, nothing padded with zeros.

    Columns position (-1 is the last token), n (traces that reach so far back), mean, low, high; the band
    is of a percentile bootstrap over traces, and missing where one trace is left.
    """
    width = max((len(values) for values in scores), default=0)
    if not width:
        raise InputError("there are no scores to draw a curve of; give at least one trace")
    table, there = np.zeros((len(scores), width)), np.zeros((len(scores), width))
    for row, values in enumerate(scores):
        table[row, width - len(values) :] = values
        there[row, width - len(values) :] = 1
    rng, n = np.random.default_rng(seed), there.sum(0)
    drawn = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=n_resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (drawn @ table) / (drawn @ there)
    tail = (1 - level) / 2
    low, high = np.full((2, width), np.nan)
    several = n > 1
    low[several], high[several] = np.nanquantile(means[:, several], [tail, 1 - tail], axis=0)
    return pd.DataFrame(
        {
            "position": np.arange(-width, 0),
            "n": n.astype(int),
            "mean": table.sum(0) / n,
            "low": low,
            "high": high,
        }
    )
