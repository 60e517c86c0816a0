"""The circuit of another checkpoint on the same pairs: the tables `routing.moved` and `routing.drift`."""

from __future__ import annotations

from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import PairSet
from refusalscope.runs import Run
from refusalscope.studies.routing.drift import drift
from refusalscope.studies.routing.interchange import screen, units_of
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

    Raises InputError where their layers or heads differ in number: heads have no counterparts then.
    """
    if subject.margin is None or run.has_table("routing.drift"):
        return
    progress = progress or Silent()
    chats = (subject.chat, other)
    units = [units_of(chat.anatomy) for chat in chats]
    if units[0] != units[1]:
        raise InputError(
            f"{subject.chat.id} and {other.id} do not have the same layers and heads, so their heads "
            f"cannot be compared; compare checkpoints of one architecture and size"
        )
    problem = pose(subject, prompts, subject.margin, settings)
    found = []
    for chat in chats:
        members = [prompt for pair in prompts for prompt in pair.prompts()]
        rendered = chat.render(members)
        if [r.ids for r in rendered[::2]] != [pair.harmful.ids for pair in problem.pairs]:
            raise InputError(
                f"{other.id} reads the prompts as other tokens than {subject.chat.id}; compare "
                f"checkpoints with one tokenizer and chat template"
            )
        with spending(run, chat):
            found.append(
                screen(
                    chat,
                    problem.partners,
                    {"margin": problem.margin},
                    positions=settings.positions,
                    content=settings.content,
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
