"""The verdict of a whole run: the sentences its tables allow, in the order they are read."""

from __future__ import annotations

from refusalscope.report import rules
from refusalscope.report.belief_rules import belief_statements
from refusalscope.report.cliff_rules import cliff_statements
from refusalscope.report.features_rules import features_statements
from refusalscope.report.features_worries import few_flips
from refusalscope.report.guard_rules import guard_statements
from refusalscope.report.guard_tables import COMMANDS as GUARDS
from refusalscope.report.repair_rules import RANKING, repair_statements
from refusalscope.report.routing_rules import routing_statements
from refusalscope.report.rules import Statement
from refusalscope.report.tables import RunLike, chosen_candidate, usable
from refusalscope.report.worries import worries

# How many concerns the last sentence names; the others stand in the section of warnings.
MAX_WORRIES = 2


def verdict(run: RunLike) -> list[Statement]:
    """Two to six sentences on a run, from its tables alone; what was not measured is said.

    Never raises for a table that is missing, empty or narrower than expected.
    """
    concerns = worries(run)
    if run.info.get("command") == "routing":
        said, unsaid = routing_statements(run)
        # Redundancy and coverage have sentences of their own.
        told = {said_at for statement in said[1:] for said_at in statement.links}
        fresh = [concern for concern in concerns if not told.issuperset(concern.links)]
        return [*said, _last(fresh[:MAX_WORRIES], unsaid)]
    if run.info.get("command") == "features":
        said, unsaid = features_statements(run)
        # How many prompts the set flips stands in a sentence of its own.
        flips = few_flips(run)
        fresh = [concern for concern in concerns if concern != flips]
        return [*said, _last(fresh[:MAX_WORRIES], unsaid)]
    if run.info.get("command") == "cliff":
        said, unsaid = cliff_statements(run)
        return [*said, _last(concerns[:MAX_WORRIES], unsaid)]
    if run.info.get("command") in ("repair", RANKING):
        said, unsaid = repair_statements(run)
        return [*said, _last(concerns[:MAX_WORRIES], unsaid)]
    if run.info.get("command") == "belief":
        said, unsaid = belief_statements(run)
        return [*said, _last(concerns[:MAX_WORRIES], unsaid)]
    if run.info.get("command") in GUARDS:
        said, unsaid = guard_statements(run)
        # Shortcuts have a sentence of their own.
        told = {said_at for statement in said[1:] for said_at in statement.links}
        fresh = [concern for concern in concerns if not told.issuperset(concern.links)]
        return [*said, _last(fresh[:MAX_WORRIES], unsaid)]
    concerns = concerns[:MAX_WORRIES]
    rates = usable(run, "behaviour.rates")
    arms = usable(run, "directions.interventions")
    chosen = chosen_candidate(usable(run, "directions.candidates")) or {}

    def one(intervention: str, label: str) -> rules.Row | None:
        return next(iter(rules.arm(arms, intervention, "direction", label)), None)

    parts = {
        "refusal and over-refusal": rules.behaviour(
            rules.overall(rates, "harmful"), rules.overall(rates, "harmless")
        ),
        "whether one direction carries the refusal": rules.carrier(
            one("none", "harmful"),
            one("ablate", "harmful"),
            rules.arm(arms, "ablate", "random", "harmful"),
        ),
        "whether refusal can be induced": rules.inducible(
            one("none", "harmless"),
            one("add", "harmless"),
            rules.arm(arms, "add", "random", "harmless"),
        ),
        "whether harmfulness and refusal are separate axes": rules.axes(
            usable(run, "directions.geometry"), chosen.get("layer")
        ),
    }
    agreement = usable(run, "judge.agreement")
    if usable(run, "judge.summary") is not None:
        return [rules.agreement(agreement), _last(concerns, [])]
    found = [statement for statement in parts.values() if statement is not None]
    missing = [name for name, statement in parts.items() if statement is None]
    return [*found, _last(concerns, missing)]


def headline(statements: list[Statement]) -> str:
    """The fragments of the statements as one line."""
    shorts = [statement.short for statement in statements if statement.short]
    if not shorts:
        return "This run measured too little for a verdict"
    line = "; ".join(shorts)
    return line[0].upper() + line[1:]


def _last(concerns: list[Statement], missing: list[str]) -> Statement:
    unmeasured = f"Not measured in this run: {', '.join(missing)}." if missing else ""
    if not concerns:
        text = unmeasured or "No rule of this report found a further concern."
        return Statement(text, "", "watch" if missing else "good", ("warnings",))
    what = "; and ".join(concern.text for concern in concerns)
    text = f"What to look at: {what}."
    links = tuple(link for concern in concerns for link in concern.links)
    tone = "bad" if any(concern.tone == "bad" for concern in concerns) else "watch"
    return Statement(f"{text} {unmeasured}".strip(), "", tone, links)
