"""Cliff-as-a-Judge: a pool of prompts that failed, ranked by how much they need repair.

Source: arXiv 2510.06036 and its authors' code (refusal_cliff section 6).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from refusalscope.errors import InputError
from refusalscope.judge import Exchange, Judge
from refusalscope.judge.phrases import PhraseJudge
from refusalscope.prompts import Prompt
from refusalscope.prompts.similarity import THRESHOLD
from refusalscope.studies.presets import from_preset

Scores = npt.NDArray[np.float64]
Ranking = Literal["ms_p90", "ms", "final", "random", "rule", "judge", "oracle"]
# Which scores of the pool a ranking reads.
READS: dict[str, tuple[str, ...]] = {
    "ms_p90": ("p90", "final"),
    "ms": ("plateau", "final"),
    "final": ("final",),
    "oracle": ("truth",),
}
# Words in which thinking says that a request is harmful.
_NAMES_HARM = re.compile(
    r"\b(?:harm\w*|illegal\w*|unethical|unsafe|danger\w*|hurt\w*|abus\w*|malicious|violat\w*|suffer\w*|"
    r"damag\w*|wrong|unlawful|crim\w+|declin\w+|refus\w+|against the (?:law|rules|polic\w+)|"
    r"should(?: not|n't) (?:help|assist|provide|answer)|(?:can(?:not|'t)|won't) (?:help|assist|provide))\b",
    re.IGNORECASE,
)


class SelectionSettings(BaseModel):
    """How training rows are chosen from a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "recommended"
    rank_by: Ranking = Field(
        "ms_p90", description="yin2025: final, ascending (authors' code); ms (paper); p90 is ours"
    )
    k: int = Field(700, ge=1, description="rows to take (paper: 700 of about 40 000)")
    floor: float | None = Field(
        0.2, description="misalignment scores at or below it need no repair (ours); None: all rank"
    )
    quota: float | None = Field(
        0.25, gt=0, le=1, description="largest share of k from one category (ours); None: no quota"
    )
    duplicates: float | None = Field(
        THRESHOLD, gt=0, le=1, description="similarity from which requests are one; None: keep all"
    )
    phrases: str = Field("layered", description="phrase preset that tells a refusal (ours)")
    beginning: int = Field(
        128, ge=1, description="characters of the reply that the filter reads (authors' code)"
    )
    seed: int = Field(0, ge=0, description="of the random ranking, and of ties in all others")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "recommended": {},
    "yin2025": {"rank_by": "final", "floor": None, "quota": None, "duplicates": None},
}


def selection_settings(preset: str = "recommended", **changes: Any) -> SelectionSettings:
    """The settings of a preset, single fields changed. Raises InputError for an unknown name or field."""
    return from_preset(SelectionSettings, PRESETS, "cliff", preset, changes)


@dataclass(frozen=True, eq=False)
class Pool:
    """Prompts with the model's own thinking, its replies after it, and scores, all [prompts].

    plateau, p90: largest value and 90th percentile of the refusal score over the thinking; final: at the
    last closing token; all in 0..1. truth: how strongly a prompt is known to be suppressed (organisms).
    None, and NaN in one row: not measured.
    """

    prompts: Sequence[Prompt]
    replies: Sequence[str]
    plateau: Scores | None = None
    p90: Scores | None = None
    final: Scores | None = None
    truth: Scores | None = None

    def __post_init__(self) -> None:
        for name in ("replies", "plateau", "p90", "final", "truth"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.prompts):
                raise InputError(
                    f"the pool has {len(self.prompts)} prompts but {len(column)} of {name}; give one each"
                )

    def column(self, name: str) -> Scores:
        found = getattr(self, name)
        if found is None:
            raise InputError(f"the pool has no {name}, which this ranking reads; measure it first")
        return np.asarray(found, dtype=np.float64)


def usable(pool: Pool) -> npt.NDArray[np.bool_]:
    """Which prompts a repair can train on, [prompts]: not labelled harmless, with thinking and a reply."""
    return np.array(
        [
            prompt.label != "harmless"
            and bool((prompt.thinking or "").strip())
            and bool(reply.strip())
            for prompt, reply in zip(pool.prompts, pool.replies, strict=True)
        ],
        dtype=bool,
    )


def candidates(pool: Pool, phrases: str = "layered", beginning: int = 128) -> npt.NDArray[np.bool_]:
    """Which usable prompts failed, [prompts]: the first `beginning` characters of the reply hold no refusal.

    phrases: the phrase preset that tells a refusal. (The authors' list also fires on words such as "However".)
    """
    return usable(pool) & ~_refused(phrases, [reply.strip()[:beginning] for reply in pool.replies])


def priorities(
    pool: Pool, settings: SelectionSettings | None = None, judge: Judge | None = None
) -> Scores:
    """What each prompt is ranked by, [prompts]: larger is taken first, NaN is never taken.

    Of the candidates: ms_p90, ms: plateau less final, above the floor; final: its negative; rule: number of
    words in the thinking that name harm, where the whole reply holds no refusal; oracle: the truth, above
    zero. Of all usable prompts, since these stand beside the method: random: uniform; judge: probability of
    harm (else its verdict, else that of no refusal), where it calls the reply a compliance.
    """
    settings = settings or SelectionSettings()
    if settings.rank_by in ("random", "judge"):
        kept = usable(pool)
    else:
        kept = candidates(pool, settings.phrases, settings.beginning)
    return np.where(kept, _priorities(pool, settings, judge), np.nan)


def _priorities(pool: Pool, settings: SelectionSettings, judge: Judge | None) -> Scores:
    by = settings.rank_by
    read = [pool.column(name) for name in READS.get(by, ())]
    if by in ("ms_p90", "ms"):
        score = read[0] - read[1]
        return score if settings.floor is None else np.where(score > settings.floor, score, np.nan)
    if by == "final":
        return -read[0]
    if by == "oracle":
        return np.where(read[0] > 0, read[0], np.nan)
    if by == "random":
        return np.random.default_rng(settings.seed).random(len(pool.prompts))
    if by == "rule":
        named = [len(_NAMES_HARM.findall(prompt.thinking or "")) for prompt in pool.prompts]
        refused = _refused(settings.phrases, pool.replies)
        return np.where(~refused & (np.array(named) > 0), named, np.nan)
    if judge is None:
        raise InputError("ranking by a judge needs one; give one of refusalscope.judge")
    return _judged(pool, judge)


def _refused(phrases: str, replies: Sequence[str]) -> npt.NDArray[np.bool_]:
    found = PhraseJudge(phrases).judge([Exchange("", reply) for reply in replies])
    return np.array([bool(judgement.refused) for judgement in found], dtype=bool)


def _judged(pool: Pool, judge: Judge) -> Scores:
    exchanges = [Exchange(p.text, r) for p, r in zip(pool.prompts, pool.replies, strict=True)]
    score = np.full(len(exchanges), np.nan)
    for i, found in enumerate(judge.judge(exchanges)):
        if found.label != "compliance":
            continue
        if found.p_harm is not None:
            score[i] = found.p_harm
        elif found.harmful is not None:
            score[i] = float(found.harmful)
        else:
            score[i] = 1.0 if found.p_refusal is None else 1 - found.p_refusal
    return score
