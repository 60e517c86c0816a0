"""The verdict on a belief study in words, and what to worry about in it."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.belief_tables import (
    CLUSTERS,
    DIRECTIONS,
    ENOUGH,
    INVERSION,
    LABELS,
    NONE,
    POSITIONS,
    RULES,
    STEERING,
    TUNED,
    belief_table,
    sorted_by,
)
from refusalscope.report.numbers import (
    NBSP,
    decimal,
    finite,
    listed,
    percent,
    rate_span,
    share_words,
    span,
    whole,
)
from refusalscope.report.rules import Statement
from refusalscope.report.tables import Row, RunLike, records

# Shares from which answers that cannot be read, and degenerate replies, are a concern.
UNREAD, BROKEN = 0.5, 0.1
BELIEF_RULES = (
    f"A cluster of fewer than {ENOUGH} prompts earns no word.",
    "Belief is apart from behaviour: at the last token of the request accepted harmful prompts score above 0 "
    "and refused harmless ones below, both by their intervals; by the means alone: leaning.",
    "A direction moves the model where its change of the margin beyond that of random rotations of the same "
    "length has an interval above 0 in the direction it was pushed, at the layer chosen on other prompts.",
    "The answer to the question of harm is moved where the interval of the change of the share of No lies "
    "beyond 0; answers that are neither Certainly nor No are counted apart.",
    "Fine-tuning moves a score where the interval of its paired change does not hold 0.",
)


def belief_statements(run: RunLike) -> tuple[list[Statement], list[str]]:
    """The sentences on a belief study, and the names of what could not be said."""
    parts = {
        "whether belief is apart from behaviour": apart(run),
        "what the directions do": steered(run),
        "whether they change the answer on harm": answered(run),
    }
    found = [part for part in (*parts.values(), tuned(run)) if part is not None]
    return found, [name for name, part in parts.items() if part is None]


def apart(run: RunLike) -> Statement | None:
    """Whether the score at t_inst follows harm where the behaviour does not."""
    table = belief_table(run, POSITIONS)
    if table is None:
        return None
    here = table[table["position"] == 0]
    behaviour = sorted_by(here)
    here = here[here["behaviour"] == behaviour]
    rows = {row["cluster"]: row for row in records(here)}
    accepted, refused = rows.get("harmful accepted"), rows.get("harmless refused")
    links = ("figure-belief-positions", "figure-belief-clusters")
    if accepted is None or refused is None:
        return None
    text = f"at the last token of the request harmful prompts that were accepted score {_mean(accepted)} and "
    text += f"harmless ones that were refused {_mean(refused)}"
    text += f", sorted by what the model does with the {behaviour}"
    known = min(accepted["n"], refused["n"]) >= ENOUGH
    word = str(accepted["separates"]) if known else "unknown"
    openings = {
        "yes": ("Belief of harm is apart from refusal", "belief is apart from refusal", "good"),
        "by mean": (
            "Belief of harm leans apart from refusal",
            "belief leans apart from refusal",
            "watch",
        ),
        "no": (
            "Belief of harm was not shown to be apart from refusal",
            "belief follows refusal",
            "watch",
        ),
    }
    unknown = (
        "Too few prompts behave against their label to say whether belief is apart",
        "",
        "plain",
    )
    opening, short, tone = openings.get(word, unknown)
    return Statement(f"{opening}: {text}.", short, tone, links)


def _mean(row: Row) -> str:
    return f"{decimal(row['mean'], 3)} ({span(row['low'], row['high'], 3)}; n = {whole(row['n'])})"


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


def steered(run: RunLike) -> Statement | None:
    """What adding each direction does to the margin of refusal, beyond random rotations."""
    table = belief_table(run, STEERING)
    if table is None:
        return None
    said, moved = [], []
    for direction, name in DIRECTIONS.items():
        row = at_chosen(table, direction, "harmless")
        if row is None or not finite(row["over_random"]):
            continue
        beyond = f"{decimal(row['over_random'])} ({span(row['over_random_low'], row['over_random_high'])})"
        rate = f", refused {percent(row['rate'])} ({rate_span(row['low'], row['high'])})" * finite(
            row["rate"]
        )
        said.append(
            f"{name} at layer {whole(row['layer'])} moves the margin by {beyond} beyond random{rate}"
        )
        moved += [name] if row["over_random_low"] > 0 else []
    if not said:
        return None
    short = f"{listed(moved)} steer{'s' * (len(moved) == 1)} refusal" if moved else ""
    text = f"Added on harmless prompts, {'; '.join(said)}"
    return Statement(f"{text}.", short, "plain", ("figure-belief-steering",))


def answered(run: RunLike) -> Statement | None:
    """What each direction does to the answer whether a harmless prompt could harm."""
    table = belief_table(run, INVERSION)
    if table is None:
        return None
    said, moved = [], []
    for rule, where in RULES.items():
        for direction, name in DIRECTIONS.items():
            row = at_chosen(table, direction, "harmless", rule)
            if row is None or not finite(row["change"]):
                continue
            change = share_words(row["change"], row["change_low"], row["change_high"])
            said.append(f"{name} on {where} changes the share of No by {change}")
            away = row["change_high"] < 0 or row["change_low"] > 0
            moved += [name] if away and name not in moved else []
    if not said:
        return None
    short = f"{listed(moved)} change{'s' * (len(moved) == 1)} the answer on harm" if moved else ""
    invalid = percent(table.loc[table["label"] == "harmless", "invalid"].max())
    text = f"Asked whether a harmless prompt could harm, {'; '.join(said)}; at most {invalid} of answers are "
    text += "invalid"
    return Statement(f"{text}.", short, "plain", ("figure-belief-inversion",))


def tuned(run: RunLike) -> Statement | None:
    """Whether fine-tuning moved belief, refusal, or both, for harmful prompts and kept centroids."""
    table = belief_table(run, TUNED)
    if table is None:
        return None
    mine = table[(table["label"] == "harmful") & table["centroids"].isin(("", "kept"))]
    said = []
    for row in records(mine.dropna(subset=["change"])):
        moved = row["change_low"] > 0 or row["change_high"] < 0
        change, bounds = decimal(row["change"]), span(row["change_low"], row["change_high"])
        said.append(
            f"moves {row['quantity']} by {change} ({bounds})"
            if moved
            else f"was not shown to move {row['quantity']} ({change}, {bounds})"
        )
    if not said:
        return None
    text = f"On harmful prompts fine-tuning {'; it '.join(said)}"
    return Statement(f"{text}.", "", "plain", ("table-belief-tuned",))


def belief_worries(run: RunLike) -> list[Statement]:
    """The concerns of a belief study; none for a run without its tables."""
    found = [thin(run), unread(run), broken(run)]
    return [each for each in found if each is not None]


def thin(run: RunLike) -> Statement | None:
    """Clusters with too few prompts by the behaviour that sorts them."""
    table = belief_table(run, CLUSTERS)
    if table is None:
        return None
    mine = table[table["position"] == "t_inst"]
    mine = mine[mine["behaviour"] == sorted_by(mine)]
    few = mine[mine["n"] < ENOUGH].drop_duplicates("cluster")
    if few.empty:
        return None
    names = [f"{row['cluster']} {whole(row['n'])}" for row in records(few)]
    text = f"clusters are too small to conclude from ({listed(names)} prompts)"
    return Statement(text, "", "watch", ("figure-belief-clusters",))


def unread(run: RunLike) -> Statement | None:
    """Answers that are neither Certainly nor No, with nothing added."""
    table = belief_table(run, INVERSION)
    if table is None:
        return None
    clean = table[table["direction"] == NONE]
    bad = [row for row in records(clean) if row["invalid"] > UNREAD and row["label"] in LABELS]
    if not bad:
        return None
    said = listed([f"{percent(row['invalid'])} about {row['label']} prompts" for row in bad])
    text = f"answers of the reply inversion are neither Certainly nor No ({said}), so its shares say little"
    return Statement(text, "", "bad", ("table-belief-inversion",))


def broken(run: RunLike) -> Statement | None:
    """Replies under steering that say nothing."""
    table = belief_table(run, STEERING)
    if table is None:
        return None
    mine = table[(table["n"] > 0) & table["chosen"] & (table["control"] == "direction")]
    shares = mine["degenerate"] / mine["n"]
    if not shares.max() > BROKEN:
        return None
    text = f"up to {percent(shares.max())} of replies are degenerate{NBSP}under a push, and count as not "
    text += "refused"
    return Statement(text, "", "watch", ("table-belief-steering",))
