"""The numbers around waking: values of the whole set, counts against both nulls, clusters of woken latents."""

from __future__ import annotations

import pandas as pd

from refusalscope.report.content import Cell, Table
from refusalscope.report.features_rules import NULLS
from refusalscope.report.numbers import (
    ABSENT,
    NBSP,
    decimal,
    p_value,
    span,
    whole,
)
from refusalscope.report.sections.features_waking import ARMS
from refusalscope.report.tables import Row, records

MAX_CLUSTERS = 12
# The value that is measured over latents; all others are over prompts.
RANK = "effective rank of woken rows"
# What the study's names of values mean.
MEANINGS = {
    "margin, clean": "margin without an edit (nats)",
    "margin, set ablated": "with the set taken out wherever it is active",
    "dormant value": "what the dormant members are worth of it (nats)",
    "margin, norms frozen": "with the set taken out and all norms held",
    "margin, BOS alone": "with the set taken out at BOS alone",
    "P(refusal opening), clean": "probability that the reply opens as a refusal, without an edit",
    "P(refusal opening), set ablated": "that probability with the set taken out",
    "P(refusal opening), BOS alone": "that probability with the set taken out at BOS alone",
    RANK: "directions that the woken latents span (effective rank)",
}


def values_table(values: pd.DataFrame) -> Table:
    """The named values of the main set, each with its interval and n."""
    return Table(
        "The set as a whole: the refusal margin and opening under each edit",
        ("what", "value", "95 % interval", "prompts", "p"),
        [
            (
                MEANINGS.get(row["name"], str(row["name"])),
                Cell(decimal(row["value"]), number=True),
                Cell(span(row["low"], row["high"]), number=True),
                Cell(ABSENT if row["name"] == RANK else whole(row["n"]), number=True),
                Cell(p_value(row["p"]), number=True),
            )
            for row in records(values.sort_values("name", key=_order, kind="stable"))
        ],
        "Dormant members: taken out only where it was active without an edit, the set leaves them as they are; "
        "what the margin is then higher by than with all of it out is theirs. With norms held, the rescaling "
        "of the rest by the normalisation cannot make up for the edit.",
        id="table-features-values",
        name="values of the set",
    )


def _order(names: pd.Series) -> pd.Series:
    """Values of one kind stand together; those without a meaning come last."""
    places = {name: place for place, name in enumerate(MEANINGS)}
    return names.map(places).fillna(len(places))


def waking_table(waking: pd.DataFrame) -> Table:
    """How many latents a prompt wake, against each null."""
    return Table(
        "How many latents wake, beside chance",
        ("arm", "beside", "woken a prompt", "by chance", "excess", "95 % interval", "p"),
        [
            (
                ARMS.get(row["arm"], str(row["arm"])),
                NULLS.get(row["null"], str(row["null"])),
                Cell(decimal(row["woken"], 1), number=True),
                Cell(decimal(row["expected"], 1), number=True),
                Cell(decimal(row["excess"], 1), number=True),
                Cell(span(row["low"], row["high"], 1), number=True),
                Cell(p_value(row["p"]), number=True),
            )
            for row in records(waking)
        ],
        "A count says little by itself: any edit wakes latents, and a random one can wake more.",
        id="table-features-waking",
        name="counts of woken latents",
    )


def clusters_table(clusters: pd.DataFrame) -> Table:
    """Woken latents that write along the same direction, the largest clusters first."""
    found = [part for _, part in clusters.groupby(["arm", "cluster"], sort=False)]
    found.sort(key=lambda part: -len(part))
    rows = [_cluster(part) for part in found[:MAX_CLUSTERS]]
    left = len(found) - MAX_CLUSTERS
    return Table(
        f"Woken latents that write alike ({whole(len(found))} clusters)",
        ("arm", "cluster", "latents", "layers", "members"),
        rows,
        "Clusters by the cosine of decoder rows: many woken latents in one cluster are one reserve seen many "
        "times."
        + (f" {whole(left)} smaller clusters stand in features.clusters." if left > 0 else ""),
        folded=True,
    )


def _cluster(part: pd.DataFrame) -> tuple[str | Cell, ...]:
    names = list(part["at"])
    more = f" and {whole(len(names) - 6)} more" if len(names) > 6 else ""
    first, last = int(part["layer"].min()), int(part["layer"].max())
    return (
        ARMS.get(part["arm"].iloc[0], part["arm"].iloc[0]),
        Cell(whole(part["cluster"].iloc[0]), number=True),
        Cell(whole(len(names)), number=True),
        str(first) if first == last else f"{first} to {last}",
        f"{', '.join(names[:6])}{more}",
    )


def ledger_table(ledger: pd.DataFrame) -> Table:
    """The ledger in numbers: the amount of every part, layer by layer."""
    return Table(
        "The ledger in numbers",
        ("layer", "token", "part", "amount", "95 % interval", "random directions"),
        [_entry(row) for row in records(ledger.sort_values("layer", kind="stable"))],
        f"In units of the residual stream; intervals over prompts, 95{NBSP}%.",
        folded=True,
    )


def _entry(row: Row) -> tuple[str | Cell, ...]:
    return (
        Cell(whole(row["layer"]), number=True),
        row["position"].replace("_", " ") or ABSENT,
        row["part"],
        Cell(decimal(row["amount"], 3), number=True),
        Cell(span(row["low"], row["high"], 3), number=True),
        Cell(decimal(row["null"], 3), number=True),
    )
