"""The single traces that a page shows, cut out of a table of millions of tokens before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.report.cliff_tables import PROMPTS, TRACE, cliff_table
from refusalscope.report.tables import NEEDED, Row, RunLike, finite_numbers, records

# So many traces with the largest cliff are shown, and so many with the smallest.
MOST, LEAST = 12, 4
# Points of the thinking that a drawing of one trace holds; more tokens are averaged in pairs, threes, ...
POINTS = 360


@dataclass(frozen=True)
class Shown:
    """A trace: its row of `cliff.prompts`, the scores of its thinking and of its closing tokens.

    thinking: [points], means over `step` neighbouring tokens; n: thinking tokens; closing: (name, score).
    """

    prompt: Row
    thinking: npt.NDArray[np.float64]
    step: int
    n: int
    closing: Sequence[tuple[str, float]]


def shown_traces(run: RunLike) -> list[Shown]:
    """At most 16 traces, the largest cliff first; none where either table is not there or not usable."""
    prompts = cliff_table(run, PROMPTS)
    if prompts is None or TRACE not in run.tables():
        return []
    ranked = prompts[prompts["cliff"].notna() & (prompts["id"] != "")].drop_duplicates("id")
    ranked = ranked.sort_values("cliff", ascending=False, kind="stable")
    chosen = ranked if len(ranked) <= MOST + LEAST else pd.concat([ranked[:MOST], ranked[-LEAST:]])
    tokens = run.table(TRACE)
    if any(column not in tokens for column in NEEDED[TRACE]):
        return []
    tokens = tokens[tokens["id"].isin(list(chosen["id"]))]
    tokens = tokens.assign(
        position=finite_numbers(tokens, "position"), score=finite_numbers(tokens, "score")
    )
    tokens = tokens.dropna(subset=["position", "score", "anchor"])
    of = dict(list(tokens.groupby("id", sort=False)))
    found = (_shown(row, of[row["id"]]) for row in records(chosen) if row["id"] in of)
    return [each for each in found if each is not None]


def _shown(prompt: Row, tokens: pd.DataFrame) -> Shown | None:
    tokens = tokens.sort_values("position", kind="stable")
    thinking = tokens.loc[tokens["anchor"] == "thinking", "score"].to_numpy(float)
    closing = tokens[tokens["anchor"].astype(str).str.startswith("closing[")]
    if not len(thinking) or closing.empty:
        return None
    step = -(-len(thinking) // POINTS)
    # From the end, so that the last point holds as many tokens as the others.
    parts = [thinking[max(0, i - step) : i] for i in range(len(thinking), 0, -step)]
    means = np.array([part.mean() for part in reversed(parts)])
    ends = zip(closing["anchor"].astype(str), closing["score"].astype(float), strict=True)
    return Shown(prompt, means, step, len(thinking), list(ends))
