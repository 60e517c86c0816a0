"""The sections of the page, in the order they are read.

A section is a function from a run to a `Section`, or to None when the run says nothing about it. A
later study adds its own by adding its function to the list below.
"""

from __future__ import annotations

from collections.abc import Callable

from refusalscope.report.content import Section
from refusalscope.report.sections.behaviour import behaviour
from refusalscope.report.sections.belief import belief
from refusalscope.report.sections.belief_plane import belief_plane
from refusalscope.report.sections.belief_study import belief_clusters, belief_more, belief_pushes
from refusalscope.report.sections.cliff import cliff, cliff_heads
from refusalscope.report.sections.directions import directions
from refusalscope.report.sections.features import (
    features,
    features_baselines,
    features_pairs,
    features_waking,
)
from refusalscope.report.sections.guard import guard, guard_drift, guard_shortcuts, guard_use
from refusalscope.report.sections.judge import judge
from refusalscope.report.sections.key_figures import key_figures
from refusalscope.report.sections.provenance import limits, provenance
from refusalscope.report.sections.repair import repair
from refusalscope.report.sections.routing import (
    routing,
    routing_checks,
    routing_cipher,
    routing_dose,
)
from refusalscope.report.sections.warnings import warnings
from refusalscope.report.tables import RunLike

SECTIONS: tuple[Callable[[RunLike], Section | None], ...] = (
    key_figures,
    behaviour,
    directions,
    belief,
    judge,
    routing,
    routing_dose,
    routing_cipher,
    routing_checks,
    features,
    features_waking,
    features_pairs,
    features_baselines,
    cliff,
    cliff_heads,
    repair,
    belief_plane,
    belief_clusters,
    belief_pushes,
    belief_more,
    guard,
    guard_shortcuts,
    guard_use,
    guard_drift,
    warnings,
    provenance,
    limits,
)
