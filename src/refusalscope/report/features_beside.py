"""The set beside what it is compared with: random latents like its own, and the refusal direction."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.features_tables import BASELINES, arms_at_full, features_table, set_arm
from refusalscope.report.numbers import NBSP, decimal, finite, p_value, span, whole
from refusalscope.report.rules import MIN_N, Statement
from refusalscope.report.tables import Row, RunLike, records

LINKS = ("figure-features-baselines", "table-features-baselines")


# Of random draws fewer than this share may do as much as the set.
CHANCE = 0.05


def beats_random(arm: Row) -> bool:
    """Whether an arm does more than random latents, over prompts and, where they were counted, over draws."""
    return bool(arm["beats_low"] > 0 and not arm["p_random"] >= CHANCE)


def beside_random(run: RunLike) -> Statement | None:
    """Does the set do more than random latents like its own?"""
    arm = set_arm(run)
    if arm is None or not finite(arm["beats"]):
        return None
    interval = span(arm["beats_low"], arm["beats_high"])
    more = f"{decimal(arm['beats'])}{NBSP}nats more (95{NBSP}% interval {interval})"
    fall = f"the margin falls by {decimal(arm['change'])}{NBSP}nats, {more} than with matched random latents"
    draws = _draws(features_table(run, BASELINES))
    draws += f"; p = {p_value(arm['p_random'])}" if draws and finite(arm["p_random"]) else ""
    fall += f" ({draws})" if draws else ""
    if not arm["n_harmful"] >= MIN_N:
        opening, tone = "Too few prompts to say whether the set beats random latents", "plain"
    elif beats_random(arm):
        opening, tone = "The set does more than random latents like its own", "good"
    elif arm["beats_high"] < 0:
        opening, tone = "The set does less than random latents like its own", "bad"
    else:
        opening, tone = "The set was not shown to do more than random latents like its own", "bad"
    short = "no more than matched random latents do" if tone == "bad" else ""
    return Statement(f"{opening}: {fall}.", short, tone, LINKS)


def beside_direction(run: RunLike) -> Statement | None:
    """The set and the refusal direction at the same KL on harmless replies."""
    arm, rows = set_arm(run), arms_at_full(run)
    if arm is None or rows is None:
        return None
    line = next(iter(records(rows[rows["group"] == "direction"])), None)
    if line is None or not finite(arm["change"]):
        return None
    cost = (
        f"At the KL of the set ({decimal(arm['kl'], 3)}{NBSP}nats a position on harmless replies)"
    )
    own = f"the set lowers the margin by {decimal(arm['change'])}{NBSP}nats (95{NBSP}% interval "
    own += f"{span(arm['change_low'], arm['change_high'])})"
    if not finite(arm["equal_kl"]):
        text = f"The set costs too little on harmless replies to compare arms at its cost; {own}, the refusal "
        text += (
            f"direction by {decimal(line['change'])}{NBSP}nats at a KL of {decimal(line['kl'], 3)}."
        )
        return Statement(text, "", "plain", LINKS)
    if not finite(line["equal_kl"]):
        text = f"{cost}, {own}; the refusal direction never spends that much, and lowers it by "
        text += f"{decimal(line['change'])}{NBSP}nats at a KL of {decimal(line['kl'], 3)}."
        return Statement(text, "", "plain", LINKS)
    text = f"{cost}, {own}, the refusal direction by {decimal(line['equal_kl'])}{NBSP}nats"
    if arm["n_harmful"] < MIN_N or not (finite(arm["change_low"]) and finite(arm["change_high"])):
        return Statement(f"{text}.", "", "plain", LINKS)
    if line["equal_kl"] > arm["change_high"]:
        short, tone = "the refusal direction does more at equal KL", "watch"
        text += ", so the direction does more at that cost"
    elif line["equal_kl"] < arm["change_low"]:
        short, tone = "they do more than the refusal direction at equal KL", "good"
        text += ", so the set does more at that cost"
    else:
        short, tone = "", "plain"
        text += ": no clear difference"
    return Statement(f"{text}.", short, tone, LINKS)


def _draws(arms: pd.DataFrame | None) -> str:
    if arms is None:
        return ""
    draws = arms.loc[arms["group"] == "random", "draws"].max()
    return f"{whole(draws)} draws" if finite(draws) else ""
