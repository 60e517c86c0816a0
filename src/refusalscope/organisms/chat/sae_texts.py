"""Texts for the sparse autoencoders of builtin:chat: generated requests, and the model's own replies."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from refusalscope.dictionary.activations import states
from refusalscope.model import ChatModel, Rendered, Site
from refusalscope.organisms.chat.examples import Example, ExampleMaker, Mix
from refusalscope.organisms.chat.requests import generate

# Requests as in the training of the model, without its word salads.
MIX = Mix(salad=0)


def make_texts(
    chat: ChatModel, n: int, reply_share: float, reply_tokens: int, seed: int
) -> list[Rendered]:
    """n generated requests in the chat template, half of them harmful, in random order.

    A share of them goes on with a reply sampled from the model itself (temperature 1), at most
    `reply_tokens` long; the others end with the generation prompt.
    """
    rng = random.Random(seed)
    maker = ExampleMaker(chat.tokenizer, MIX, rng, lambda: generate("harmless", rng))
    harmful = [rng.random() < 0.5 for _ in range(n)]
    rows = maker.make([generate("harmful" if harm else "harmless", rng) for harm in harmful])
    answered = rng.sample(range(n), round(reply_share * n))
    said = _sampled(chat, [rows[i] for i in answered], reply_tokens, seed)
    replies = dict(zip(answered, said, strict=True))
    return [_rendered(str(i), row, replies.get(i, [])) for i, row in enumerate(rows)]


@torch.no_grad()
def _sampled(chat: ChatModel, rows: Sequence[Example], most: int, seed: int) -> list[list[int]]:
    """One sampled reply a row, its end marker included. Rows of one length go together: no padding."""
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row.prompt), []).append(i)
    found: list[list[int]] = [[] for _ in rows]
    end = chat.tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for length, members in sorted(by_length.items()):
            ids = torch.tensor([rows[i].prompt for i in members])
            said = chat.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=most,
            )
            for i, reply in zip(members, said[:, length:].tolist(), strict=True):
                found[i] = reply[: reply.index(end) + 1] if end in reply else reply
    return found


def _rendered(name: str, row: Example, reply: Sequence[int]) -> Rendered:
    n = len(row.prompt)
    return Rendered(
        id=name,
        text="",
        ids=(*row.prompt, *reply),
        n_prompt=n,
        instruction=(row.request[0], row.request[1] - 1),
        anchors={"bos": 0, "prompt_last": n - 1},
    )


def token_states(
    chat: ChatModel, texts: Sequence[Rendered], layers: Sequence[int]
) -> dict[int, Tensor]:
    """The residual stream after each layer at every token of the texts: layer -> [tokens, width]."""
    found = states(chat, texts, [Site("resid_post", layer) for layer in layers])
    return {
        layer: torch.cat([text[Site("resid_post", layer)] for text in found]) for layer in layers
    }
