"""The verdict on a routing run in words: which heads carry refusal, what stands in, what was not seen."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    finite,
    listed,
    share,
    share_words,
    whole,
)
from refusalscope.report.routing_tables import (
    CASCADE,
    DRIVE,
    GROUPS,
    LAST_GATE,
    MAPS,
    all_heads,
    found,
    group,
    layers,
    main_gap,
    routing_table,
)
from refusalscope.report.rules import MIN_N, Statement
from refusalscope.report.tables import Row, RunLike, by_size, records

# So many heads of a role are named in a sentence; the others stand in the table.
MAX_NAMED = 4
# With more heads than this, those of lesser roles are counted.
MAX_ALL_NAMED = 10
# Roles that are no nouns.
UNCOUNTED = {LAST_GATE, "direct", "static", "norm-only", "mixed", "without a role"}

ROUTING_RULES = (
    f"No word is chosen from fewer than {MIN_N} pairs.",
    "A head is found when its necessity is significant among all heads tested (familywise) and "
    "above the floor that the run's settings state; heads without either are not named.",
    "Necessity: how much of the gap between harmful and control prompts is lost when the head's "
    "output is swapped for the one on the control. Sufficiency: how much of the gap the swap the other "
    "way brings about.",
    "Roles follow from numbers: a gate has a necessity but next to no direct effect and drives two "
    "or more deeper heads beyond the null; an amplifier writes most of its effect itself and is "
    "driven; a detector is necessary, earliest and writes nothing itself; a chain is driven and drives; "
    "a direct head is not driven; a suppressor writes against refusal; a static head writes the same on "
    "both kinds of prompts; a norm-only head loses its effect once all norms are frozen; a backup "
    "shows only when its window is swapped too.",
    "Redundancy is found when a group of heads swapped together loses clearly more of the gap than "
    "its heads one by one.",
    "A head in the last layer has nothing behind it to drive, so it is not called a gate.",
)


def routing_statements(run: RunLike) -> tuple[list[Statement], list[str]]:
    """The sentences on a routing run, and the names of what could not be said."""
    heads, groups = all_heads(run), routing_table(run, GROUPS)
    carried = carriers(heads, groups, main_gap(run))
    parts = (carried, redundancy(heads, groups), reach(run))
    unsaid = [] if carried is not None else ["which heads carry refusal"]
    return [part for part in parts if part is not None], unsaid


def carriers(
    heads: pd.DataFrame | None, groups: pd.DataFrame | None, gap: Row | None
) -> Statement | None:
    """Which heads carry refusal, by role, and how much of the gap they carry together."""
    if heads is None or heads["necessity"].isna().all():
        return None
    mine = found(heads)
    links = ("figure-routing-map", "table-routing-heads", "figure-routing-circuit")
    pairs = gap["n"] if gap is not None else float("nan")
    looked = f"{whole(heads['necessity'].notna().sum())} heads looked at"
    if finite(pairs) and pairs < MIN_N:
        text = f"Too few pairs ({whole(pairs)}) to say which heads carry refusal; "
        return Statement(f"{text}{looked}.", "", "plain", links)
    if mine is None or mine.empty:
        best = records(by_size(heads, "necessity"))[0]
        text = f"No single head was shown to carry refusal: none of {looked} passed, the largest "
        text += f"necessity is that of {best['at']}, {_of_gap(best)}."
        return Statement(text, "no single head was shown to carry refusal", "plain", links[:1])
    count = "One head carries" if len(mine) == 1 else f"{whole(len(mine))} heads carry"
    text = f"{count} refusal, of {looked}: {_roles(mine)}; the largest necessity is that of "
    text += f"{mine.iloc[0]['at']}, {_of_gap(mine.iloc[0])}"
    short = _short(mine)
    together = group(groups, "found")
    if together is not None:
        row = together.iloc[0]
        text += f"; swapped together they carry {share_words(row['necessity'], row['low'], row['high'])}"
        short += f"; all {whole(len(mine))} heads found carry {share(row['necessity'])} of the gap"
    elif len(mine) > 1:
        text += "; what they carry together was not measured"
    if gap is not None and finite(gap["gap"]):
        text += f"; the gap is {decimal(gap['gap'])}{NBSP}{gap['unit']}".rstrip()
    return Statement(f"{text}.", short, "plain", links)


def redundancy(heads: pd.DataFrame | None, groups: pd.DataFrame | None) -> Statement | None:
    """Whether groups of heads lose more together than one by one."""
    if groups is None or groups["necessity"].isna().all():
        return None
    links = ("table-routing-groups",)
    hiding = groups[groups["hides"]]
    if hiding.empty:
        seen = whole(groups["necessity"].notna().sum())
        text = f"No redundancy was found: none of {seen} groups of heads swapped together loses "
        text += "clearly more of the gap than its heads one by one."
        return Statement(text, "no redundancy found", "good", links)
    row = records(by_size(hiding, "necessity"))[0]
    where = layers(row) or str(row["name"]) or "a group of heads"
    text = f"Redundancy was found in {whole(len(hiding))} of {whole(len(groups))} groups: {where} "
    text += f"swapped together carry {share_words(row['necessity'], row['low'], row['high'])} of "
    text += f"the gap, the best single head inside {share(row['largest'])}"
    backups = [] if heads is None else list(heads.loc[heads["role"] == "backup", "at"])
    text += f"; backups found: {_named(backups)}" if backups else ""
    return Statement(f"{text}.", "redundancy found", "watch", links)


def reach(run: RunLike) -> Statement:
    """What was looked at, and what was not."""
    gaps = unseen(run)
    if not gaps:
        coverage = routing_table(run, "routing.coverage")
        n = 0 if coverage is None else coverage["map"].nunique()
        text = f"Every head was looked at under {whole(n)} position maps."
        return Statement(text, "", "good", ("table-routing-coverage",))
    text = f"Not looked at: {'; '.join(gaps)}."
    return Statement(text, "", "watch", ("table-routing-coverage", "routing-checks"))


def unseen(run: RunLike) -> list[str]:
    """What a routing run did not look at, as phrases."""
    missing = uncovered(routing_table(run, "routing.coverage"))
    if redundancy(None, routing_table(run, GROUPS)) is None:
        missing.append("groups of heads, so redundancy")
    parts = (
        ((DRIVE, CASCADE), "what drives what (drive, cascade)"),
        (("routing.dose",), "dose"),
        (("routing.cipher", "routing.rescue"), "ciphers"),
    )
    for names, phrase in parts:
        if all(routing_table(run, name) is None for name in names):
            missing.append(phrase)
    return missing


def uncovered(coverage: pd.DataFrame | None) -> list[str]:
    """Heads and positions that no screen covered, as phrases."""
    if coverage is None:
        return ["which heads and positions were covered (no record)"]
    missing = []
    for row in records(coverage):
        if finite(row["heads"]) and finite(row["of"]) and row["heads"] < row["of"]:
            left = f"{whole(row['of'] - row['heads'])} of {whole(row['of'])} heads"
            seen = f" (only layers {row['layers']} were)" if row["layers"] else ""
            missing.append(f"{MAPS.get(row['map'], row['map'])} for {left}{seen}")
    seen_maps = set(coverage["map"])
    for name in ("last", "suffix", "all"):
        if name not in seen_maps:
            missing.append(f"{MAPS[name]}, for any head")
    return missing


def _of_gap(row: Row | pd.Series) -> str:
    words = share_words(row["necessity"], row["necessity_low"], row["necessity_high"])
    return f"{words} of the gap"


def _roles(mine: pd.DataFrame) -> str:
    roles = mine["role"].replace("", "without a role")
    order = [
        "gate",
        "amplifier",
        *(r for r in dict.fromkeys(roles) if r not in {"gate", "amplifier"}),
    ]
    parts = []
    for role in order:
        names = list(mine.loc[roles == role, "at"])
        if not names:
            if role == "gate":
                parts.append("no gate")
            continue
        plural = "" if len(names) == 1 or role in UNCOUNTED else "s"
        lesser = role not in ("gate", LAST_GATE, "amplifier") and len(mine) > MAX_ALL_NAMED
        parts.append(
            f"{len(names)} {role}{plural}" if lesser else f"{role}{plural} {_named(names)}"
        )
    return ", ".join(parts)


def _named(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMED:
        return listed(list(names))
    return listed([*names[:MAX_NAMED], f"{len(names) - MAX_NAMED} more"])


def _short(mine: pd.DataFrame) -> str:
    gates = list(mine.loc[mine["role"] == "gate", "at"])
    amplifiers = int((mine["role"] == "amplifier").sum())
    if not gates:
        count = "one head carries" if len(mine) == 1 else f"{whole(len(mine))} heads carry"
        return f"{count} refusal, none of them a gate"
    gate = f"gate {gates[0]}" if len(gates) == 1 else f"{len(gates)} gates"
    driven = f" and {counted(amplifiers, 'amplifier')}" if amplifiers else ""
    return f"refusal runs through {gate}{driven}"
