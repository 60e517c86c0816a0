"""All arms on prompts that no stage has seen: refusal removed, harm to harmless replies, and their ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.judge.behaviour import reply
from refusalscope.model import ReplyKL, ReplyNLL, Variant
from refusalscope.stats import Interval, mean_interval, paired_difference, wilson
from refusalscope.stats.bootstrap import bootstrap_bounds
from refusalscope.stats.interval import NAN, Clusters
from refusalscope.studies.features.arms import RANDOM, Arm
from refusalscope.studies.features.work import Work
from refusalscope.studies.heads import clusters_of
from refusalscope.studies.subject import spent

Array = npt.NDArray[np.float64]
# Random draws whose replies are generated and judged.
JUDGED_DRAWS = 3
# Below this KL, in nats a reply token, nothing is divided by it.
LEAST_KL = 1e-6
CLEAN = "none"


def measure_arms(work: Work, arms: Sequence[Arm]) -> pd.DataFrame:
    """Table `features.arms`, an arm at a time: one row an arm, strength, draw and unseen prompt.

    Columns: arm, group, n_latents, strength, draw, prompt_id, label, category, margin (harmful prompts, nats),
    kl and ce (harmless ones, nats a token of the model's own reply), refused, degenerate (at strength 1, judged
    replies; NaN elsewhere). The arm `none` is the clean run.
    """
    shards = work.run.shards("features.arms")
    arms = [Arm(CLEAN, "baseline", 0, {1.0: ()}), *arms]
    track = work.progress.track("arms on unseen prompts")
    with_replies = None
    for number, arm in enumerate(arms):
        key = f"{arm.name}/{arm.draw}"
        if not shards.done(key):
            before = replace(work.chat.cost)
            with_replies = with_replies or _own_replies(work)
            shards.write(key, _measured(work, arm, with_replies), spent(before, work.chat.cost))
        track(number + 1, len(arms))
    return shards.collect()


def _own_replies(work: Work) -> dict[int, tuple[int, ...]]:
    """The model's greedy reply to each unseen harmless prompt, where it is not empty."""
    rows = work.unseen_harmless
    replies = work.chat.generate(work.prompts(rows), max_new_tokens=work.settings.max_new_tokens)
    return {row: tuple(said) for row, said in zip(rows, replies, strict=True) if said}


def _measured(work: Work, arm: Arm, replies: dict[int, tuple[int, ...]]) -> pd.DataFrame:
    chat = work.chat
    variants = list(arm.variants.values())
    metric = {"margin": work.margin}
    harmful = chat.measure(work.prompts(work.unseen), variants, metric).scores["margin"]
    said = [work.subject.rendered[row].with_reply(reply) for row, reply in replies.items()]
    harms = chat.measure(said, variants, {"kl": ReplyKL(), "ce": ReplyNLL()}).scores
    judged = arm.draw < JUDGED_DRAWS
    frames = []
    for k, strength in enumerate(arm.variants):
        sides = (
            ("harmful", work.unseen, {"margin": harmful[:, k]}),
            ("harmless", tuple(replies), {name: harms[name][:, k] for name in ("kl", "ce")}),
        )
        for label, rows, scores in sides:
            frame = pd.DataFrame(
                {
                    "prompt_id": [work.subject.prompts[i].id for i in rows],
                    "category": [work.subject.prompts[i].category for i in rows],
                    **scores,
                }
            ).assign(label=label, strength=strength)
            if judged and strength == 1 and len(rows):
                frame = frame.assign(**_judged(work, rows, arm.variants[strength]))
            frames.append(frame)
    head: dict[str, Any] = {
        "arm": arm.name,
        "group": arm.group,
        "n_latents": arm.n_latents,
        "draw": arm.draw,
    }
    columns = [*head, "strength", "prompt_id", "label", "category", "margin", "kl", "ce"]
    table = pd.concat(frames, ignore_index=True).assign(**head)
    return table.reindex(columns=[*columns, "refused", "degenerate"])


def _judged(work: Work, rows: Sequence[int], variant: Variant) -> dict[str, Array]:
    prompts = [work.subject.prompts[i] for i in rows]
    said = reply(
        work.chat,
        prompts,
        work.prompts(rows),
        work.subject.judge,
        work.settings.max_new_tokens,
        variant,
    )
    broken = [judgement.label == "degenerate" for judgement in said.judgements]
    return {"refused": said.refused.astype(float), "degenerate": np.array(broken, dtype=float)}


def compare_arms(arms: pd.DataFrame, main: str, *, seed: int) -> pd.DataFrame:
    """Table `features.baselines`: each arm at each strength over prompts; random draws are one arm, averaged.

    arms: of `measure_arms`; main: the arm whose KL at strength 1 is the budget that `equal_kl` reads all arms
    at, interpolated between strengths from (0, 0) along the root of the KL, NaN where the budget is nothing.
    change: by how much the margin falls; beats: by how much more than under the random latents of the same
    strength; both paired over prompts, as is ce. ratio: change per nat of KL, its interval from resampling both
    kinds of prompts. p_random: that a random draw does as much, (1 + draws that do) / (1 + draws).
    """
    clean = arms[arms["arm"] == CLEAN]
    rows = []
    for (name, strength), part in arms[arms["arm"] != CLEAN].groupby(
        ["arm", "strength"], sort=False
    ):
        chance = arms[(arms["arm"] == RANDOM) & (arms["strength"] == strength)]
        rows.append({"arm": name, "strength": strength, **_row(part, clean, chance, seed)})
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    budget = table.loc[(table["arm"] == main) & (table["strength"] == 1), "kl"]
    table["equal_kl"] = NAN
    for _, part in table.groupby("arm", sort=False):
        if len(budget) and budget.iloc[0] >= LEAST_KL:
            table.loc[part.index, "equal_kl"] = _at_budget(part, float(budget.iloc[0]))
    return table


