"""The exact effect of every head at the closing tokens, and what that makes of it.

    effect = score - score with the unit's output at the closing tokens replaced (by 0, or by a mean)

It has the sign of the direct contribution: below 0 the unit works against refusal, and removing it restores
some. The edit leaves prompt and thinking as they are, so their keys and values are computed once a trace and
a row costs the closing tokens alone; removal at all positions is another estimand, for it changes the thinking
too. Source: refusal_cliff section 4.3; tests as in alignment_routes section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import (
    ChatModel,
    Edit,
    Metric,
    Replace,
    Scale,
    Site,
    StateMetric,
    Variant,
)
from refusalscope.model.edits import frozen
from refusalscope.stats import max_t_signflip, mean_interval
from refusalscope.studies.cliff.contributions import (
    Contributions,
    contribution_table,
    difference,
)
from refusalscope.studies.cliff.reading import probe_metric
from refusalscope.studies.heads import MIN_PAIRS, WHOLE, Unit, clusters_of, site_of, units_of

if TYPE_CHECKING:
    from refusalscope.studies.cliff.probe import Probe
    from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]
# Up to this share of a head's own contribution, a contrast is the same write under another final scale; up to
# this share of the fall in harmful traces, what benign ones do not fall is no cliff.
ALIKE = 0.2


@dataclass(frozen=True)
class Effects:
    """Of single units, by metric ("probe" in logits, "margin" in nats where it was measured).

    clean [traces]: scores with nothing removed. effect [traces, units]: clean minus edited.
    """

    units: tuple[Unit, ...]
    clean: Mapping[str, Array]
    effect: Mapping[str, Array]


def mean_states(chat: ChatModel, traces: Sequence[Trace]) -> dict[Site, Tensor]:
    """What units hold at the closing tokens on average over traces: site -> [closing tokens, width].

    Raises InputError for no trace, or traces with unequal numbers of closing tokens.
    """
    if len({len(trace.closing) for trace in traces}) != 1:
        raise InputError(
            "a mean over traces needs traces with equally many closing tokens; give some of one template"
        )
    sites = sorted({site_of(unit[0]) for unit in units_of(chat.anatomy)})
    offsets = [(offset,) for offset in range(-len(traces[0].closing), 0)]
    states = chat.capture([trace.rendered for trace in traces], sites, offsets)
    return {site: found.mean(0) for site, found in states.items()}


def head_effects(
    chat: ChatModel,
    traces: Sequence[Trace],
    probe: Probe,
    *,
    margin: Metric | None = None,
    stand_in: Mapping[Site, Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Effects:
    """Remove every unit at the closing tokens of every trace, one at a time.

    margin: scored beside the probe's logit, such as a `RefusalMargin`. stand_in: what `mean_states` gives, put
    in the unit's place; 0 without it. Raises InputError for no trace, a probe that does not read this model,
    or a stand-in of another number of closing tokens.
    """
    if not traces:
        raise InputError("there is no trace to screen; give at least one")
    units = units_of(chat.anatomy)
    metrics: dict[str, Metric | StateMetric] = {"probe": probe_metric(chat.anatomy, probe)}
    if margin is not None:
        metrics["margin"] = margin
    lists: dict[int, list[Variant]] = {}
    for trace in traces:
        count = len(trace.closing)
        if count not in lists:
            lists[count] = [(), *(removed(chat, unit, count, stand_in) for unit in units)]
    found = chat.measure(
        [trace.rendered for trace in traces],
        [lists[len(trace.closing)] for trace in traces],
        metrics,
        policy="prompt_only",
        progress=progress,
    ).scores
    return Effects(
        units,
        {name: table[:, 0] for name, table in found.items()},
        {name: table[:, :1] - table[:, 1:] for name, table in found.items()},
    )


def removed(
    chat: ChatModel, unit: Unit, count: int, stand_in: Mapping[Site, Tensor] | None
) -> Variant:
    """The edits that replace a unit at the last `count` tokens of a prompt."""
    where = tuple(range(-count, 0))
    edits: list[Edit] = []
    for layer, head in unit:
        site, slot = site_of((layer, head)), None if head == WHOLE else head
        if stand_in is None:
            edits.append(Scale(site, where, slot, factor=0.0))
            continue
        values = stand_in[site]
        if len(values) != count:
            raise InputError(
                f"the stand-in has {len(values)} closing tokens and a trace has {count}; take the mean over "
                f"traces of the same template"
            )
        if slot is not None:
            width = chat.anatomy.head_dim
            values = values[:, slot * width : (slot + 1) * width]
        edits.append(Replace(site, where, slot, values=frozen(values)))
    return tuple(edits)


def head_table(
    found: Effects,
    harmful: Contributions,
    benign: Contributions,
    *,
    categories: Sequence[str] | None = None,
    floor: float = 0.01,
    alpha: float = 0.05,
    n_flips: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The table `cliff.heads`: one row a unit, its contributions, its effect with tests, and its role.

    found, harmful: of the same traces; benign: of benign traces. categories: one a harmful trace, resampled
    and flipped whole where there are enough. Columns: those of `contribution_table`; gap (how far the probe
    falls in harmful traces beyond benign ones, logits); effect with _low and _high (logits), share (of the
    gap), p_familywise (max-T over all units, signs of single traces flipped), p_categories (of whole
    categories); effect_margin with _low, _high and p_margin where there is a margin; passes (|share| above
    `floor` and p_familywise below alpha); role (see `role`). Raises InputError for fewer than MIN_PAIRS
    traces, for tables of other units or traces, and where benign traces fall nearly as far as
    harmful ones.
    """
    n = len(found.clean["probe"])
    if n < MIN_PAIRS:
        raise InputError(
            f"{n} traces are too few for a sign-flip test of {len(found.units)} heads: give {MIN_PAIRS} or more"
        )
    if not found.units == harmful.units == benign.units or len(harmful.final) != n:
        raise InputError("effects and contributions must be of the same model and the same traces")
    gap = float(harmful.fall.mean() - benign.fall.mean())
    if not gap > ALIKE * abs(harmful.fall.mean()):
        raise InputError(
            f"the probe falls by {harmful.fall.mean():.2f} logits in harmful traces and by "
            f"{benign.fall.mean():.2f} in benign ones, so there is no cliff for heads to explain; look at the "
            f"curves first"
        )
    table = contribution_table(harmful, benign, categories=categories, seed=seed)
    table["gap"] = gap
    clusters = clusters_of(categories)
    for metric, column, p in (
        ("probe", "effect", "p_familywise"),
        ("margin", "effect_margin", "p_margin"),
    ):
        if metric not in found.effect:
            continue
        values = found.effect[metric]
        intervals = [mean_interval(one, clusters, seed=seed) for one in values.T]
        table[column] = values.mean(0)
        table[f"{column}_low"] = [one.low for one in intervals]
        table[f"{column}_high"] = [one.high for one in intervals]
        table[p] = max_t_signflip(values, n_flips, seed=seed).p_familywise
    table["share"] = table["effect"] / gap
    table["p_categories"] = np.nan
    if clusters is not None:
        table["p_categories"] = max_t_signflip(
            found.effect["probe"], n_flips, clusters, seed=seed
        ).p_familywise
    table["passes"] = (table["share"].abs() > floor) & (table["p_familywise"] < alpha)
    presence = [
        difference(mine, theirs, seed)
        for mine, theirs in zip(harmful.final.T, benign.final.T, strict=True)
    ]
    table["role"] = [
        role(row, shown, floor * gap)
        for row, shown in zip(table.to_dict("records"), presence, strict=True)
    ]
    return table


def role(row: Mapping, presence: tuple[float, float, float], floor: float) -> str:
    """The role of a unit from its row of the table; "" where it does nothing, or does it through others.

    suppressor: writes against refusal, restores some when it is removed, and does so at the closing tokens
    more than on the plateau and more than in benign traces. promoter: the same for refusal, where acting on
    the plateau too is no bar, as long as benign traces do not show it. static: has an effect, and the same
    contribution in benign traces. presence: direct of harmful minus benign traces, with bounds; floor: in
    logits.
    """
    least = max(floor, ALIKE * abs(row["direct"]))

    def shown(value: float, low: float, high: float) -> int:
        """1 or -1 where a contrast stands, 0 else."""
        return int(np.sign(value)) if abs(value) > least and (low > 0 or high < 0) else 0

    cliff, contrast = (
        shown(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("cliff", "contrast")
    )
    if not row["passes"]:
        return ""
    if not contrast and not shown(*presence):
        return "static"
    if row["direct"] < 0 and row["effect"] < 0 and cliff < 0 and contrast < 0:
        return "suppressor"
    if row["direct"] > 0 and row["effect"] > 0 and max(contrast, shown(*presence)) > 0:
        return "promoter"
    return ""
