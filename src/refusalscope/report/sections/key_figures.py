"""Key figures as cards, each with its interval and n."""

from __future__ import annotations

from collections.abc import Sequence

from refusalscope.report.content import Card, Cards, Section
from refusalscope.report.guard_tables import SCORE, UNKNOWN
from refusalscope.report.numbers import (
    NBSP,
    corrected,
    decimal,
    finite,
    percent,
    rate_span,
    span,
    whole,
)
from refusalscope.report.rules import arm, geometry_at, overall
from refusalscope.report.sections.cliff_cards import cliff_cards
from refusalscope.report.sections.features_cards import features_cards
from refusalscope.report.sections.guard_cards import guard_cards
from refusalscope.report.sections.repair_cards import repair_cards
from refusalscope.report.sections.routing_cards import routing_cards
from refusalscope.report.tables import Row, RunLike, chosen_candidate, usable


def key_figures(run: RunLike) -> Section | None:
    """The cards; None when no table gives any."""
    rates = usable(run, "behaviour.rates")
    arms = usable(run, "directions.interventions")
    chosen = chosen_candidate(usable(run, "directions.candidates"))
    ablated = arm(arms, "ablate", "direction", "harmful")
    added = arm(arms, "add", "direction", "harmless")
    found = [
        _rate("Refuses harmful requests", overall(rates, "harmful"), "harmful"),
        _rate("Refuses harmless requests", overall(rates, "harmless"), "harmless"),
        _rate(
            "Refuses harmful, direction ablated",
            next(iter(ablated), None),
            "direction",
            _control(arm(arms, "ablate", "random", "harmful")),
        ),
        _rate(
            "Refuses harmless, direction added",
            next(iter(added), None),
            "direction",
            _control(arm(arms, "add", "random", "harmless")),
        ),
        _cosine(geometry_at(usable(run, "directions.geometry"), (chosen or {}).get("layer"))),
        _choice(chosen),
    ]
    cards = [card for card in found if card is not None]
    routes, latents = routing_cards(run), features_cards(run)
    falls, mended, guarded = cliff_cards(run), repair_cards(run), guard_cards(run)
    if not any((cards, routes, latents, falls, mended, guarded)):
        return None
    lead = []
    if cards:
        lead.append(
            "Rates are shares of greedy replies judged as refusals, on prompts that nothing was fitted "
            "or chosen on (the report split)"
        )
    if routes:
        lead.append("Shares are of the gap between harmful prompts and their controls")
    if latents:
        lead.append("A set of latents is judged on prompts that it was not searched on")
    if falls:
        lead.append("A probe of refusal is read where the thinking ends, from 0 to 1")
    if mended:
        lead.append("A repair is judged on held-out prompts, before and after")
    if guarded:
        lead.append(
            f"A guard is judged on the scored prompts; {UNKNOWN}"
            if run.info.get("command") == SCORE
            else "A guard is judged on prompts that it was neither fitted nor calibrated on"
        )
    return Section(
        "key-figures",
        "Key figures",
        [Cards([*cards, *routes, *latents, *falls, *mended, *guarded])],
        f"{'. '.join(lead)}; intervals cover 95{NBSP}%.",
    )


def _rate(name: str, row: Row | None, role: str, control: str = "") -> Card | None:
    if row is None:
        return None
    detail = f"{whole(row['refused'])} of {whole(row['n'])} refused"
    if finite(row.get("corrected")):
        detail += f"; corrected for the judge {corrected(row)}"
    return Card(
        name,
        percent(row["rate"]),
        rate_span(row["low"], row["high"]),
        f"{detail}; {control}" if control else detail,
        "figure-interventions" if role == "direction" else "figure-behaviour-rates",
        role,
        float(row["rate"]),
        float(row["low"]),
        float(row["high"]),
    )


def _control(random: Sequence[Row]) -> str:
    if not random:
        return "no random control"
    low, high = min(row["rate"] for row in random), max(row["rate"] for row in random)
    rates = percent(low)
    if rates != percent(high):
        rates = f"{percent(low, unit=False)} to {percent(high)}"
    return f"random direction{'s' if len(random) > 1 else ''} {rates}"


def _cosine(row: Row | None) -> Card | None:
    if row is None:
        return None
    known = finite(row["low"]) and finite(row["high"])
    return Card(
        "Cosine of harmfulness and refusal",
        decimal(row["cosine"]),
        span(row["low"], row["high"]),
        f"at layer {whole(row['layer'])}; 0 means separate axes, 1 the same",
        "figure-geometry",
        "ink",
        float(row["cosine"]),
        float(row["low"]) if known else None,
        float(row["high"]) if known else None,
        start=-1.0,
    )


def _choice(chosen: Row | None) -> Card | None:
    if chosen is None:
        return None
    share = chosen.get("stability")
    stable = finite(share)
    return Card(
        "Chosen refusal direction",
        f"layer {whole(chosen['layer'])}",
        f"at {chosen['anchor']}",
        f"chosen in {percent(share)} of bootstrap resamples"
        if stable
        else "stability not measured",
        "figure-candidates",
        "direction",
    )
