"""The circuit of another checkpoint on the same pairs: the tables `routing.moved` and `routing.drift`."""

from __future__ import annotations

from collections.abc import Sequence

from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import PairSet, Prompt
from refusalscope.runs import Run
from refusalscope.studies.heads import units_of
from refusalscope.studies.routing.drift import drift
from refusalscope.studies.routing.interchange import screen
from refusalscope.studies.routing.problem import pose
from refusalscope.studies.routing.settings import RoutingSettings
from refusalscope.studies.subject import Subject, spending


def run_drift(
    run: Run,
    subject: Subject,
    other: ChatModel,
    prompts: PairSet,
    settings: RoutingSettings,
    progress: Progress | None = None,
) -> None:
    """Screen both checkpoints on the same pairs, with one donor and the same margin, and compare.

    Raises InputError where they cannot be compared; see `require_alike`.
    """
    if subject.margin is None or run.has_table("routing.drift"):
        return
    progress = progress or Silent()
    require_alike(subject.chat, other, list(prompts.prompts()))
    problem = pose(subject, prompts, subject.margin, settings)
    found = []
    for chat in (subject.chat, other):
        with spending(run, chat):
            found.append(
                screen(
                    chat,
                    problem.partners,
                    {"margin": problem.margin},
                    positions=settings.positions,
                    progress=progress.track(f"every head of {chat.id}"),
                )
            )
    moved, summary = drift(
        found[0],
        found[1],
        "margin",
        categories=problem.categories,
        floor=settings.floor,
        alpha=settings.alpha,
        n_flips=settings.n_flips,
        seed=settings.seed,
    )
    run.write_table("routing.moved", moved)
    run.write_table("routing.drift", summary.assign(first=subject.chat.id, second=other.id))


def require_alike(first: ChatModel, second: ChatModel, prompts: Sequence[Prompt]) -> None:
    """Raises InputError where checkpoints differ in layers or heads, or in how they read the prompts."""
    if units_of(first.anatomy) != units_of(second.anatomy):
        raise InputError(
            f"{first.id} and {second.id} do not have the same layers and heads, so their heads cannot be "
            f"compared; compare checkpoints of one architecture and size"
        )
    texts = [[rendered.ids for rendered in chat.render(prompts)] for chat in (first, second)]
    if texts[0] != texts[1]:
        raise InputError(
            f"{second.id} reads the prompts as other tokens than {first.id}; compare checkpoints with one "
            f"tokenizer and chat template"
        )
