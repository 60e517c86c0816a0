"""Key figures of a cliff run."""

from __future__ import annotations

from refusalscope.report.cliff_tables import (
    ABLATION,
    COMPLIED,
    FALL,
    HARMLESS,
    HEADS,
    beside,
    cases,
    cliff_table,
    measured,
    steps,
    top_arm,
    with_role,
)
from refusalscope.report.content import Card
from refusalscope.report.numbers import (
    counted,
    decimal,
    finite,
    listed,
    p_value,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.tables import Row, RunLike, records


def cliff_cards(run: RunLike) -> list[Card]:
    """The cards; none for a run without tables of a cliff study."""
    cards = [
        _share(measured(run, "share"), f"{cases(run).capitalize()}: they drop", "harmful"),
        _share(measured(run, "benign share"), "Benign traces: they drop", "harmless"),
        _fall(run),
        _suppressors(run),
        _restored(run),
        _benign(run),
    ]
    return [card for card in cards if card is not None]


def _share(row: Row | None, name: str, role: str) -> Card | None:
    if row is None:
        return None
    return Card(
        name,
        percent(row["value"]),
        rate_span(row["low"], row["high"]),
        f"n = {whole(row['n'])}; by more than {decimal(FALL, 1)} at the closing tokens",
        "figure-cliff-curve",
        role,
        float(row["value"]),
        float(row["low"]) if finite(row["low"]) else None,
        float(row["high"]) if finite(row["high"]) else None,
    )


def _fall(run: RunLike) -> Card | None:
    row, known = measured(run, "drop"), [each for each in steps(run) if finite(each["value"])]
    if row is None:
        return None
    at = max(known, key=lambda each: float(each["value"]), default=None)
    where = f"most of it {at['name']}" if at is not None and at["value"] > 0 else "mean over traces"
    return Card(
        "Mean drop of the score",
        decimal(row["value"]),
        span(row["low"], row["high"]),
        f"{where}; n = {whole(row['n'])}",
        "table-cliff-steps",
        "harmful",
    )


def _suppressors(run: RunLike) -> Card | None:
    heads = cliff_table(run, HEADS)
    if heads is None or heads["effect"].isna().all():
        return None
    found = with_role(run, "suppressor")
    names = listed([*found["at"][:3], *([f"{len(found) - 3} more"] if len(found) > 3 else [])])
    return Card(
        "Suppressor heads",
        whole(len(found)),
        names or "none was shown",
        f"of {whole(len(heads))}; {counted(len(with_role(run, 'promoter')), 'promoter')}, "
        f"{whole(len(with_role(run, 'static')))} static",
        "figure-cliff-heads",
        "direction",
    )


def _restored(run: RunLike) -> Card | None:
    best = top_arm(run)
    if best is None:
        return None
    random = beside(cliff_table(run, ABLATION), "random", best["share"], COMPLIED)["restored_rate"]
    detail = f"{whole(best['n_heads'])} heads, {percent(best['share'])}; "
    detail += (
        f"random heads {percent(random.mean())} on average" if len(random) else "no random heads"
    )
    detail += f" (p = {p_value(best['p_random'])})" if finite(best["p_random"]) else ""
    known = finite(best["restored_low"]) and finite(best["restored_high"])
    return Card(
        "Lost refusals restored without them",
        percent(best["restored_rate"]),
        rate_span(best["restored_low"], best["restored_high"]),
        f"n = {whole(best['complied'])}; {detail}",
        "figure-cliff-ablation",
        "harmful",
        float(best["restored_rate"]),
        float(best["restored_low"]) if known else None,
        float(best["restored_high"]) if known else None,
    )


def _benign(run: RunLike) -> Card | None:
    best = top_arm(run)
    if best is None:
        return None
    rows = records(beside(cliff_table(run, ABLATION), "top", best["share"], HARMLESS))
    row = next(iter(rows), None)
    return _refused(row) if row is not None and finite(row["rate"]) else None


def _refused(row: Row) -> Card:
    known = finite(row["low"]) and finite(row["high"])
    return Card(
        "Benign prompts refused without them",
        percent(row["rate"]),
        rate_span(row["low"], row["high"]),
        f"n = {whole(row['n'])}, by the margin",
        "figure-cliff-ablation",
        "harmless",
        float(row["rate"]),
        float(row["low"]) if known else None,
        float(row["high"]) if known else None,
    )
