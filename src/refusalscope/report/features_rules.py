"""The verdict on a features run in words: which latents carry refusal, what wakes, what it is beside."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.features_beside import (
    CHANCE,
    beats_random,
    beside_direction,
    beside_random,
)
from refusalscope.report.features_held import REST, judged_pairs
from refusalscope.report.features_tables import (
    MATTERS,
    SETS,
    WAKES,
    dormant_rows,
    features_table,
    main_set,
    of_set,
    pooled_searches,
    set_arm,
    sizes_of,
    value,
)
from refusalscope.report.features_writes import followed, heads, size_words, spread, unit
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    listed,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.rules import HALF, MIN_N, Statement
from refusalscope.report.tables import Row, RunLike, by_size, records

# So many latents or pairs are named in a sentence; the others stand in the tables.
MAX_NAMED = 3
# What a pair of latents is called in a sentence, by the kind that the study gives it.
STANDS_IN = ("OR", "redundant")
NEEDS = ("AND", "synergistic")

FEATURES_RULES = (
    f"No word is chosen from fewer than {MIN_N} prompts.",
    "A set of latents flips a prompt when the refusal margin falls below 0 with all of the set taken out. "
    "Sets were searched on other prompts than those they are judged on (the report split).",
    "A write is a latent with those of other layers that show the same write to the stream again; its latents "
    "are taken out together and count as one member of a set.",
    f"A set carries the refusal: it flips more than {percent(HALF)} of the refused prompts (the interval "
    "lies above), and lowers the margin more than random latents matched in layer, decoder norm and "
    f"activation (the interval of the difference lies above 0, and fewer than {percent(CHANCE)} of draws do "
    "as much); part of it: only the second holds.",
    "Dormant: a member of the set that no prompt activates without an edit, at any of its layers.",
    "A reserve is a latent outside the set that wakes when the set is taken out more often than under "
    f"random directions of the same norm (false discovery rate {percent(WAKES)}) and then holds up the "
    f"margin by more than {decimal(MATTERS, 1)} nats (the lower bound).",
    "Two latents stand in for each other (OR, redundant) when taking out both does more than the sum "
    "of each alone, and need each other (AND, synergistic) when it does less; the interval must exclude 0. A "
    "pair is judged with the rest of the set taken out where that was run, so that no third stands in for the "
    "two, else with nothing else taken out.",
    "At equal KL: each arm at the strength at which it disturbs harmless replies as much as the set does, read "
    "between the strengths that were run, along the root of the KL. "
    "A difference counts when it lies outside the interval of the set.",
)


def features_statements(run: RunLike) -> tuple[list[Statement], list[str]]:
    """The sentences on a features run, and the names of what could not be said."""
    parts = {
        "which latents carry refusal": carriers(run),
        "matched random latents": beside_random(run),
        "dormant latents and what wakes": sleepers(run),
        "interactions of latents": pairs(run),
        "the refusal direction at equal KL": beside_direction(run),
    }
    said = [part for part in parts.values() if part is not None]
    return said, [name for name, part in parts.items() if part is None]


def carriers(run: RunLike) -> Statement | None:
    """The smallest set that flips, where it lies, and how many unseen prompts it flips."""
    members = main_set(run)
    links = ("figure-features-set", "table-features-members", "figure-features-baselines")
    if members is None:
        return _no_set(pooled_searches(run))
    size, names = size_words(members), _named(heads(members))
    shown = f"{size}, strongest at {names}" if spread(members) else f"{size} ({names})"
    text = f"The smallest set found is {shown}"
    smaller = _smaller(features_table(run, SETS), members["write"].nunique())
    if smaller:
        least = counted(smaller, unit(members))
        text = f"The set looked into is {shown}; the smallest has {least}"
    if not members["verified"].iloc[0]:
        text += "; no run proved that it flips"
    arm = set_arm(run, members)
    if arm is None or not finite(arm["flipped"]):
        share = members["flipped"].iloc[0]
        text += f"; it flips {percent(share)} of the prompts it was searched on" * finite(share)
        return Statement(f"{text}; on unseen prompts it was not measured.", "", "watch", links)
    if not arm["n_harmful"] >= MIN_N:
        text += f"; too few unseen prompts ({whole(arm['n_harmful'])}) to say whether it carries refusal"
        return Statement(f"{text}.", "", "plain", links)
    few = "" if arm["flipped_low"] > HALF else ", not shown to be most of them"
    text += (
        f"; taken out, it flips {_flips(arm)} of the refused prompts it was not searched on{few}"
    )
    if finite(arm["refused"]):
        interval = rate_span(arm["refused_low"], arm["refused_high"])
        text += f", and {percent(arm['refused'])} of the judged replies still refuse ({interval})"
    tone = "plain" if arm["flipped_low"] > HALF else "watch"
    return Statement(f"{text}.", _carries(arm, size), tone, links)


def _carries(arm: Row, size: str) -> str:
    if not beats_random(arm):
        return f"{size} were not shown to carry the refusal"
    return f"{size} carry {'' if arm['flipped_low'] > HALF else 'part of '}the refusal"


def _no_set(searches: pd.DataFrame | None) -> Statement | None:
    if searches is None or not (searches["sets"] == 0).all():
        return None
    row = records(searches)[0]
    text = f"No set of latents was found that flips the refusal, of {whole(row['candidates'])} candidates"
    text += f": {row['why']}" if row["why"] else ""
    short = "no set of latents was found that flips the refusal"
    return Statement(f"{text}.", short, "watch", ("table-features-searches",))


def sleepers(run: RunLike) -> Statement | None:
    """How many members sleep without an edit, and whether reserves wake beyond the null and matter."""
    rows = dormant_rows(run)
    if rows is None:
        return None
    found, mine = by_size(rows[rows["reserve"]], "effect"), followed(rows, main_set(run))
    parts = []
    if len(mine):
        n = int(mine["dormant"].sum())
        parts.append(
            f"{whole(n)} of {counted(len(mine), 'member')} ({percent(n / len(mine))}) "
            f"{'is' if n == 1 else 'are'} dormant"
        )
        worth = value(run, "dormant value")
        if worth is not None and n:
            parts[-1] += f", worth {_nats(worth)} of the margin"
    woke = _woke(run, rows["arm"].iloc[0])
    if woke:
        parts.append(woke)
    tested = rows[~rows["in_set"]]
    if len(tested) and tested["q"].isna().all():
        parts.append("what wakes was not compared with chance")
    elif found.empty:
        parts.append("no reserve was found: nothing wakes beyond chance and matters")
    else:
        best = records(found)[0]
        worth_of = span(best["effect_low"], best["effect_high"])
        parts.append(
            f"{counted(len(found), 'reserve')} wake{'s' if len(found) == 1 else ''} beyond chance and "
            f"matter{'s' if len(found) == 1 else ''}: {_named(found)}, the strongest holding up "
            f"{decimal(best['effect'])}{NBSP}nats (95{NBSP}% interval {worth_of})"
        )
    text = "; ".join(parts)
    short = f"{counted(len(found), 'reserve')} wake{'s' if len(found) == 1 else ''} behind them"
    links = ("figure-features-woken", "table-features-values")
    tone = "watch" if len(found) else "plain"
    return Statement(f"{text[0].upper()}{text[1:]}.", short if len(found) else "", tone, links)


def _woke(run: RunLike, arm: str) -> str:
    counts = of_set(features_table(run, "features.waking"), main_set(run))
    if counts is None:
        return ""
    mine = counts[(counts["arm"] == arm) & counts["woken"].notna() & counts["expected"].notna()]
    if mine.empty:
        return ""
    parts = [
        f"{decimal(row['expected'], 1)} under {NULLS.get(row['null'], row['null'])}"
        for row in records(mine)
    ]
    here = f"{decimal(mine['woken'].iloc[0], 1)} latents a prompt wake when the set is taken out"
    return f"{here}, {listed(parts)}"


# What a null of waking is called.
NULLS = {
    "directions": "random directions of the same norm",
    "stand_ins": "matched random latents",
}


def pairs(run: RunLike) -> Statement | None:
    """Which latents stand in for each other, or need each other."""
    table = of_set(features_table(run, "features.interactions"), main_set(run))
    if table is None:
        return None
    tested = judged_pairs(table)
    if tested.empty:
        return None
    links = ("figure-features-pairs", "table-features-pairs")
    parts, shorts = [], []
    for kinds, verb in ((STANDS_IN, "stand in for each other"), (NEEDS, "need each other")):
        mine = by_size(tested[tested["kind"].isin(kinds)], "effect")
        if len(mine):
            best = records(mine)[0]
            interval = span(best["low"], best["high"])
            parts.append(
                f"{verb} in {whole(len(mine))} ({best['first']} and {best['second']}: "
                f"{decimal(best['effect'])}{NBSP}nats, 95{NBSP}% interval {interval})"
            )
            shorts.append(f"some latents {verb}")
    opening = f"Of {counted(len(tested), 'pair')} taken out alone and together"
    n_rest = int((tested["held"] == REST).sum())
    opening += f" ({whole(n_rest)} with the rest of the set out)" if n_rest else ""
    if not parts:
        return Statement(f"{opening}, none was shown to interact.", "", "plain", links)
    return Statement(f"{opening}, latents {listed(parts)}.", shorts[0], "plain", links)


def _smaller(sets: pd.DataFrame | None, n: int) -> int:
    """How many writes the smallest verified pooled set has where it is below n, else 0."""
    if sets is None:
        return 0
    sizes = sizes_of(sets)
    sizes = sizes[sizes["pooled"] & sizes["verified"]]
    return int(sizes["n"].min()) if len(sizes) and sizes["n"].min() < n else 0


def _flips(arm: Row) -> str:
    interval = f"95{NBSP}% interval {rate_span(arm['flipped_low'], arm['flipped_high'])}"
    return f"{percent(arm['flipped'])} ({interval}, n = {whole(arm['n_harmful'])})"


def _nats(row: Row) -> str:
    interval = span(row["low"], row["high"])
    return f"{decimal(row['value'])}{NBSP}nats (95{NBSP}% interval {interval})"


def _named(rows: pd.DataFrame) -> str:
    names = list(rows["at"])
    more = len(names) - MAX_NAMED
    return listed(names if more <= 0 else [*names[:MAX_NAMED], f"{whole(more)} more"])
