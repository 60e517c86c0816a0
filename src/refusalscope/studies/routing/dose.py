"""Dose and response: the detection signal of one layer scaled, and where refusal turns round.

    attenuate   h <- h - alpha * residual norm * direction   on harmful prompts
    amplify     h <- h + alpha * residual norm * direction   on controls

at every position and decode step. Source: arXiv 2604.04385, dose-response; alignment_routes section 8. The
published alpha is in raw residual units; here 1 is the mean norm of the residual stream at that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.judge.behaviour import reply
from refusalscope.judge.protocol import Judge
from refusalscope.model import Add, ChatModel, RefusalMargin, Rendered, Site, Variant
from refusalscope.model.edits import frozen
from refusalscope.prompts import Prompt
from refusalscope.stats import mean_interval, wilson
from refusalscope.studies.heads import clusters_of
from refusalscope.studies.routing.thresholds import ARMS, Arm, Responses, thresholds

Array = npt.NDArray[np.float64]
# The earliest layer with this share of the best separation is the one that detects.
ENOUGH = 0.9
MIN_PROMPTS = 4
ALL = "all"


@dataclass(frozen=True)
class Detection:
    """The signal by which a layer tells harmful prompts from controls, at the prompt's last token.

    direction [d_model], of length 1: mean `resid_post` of harmful prompts minus that of controls.
    residual_norm: mean norm of the layer's `resid_post` over both. separation [layers]: difference of means in
    pooled standard deviations along each layer's own direction, found on one half of the prompts and read on
    the other, both ways.
    """

    layer: int
    direction: Tensor
    residual_norm: float
    separation: Array


def detection(
    chat: ChatModel,
    harmful: Sequence[Rendered],
    control: Sequence[Rendered],
    layer: int | None = None,
) -> Detection:
    """Find the detection signal; without a layer, at the earliest one with 90 % of the best separation.

    Raises InputError for fewer than four prompts of a kind, a layer the model lacks, or a layer where both
    kinds have the same mean.
    """
    n_layers = chat.anatomy.n_layers
    if min(len(harmful), len(control)) < MIN_PROMPTS:
        raise InputError(
            f"{len(harmful)} harmful prompts and {len(control)} controls are too few to find the detection "
            f"signal on halves of them; give {MIN_PROMPTS} or more of each"
        )
    if layer is not None:
        _check_layer(layer, n_layers)
    sites = [Site("resid_post", number) for number in range(n_layers)]
    found = chat.capture([*harmful, *control], sites, [(-1,)])
    n = len(harmful)
    # Each [prompts, d_model].
    states = [found[site][:, 0] for site in sites]
    separation = np.array([_separation(state[:n], state[n:]) for state in states])
    if layer is None:
        layer = int((separation >= ENOUGH * separation.max()).argmax())
    chosen = states[layer]
    difference = chosen[:n].mean(dim=0) - chosen[n:].mean(dim=0)
    if not float(difference.norm()) > 0:
        raise InputError(
            f"harmful prompts and controls have the same mean state after layer {layer}, so there is no signal "
            f"to scale; choose a later layer"
        )
    norm = float(chosen.norm(dim=-1).mean())
    return Detection(layer, difference / difference.norm(), norm, separation)


def dose(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    rendered: Sequence[Rendered],
    margin: RefusalMargin,
    found: Detection,
    *,
    arm: Arm,
    alphas: Sequence[float],
    judge: Judge | None,
    judged_alphas: Sequence[float] = (),
    max_new_tokens: int = 24,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Margins at every dose, judged replies at some, and the doses at which refusal turns round.

    alphas rise from 0, in residual norms; judged_alphas are some of them. clusters: one name a prompt, whose
    prompts are resampled together where there are three or more; the category without it. Both tables have
    rows for all prompts, for every category (language "all") and for every language that prompts name
    (category "all").

    First, `routing.dose`: arm, alpha, category, language, n, margin (mean, nats) with margin_low and
    margin_high (bootstrap), n_judged (replies the judge could label), refused (their share that refuses, fully
    or in part) with low and high (Wilson), degenerate (their share that is no language; it counts as not
    refused).

    Second, `routing.thresholds`: arm, category, language, n, alpha50 (median dose at which a prompt's margin
    crosses 0), crossed (share that crosses inside the doses), behaviour_alpha50 (half of the replies refuse),
    each threshold with _low and _high (when they are NaN or infinite: `median_crossing`), monotone and
    p_monotone (`monotone`), ordinal_slope and p_slope (`ordinal_slope`). Intervals are of 95 %.

    Raises InputError for no prompts, doses that do not rise from 0, judged doses that are no doses or have no
    judge, or a layer the model lacks.
    """
    _check(chat, prompts, rendered, clusters, found, arm, alphas, judge, judged_alphas)
    judged = sorted(set(judged_alphas))
    total = len(prompts) * (1 + len(judged))

    def advance(stage: int) -> Callable[[int, int], None] | None:
        if progress is None:
            return None
        return lambda done, _: progress(stage * len(prompts) + done, total)

    margins = chat.measure(
        rendered, [_scaled(found, arm, a) for a in alphas], {"margin": margin}, progress=advance(0)
    ).scores["margin"]
    labels = np.full((len(prompts), len(judged)), None, dtype=object)
    if judge is not None:
        for number, a in enumerate(judged):
            replies = reply(
                chat,
                prompts,
                rendered,
                judge,
                max_new_tokens,
                _scaled(found, arm, a),
                advance(number + 1),
            )
            labels[:, number] = [judgement.label for judgement in replies.judgements]
    names = clusters if clusters is not None else [p.category or p.id for p in prompts]
    responses = Responses(
        arm, np.asarray(alphas, float), margins, np.asarray(judged, float), labels, tuple(names)
    )
    curves, turns = [], []
    for category, language, chosen in _groups(prompts):
        part = responses.of(chosen)
        where = {"category": category, "language": language}
        curves += [
            {"arm": arm, "alpha": row.pop("alpha"), **where, **row} for row in _curve(part, seed)
        ]
        turns.append({"arm": arm, **where, **thresholds(part, seed=seed)})
    return pd.DataFrame(curves), pd.DataFrame(turns)


