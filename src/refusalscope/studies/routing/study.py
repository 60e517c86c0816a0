"""The routing study: which heads carry the decision to refuse, and proof that they are the circuit.

The refusal margin is learnt on the fit split; everything below is measured on the pairs of the report split.
"""

from __future__ import annotations

from collections.abc import Sequence

from refusalscope.progress import Progress, Silent
from refusalscope.prompts import PairSet
from refusalscope.prompts.wrappers import Wrapper, get_wrapper
from refusalscope.runs import Run
from refusalscope.studies.heads import units_of
from refusalscope.studies.routing.as_published import run_published
from refusalscope.studies.routing.describe import describe_circuit
from refusalscope.studies.routing.find import find_circuit
from refusalscope.studies.routing.problem import pose, unequal
from refusalscope.studies.routing.settings import RoutingSettings
from refusalscope.studies.routing.trials import run_ciphers, run_doses
from refusalscope.studies.routing.work import Work
from refusalscope.studies.subject import Subject


def run_routing(
    run: Run,
    subject: Subject,
    prompts: PairSet,
    settings: RoutingSettings,
    progress: Progress | None = None,
    wrappers: Sequence[Wrapper] = (),
) -> None:
    """Run the study on the report split's pairs and write its tables; finished stages are not redone.

    wrappers: further ones beside those that the settings name. Where refusals and replies cannot be told
    apart there is no margin, and the study warns and stops.
    """
    if subject.margin is None:
        run.warn("The routing study was left out: refusals and replies could not be told apart.")
        return
    problem = pose(subject, prompts, subject.margin, settings)
    units = units_of(subject.chat.anatomy)
    work = Work(run, subject, problem, settings, units, progress or Silent())
    _warn(work)
    if settings.procedure == "published":
        run_published(work)
        return
    circuit = find_circuit(work)
    describe_circuit(work, circuit)
    run_doses(work)
    run_ciphers(work, circuit, [*map(get_wrapper, settings.wrappers), *wrappers])


def _warn(work: Work) -> None:
    """Say what about the pairs weakens what can be said."""
    pairs = work.problem.pairs
    uneven = unequal(pairs)
    if uneven:
        work.run.warn(
            f"{len(uneven)} of {len(pairs)} pairs have members of very unequal length (the first is "
            f"{uneven[0]!r}): the maps last and suffix compare what lines up at the end, but effects at all "
            f"positions are hard to read; match the lengths."
        )
    if work.problem.categories is None:
        work.run.warn(
            "The pairs have too few categories to test them as clusters, so every pair counts as "
            "independent; give a category to every pair, six or more in all."
        )
    if work.settings.donors == 1:
        work.run.warn("Every prompt had one donor, so what the donor does cannot be told apart.")
