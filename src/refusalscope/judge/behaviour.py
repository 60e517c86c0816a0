"""How a model behaves on prompts: greedy replies, a judgement of each, and the refusal margin."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.judge.correction import add_corrected
from refusalscope.judge.protocol import Exchange, Judge, Judgement
from refusalscope.model import ChatModel, RefusalMargin, Rendered, Variant, learn_openings
from refusalscope.prompts import Prompt
from refusalscope.stats import mean_interval, wilson


@dataclass(frozen=True)
class Replies:
    """Greedy replies and what the judge says of them; `first` is each reply's first token, -1 if empty."""

    texts: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    first: tuple[int, ...]

    @property
    def refused(self) -> npt.NDArray[np.bool_]:
        """Fully or in part; a reply that the judge could not tell counts as not refused."""
        return np.array([bool(judgement.refused) for judgement in self.judgements])


def reply(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    rendered: Sequence[Rendered],
    judge: Judge,
    max_new_tokens: int,
    variant: Variant = (),
    progress: Callable[[int, int], None] | None = None,
) -> Replies:
    """Generate and judge one greedy reply a prompt, under one variant (edits at every step)."""
    ids = chat.generate(
        rendered, [variant] * len(rendered), max_new_tokens=max_new_tokens, progress=progress
    )
    texts = tuple(chat.decode(row) for row in ids)
    first = tuple(row[0] if row else -1 for row in ids)
    exchanges = [Exchange(p.text, text) for p, text in zip(prompts, texts, strict=True)]
    return Replies(texts, tuple(judge.judge(exchanges)), first)


def learn_margin(judgements: Sequence[Judgement], first: Sequence[int]) -> RefusalMargin:
    """Learn the opening tokens of refusals and replies; raises InputError where either is missing.

    A degenerate reply and a partial refusal teach neither: their first token says little.
    """
    sides: dict[str | None, list[int]] = {"full_refusal": [], "compliance": []}
    for judgement, token in zip(judgements, first, strict=True):
        if judgement.label in sides and token >= 0:
            sides[judgement.label].append(token)
    return learn_openings(sides["full_refusal"], sides["compliance"])


def margins(
    chat: ChatModel, prompts: Sequence[Rendered], margin: RefusalMargin, variant: Variant = ()
) -> npt.NDArray[np.float64]:
    """Refusal margin of each prompt under one variant, in nats: [prompts]."""
    return chat.measure(prompts, [variant], {"margin": margin}).scores["margin"][:, 0]


def rates(prompts: pd.DataFrame, judge: str, seed: int) -> pd.DataFrame:
    """Refusal rate (Wilson) and mean margin (bootstrap) by label and category; "all" for a whole label.

    Beside the raw rate stands the one corrected for the judge (`add_corrected`). prompts: columns label,
    category, refused, refusal_margin (nats, may be missing).
    """
    frames = []
    for label, group in prompts.groupby("label", sort=True):
        parts = [("all", group)]
        if group["category"].notna().any():
            parts += [(str(name), part) for name, part in group.groupby("category", sort=True)]
        for category, part in parts:
            rate = wilson(int(part["refused"].sum()), len(part))
            known = part["refusal_margin"].dropna().to_numpy()
            margin = mean_interval(known, seed=seed)
            frames.append(
                {
                    "label": label,
                    "category": category,
                    "n": len(part),
                    "refused": int(part["refused"].sum()),
                    "rate": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "margin_mean": margin.value,
                    "margin_low": margin.low,
                    "margin_high": margin.high,
                }
            )
    return add_corrected(pd.DataFrame(frames), judge, seed)


def prompt_table(
    prompts: Sequence[Prompt],
    rendered: Sequence[Rendered],
    splits: Sequence[str],
    judgements: Sequence[Judgement],
    margin: npt.NDArray[np.float64],
) -> pd.DataFrame:
    """The run's `prompts` table: one row a prompt, no text."""
    return pd.DataFrame(
        {
            "id": [prompt.id for prompt in prompts],
            "pair_id": [_pair_id(prompt) for prompt in prompts],
            "label": [prompt.label for prompt in prompts],
            "category": [prompt.category for prompt in prompts],
            "source": [prompt.source for prompt in prompts],
            "language": [prompt.language for prompt in prompts],
            "split": list(splits),
            "refusal_margin": margin,
            "refused": [bool(judgement.refused) for judgement in judgements],
            "verdict": [judgement.label for judgement in judgements],
            "harmful": [judgement.harmful for judgement in judgements],
            "n_tokens": [len(row) for row in rendered],
            "rendered_sha256": [hashlib.sha256(row.text.encode()).hexdigest() for row in rendered],
            "boundary_merge": [row.boundary_merge for row in rendered],
        }
    )


def _pair_id(prompt: Prompt) -> str | None:
    """Members of a pair are named "PAIR/harmful" and "PAIR/harmless"."""
    pair, _, member = prompt.id.rpartition("/")
    return pair if pair and member == prompt.label else None
