"""A planted cliff as the cliff study meets it: prompts with thinking, replies, splits and probes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from refusalscope.judge import Exchange, Judge
from refusalscope.judge.behaviour import margins, prompt_table
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.organisms.planted import Planted, tokens
from refusalscope.progress import Silent
from refusalscope.prompts.splits import split
from refusalscope.runs import Run
from refusalscope.studies.cliff import Probe, Trace, traces_of
from refusalscope.studies.cliff.settings import CliffSettings, preset
from refusalscope.studies.cliff.study import (
    COMPLIED,
    HARMLESS,
    REFUSED,
    Work,
    fit_probes,
    run_cliff,
)
from refusalscope.studies.heads import Head
from refusalscope.studies.subject import SPLITS, Subject

MARGIN = RefusalMargin((tokens.REFUSE,), (tokens.COMPLY,))
# Those of `refusalscope cliff`.
FRACTIONS = {"fit": 0.35, "select": 0.25, "report": 0.4}
# A reply is one word, and of the 64 heads as many are removed together as there are suppressors.
CHANGES = {"max_new_tokens": 2, "shares": (3 / 64,)}
SETTINGS = preset("recommended", **CHANGES)
PUBLISHED = preset("yin2025", **CHANGES)


@dataclass(frozen=True)
class CliffBench:
    """An organism with its prompts answered and split. Of `planted.truth` methods see how many are planted."""

    planted: Planted
    chat: ChatModel
    subject: Subject
    work: Work
    probe: Probe

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of the study as it ships, in a run folder that is thrown away."""
        with tempfile.TemporaryDirectory() as folder:
            run = _run(folder, SETTINGS)
            run_cliff(run, self.subject, SETTINGS)
            found = {name: run.table(name) for name in run.tables()}
            run.finish()
        return found

    @cached_property
    def published_probe(self) -> Probe:
        return _posed(self.subject, PUBLISHED)[1]

    @cached_property
    def cases(self) -> list[Trace]:
        """Harmful traces that heads are measured on: complied with, or all where none was."""
        groups = self.work.groups(SETTINGS.n_heads)
        return self.work.take(groups[COMPLIED] if COMPLIED in groups else groups[REFUSED])

    @cached_property
    def controls(self) -> list[Trace]:
        return self.work.take(self.work.groups(SETTINGS.n_heads)[HARMLESS])

    @cached_property
    def requests(self) -> list[Trace]:
        """All harmful traces of the report split."""
        return self.work.take(self.subject.pick("report", "harmful"))

    @cached_property
    def lost(self) -> frozenset[str]:
        """Ids of the requests that persuasion is planted to turn: for scoring alone."""
        turned = {t.id for t in self.planted.truth.thinking if t.suppressed and not t.refused}
        return frozenset(trace.prompt.id for trace in self.requests) & turned

    @property
    def acting(self) -> frozenset[Head]:
        """The planted suppressors, where any request is suppressed: for scoring alone."""
        return frozenset(self.planted.truth.with_role("suppressor") if self.lost else ())


def set_up(planted: Planted) -> CliffBench:
    """The organism with the probe of the study, fitted on its fit and select splits."""
    assert planted.prompts is not None
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id=planted.truth.variant)
    sides = split(planted.prompts, FRACTIONS, seed=SETTINGS.seed)
    prompts = tuple(prompt for name in SPLITS for prompt in sides[name])
    names = [name for name in SPLITS for _ in sides[name]]
    rendered = tuple(chat.render(prompts))
    judge = Judge.from_name("phrases:planted")
    margin = margins(chat, rendered, MARGIN)
    # Its answer is the likelier of the two words, as in its policy: noise may put the end token before both.
    words = np.where(margin > 0, tokens.WORDS[tokens.REFUSE], tokens.WORDS[tokens.COMPLY])
    judgements = judge.judge([Exchange(p.text, w) for p, w in zip(prompts, words, strict=True)])
    table = prompt_table(prompts, rendered, names, judgements, margin)
    subject = Subject(chat, prompts, rendered, table, MARGIN, judge)
    return CliffBench(planted, chat, subject, *_posed(subject, SETTINGS))


def _posed(subject: Subject, settings: CliffSettings) -> tuple[Work, Probe]:
    """The study's work on these prompts, and the probe that it goes by."""
    traces = tuple(traces_of(subject.chat, subject.prompts))
    with tempfile.TemporaryDirectory() as folder:
        work = Work(_run(folder, settings), subject, MARGIN, settings, traces, Silent())
        return work, fit_probes(work)[0].probe


def _run(folder: str, settings: CliffSettings) -> Run:
    return Run.create(
        Path(folder) / "run",
        command="cliff",
        settings=settings.model_dump(mode="json"),
        inputs={},
    )
