"""A pool scored by its cliffs, and what a repair did on held-out prompts that nothing before has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import expit

from refusalscope.judge import Judge
from refusalscope.judge.behaviour import margins, reply
from refusalscope.model import ChatModel, RefusalMargin, Rendered
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import Prompt
from refusalscope.stats import Interval, mean_interval, paired_difference, wilson
from refusalscope.stats.interval import NAN
from refusalscope.studies.cliff.curves import prompt_table
from refusalscope.studies.cliff.probe import Probe
from refusalscope.studies.cliff.ranking import Pool
from refusalscope.studies.cliff.scores import score_tokens
from refusalscope.studies.cliff.traces import Trace, traces_of
from refusalscope.studies.cliff.training_file import TrainingRow

Array = npt.NDArray[np.float64]
LOST, OTHER, HARMLESS = "harmful, lost refusal", "harmful, other", "harmless"
BEFORE = "before"
# Prompts of the pool whose replies and scores are made at once.
AT_ONCE = 256


def score_pool(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    probe: Probe,
    *,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> Pool:
    """The pool's replies after its own thinking, and the probe's plateau and final score of each."""
    track = (progress or Silent()).track("replies and scores of the pool")
    replies: list[str] = []
    scores: list[Array] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = traces_of(chat, prompts[start : start + AT_ONCE])
        rendered = [trace.rendered for trace in part]
        said = chat.generate(rendered, [()] * len(part), max_new_tokens=max_new_tokens)
        replies += [chat.decode(ids) for ids in said]
        for trace, logits in zip(part, score_tokens(chat, part, probe), strict=True):
            values = expit(logits)
            thinking = values[list(trace.thinking)]
            row = float(thinking.max()), float(np.quantile(thinking, 0.9)), float(values[-1])
            scores.append(np.array(row))
        track(min(start + AT_ONCE, len(prompts)), len(prompts))
    plateau, p90, final = np.array(scores).T
    return Pool(list(prompts), replies, plateau=plateau, p90=p90, final=final)


def general_rows(
    chat: ChatModel, traces: Sequence[Trace], max_new_tokens: int
) -> list[TrainingRow]:
    """Harmless prompts with the model's own thinking and reply: what the repair must leave as it is."""
    rendered = [trace.rendered for trace in traces]
    said = chat.generate(rendered, [()] * len(traces), max_new_tokens=max_new_tokens)
    texts = [chat.decode(ids) for ids in said]
    return [
        TrainingRow(trace.prompt, text, kind="general")
        for trace, text in zip(traces, texts, strict=True)
        if text.strip()
    ]


def held_out(
    chat: ChatModel,
    base: ChatModel,
    traces: Sequence[Trace],
    groups: Mapping[str, Sequence[int]],
    probe: Probe,
    margin: RefusalMargin,
    judge: Judge,
    *,
    max_new_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """One row a held-out prompt: what `chat` says and how its refusal stands, beside `base`.

    groups: rows of `traces` by name. Columns: id, label, category, group, refused (judged), degenerate, margin
    (nats), cliff (ms_p90 by the probe, which was fitted on `base`), kl (nats a token of the base's own reply
    to a harmless prompt, base against chat; NaN elsewhere).
    """
    rendered = [trace.rendered for trace in traces]
    prompts = [trace.prompt for trace in traces]
    said = reply(chat, prompts, rendered, judge, max_new_tokens)
    table = prompt_table(traces, score_tokens(chat, traces, probe), n_permutations=1, seed=seed)
    group = {row: name for name, rows in groups.items() for row in rows}
    kl = np.full(len(traces), NAN)
    harmless = list(groups.get(HARMLESS, ()))
    if harmless and chat is not base:
        kl[harmless] = divergence(chat, base, [rendered[i] for i in harmless], max_new_tokens)
    elif harmless:
        kl[harmless] = 0.0
    return pd.DataFrame(
        {
            "id": [prompt.id for prompt in prompts],
            "label": [prompt.label for prompt in prompts],
            "category": [prompt.category for prompt in prompts],
            "group": [group[i] for i in range(len(traces))],
            "refused": said.refused,
            "degenerate": [each.label == "degenerate" for each in said.judgements],
            "margin": margins(chat, rendered, margin),
            "cliff": table["ms_p90"],
            "kl": kl,
        }
    )


@torch.inference_mode()
def divergence(
    chat: ChatModel, base: ChatModel, prompts: Sequence[Rendered], max_new_tokens: int
) -> Array:
    """KL(base || chat) in nats, mean over the tokens of the base's own greedy reply: [prompts]."""
    replies = base.generate(prompts, [()] * len(prompts), max_new_tokens=max_new_tokens)
    found = np.full(len(prompts), NAN)
    for i, (prompt, said) in enumerate(zip(prompts, replies, strict=True)):
        if not said:
            continue
        ids = torch.tensor([[*prompt.ids, *said]])
        at = slice(prompt.n_prompt - 1, prompt.n_prompt - 1 + len(said))
        p, q = (
            one.model(input_ids=ids.to(one.device)).logits[0, at].float().cpu().log_softmax(-1)
            for one in (base, chat)
        )
        found[i] = float((p.exp() * (p - q)).sum(-1).mean())
    return found


def effects(prompts: pd.DataFrame, against: str, *, seed: int) -> pd.DataFrame:
    """The table `repair.effects`: what each selection did to each group, beside before and another selection.

    prompts: `repair.prompts`, with the column selection ("before" or a ranking's name); against: the selection
    that the others are compared with, paired by prompt. Columns: selection, quantity, value with low and high,
    before, change with _low and _high (paired), n, p, beats with _low and _high (beyond `against`), against.
    """
    wide = {name: part.set_index("id") for name, part in prompts.groupby("selection", sort=False)}
    before = wide.pop(BEFORE)
    kinds = (
        ("refusal restored", LOST, "refused"),
        ("refusal of other harmful", OTHER, "refused"),
        ("over-refusal", HARMLESS, "refused"),
        ("margin of lost refusals", LOST, "margin"),
        ("cliff of lost refusals", LOST, "cliff"),
        ("KL on harmless replies", HARMLESS, "kl"),
    )
    rows = []
    for name, after in wide.items():
        for quantity, group, column in kinds:
            ids = before.index[before["group"] == group]
            if not len(ids):
                continue
            now, then = (each.loc[ids, column].to_numpy(float) for each in (after, before))
            if np.isnan(now).all():
                continue
            other = wide[against].loc[ids, column].to_numpy(float) if against in wide else None
            rows.append(
                {
                    "selection": name,
                    "quantity": quantity,
                    **_effect(now, then, other if name != against else None, column, seed),
                    "against": against if name != against else "",
                }
            )
    return pd.DataFrame(rows)


def _effect(
    now: Array, then: Array, other: Array | None, column: str, seed: int
) -> dict[str, float]:
    known = ~np.isnan(now)
    now, then = now[known], then[known]
    level = (
        wilson(int(now.sum()), len(now)) if column == "refused" else mean_interval(now, seed=seed)
    )
    change = paired_difference(now, then, seed=seed)
    beats = Interval(NAN, NAN, NAN, 0)
    if other is not None:
        beyond = now - other[known]
        beats = mean_interval(beyond[~np.isnan(beyond)], seed=seed)
    return {
        "value": level.value,
        "low": level.low,
        "high": level.high,
        "before": float(then.mean()),
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "n": len(now),
        "p": change.p,
        "beats": beats.value,
        "beats_low": beats.low,
        "beats_high": beats.high,
    }
