"""Suppressors removed together, against random heads of the same layers and write norms.

Does removing the top 1, 3 and 10 % of the heads bring the refusal back where it was lost, and what does it do
to benign prompts? The margin says what the first token of the reply leans to, and `replies_under` what is
said. Source: arXiv 2510.06036, the head ablation; refusal_cliff section 5, with the controls that the paper
does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.judge import Exchange, Judge, Judgement
from refusalscope.model import ChatModel, Metric, StateMetric, Variant, measure
from refusalscope.stats import mean_interval, wilson
from refusalscope.studies.cliff.arms import Arm, arms_of
from refusalscope.studies.cliff.reading import probe_metric
from refusalscope.studies.cliff.removal import Renorm, Where, removal
from refusalscope.studies.heads import WHOLE, Head

if TYPE_CHECKING:
    from refusalscope.studies.cliff.probe import Probe
    from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ablation:
    """table: `cliff.ablation`, one row an arm and group. arms: in the table's order. warnings: for the run."""

    table: pd.DataFrame
    arms: tuple[Arm, ...]
    warnings: tuple[str, ...]


def ablate(
    chat: ChatModel,
    groups: Mapping[str, Sequence[Trace]],
    heads: pd.DataFrame,
    probe: Probe,
    margin: Metric,
    *,
    by: str = "contrast",
    shares: Sequence[float] = (0.01, 0.03, 0.10),
    draws: int = 20,
    controls: Mapping[str, Sequence[Head]] | None = None,
    where: Where = "closing",
    renorm: Renorm = "none",
    batch: int = 4,
    seed: int = 0,
) -> Ablation:
    """Remove the most negative heads by a score, random heads, and the controls; nothing first.

    groups: traces by name, such as harmful ones that lost their refusal and benign ones. heads: columns layer,
    head, direct, write_norm and the score `by`, as in `head_table`; whole mixers are passed over, and a head
    that writes for refusal comes after all others, for where suppressors are few its contrast of about 0 is
    next in line. shares: of all heads, at least one head each. controls: further sets by name, such as the
    static heads. batch: traces that are run together, which matters to `official_batch` alone.

    Columns: arm ("clean", "top", "random" or a control), share, n_heads, draw, norm_ratio, group, n, refused
    (margin above 0) with rate, low, high (Wilson); complied (of n, with nothing removed) and restored (of
    those, now refused) with restored_rate, _low, _high; margin, logit (of the probe, not calibrated) and
    score (its sigmoid), means with _low and _high; p_random, for "top" alone: rank of its restored among the
    random draws'. Raises InputError for an empty group, a share outside 0 to 1, or an unknown choice.
    """
    if not groups or not all(groups.values()):
        raise InputError("every group needs at least one trace; leave an empty group out")
    ranked = heads[heads["head"] != WHOLE].assign(helps=heads["direct"] > 0)
    ranked = ranked.sort_values(["helps", by], kind="stable")
    arms = tuple(arms_of(ranked, shares, draws, controls or {}, seed))
    metrics: dict[str, Metric | StateMetric] = {
        "logit": probe_metric(chat.anatomy, probe),
        "margin": margin,
    }
    rows = []
    for group, traces in groups.items():
        variants = [
            [removal(chat.anatomy, arm.heads, trace, where=where, renorm=renorm) for arm in arms]
            for trace in traces
        ]
        scores = measured(chat, traces, variants, metrics, renorm, batch)
        rows += [_row(arm, group, scores, i, seed) for i, arm in enumerate(arms)]
    return Ablation(_ranked(pd.DataFrame(rows)), arms, tuple(_worries(renorm, batch)))


