"""What adding the directions of a belief study did, in words: beyond random rotations, or not shown."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.belief_tables import (
    DIRECTIONS,
    HARM,
    INVERSION,
    REFUSAL,
    RULES,
    STEERING,
    belief_table,
)
from refusalscope.report.numbers import (
    decimal,
    finite,
    listed,
    p_value,
    percent,
    rate_span,
    share_words,
    span,
    whole,
)
from refusalscope.report.rules import MIN_N, Statement
from refusalscope.report.tables import Row, RunLike, records

# Level of a claim, and the fewest rotations of which one can be the furthest at that level.
LEVEL, ROTATIONS = 0.05, 19
# What was done to the prompts of a label.
DONE = {"harmless": "added on harmless prompts", "harmful": "taken off harmful ones"}
ASKED = {
    "harmless": "added while it is asked whether harmless prompts could harm",
    "harmful": "taken off while it is asked so of harmful ones",
}
# Tokens that the paper adds a direction on when it asks about harm.
PUBLISHED_RULE = {HARM: "before_question", REFUSAL: "all"}
PUSH_RULES = (
    f"A direction moves a margin, of refusal or of the answer on harm, where on {MIN_N} prompts or more the "
    f"interval of the change lies beyond 0 the way it was pushed, and p <= {decimal(LEVEL)} among random "
    f"rotations of the same length, each at its own best layer as the direction is at its chosen one; fewer "
    f"than {ROTATIONS} rotations allow no claim.",
    "The headline speaks of harmless prompts, and of answers with the direction on the tokens of the paper; "
    "answers that are neither Certainly nor No are counted apart.",
)


def at_chosen(table: pd.DataFrame, direction: str, label: str, rule: str = "all") -> Row | None:
    """The row of a direction at its chosen layer under a rule of positions; None where there is none."""
    mine = table[
        (table["direction"] == direction)
        & (table["positions"] == rule)
        & (table["label"] == label)
        & (table["control"] == "direction")
        & table["chosen"]
    ]
    return next(iter(records(mine)), None)


def moves(row: Row) -> bool:
    """Whether a direction moved a margin the way it was pushed, and beyond what rotations do."""
    sign = row["sign"]
    bound = row["margin_change_low"] if sign > 0 else row["margin_change_high"]
    enough = row["n_margin"] >= MIN_N and row["n_random"] >= ROTATIONS
    return bool(enough and row["p_random"] <= LEVEL and sign * bound > 0)


def effect(row: Row, margin: str) -> str:
    """What a push did to a margin, as the end of a sentence."""
    change = f"{decimal(row['margin_change'])} ("
    change += f"{span(row['margin_change_low'], row['margin_change_high'])})"
    n_random = row["n_random"] if finite(row["n_random"]) else 0
    rank = f"p = {p_value(row['p_random'])} among {whole(n_random)} rotations"
    if not row["n_margin"] >= MIN_N:
        return (
            f"changed {margin} by {change} on {whole(row['n_margin'])} prompts, too few for a claim"
        )
    if n_random < ROTATIONS:
        few = f"{whole(n_random)} rotations, too few for a claim ({ROTATIONS} are needed)"
        return f"changed {margin} by {change} beside {few}"
    if moves(row):
        return f"moves {margin} by {change}, beyond random ({rank})"
    return f"was not shown to move {margin} beyond random: {change}, {rank}"


def steered(run: RunLike) -> Statement | None:
    """What each direction does to the margin of refusal, beyond random rotations."""
    table = belief_table(run, STEERING)
    if table is None:
        return None
    told, moved = [], []
    for label, done in DONE.items():
        said: list[str] = []
        for direction, name in DIRECTIONS.items():
            row = at_chosen(table, direction, label)
            if row is None or not (finite(row["margin_change"]) or finite(row["rate"])):
                continue
            rate = f"{percent(row['rate'])} ({rate_span(row['low'], row['high'])}) refused"
            rate += f", {percent(row['rate'] - row['change'])} with nothing added" * finite(
                row["change"]
            )
            what = "was added, no margin could be read"
            if finite(row["margin_change"]):
                what = effect(row, "it" if said else "the margin of refusal")
                moved += [name] if label == "harmless" and moves(row) else []
            ending = f", {rate}" if finite(row["rate"]) else ""
            said.append(f"{name} at layer {whole(row['layer'])} {what}{ending}")
        told += [f"{done}, {'; '.join(said)}"] if said else []
    if not told:
        return None
    short = f"{listed(moved)} steer{'s' * (len(moved) == 1)} refusal" if moved else ""
    return Statement(_sentence(told), short, "plain", ("figure-belief-steering",))


def answered(run: RunLike) -> Statement | None:
    """What each direction does to the answer whether a prompt could harm, on the tokens of the paper."""
    table = belief_table(run, INVERSION)
    if table is None:
        return None
    told, moved = [], []
    for label, done in ASKED.items():
        said: list[str] = []
        for direction, name in DIRECTIONS.items():
            rule = PUBLISHED_RULE[direction]
            row = at_chosen(table, direction, label, rule)
            if row is None or not (finite(row["margin_change"]) or finite(row["change"])):
                continue
            share = share_words(row["change"], row["change_low"], row["change_high"])
            what = f"changed the share of No by {share}; no margin of the answers could be read"
            if finite(row["margin_change"]):
                what = effect(row, "it" if said else "the margin of Certainly over No")
                moved += [name] if label == "harmless" and moves(row) else []
            said.append(f"{name} on {RULES[rule]} {what}")
        told += [f"{done}, {'; '.join(said)}"] if said else []
    if not told:
        return None
    short = f"{listed(moved)} change{'s' * (len(moved) == 1)} the answer on harm" if moved else ""
    invalid = percent(table.loc[table["control"] != "random", "invalid"].max())
    text = f"{_sentence(told)} At most {invalid} of answers are invalid."
    return Statement(text, short, "plain", ("figure-belief-answers", "figure-belief-inversion"))


def _sentence(told: list[str]) -> str:
    return ". ".join(each[0].upper() + each[1:] for each in told) + "."