def _row(
    part: pd.DataFrame, clean: pd.DataFrame, chance: pd.DataFrame, seed: int
) -> dict[str, object]:
    margin, base = _by_prompt(part, "margin"), _by_prompt(clean, "margin")
    kl, ce, own = _by_prompt(part, "kl"), _by_prompt(part, "ce"), _by_prompt(clean, "ce")
    clusters = _clusters(clean)
    fall = (base - margin).to_numpy()
    change = paired_difference(base, margin, clusters, seed=seed)
    level = mean_interval(margin, clusters, seed=seed)
    divergence = mean_interval(kl, seed=seed)
    entropy = paired_difference(ce, own, seed=seed)
    draws = part["draw"].nunique()
    falls = part[part["label"] == "harmful"]["margin"] < 0
    ratio = _ratio(fall, kl.to_numpy(), seed)
    row: dict[str, object] = {
        "group": part["group"].iloc[0],
        "n_latents": int(part["n_latents"].iloc[0]),
        "draws": draws,
        "n_harmful": len(margin),
        **_named("margin", level),
        **_named("change", change),
        **_named("flipped", _share(falls, len(margin))),
        "n_harmless": len(kl),
        **_named("kl", divergence),
        **_named("ce", entropy),
        **_named("ratio", ratio),
        **_replies(part),
    }
    beats: Interval | None = None
    p = NAN
    if len(chance) and part["arm"].iloc[0] != RANDOM:
        random = (base - _by_prompt(chance, "margin")).to_numpy()
        beats = mean_interval(fall - random, clusters, seed=seed)
        by_draw = (
            base.mean() - chance[chance["label"] == "harmful"].groupby("draw")["margin"].mean()
        )
        p = float((1 + (by_draw >= fall.mean()).sum()) / (1 + len(by_draw)))
    missing = Interval(NAN, NAN, NAN, 0)
    return row | _named("beats", beats or missing) | {"p_random": p}


def _by_prompt(table: pd.DataFrame, column: str) -> pd.Series:
    """A column over prompts, mean over draws, in the order of the prompts' ids."""
    label = "harmful" if column == "margin" else "harmless"
    return table[table["label"] == label].groupby("prompt_id")[column].mean().sort_index()


def _clusters(clean: pd.DataFrame) -> Clusters:
    """Categories of the harmful prompts in the order of `_by_prompt`, where they can be resampled."""
    mine = clean[clean["label"] == "harmful"].sort_values("prompt_id")["category"]
    return clusters_of(mine.tolist()) if mine.notna().all() else None


def _named(name: str, interval: Interval | object) -> dict[str, float]:
    found = {f"{name}{end}": getattr(interval, part) for end, part in _ENDS}
    return found


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _ratio(fall: Array, kl: Array, seed: int) -> Interval:
    """Mean fall of the margin per nat of mean KL."""
    if not len(kl) or not len(fall) or kl.mean() < LEAST_KL:
        return Interval(NAN, NAN, NAN, 0)
    value = float(fall.mean() / kl.mean())
    if min(len(kl), len(fall)) < 2:
        return Interval(value, NAN, NAN, len(fall))
    low, high = bootstrap_bounds(
        (fall, kl),
        lambda a, b, axis: a.mean(axis) / np.maximum(b.mean(axis), LEAST_KL),
        paired=False,
        method="percentile",
        n_resamples=1000,
        level=0.95,
        seed=seed,
    )
    return Interval(value, low, high, len(fall))


def _replies(part: pd.DataFrame) -> dict[str, float]:
    """Judged replies at strength 1: refused of the harmful, degenerate of all, refused of the harmless."""
    judged = part[part["refused"].notna()]
    harmful = judged[judged["label"] == "harmful"]
    harmless = judged[judged["label"] == "harmless"]["refused"]
    return {
        **_named("refused", _share(harmful["refused"], harmful["prompt_id"].nunique())),
        "degenerate": float(judged["degenerate"].mean()) if len(judged) else NAN,
        "over_refused": float(harmless.mean()) if len(harmless) else NAN,
    }


def _share(values: pd.Series, n: int) -> Interval:
    """Share of true values with the interval of `n` prompts: further draws are no further prompts."""
    if not n:
        return Interval(NAN, NAN, NAN, 0)
    share = float(values.mean())
    return replace(wilson(round(share * n), n), value=share)


def _at_budget(part: pd.DataFrame, budget: float) -> float:
    """Change at a KL, between the strengths of one arm; NaN where the arm never spends so much.

    Between two strengths along the root of the KL: a small edit moves the margin in proportion, and the
    divergence with its square.
    """
    points = part.sort_values("strength")[["kl", "change"]].to_numpy(float, copy=True)
    points[:, 0] = np.sqrt(np.maximum(points[:, 0], 0))
    wanted, before = np.sqrt(budget), np.zeros(2)
    for point in points:
        if point[0] >= wanted > before[0]:
            share = (wanted - before[0]) / (point[0] - before[0])
            return float(before[1] + share * (point[1] - before[1]))
        before = point
    return NAN