def measured(
    chat: ChatModel,
    traces: Sequence[Trace],
    variants: Sequence[Sequence[Variant]],
    metrics: Mapping[str, Metric | StateMetric],
    renorm: Renorm,
    batch: int = 4,
) -> dict[str, Array]:
    """Scores [traces, variants] of variants [traces][variants], by metric.

    Under `official_batch` one variant is run at a time, on `batch` traces in the order given; a trace more than
    twice as long as the shortest of them goes alone, as does what the plan's memory does not hold.
    """
    prompts = [trace.rendered for trace in traces]
    if renorm != "official_batch":
        return chat.measure(prompts, [list(one) for one in variants], metrics).scores
    # A shared prefix would part traces by length, and with it their company.
    plan = replace(chat.plan, prefix=False)
    tables = {name: np.empty((len(prompts), len(variants[0]))) for name in metrics}
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        for column in range(len(variants[0])):
            rows = [[one[column]] for one in variants[part]]
            found = measure(chat.anatomy, prompts[part], rows, metrics, plan=plan)
            chat.cost.add(found.cost)
            for name, scores in found.scores.items():
                tables[name][part, column] = scores[:, 0]
    return tables


def replies_under(
    chat: ChatModel,
    traces: Sequence[Trace],
    heads: Sequence[Head],
    judge: Judge,
    *,
    where: Where = "closing",
    renorm: Renorm = "none",
    policy: str = "every_step",
    max_new_tokens: int = 48,
) -> list[Judgement]:
    """What the judge says of greedy replies after the thinking, with heads removed.

    policy: whether the heads stay off while the reply is written ("every_step") or only in the prompt. Under
    `official_batch` those run together are what `ChatModel.generate` makes a batch of.
    """
    edits = [
        removal(chat.anatomy, heads, trace, where=where, renorm=renorm, policy=policy)
        for trace in traces
    ]
    ids = chat.generate(
        [trace.rendered for trace in traces], edits, max_new_tokens=max_new_tokens, policy=policy
    )
    said = [chat.decode(reply) for reply in ids]
    return judge.judge(
        [Exchange(trace.prompt.text, text) for trace, text in zip(traces, said, strict=True)]
    )


def _row(arm: Arm, group: str, scores: Mapping[str, Array], column: int, seed: int) -> dict:
    margin, logit = (scores[name][:, column] for name in ("margin", "logit"))
    complied = scores["margin"][:, 0] <= 0
    refused = wilson(int((margin > 0).sum()), len(margin))
    restored = wilson(int((margin > 0)[complied].sum()), int(complied.sum()))
    row = {
        "arm": arm.name,
        "share": arm.share,
        "n_heads": len(arm.heads),
        "draw": arm.draw,
        "norm_ratio": arm.norm_ratio,
        "group": group,
        "n": len(margin),
        "refused": int((margin > 0).sum()),
        "rate": refused.value,
        "low": refused.low,
        "high": refused.high,
        "complied": int(complied.sum()),
        "restored": int((margin > 0)[complied].sum()),
        "restored_rate": restored.value,
        "restored_low": restored.low,
        "restored_high": restored.high,
    }
    # In halves, so that no logit overflows.
    score = 0.5 + 0.5 * np.tanh(logit / 2)
    for name, values in (("margin", margin), ("logit", logit), ("score", score)):
        found = mean_interval(values, seed=seed)
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    """With p_random: (1 + draws that restore as much) / (1 + draws)."""
    table["p_random"] = np.nan
    for i, row in table[table["arm"] == "top"].iterrows():
        same = (table["share"] == row["share"]) & (table["group"] == row["group"])
        drawn = table.loc[same & (table["arm"] == "random"), "restored"]
        if len(drawn):
            table.loc[i, "p_random"] = (1 + (drawn >= row["restored"]).sum()) / (1 + len(drawn))
    return table


def _worries(renorm: Renorm, batch: int) -> Iterator[str]:
    if renorm == "official_batch":
        yield (
            f"Heads were removed with the published rescale over the whole batch (here {batch} traces), so "
            f"every figure of the ablation depends on which traces ran together; renorm=none does not."
        )
