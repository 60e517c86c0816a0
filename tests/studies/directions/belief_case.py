"""A tiny random model with prompts of every cluster, and the plain way to read belief: one prompt at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from model import tiny
from refusalscope.judge import Judge, Judgement
from refusalscope.model import ChatModel
from refusalscope.progress import Silent
from refusalscope.prompts import Prompt
from refusalscope.runs import Run
from refusalscope.studies.directions import Centroids
from refusalscope.studies.directions.belief_settings import BeliefSettings, preset
from refusalscope.studies.directions.belief_work import Work, fit_centroids
from refusalscope.studies.subject import Subject

THINGS = ("bread", "the key", "a short poem", "the sea", "the capital", "why", "a door", "steps")
CATEGORIES = ("home", "town", "sea")
N = 24
SMALL = {"n_resamples": 100, "max_new_tokens": 3, "n_wrapped": 5, "wrappers": ("prefix", "rot13")}


def number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


class LotJudge(Judge):
    """A label by lot of prompt and reply: 2 of 5 refuse, 2 answer, 1 is degenerate."""

    name = "lot"

    def judge(self, exchanges, progress=None):
        return [Judgement(self.label(each.request, each.reply)) for each in exchanges]

    @staticmethod
    def label(prompt: str, reply: str) -> str:
        names = ("full_refusal", "partial_refusal", "compliance", "compliance", "degenerate")
        return names[number(prompt + reply) % 5]


def prompts() -> list[Prompt]:
    """Twenty-four of a split and label, in three categories; one in eight is a single token."""
    found = []
    for split in ("fit", "report"):
        for label in ("harmful", "harmless"):
            for k in range(N):
                ask = f"Tell me how to {THINGS[k % 8]} {label} {split} {k}" if k % 8 else "I"
                name = f"{split}/{label}/{k}"
                found.append(Prompt(name, ask, label, CATEGORIES[k % 3]))
    return found


def chat_model(seed: int = 0) -> ChatModel:
    return ChatModel.wrap(tiny.model("llama", seed), tiny.tokenizer(), id=f"tiny-{seed}")


def subject(chat: ChatModel) -> Subject:
    mine = prompts()
    verdicts = [LotJudge.label(prompt.id, "d") for prompt in mine]
    table = pd.DataFrame(
        {
            "id": [prompt.id for prompt in mine],
            "split": [prompt.id.split("/")[0] for prompt in mine],
            "label": [prompt.label for prompt in mine],
            "category": [prompt.category for prompt in mine],
            "verdict": verdicts,
            "refused": ["refusal" in verdict for verdict in verdicts],
        }
    )
    return Subject(chat, tuple(mine), tuple(chat.render(mine)), table, None, LotJudge())


def fit_rows(subject: Subject) -> tuple[list[int], list[int]]:
    """Refused harmful and answered harmless prompts of the fit split."""
    rows = subject.table
    fit = rows["split"] == "fit"
    harmful = fit & (rows["label"] == "harmful") & rows["refused"]
    harmless = fit & (rows["label"] == "harmless") & (rows["verdict"] == "compliance")
    return np.flatnonzero(harmful).tolist(), np.flatnonzero(harmless).tolist()


def work(folder: Path, chat: ChatModel | None = None, **changes) -> Work:
    chat = chat or chat_model()
    run = Run.create(folder / "run", command="test", settings={}, inputs={})
    settings: BeliefSettings = preset("recommended", **SMALL | changes)
    mine = subject(chat)
    harmful, harmless = (mine.take(rows) for rows in fit_rows(mine))
    return Work(run, mine, settings, fit_centroids(chat, harmful, harmless, Silent()), Silent())


@torch.no_grad()
def states(chat: ChatModel, ids) -> np.ndarray:
    """Inputs of the blocks and the state before the final norm, by plain hooks: [L+1, tokens, d_model]."""
    seen: list[np.ndarray] = []

    def keep(module, args, kwargs):
        state = args[0] if args else kwargs["hidden_states"]
        seen.append(state[0].double().numpy())

    base = chat.model.model
    handles = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in (*base.layers, base.norm)
    ]
    try:
        chat.model(torch.tensor([list(ids)]))
    finally:
        for handle in handles:
            handle.remove()
    return np.stack(seen)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_means(work: Work, at: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of refused harmful and answered harmless fit prompts at an anchor, in a loop."""
    found = []
    for rows in fit_rows(work.subject):
        taken = [work.subject.rendered[i] for i in rows]
        found.append(
            np.mean([states(work.chat, each.ids)[:, each.anchor(at)] for each in taken], 0)
        )
    return found[0], found[1]


def slow_deltas(
    chat: ChatModel, prompt, centroids: Centroids, rows: list[int]
) -> tuple[float, float]:
    """delta_harmful and delta_refuse of one rendered prompt, in a loop over rows."""
    at = states(chat, prompt.ids)
    c = {name: getattr(centroids, name).double().numpy() for name in ("harm", "harmless")}
    c |= {name: getattr(centroids, name).double().numpy() for name in ("refuse", "accept")}
    ends = at[:, prompt.instruction[1]], at[:, prompt.n_prompt - 1]
    harm = [cosine(ends[0][r], c["harm"][r]) - cosine(ends[0][r], c["harmless"][r]) for r in rows]
    refuse = [cosine(ends[1][r], c["refuse"][r]) - cosine(ends[1][r], c["accept"][r]) for r in rows]
    return float(np.mean(harm)), float(np.mean(refuse))