def _curve(found: Responses, seed: int) -> Iterator[dict[str, float]]:
    """The rows of one group of prompts, a dose each."""
    clusters = clusters_of(found.clusters)
    place = {alpha: i for i, alpha in enumerate(found.judged_alphas)}
    for number, alpha in enumerate(found.alphas):
        mean = mean_interval(found.margins[:, number], clusters, seed=seed)
        refused = degenerate = np.empty(0)
        if alpha in place:
            refused = found.refused[:, place[alpha]]
            known = ~np.isnan(refused)
            refused = refused[known]
            degenerate = found.labels[known, place[alpha]] == "degenerate"
        rate = wilson(int(refused.sum()), len(refused))
        yield {
            "alpha": float(alpha),
            "n": mean.n,
            "margin": mean.value,
            "margin_low": mean.low,
            "margin_high": mean.high,
            "n_judged": rate.n,
            "refused": rate.value,
            "low": rate.low,
            "high": rate.high,
            "degenerate": float(degenerate.mean()) if rate.n else float("nan"),
        }


def _groups(prompts: Sequence[Prompt]) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """(category, language, which prompts): all, then each category, then each language."""
    yield ALL, ALL, np.ones(len(prompts), dtype=bool)
    categories = [prompt.category for prompt in prompts]
    for name in sorted({name for name in categories if name is not None}):
        yield name, ALL, np.array([other == name for other in categories])
    languages = [prompt.language for prompt in prompts]
    for name in sorted({name for name in languages if name is not None}):
        yield ALL, name, np.array([other == name for other in languages])


def _scaled(found: Detection, arm: Arm, alpha: float) -> Variant:
    if alpha == 0:
        return ()
    scale = alpha * found.residual_norm * (-1 if arm == "attenuate" else 1)
    site = Site("resid_post", found.layer)
    return (Add(site, "all", vector=frozen(found.direction), scale=scale),)


def _separation(harmful: Tensor, control: Tensor) -> float:
    """Standardised difference of means, [prompts, d_model] a side; 0 where the states do not differ."""
    found = []
    for half in (0, 1):
        direction = harmful[half::2].mean(dim=0) - control[half::2].mean(dim=0)
        first, second = (side[1 - half :: 2] @ direction for side in (harmful, control))
        gap = float(first.mean() - second.mean())
        spread = float(((first.var() + second.var()) / 2).sqrt())
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.nan_to_num(np.divide(gap, spread), posinf=np.inf, neginf=-np.inf))
    return float(np.mean(found))


def _check(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    rendered: Sequence[Rendered],
    clusters: Sequence[str] | None,
    found: Detection,
    arm: Arm,
    alphas: Sequence[float],
    judge: Judge | None,
    judged_alphas: Sequence[float],
) -> None:
    if not prompts:
        raise InputError("there is no prompt to dose; give at least one")
    if len(rendered) != len(prompts) or (clusters is not None and len(clusters) != len(prompts)):
        raise InputError(
            f"give one rendered prompt, and one cluster if any, for each of {len(prompts)} prompts"
        )
    if arm not in ARMS:
        raise InputError(f"there is no arm {arm!r}; choose one of {', '.join(ARMS)}")
    steps = np.diff(np.asarray(alphas, float))
    if len(alphas) < 2 or alphas[0] != 0 or not (steps > 0).all() or not np.isfinite(alphas[-1]):
        raise InputError("the doses must start at 0 and rise, such as 0, 0.1, 0.2; mend alphas")
    strange = [a for a in judged_alphas if a not in alphas]
    if strange:
        raise InputError(
            f"the dose {strange[0]:g} is to be judged but is none of alphas; add it there"
        )
    if len(judged_alphas) and judge is None:
        raise InputError("judged_alphas need a judge; give one, or leave them out")
    _check_layer(found.layer, chat.anatomy.n_layers)


def _check_layer(layer: int, n_layers: int) -> None:
    if not 0 <= layer < n_layers:
        raise InputError(f"the model has no layer {layer}; its layers are 0 to {n_layers - 1}")
