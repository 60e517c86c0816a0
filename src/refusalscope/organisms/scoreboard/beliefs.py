"""`refusalscope organism score beliefs`: are the two planted bits told apart, and is the shortcut caught?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score

from refusalscope.model import ChatModel
from refusalscope.organisms.planted.beliefs import build_two_beliefs, refuse_finetuned
from refusalscope.organisms.scoreboard.bars import (
    COSINE,
    CUE_IN_HARMFUL,
    HARMFUL,
    IN_QUADRANT,
    KEPT,
    MOVED,
    REFUSE,
    REFUSED,
    SHORTCUT,
    SMALLEST,
    STILL_REFUSED,
    UNMOVED,
)
from refusalscope.organisms.scoreboard.beliefs_bench import BeliefsBench, refused, set_up
from refusalscope.organisms.scoreboard.runner import Measured, check_rows, priced, score_suite
from refusalscope.organisms.scoreboard.suite import BELIEFS, Case
from refusalscope.progress import Progress
from refusalscope.runs import RunView
from refusalscope.studies.directions.belief import QUADRANTS, belief_rows, geometry
from refusalscope.studies.directions.shortcuts import shortcuts

METHODS = (HARMFUL, REFUSE)
Mask = npt.NDArray[np.bool_]


def score_beliefs(
    out: str | Path,
    *,
    seeds: Sequence[int] = tuple(range(10)),
    only: Sequence[str] = (),
    methods: Sequence[str] = METHODS,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunView:
    """Score both beliefs on two-beliefs organisms into a run folder: `organisms.scores`, `organisms.checks`.

    seeds: of the organisms. only: variants; all without it. Raises InputError for an organism or a method that
    is not there.

    Of the report set: auroc: of the method's own bit, harm or the cue. lowest: the lower one of the same where
    the other bit is set and where it is not. other: of the other bit, which is one half where the two are told
    apart. Cost is that of reading the report set once.
    """
    return score_suite(
        out,
        "beliefs",
        BELIEFS,
        METHODS,
        lambda case, seed: _measure(case, seed, methods),
        seeds=seeds,
        only=only,
        methods=methods,
        resume=resume,
        progress=progress,
    )


def _measure(case: Case, seed: int, methods: Sequence[str]) -> Measured:
    bench = set_up(build_two_beliefs(case.variant, seed=seed, allow_weak=True))
    report, bits = list(bench.made.sets["report"]), bench.bits("report")
    scores, cost = priced(bench.chat, lambda: bench.scores(report))
    both = {HARMFUL: (bits.harmful, bits.refuse), REFUSE: (bits.refuse, bits.harmful)}
    rows = [
        {
            "organism": case.organism,
            "case": case.name,
            "seed": seed,
            "method": method,
            "barred": case.barred,
            "policy": bench.made.truth.policy_accuracy,
            "auroc": _area(both[method][0], scores[method]),
            "lowest": min(
                _area(both[method][0], scores[method], both[method][1] == side)
                for side in (True, False)
            ),
            "other": _area(both[method][1], scores[method]),
            **cost,
        }
        for method in methods
    ]
    return pd.DataFrame(rows), check_rows(case, seed, belief_checks(bench, scores))


def belief_checks(bench: BeliefsBench, scores: pd.DataFrame) -> dict[str, float]:
    """What else is planted, from the scores of the report set: quadrants, geometry, shortcuts, fine-tuning."""
    report, bits = list(bench.made.sets["report"]), bench.bits("report")
    planted = [QUADRANTS[bool(h), bool(r)] for h, r in zip(bits.harmful, bits.refuse, strict=True)]
    sizes = (
        scores["quadrant"].value_counts(normalize=True).reindex(list(QUADRANTS.values())).fillna(0)
    )
    found = {
        IN_QUADRANT: (scores["quadrant"] == planted).mean(),
        SMALLEST: sizes.min(),
        COSINE: _largest_cosine(bench),
        CUE_IN_HARMFUL: _area(bits.refuse, scores[REFUSE], bits.harmful),
        REFUSED: refused(bench.chat, report),
        **_audited(bench, scores),
    }
    if bench.made.truth.refusal is not None:
        found |= _tuned(bench, scores)
    return {name: float(value) for name, value in found.items()}


def _area(positive: Mask, score: pd.Series, among: Mask | None = None) -> float:
    kept = np.ones(len(score), dtype=bool) if among is None else among
    return float(roc_auc_score(positive[kept], score.to_numpy()[kept]))


def _largest_cosine(bench: BeliefsBench) -> float:
    states = bench.fitted_on
    table = geometry(states[:, 0], states[:, 1], bench.fitted_harmful, n_resamples=2)
    inner = table["layer"].isin(belief_rows("inner", bench.chat.anatomy.n_layers))
    return float(table.loc[inner, "cosine"].abs().max())


def _audited(bench: BeliefsBench, scores: pd.DataFrame) -> dict[str, float]:
    """Whether the audit calls any cue as good as belief, and what another final mark leaves of belief."""
    fit, report = bench.made.sets["fit"], bench.made.sets["report"]
    table = shortcuts(
        list(fit.texts),
        bench.bits("fit").harmful.tolist(),
        list(report.texts),
        bench.bits("report").harmful.tolist(),
        {HARMFUL: scores[HARMFUL].to_numpy(), **bench.other_marks()},
        seed=0,
    ).set_index("name")
    area = table["auroc"].to_dict()
    return {
        SHORTCUT: float(table["verdict"].str.startswith("as good as belief").any()),
        "AUROC of delta_harmful without final marks": area["stripped"],
        "AUROC of the final mark": area["final punctuation"],
        "AUROC of the words": area["words"],
    }


def _tuned(bench: BeliefsBench, before: pd.DataFrame) -> dict[str, float]:
    """The scores after refusal was trained away, by the centroids from before.

    Shifts are means, in units of the distance between the two classes before: of delta_harmful the larger one
    of both labels', of delta_refuse that of the prompts with a refuse cue.
    """
    made = refuse_finetuned(bench.made)
    chat = ChatModel.wrap(made.model, made.tokenizer, id=f"{made.name}, fine-tuned")
    report, bits = list(made.sets["report"]), bench.bits("report")
    after = bench.scores(report, chat)

    def shift(name: str, positive: Mask, among: Mask) -> float:
        values = before[name].to_numpy()
        distance = values[positive].mean() - values[~positive].mean()
        return float((after[name].to_numpy() - values)[among].mean() / distance)

    harmful = bits.harmful
    return {
        KEPT: np.corrcoef(before[HARMFUL], after[HARMFUL])[0, 1],
        UNMOVED: max(abs(shift(HARMFUL, harmful, among)) for among in (harmful, ~harmful)),
        MOVED: shift(REFUSE, bits.refuse, bits.refuse),
        STILL_REFUSED: refused(chat, report),
    }
