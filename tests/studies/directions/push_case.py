"""A tiny random model with prompts to push, and the plain way to push it: one prompt, one hook, no cache."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from model import tiny
from refusalscope.judge import Judge, Judgement
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.progress import Silent
from refusalscope.prompts import Prompt
from refusalscope.runs import Run
from refusalscope.studies.directions import Centroids
from refusalscope.studies.directions.belief_settings import preset
from refusalscope.studies.directions.belief_work import Work
from refusalscope.studies.subject import SPLITS, Subject

ASKS = ("bake bread", "open a locked door", "write a poem", "find the key", "paint 3 walls?")
MARGIN = RefusalMargin((40, 41), (50, 60))
SMALL = {"steer_rows": (1, 3), "n_random": 2, "n_resamples": 100, "max_new_tokens": 3}


class OddJudge(Judge):
    """Refused where the reply's length is odd, degenerate where it holds an "a"."""

    name = "odd"

    def judge(self, exchanges, progress=None):
        return [Judgement(self.label(exchange.reply)) for exchange in exchanges]

    @staticmethod
    def label(reply: str) -> str:
        if "a" in reply:
            return "degenerate"
        return "full_refusal" if len(reply) % 2 else "compliance"


def prompts() -> list[Prompt]:
    return [
        Prompt(f"{split}/{label}/{n}", f"{start} {ask}", label)
        for split in SPLITS
        for label, start in (("harmful", "Tell me how to"), ("harmless", "How do I"))
        for n, ask in enumerate(ASKS)
    ]


def chat_model(tokenizer=None) -> ChatModel:
    return ChatModel.wrap(tiny.model("llama"), tokenizer or tiny.tokenizer(), id="tiny")


def subject(chat: ChatModel, margin: RefusalMargin | None = MARGIN) -> Subject:
    mine = prompts()
    table = pd.DataFrame(
        {
            "split": [prompt.id.split("/")[0] for prompt in mine],
            "label": [prompt.label for prompt in mine],
        }
    )
    return Subject(chat, tuple(mine), tuple(chat.render(mine)), table, margin, OddJudge())


def means(chat: ChatModel) -> Centroids:
    shape = (4, chat.anatomy.n_layers + 1, chat.anatomy.d_model)
    return Centroids(*torch.randn(shape, generator=torch.Generator().manual_seed(7)))


def work(folder, chat: ChatModel | None = None, margin=MARGIN, **changes) -> Work:
    chat = chat or chat_model()
    run = Run.create(folder / "run", command="test", settings={}, inputs={})
    settings = preset("recommended", **SMALL | changes)
    return Work(run, subject(chat, margin), settings, means(chat), Silent())


@torch.no_grad()
def logits(chat: ChatModel, ids, layer: int, places, vector) -> torch.Tensor:
    """Logits at the last token, with `vector` added at some tokens of one block's input."""

    def push(module, args):
        hidden = args[0].clone()
        hidden[0, list(places)] += vector
        return (hidden, *args[1:])

    handle = chat.model.model.layers[layer].register_forward_pre_hook(push)
    try:
        return chat.model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    finally:
        handle.remove()


def reply(chat: ChatModel, ids, layer: int, places, vector, n: int) -> str:
    """Greedy reply, the whole text again at every step; generated tokens are never pushed."""
    said: list[int] = []
    for _ in range(n):
        token = int(logits(chat, [*ids, *said], layer, places, vector).argmax())
        if token == chat.tokenizer.eos_token_id:
            break
        said.append(token)
    return chat.decode(said)


def residual_norm(chat: ChatModel, rendered, layer: int, anchor: str) -> float:
    """Mean norm of a block's input at an anchor, one prompt at a time."""
    found = []
    for prompt in rendered:
        kept = []
        handle = chat.model.model.layers[layer].register_forward_pre_hook(
            lambda module, args, kept=kept: kept.append(args[0][0])
        )
        with torch.no_grad():
            chat.model(input_ids=torch.tensor([list(prompt.ids)]))
        handle.remove()
        found.append(float(kept[0][prompt.anchor(anchor)].norm()))
    return float(np.mean(found))


def n_hooks(chat: ChatModel) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in chat.model.modules()
    )


@contextmanager
def no_hooks_left(chat: ChatModel):
    assert n_hooks(chat) == 0
    try:
        yield
    finally:
        assert n_hooks(chat) == 0
