"""The belief study: belief and behaviour, what the directions do, jailbreaks, categories, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from refusalscope.report.belief_tables import (
    CATEGORIES,
    CLUSTERS,
    COSINES,
    CUT,
    INVERSION,
    JAILBREAKS,
    POSITIONS,
    STEERING,
    TUNED,
    belief_table,
    is_belief,
)
from refusalscope.report.content import Block, Note, Section
from refusalscope.report.sections.belief_categories import categories_figure, categories_table
from refusalscope.report.sections.belief_clusters import (
    clusters_figure,
    cut_table,
    positions_figure,
)
from refusalscope.report.sections.belief_jailbreaks import (
    jailbreaks_figure,
    jailbreaks_table,
    tuned_table,
)
from refusalscope.report.sections.belief_push_tables import (
    inversion_table,
    margins_table,
    steering_table,
)
from refusalscope.report.sections.belief_pushes import (
    answers_figure,
    inversion_figure,
    steering_figure,
)
from refusalscope.report.tables import RunLike, why_missing

Make = Callable[[pd.DataFrame], "Block | None"]


def belief_clusters(run: RunLike) -> Section | None:
    """The clusters by layer and token, and the template's end; None for a run without a belief study."""
    if not is_belief(run):
        return None
    blocks = [
        *_shown(run, CLUSTERS, clusters_figure),
        *_shown(run, POSITIONS, positions_figure),
        *_shown(run, CUT, cut_table),
    ]
    return Section(
        "belief-clusters",
        "Belief and behaviour",
        blocks,
        "Prompts are sorted by what they ask and by what the model did with them. Where the four kinds stand "
        "shows whether a state holds the harm of a request or the refusal to come.",
    )


def belief_pushes(run: RunLike) -> Section | None:
    """Steering and reply inversion; None for a run without a belief study."""
    if not is_belief(run):
        return None
    blocks = [
        *_shown(run, STEERING, steering_figure, steering_table),
        *_shown(run, INVERSION, answers_figure, margins_table, inversion_figure, inversion_table),
    ]
    return Section(
        "belief-pushes",
        "What the directions do",
        blocks,
        "The directions of harm and of refusal are added to the states of other prompts, beside random "
        "rotations of the same length: what does the model do, and what does it say of the prompt's harm?",
    )


def belief_more(run: RunLike) -> Section | None:
    """Jailbreaks, categories and fine-tuning; None for a run without a belief study."""
    if not is_belief(run):
        return None
    blocks = [
        *_shown(run, JAILBREAKS, jailbreaks_figure, jailbreaks_table),
        *_shown(run, COSINES, categories_figure),
        *_shown(run, CATEGORIES, categories_table),
    ]
    if TUNED in run.tables():
        blocks += _shown(run, TUNED, tuned_table)
    else:
        blocks.append(Note("No fine-tuned model was given, so none stands beside this one."))
    return Section(
        "belief-more",
        "Jailbreaks, categories, fine-tuning",
        blocks,
        "Whether wrappers and fine-tuning change what the model believes or only what it does, and whether "
        "harm is one axis or one for each category.",
    )


def _shown(run: RunLike, name: str, *makes: Make) -> list[Block]:
    """What a table gives, or the sentence that says why it gives nothing."""
    table = belief_table(run, name)
    if table is None:
        return [Note(why_missing(run, name), "missing")]
    found = [block for make in makes if (block := make(table)) is not None]
    return found or [Note(f"Nothing of {name} could be drawn.", "missing")]
