"""What can make a routing run say more than it measured: the confounds of the published method."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.numbers import decimal, finite, listed, share, span
from refusalscope.report.routing_rules import redundancy, uncovered
from refusalscope.report.routing_tables import (
    CASCADE,
    GROUPS,
    LAST_GATE,
    all_heads,
    found,
    main_gap,
    n_layers,
    routing_table,
    telling,
)
from refusalscope.report.rules import STABLE, Statement
from refusalscope.report.tables import Row, RunLike, records

COMPAT_LEFT = (
    "heads were swapped from the start of the prompts, as published: where the two prompts differ in "
    "length the last token was not swapped, or reply tokens were"
)


def routing_worries(run: RunLike) -> list[Statement]:
    """The concerns of a routing run, the gravest first; none for a run without its tables."""
    heads = all_heads(run)
    coverage = routing_table(run, "routing.coverage")
    checks = [
        no_gap(main_gap(run)),
        old_map(heads),
        last_layer(heads, n_layers(run, heads)) if heads is not None else None,
        one_donor(heads),
        norm_only(heads),
        unsteady(routing_table(run, "routing.stability")),
        _grave(redundancy(heads, routing_table(run, GROUPS))),
        partial(coverage) if heads is not None else None,
        deaf(routing_table(run, CASCADE)),
    ]
    return [check for check in checks if check is not None]


def no_gap(gap: Row | None) -> Statement | None:
    """Shares are of a gap that may be nothing."""
    if gap is None or not finite(gap["gap"]):
        return None
    low = gap["low"] if finite(gap["low"]) else gap["gap"]
    if low > 0:
        return None
    interval = span(gap["low"], gap["high"])
    text = (
        f"the gap that every share is a share of may be zero ({decimal(gap['gap'])} {gap['unit']}, "
    )
    return Statement(f"{text}interval {interval})", "", "bad", ("table-routing-gap",))


def old_map(heads: pd.DataFrame | None) -> Statement | None:
    """The published position map, which misses the last token of prompts of unequal length."""
    if heads is None or not (heads["map"] == "compat_left").any():
        return None
    return Statement(COMPAT_LEFT, "", "bad", ("figure-routing-map",))


def last_layer(heads: pd.DataFrame, n: int) -> Statement | None:
    """A "gate" that has nothing behind it, or a top head that could not be one."""
    gates = heads[heads["role"] == LAST_GATE]
    if len(gates):
        text = f"{listed(list(gates['at']))} is called a gate and lies in the last layer, where nothing "
        return Statement(f"{text}is left to drive", "", "bad", ("figure-routing-circuit",))
    mine = found(heads)
    if mine is None or mine.empty or mine.iloc[0]["layer"] != n - 1:
        return None
    text = (
        f"the head of largest necessity, {mine.iloc[0]['at']}, lies in the last layer: it cannot "
    )
    return Statement(f"{text}be a gate", "", "watch", ("table-routing-heads",))


def one_donor(heads: pd.DataFrame | None) -> Statement | None:
    """One fixed control a prompt: how far the choice of control matters is not known."""
    if heads is None or (heads["donor_sd"].fillna(0) > 0).any():
        return None
    text = "every harmful prompt had one donor only, so how far shares hang on that control is not known"
    return Statement(text, "", "watch", ("table-routing-heads",))


def norm_only(heads: pd.DataFrame | None) -> Statement | None:
    """Heads that only change the scale of the rest."""
    if heads is None:
        return None
    names = list(heads.loc[heads["role"] == "norm-only", "at"])
    if not names:
        return None
    verb = "acts" if len(names) == 1 else "act"
    text = f"{listed(names)} {verb} through the normalisation alone, not on what is said"
    return Statement(text, "", "watch", ("table-routing-heads",))


def unsteady(stability: pd.DataFrame | None) -> Statement | None:
    """A top set that another sample, half or donor would not have given."""
    if stability is None:
        return None
    low = [row for row in records(stability) if finite(row["jaccard"]) and row["jaccard"] < STABLE]
    if not low:
        return None
    worst = min(low, key=lambda row: row["jaccard"])
    text = f"the set of top heads changes over {worst['measure'] or 'repeats'} (Jaccard "
    return Statement(
        f"{text}{decimal(worst['jaccard'])})", "", "watch", ("table-routing-stability",)
    )


def partial(coverage: pd.DataFrame | None) -> Statement | None:
    """Heads or positions that no screen looked at."""
    missing = uncovered(coverage)
    if not missing:
        return None
    text = f"the screen did not look at {'; '.join(missing)}"
    if coverage is None:
        text = "the run holds no record of which heads and positions it looked at"
    return Statement(text, "", "watch", ("table-routing-coverage",))


def deaf(cascade: pd.DataFrame | None) -> Statement | None:
    """Cascades whose largest change behind the gate is within what the norm does before it."""
    if cascade is None:
        return None
    names = []
    for gate, rows in cascade.groupby("gate", sort=False):
        readable = telling(rows)
        change, deeper = readable["change"].abs(), readable["deeper"]
        noise, signal = change[~deeper].max(), change[deeper].max()
        if finite(noise) and finite(signal) and signal <= noise:
            names.append((str(gate), signal, noise))
    if not names:
        return None
    gate, signal, noise = names[0]
    text = f"the cascade of {gate} changes no deeper head more ({share(signal)}) than heads that cannot "
    return Statement(f"{text}hear it ({share(noise)})", "", "watch", ("figure-routing-cascade",))


def _grave(statement: Statement | None) -> Statement | None:
    if statement is None or statement.tone == "good":
        return None
    text = statement.text.removesuffix(".")
    return Statement(text[0].lower() + text[1:], "", statement.tone, statement.links)
