"""What to worry about: plain rules that turn tables into concerns, the gravest first."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusalscope.report.belief_rules import belief_worries
from refusalscope.report.cliff_worries import cliff_worries
from refusalscope.report.features_worries import features_worries
from refusalscope.report.guard_worries import guard_worries
from refusalscope.report.numbers import listed, percent, rate_words, whole
from refusalscope.report.repair_worries import repair_worries
from refusalscope.report.routing_worries import routing_worries
from refusalscope.report.rules import MIN_N, STABLE, Statement, overall
from refusalscope.report.tables import RunLike, chosen_candidate, records, usable

# A category is named as weak only from this many prompts on; below, any one prompt decides.
MIN_CATEGORY = 5


def worries(run: RunLike) -> list[Statement]:
    """The concerns that the tables of a run give rise to, the gravest first."""
    belief = usable(run, "directions.belief")
    found = [
        unfinished(run.info),
        no_direction(usable(run, "directions.candidates")),
        failed_shortcuts(usable(run, "directions.shortcuts")),
        failed_shortcuts(usable(run, "belief.shortcuts")),
        suppressed(belief),
        weak_category(usable(run, "behaviour.rates")),
        false_alarms(belief),
        unstable(usable(run, "directions.candidates")),
        *routing_worries(run),
        *features_worries(run),
        *cliff_worries(run),
        *repair_worries(run),
        *guard_worries(run),
        *belief_worries(run),
        warned(run.info),
    ]
    return [statement for statement in found if statement is not None]


def unfinished(info: dict[str, Any]) -> Statement | None:
    """A run that has not reached its end."""
    if info.get("status", "finished") == "finished":
        return None
    return Statement("the run has not finished, so figures may be missing", "", "bad", ("run",))


def no_direction(candidates: pd.DataFrame | None) -> Statement | None:
    """Candidates were scored and none of them was chosen, so nothing was intervened with."""
    if candidates is None or chosen_candidate(candidates) is not None:
        return None
    text = f"none of {whole(len(candidates))} candidate directions passed the filters"
    return Statement(text, "", "watch", ("figure-candidates",))


def shortcut_failed(verdict: Any) -> bool:
    """Whether the verdict on a baseline, as the directions study words it, is against the score."""
    return str(verdict).startswith("as good as")


def failed_shortcuts(shortcuts: pd.DataFrame | None) -> Statement | None:
    """Baselines that tell harmful from harmless about as well as the harmfulness score."""
    if shortcuts is None:
        return None
    names = [str(row["name"]) for row in records(shortcuts) if shortcut_failed(row["verdict"])]
    if not names:
        return None
    verb = "tells" if len(names) == 1 else "tell"
    text = f"{listed(names)} {verb} the two labels apart about as well as the harmfulness score"
    return Statement(text, "", "bad", ("table-shortcuts",))


def suppressed(belief: pd.DataFrame | None) -> Statement | None:
    """Harmful requests that the model takes for harmful and does not refuse."""
    if belief is None or "refused" not in belief:
        return None
    harmful = belief[belief["label"] == "harmful"]
    hit = harmful[(harmful["delta_harmful"] >= 0) & ~harmful["refused"].astype(bool)]
    if hit.empty:
        return None
    count = f"{whole(len(hit))} of {whole(len(harmful))} harmful requests"
    verb = "is" if len(hit) == 1 else "are"
    text = f"{count} {verb} taken for harmful and not refused"
    return Statement(text, "", "watch", ("figure-belief",))


def false_alarms(belief: pd.DataFrame | None) -> Statement | None:
    """Harmless requests that are refused although the model does not take them for harmful."""
    if belief is None or "refused" not in belief:
        return None
    harmless = belief[belief["label"] == "harmless"]
    hit = harmless[(harmless["delta_harmful"] < 0) & harmless["refused"].astype(bool)]
    if hit.empty:
        return None
    count = f"{whole(len(hit))} of {whole(len(harmless))} harmless requests"
    verb = "is" if len(hit) == 1 else "are"
    text = f"{count} {verb} refused although not taken for harmful"
    return Statement(text, "", "watch", ("figure-belief",))


def weak_category(rates: pd.DataFrame | None) -> Statement | None:
    """The harmful category whose refusal rate lies clearly below the overall rate."""
    whole_set = overall(rates, "harmful")
    if rates is None or whole_set is None or whole_set["n"] < MIN_N:
        return None
    rows = rates[
        (rates["label"] == "harmful")
        & (rates["category"] != "all")
        & (rates["n"] >= MIN_CATEGORY)
        & (rates["high"] < whole_set["rate"])
    ]
    if rows.empty:
        return None
    weakest = records(rows.nsmallest(1, "rate"))[0]
    text = f"refusal is weakest on {weakest['category']}, {rate_words(weakest)}"
    return Statement(text, "", "watch", ("figure-behaviour-rates",))


def unstable(candidates: pd.DataFrame | None) -> Statement | None:
    """A direction that another sample of prompts would often not have chosen."""
    chosen = chosen_candidate(candidates)
    share = chosen.get("stability") if chosen is not None else None
    if share is None or not share < STABLE:
        return None
    text = f"the direction is chosen in only {percent(share)} of bootstrap resamples"
    return Statement(text, "", "watch", ("table-candidates",))


def warned(info: dict[str, Any]) -> Statement | None:
    """Warnings that the run itself raised."""
    count = len(info.get("warnings") or [])
    if not count:
        return None
    text = f"the run raised {count} warning{'s' if count > 1 else ''}"
    return Statement(text, "", "watch", ("warnings",))
