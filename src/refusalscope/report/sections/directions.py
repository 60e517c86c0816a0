"""The refusal direction: how it was chosen, what it does, and how it stands to harmfulness."""

from __future__ import annotations

from refusalscope.report.content import Block, Note, Section
from refusalscope.report.sections.candidate_table import candidate_table
from refusalscope.report.sections.candidates import candidate_maps
from refusalscope.report.sections.geometry import geometry_figure
from refusalscope.report.sections.interventions import interventions_figure
from refusalscope.report.tables import RunLike, usable, why_missing

TABLES = ("directions.candidates", "directions.interventions", "directions.geometry")


def directions(run: RunLike) -> Section | None:
    """Candidates, interventions and geometry; None when the run has none of their tables."""
    if not any(name in run.tables() for name in TABLES):
        return None
    blocks: list[Block] = []
    candidates, interventions, geometry = (usable(run, name) for name in TABLES)
    if candidates is not None:
        blocks += [candidate_maps(candidates), candidate_table(candidates)]
    else:
        blocks.append(Note(why_missing(run, TABLES[0]), "missing"))
    if interventions is not None:
        blocks.append(interventions_figure(interventions))
    else:
        blocks.append(Note(why_missing(run, TABLES[1]), "missing"))
    if geometry is not None:
        blocks.append(geometry_figure(geometry, candidates))
    else:
        blocks.append(Note(why_missing(run, TABLES[2]), "missing"))
    return Section(
        "directions",
        "The refusal direction",
        blocks,
        "A direction is the difference of the mean states of harmful and harmless prompts at one "
        "token position (anchor) and layer. Each was tried by taking it out of the model and by "
        "adding it; one was chosen on the select split and then tested on the report split.",
    )
