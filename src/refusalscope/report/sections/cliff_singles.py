"""Single traces, folded and drawn without a script: those with the largest cliffs and the smallest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusalscope.report.cliff_traces import LEAST, MOST, Shown
from refusalscope.report.content import Trail, Trails
from refusalscope.report.numbers import decimal, whole

# Of the width of a drawing, what the thinking takes; in long traces the closing tokens would vanish.
THINKING = 70.0
HEIGHT = 40.0
# Characters of a trace's name that are shown.
NAME = 60


def singles(traces: Sequence[Shown], n: int) -> Trails:
    """The chosen traces, each by its id. n: traces of the report split in all."""
    few = len(traces) == n
    which = (
        "all traces of the report split"
        if few
        else f"those with the {MOST} largest cliffs and the {LEAST} smallest of {whole(n)} traces"
    )
    longest = max(each.step for each in traces)
    means = f"; up to {whole(longest)} thinking tokens are one point, their mean" * (longest > 1)
    return Trails(
        "figure-cliff-singles",
        "single traces",
        "Single traces",
        "Open one by its id. The line is the score of refusal from 0 (bottom) to 1 (top): white, the thinking "
        "from its first token to its last; shaded, the closing tokens, one mark each, not to the scale of the "
        "thinking.",
        f"Chosen: {which}, ordered by the cliff (90th percentile of the thinking minus the score at the last "
        f"token){means}. All scores stand in cliff.trace.",
        [_trail(each) for each in traces],
    )


def _trail(trace: Shown) -> Trail:
    row = trace.prompt
    name = " ".join(str(row["id"]).split())
    name = name if len(name) <= NAME else f"{name[: NAME - 1]}\u2026"
    said = "refused" if row["refused"] else "complied"
    kind = ", ".join(part for part in (str(row["label"])[:NAME], said) if part)
    scores = [score for _, score in trace.closing]
    x = np.linspace(0, THINKING - 2, len(trace.thinking)) if len(trace.thinking) > 1 else [0.0]
    gap = (100 - THINKING) / len(scores)
    ends = [THINKING + gap * (i + 0.5) for i in range(len(scores))]
    points = [*zip(x, trace.thinking, strict=True), *zip(ends, scores, strict=True)]
    falls = f"plateau {decimal(row['plateau_p90'])}, final {decimal(row['final'])}"
    return Trail(
        f"{name}: cliff {decimal(row['cliff'])} ({kind})",
        f"{whole(trace.n)} thinking tokens; {falls}; "
        + ", ".join(f"{anchor} {decimal(score)}" for anchor, score in trace.closing),
        f"Score of refusal over the trace {name}: {falls}.",
        [(float(at), _down(score)) for at, score in points],
        [
            (at, _down(score), f"{anchor}: {decimal(score)}")
            for at, (anchor, score) in zip(ends, trace.closing, strict=True)
        ],
        THINKING,
    )


def _down(score: float) -> float:
    return HEIGHT * (1 - float(np.clip(score, 0, 1)))
