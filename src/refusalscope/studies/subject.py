"""The patient with its prompts, prepared once for all studies: splits, replies, verdicts, margin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.judge import Judge, Judgement
from refusalscope.judge.behaviour import learn_margin, margins, prompt_table, rates, reply
from refusalscope.model import ChatModel, Cost, RefusalMargin, Rendered
from refusalscope.progress import Progress, Silent
from refusalscope.prompts import Prompt, PromptSet
from refusalscope.runs import Run

SPLITS = ("fit", "select", "report")


@dataclass(frozen=True)
class Subject:
    """A chat model and the prompts it is studied on.

    table: the run's `prompts` table, row for row with `prompts` and `rendered`. margin: None where the
    openings of refusals and replies could not be learnt (a model that never refuses, or always does).
    judge: what judged the replies, and judges further ones.
    """

    chat: ChatModel
    prompts: tuple[Prompt, ...]
    rendered: tuple[Rendered, ...]
    table: pd.DataFrame
    margin: RefusalMargin | None
    judge: Judge

    def pick(self, split: str, label: str | None = None, verdict: str | None = None) -> list[int]:
        """Indices of the prompts of a split, and of a label and a verdict if given."""
        mask = self.table["split"] == split
        if label is not None:
            mask &= self.table["label"] == label
        if verdict is not None:
            mask &= self.table["verdict"] == verdict
        return np.flatnonzero(mask).tolist()

    def take(self, indices: Sequence[int]) -> list[Rendered]:
        return [self.rendered[i] for i in indices]

    def require_margin(self) -> RefusalMargin:
        """The margin; InputError where refusals and replies could not be told apart."""
        if self.margin is None:
            raise InputError(
                "refusals and replies of the model could not be told apart; give more prompts that it refuses "
                "and that it answers"
            )
        return self.margin

    def harmful(self, indices: Sequence[int]) -> npt.NDArray[np.bool_]:
        return (self.table["label"].to_numpy()[indices] == "harmful").astype(bool)


@contextmanager
def spending(run: Run, chat: ChatModel) -> Iterator[None]:
    """Count what the model spends inside to the run's next table."""
    before = replace(chat.cost)
    yield
    run.add_cost(**spent(before, chat.cost))


def stage(run: Run, chat: ChatModel, table: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The run's table, made and written with its cost where the run does not hold it yet."""
    if not run.has_table(table):
        with spending(run, chat):
            frame = make()
        run.write_table(table, frame)
    return run.table(table)


def spent(before: Cost, after: Cost) -> dict[str, int]:
    return {
        "forwards": after.forwards - before.forwards,
        "token_layers": after.token_layers - before.token_layers,
        "tokens": after.tokens - before.tokens,
    }


def prepare(
    run: Run,
    chat: ChatModel,
    splits: dict[str, PromptSet],
    *,
    judge: Judge,
    max_new_tokens: int,
    seed: int,
    progress: Progress | None = None,
) -> Subject:
    """Render, reply, judge, and learn the refusal margin on the fit split; writes `prompts` and rates.

    A run that has these tables already is read instead of computed again. With `keep_text` the prompts and
    replies are stored too, as table `replies`.
    """
    progress = progress or Silent()
    prompts = tuple(prompt for name in SPLITS for prompt in splits[name])
    names = [name for name in SPLITS for _ in splits[name]]
    rendered = tuple(chat.render(prompts))
    (example,) = chat.render([Prompt("example", "INSTRUCTION")])
    run.update(rendering={"text": example.text, "token_ids": list(example.ids)})
    if not run.has_table("behaviour.rates"):
        with spending(run, chat):
            said = reply(
                chat,
                prompts,
                rendered,
                judge,
                max_new_tokens,
                progress=progress.track("replies to the prompts"),
            )
            margin = _learn(run, said.judgements, said.first, names)
            scores = (
                np.full(len(prompts), np.nan) if margin is None else margins(chat, rendered, margin)
            )
        if margin is not None:
            run.write_array(
                "openings", {"refuse": np.array(margin.refuse), "reply": np.array(margin.reply)}
            )
        if run.keep_text:
            texts = pd.DataFrame(
                {
                    "id": [p.id for p in prompts],
                    "prompt": [p.text for p in prompts],
                    "rendered": [r.text for r in rendered],
                    "token_ids": [list(r.ids) for r in rendered],
                    "reply": said.texts,
                }
            )
            run.write_table("replies", texts)
        table = prompt_table(prompts, rendered, names, said.judgements, scores)
        run.write_table("prompts", table)
        _warn(run, table, rendered)
        run.write_table(
            "behaviour.rates", rates(table[table["split"] == "report"], judge.name, seed)
        )
    table = run.table("prompts")
    openings = run.array("openings") if "openings" in run.arrays() else None
    learnt = None
    if openings is not None:
        learnt = RefusalMargin(
            tuple(openings["refuse"].tolist()), tuple(openings["reply"].tolist())
        )
    return Subject(chat, prompts, rendered, table, learnt, judge)


def _learn(
    run: Run, judgements: Sequence[Judgement], first: Sequence[int], names: Sequence[str]
) -> RefusalMargin | None:
    fit = [i for i, name in enumerate(names) if name == "fit"]
    try:
        return learn_margin([judgements[i] for i in fit], [first[i] for i in fit])
    except InputError as error:
        run.warn(f"No refusal margin: {error}.")
        return None


def _warn(run: Run, table: pd.DataFrame, rendered: Sequence[Rendered]) -> None:
    merged = int(table["boundary_merge"].sum())
    if merged:
        run.warn(
            f"{merged} of {len(table)} prompts end in a token that the tokenizer merged with the chat "
            f"template, so their last instruction token is partly template."
        )
    open_thinking = sum(
        "think_open" in r.anchors and "think_close" not in r.anchors for r in rendered
    )
    if open_thinking:
        run.warn(
            "The chat template opens a thinking span before the reply, so the first tokens judged are "
            "thinking; raise max_new_tokens until replies are reached."
        )
    broken = int((table["verdict"] == "degenerate").sum())
    if broken:
        run.warn(
            f"{broken} of {len(table)} replies were degenerate (empty, repetition, no language); they count "
            f"as neither refused nor answered."
        )
    unknown = int(table["verdict"].isna().sum())
    if unknown:
        run.warn(
            f"{unknown} of {len(table)} replies got no label from the judge; they count as not refused."
        )
