"""Choosing one refusal direction among candidates: the published rule, and a steadier one.

Pure functions of score tables, so that published records can be replayed through them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """The filters of arXiv 2406.11717, appendix C, and what counts as a tie."""

    depth_cut: float = 0.8
    max_kl: float = 0.1
    min_induce: float = 0.0
    tie: float = 0.25


def why_dropped(
    layer: Array, bypass: Array, induce: Array, kl: Array, n_layers: int, rule: Rule
) -> list:
    """For each candidate the first filter that drops it: "nan", "late layer", "kl", "induce", or ""."""
    missing = np.isnan(bypass) | np.isnan(induce) | np.isnan(kl)
    late = layer >= int(rule.depth_cut * n_layers)
    reasons = np.select(
        [missing, late, kl > rule.max_kl, induce < rule.min_induce],
        ["nan", "late layer", "kl", "induce"],
        default="",
    )
    return reasons.tolist()


def select(candidates: pd.DataFrame, n_layers: int, rule: Rule = Rule()) -> pd.DataFrame:
    """Apply the published rule: of the candidates that pass, the smallest bypass score wins.

    candidates: columns layer, bypass, induce, kl (and any others). Returns a copy with `kept`, `reason`,
    `chosen`, `tie`. Where nothing passes, nothing is chosen.
    """
    layer, bypass, induce, kl = (
        candidates[name].to_numpy(float) for name in ("layer", "bypass", "induce", "kl")
    )
    reasons = why_dropped(layer, bypass, induce, kl, n_layers, rule)
    out = candidates.copy()
    out["reason"] = reasons
    out["kept"] = out["reason"] == ""
    out["chosen"] = False
    out["tie"] = False
    if out["kept"].any():
        best = out.loc[out["kept"], "bypass"].idxmin()
        return mark(out, best, rule)
    return out


def mark(candidates: pd.DataFrame, chosen: Hashable, rule: Rule) -> pd.DataFrame:
    """Mark one row as chosen and those whose bypass lies within `rule.tie` of it, or below, as ties."""
    out = candidates.copy()
    best = out["bypass"].to_numpy()[out.index == chosen][0]
    out["chosen"] = out.index == chosen
    out["tie"] = out["kept"] & ~out["chosen"] & (out["bypass"] <= best + rule.tie)
    return out


def stability(
    bypass: Array,
    induce: Array,
    kl: Array,
    layer: Array,
    n_layers: int,
    rule: Rule,
    n: int,
    seed: int,
) -> Array:
    """Share of bootstrap resamples over prompts in which the published rule chooses each candidate.

    bypass: [candidates, harmful prompts]; induce, kl: [candidates, harmless prompts] -> [candidates]. A
    resample in which nothing passes counts for none.
    """
    if bypass.shape[0] != len(layer) or induce.shape != kl.shape:
        raise InputError(
            f"scores of {bypass.shape[0]} candidates on {induce.shape[1]} and {kl.shape[1]} harmless "
            f"prompts do not fit together ({len(layer)} layers given)"
        )
    rng = np.random.default_rng(seed)
    wins = np.zeros(len(layer))
    late = layer >= int(rule.depth_cut * n_layers)
    for _ in range(n):
        weights = [
            rng.multinomial(size, np.full(size, 1 / size)) / size
            for size in (bypass.shape[1], induce.shape[1])
        ]
        means = bypass @ weights[0], induce @ weights[1], kl @ weights[1]
        passes = ~late & (means[2] <= rule.max_kl) & (means[1] >= rule.min_induce)
        passes &= np.isfinite(means[0])
        if passes.any():
            wins[np.where(passes, means[0], np.inf).argmin()] += 1
    return wins / n


def select_stable(
    candidates: pd.DataFrame,
    shares: Array,
    n_layers: int,
    rule: Rule = Rule(),
) -> pd.DataFrame:
    """Choose, among the candidates that pass, the one most resamples choose (then the smallest bypass)."""
    out = select(candidates, n_layers, rule)
    out["stability"] = shares
    kept = out[out["kept"]]
    if kept.empty:
        return out
    order = kept.sort_values(["stability", "bypass"], ascending=[False, True], kind="stable")
    return mark(out, order.index[0], rule)


def relaxations(rule: Rule) -> list[tuple[str, Rule]]:
    """The order in which filters are let go where no candidate passes: what is said of it, and the rule.

    First the depth cut, then the KL threshold doubled and doubled again, last the inducing one.
    """
    deep = replace(rule, depth_cut=1.0)
    costly = [replace(deep, max_kl=factor * rule.max_kl) for factor in (2, 4)]
    return [
        ("the depth cut", deep),
        *[(f"the depth cut and max_kl (to {each.max_kl:g})", each) for each in costly],
        (
            f"the depth cut, max_kl (to {costly[-1].max_kl:g}) and min_induce",
            replace(costly[-1], min_induce=-np.inf),
        ),
    ]


@dataclass(frozen=True)
class Relaxed:
    """A choice by a looser rule: the table with it marked, the rule, and in words what was let go."""

    table: pd.DataFrame
    rule: Rule
    let_go: str


def select_relaxed(candidates: pd.DataFrame, n_layers: int, rule: Rule) -> Relaxed | None:
    """Choose where nothing passed, by the first relaxed rule that lets a candidate through.

    `kept` and `reason` stay those of the given table; only `chosen` and `tie` are new. None where no relaxation
    helps.
    """
    for said, relaxed in relaxations(rule):
        found = select(candidates, n_layers, relaxed)
        if found["chosen"].any():
            table = candidates.assign(chosen=found["chosen"], tie=found["tie"])
            return Relaxed(table, relaxed, said)
    return None
