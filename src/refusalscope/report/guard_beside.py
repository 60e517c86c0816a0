"""What is left of a guard's score under wrappers, and how it stands beside other guards, in words."""

from __future__ import annotations

from refusalscope.report.guard_tables import AGAINST, HARMFUL, WRAPPERS, at_point, guard_table
from refusalscope.report.numbers import (
    NBSP,
    counted,
    decimal,
    listed,
    p_value,
    percent,
    rate_span,
    share_words,
    span,
    whole,
)
from refusalscope.report.rules import Statement
from refusalscope.report.tables import Row, RunLike, records

CHANCE = 0.05


def wrapped(run: RunLike) -> Statement | None:
    """What is left of the score under the wrapper with the lowest AUROC."""
    row = worst_wrapper(run)
    if row is None:
        return None
    n = wrapper_count(run)
    text = f"The lowest AUROC of {counted(n, 'wrapper')}, picked for being the lowest, is "
    text += f"{decimal(row['auroc'], 3)} under {row['wrapper']} "
    text += f"(95{NBSP}% interval {span(row['auroc_low'], row['auroc_high'], 3)})"
    flagged = [_flagged(run, str(row["wrapper"]), label) for label in (HARMFUL, "harmless")]
    said = [text for text in flagged if text]
    text += f", flagged {listed(said)}" if said else ""
    tone = "bad" if row["auroc_low"] <= 0.5 else "plain"
    short = f"chance under {row['wrapper']}" if tone == "bad" else ""
    return Statement(f"{text}.", short, tone, ("table-guard-wrappers",))


def wrapper_count(run: RunLike) -> int:
    """Of how many wrappers the worst was picked."""
    table = guard_table(run, WRAPPERS)
    return 0 if table is None else int(table["wrapper"].nunique())


def worst_wrapper(run: RunLike) -> Row | None:
    """The wrapper with the lowest AUROC, as a row of harmful prompts; None without any."""
    table = guard_table(run, WRAPPERS)
    if table is None:
        return None
    known = table[table["auroc"].notna() & (table["label"] != "harmless")]
    marked = known[known["worst"]]
    known = known if marked.empty else marked
    return next(iter(records(known.nsmallest(1, "auroc"))), None)


def _flagged(run: RunLike, wrapper: str, label: str) -> str:
    table = guard_table(run, WRAPPERS)
    assert table is not None
    mine = table[(table["wrapper"] == wrapper) & (table["label"] == label) & table["rate"].notna()]
    row = next(iter(records(mine)), None)
    if row is None:
        return ""
    return f"{percent(row['rate'])} ({rate_span(row['low'], row['high'])}) of {whole(row['n'])} {label} prompts"


def beside(run: RunLike) -> Statement | None:
    """Against other guards at this guard's own rate of false alarms."""
    table = guard_table(run, AGAINST)
    if table is None:
        return None
    rows = records(at_point(table, run).dropna(subset=["difference"]))
    if not rows:
        return None
    said = [_beside(row) for row in rows[:3]]
    more = f"; and {counted(len(rows) - 3, 'more guard')}" * (len(rows) > 3)
    text = f"At its own rate of false alarms it flags {'; '.join(said)}{more}"
    worse = any(row["p_adjusted"] < CHANCE and row["difference"] < 0 for row in rows)
    better = all(row["p_adjusted"] < CHANCE and row["difference"] > 0 for row in rows)
    return Statement(
        f"{text}.",
        "",
        "watch" if worse else "good" if better else "plain",
        ("figure-guard-against",),
    )


def _beside(row: Row) -> str:
    gap = f"difference {share_words(row['difference'], row['difference_low'], row['difference_high'])}"
    if not row["p_adjusted"] < CHANCE:
        return f"as many harmful prompts as {row['guard']}, as far as was shown ({gap})"
    side = "more" if row["difference"] > 0 else "fewer"
    return f"{side} harmful prompts than {row['guard']} ({gap}, {p_words(row['p_adjusted'])}, corrected)"


def p_words(p: float) -> str:
    """A p value in a sentence: "p = 0.012" or "p < 0.001"."""
    said = p_value(p)
    return f"p {said}" if said.startswith("<") else f"p = {said}"
