"""Whether a belief score can be told from cues that are not harm, and what decides it.

The final mark can be made equal by hand, and with it the last token, so an experiment decides: every prompt is
scored without a mark, with a full stop and with a question mark. There the cue says nothing, has an AUROC of
0.5, and what is left is the score's own. The prompts as they are can neither convict nor acquit: where the
labels have different marks, an honest score and one that reads the mark both reach 1, and a score that reads
the mark and a little more beats the mark. A score cannot be told from the cue when, at the worst mark, its
AUROC is not above 0.5 or keeps less than half of its distance from 0.5; it leans on the cue when it is shown to
lose more than 0.02 there.

Words, n-grams, the last word and the length cannot be made equal, so a comparison decides: belief must beat the
cue by 0.02 or more with an interval above 0 (paired bootstrap of the AUROC difference). Since n-grams see
the mark too, beating them with every prompt and their training texts stripped of marks is enough. A cue that
reaches 1 cannot be beaten: harder prompts are needed, and until then nothing is told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from refusalscope.guard.audit.changes import Array, Remarked
from refusalscope.prompts import punctuation_variants
from refusalscope.stats import Interval, auroc
from refusalscope.stats.auroc_difference import auroc_difference
from refusalscope.studies.directions.shortcuts import (
    AS_GOOD,
    MARGIN,
    MARK,
    compare,
    cue_scores,
    log_odds,
)

APART, LEANS, CANNOT = "told apart", "told apart, but leans on it", "cannot be told from it"
CHANCE, NOTHING = "not above chance", "nothing to tell apart"
# A cue that may well be weaker, but was not shown to be.
FOR_ALL_SHOWN = "as good as belief, for all that these prompts show"
OVERALL, LAST_TOKEN = "overall", "last token"
MARKED = {
    "as_is": "as it is",
    "stripped": "stripped of its final mark",
    "period": "ending in a full stop",
    "question": "ending in a question mark",
}
# Share of its distance from chance that a score must keep when a cue is made equal.
KEPT = 0.5
# Share of prompts with the commonest last token from which that token counts as equal in all (a tokenizer
# merges some marks with what stands before them).
ONE_TOKEN = 0.95


@dataclass(frozen=True)
class Told:
    """What is said of one cue; `gap` is the AUROC difference that decided it."""

    name: str
    verdict: str
    reason: str
    gap: Interval


@dataclass(frozen=True)
class Cues:
    """Scores of each cue on the report prompts as they are, and of text cues with every mark stripped."""

    as_is: dict[str, Array]
    stripped: dict[str, Array]


def learn_cues(
    texts: Sequence[str], harmful: Sequence[bool], tokens: Sequence[str], found: Remarked
) -> Cues:
    """Cues learnt on fit texts [n], their labels and the tokens where harm is read, scored on the report."""
    bare = [punctuation_variants(text)["stripped"] for text in texts]
    token = log_odds(tokens, harmful, found.tokens["as_is"])
    return Cues(
        {LAST_TOKEN: token, **cue_scores(texts, harmful, found.texts["as_is"])},
        cue_scores(bare, harmful, found.texts["stripped"]),
    )


def judge_cues(found: Remarked, cues: Cues, seed: int) -> list[Told]:
    """A verdict for each cue, the final mark first."""
    own = auroc(found.harmful, found.scores["as_is"], seed=seed)
    one_token = [
        name
        for name, tokens in found.tokens.items()
        if max(Counter(tokens).values()) >= ONE_TOKEN * len(tokens)
    ]
    equal = {MARK: [name for name in found.scores if name != "as_is"], LAST_TOKEN: one_token}
    told = []
    for name in (MARK, *(each for each in cues.as_is if each != MARK)):
        if not own.low > 0.5:
            gap = auroc_difference(
                found.harmful, found.scores["as_is"], cues.as_is[name], seed=seed
            )
            told.append(Told(name, NOTHING, "the score is not above chance itself", gap))
        elif equal.get(name):
            told.append(_held_equal(name, found, equal[name], own, seed))
        else:
            told.append(_compared(name, found, cues, seed))
    return told


def verdict_table(found: Remarked, told: Sequence[Told], seed: int) -> pd.DataFrame:
    """The verdict over all cues, then cue by cue: name, verdict, reason, difference, low, high."""
    own = auroc(found.harmful, found.scores["as_is"], seed=seed)
    failed = [each for each in told if each.verdict == CANNOT]
    leaning = [each for each in told if each.verdict == LEANS]
    nan = float("nan")
    if not own.low > 0.5:
        verdict, reason = CHANCE, f"AUROC {_area(own)} on the report prompts"
    elif failed:
        verdict = f"cannot be told from {_and(failed)}"
        reason = f"{failed[0].name}: {failed[0].reason}"
    elif leaning:
        verdict, reason = f"{APART}, but leans on {_and(leaning)}", leaning[0].reason
    else:
        least = min(told, key=lambda each: each.gap.low)
        verdict = APART
        reason = f"AUROC {_area(own)}; the cue nearest to it is {least.name}: {least.reason}"
    rows = [Told(OVERALL, verdict, reason, Interval(nan, nan, nan, own.n)), *told]
    return pd.DataFrame(
        [
            {
                "name": each.name,
                "verdict": each.verdict,
                "reason": each.reason,
                "difference": each.gap.value,
                "low": each.gap.low,
                "high": each.gap.high,
            }
            for each in rows
        ]
    )


def shortcuts_table(
    found: Remarked, elsewhere: Mapping[str, Array], cues: Cues, told: Sequence[Told], seed: int
) -> pd.DataFrame:
    """AUROC of belief, of belief with marks made equal, at another token, and of each cue, with verdicts.

    elsewhere: name -> the score of an axis fitted at another token. Verdicts of cues agree with `judge_cues`:
    one that the score cannot be told from begins "as good as belief".
    """
    beliefs = {
        "belief": found.scores["as_is"],
        **{f"belief, every prompt {MARKED[v]}": s for v, s in list(found.scores.items())[1:]},
        **elsewhere,
    }
    frame = compare(found.harmful.tolist(), beliefs, cues.as_is, seed)
    words = {each.name: each for each in told}
    frame["verdict"] = [
        _in_words(verdict, words.get(name))
        for name, verdict in zip(frame["name"], frame["verdict"], strict=True)
    ]
    return frame


def _in_words(verdict: str, told: Told | None) -> str:
    if told is None:
        return verdict
    if told.verdict == CANNOT:
        return verdict if verdict == AS_GOOD else f"{FOR_ALL_SHOWN}: {told.reason}"
    return f"{told.verdict}: {told.reason}" if verdict == AS_GOOD else verdict


def _held_equal(
    name: str, found: Remarked, variants: Sequence[str], own: Interval, seed: int
) -> Told:
    areas = {v: auroc(found.harmful, found.scores[v], seed=seed) for v in variants}
    worst = min(areas, key=lambda variant: areas[variant].value)
    area = areas[worst]
    loss = auroc_difference(found.harmful, found.scores["as_is"], found.scores[worst], seed=seed)
    reason = f"AUROC {own.value:.2f} as they are, {_area(area)} with every prompt {MARKED[worst]}"
    if not area.low > 0.5 or area.value - 0.5 < KEPT * (own.value - 0.5):
        verdict = CANNOT
    else:
        verdict = LEANS if loss.low > MARGIN else APART
    # Against the cue, which has 0.5 where it is equal in all prompts.
    gap = Interval(area.value - 0.5, area.low - 0.5, area.high - 0.5, area.n)
    return Told(name, verdict, reason, gap)


def _compared(name: str, found: Remarked, cues: Cues, seed: int) -> Told:
    pairs = {"": (found.scores["as_is"], cues.as_is[name])}
    if name in cues.stripped:
        pairs[" with every mark stripped"] = found.scores["stripped"], cues.stripped[name]
    gaps = {
        where: auroc_difference(found.harmful, belief, cue, seed=seed)
        for where, (belief, cue) in pairs.items()
    }
    where = max(gaps, key=lambda each: gaps[each].low)
    gap = gaps[where]
    apart = gap.low > 0 and gap.value >= MARGIN
    reason = f"AUROC {gap.value:+.2f} ({gap.low:+.2f} to {gap.high:+.2f}) against the cue{where}"
    return Told(name, APART if apart else CANNOT, reason, gap)


def _area(area: Interval) -> str:
    return f"{area.value:.2f} ({area.low:.2f} to {area.high:.2f})"


def _and(told: Sequence[Told]) -> str:
    names = [f"the {each.name}" for each in told]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
