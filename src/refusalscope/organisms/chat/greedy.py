"""Greedy replies of the embedded chat model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from refusalscope.organisms.chat import REFUSAL_WORDINGS
from refusalscope.organisms.chat.replies import REPEATED_TOKENS
from refusalscope.organisms.chat.tokenizer import render


@torch.no_grad()
def first_tokens(model: Any, tokenizer: Any, contents: Sequence[str]) -> list[str]:
    """The greedy first reply token to each user turn."""
    model.eval()
    encode = tokenizer.backend_tokenizer.encode_batch
    rows = [e.ids for e in encode([render([("user", c)]) for c in contents])]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = [""] * len(rows)
    for start in range(0, len(order), 128):
        part = order[start : start + 128]
        longest = max(len(rows[i]) for i in part)
        tokens = torch.zeros(len(part), longest, dtype=torch.long)
        for k, i in enumerate(part):
            tokens[k, : len(rows[i])] = torch.tensor(rows[i])
        last = torch.tensor([len(rows[i]) - 1 for i in part])
        states = model.model(input_ids=tokens).last_hidden_state
        best = model.lm_head(states[torch.arange(len(part)), last]).argmax(-1)
        for i, token in zip(part, best.tolist(), strict=True):
            found[i] = tokenizer.decode([token])
    return found


def refusing_first(tokenizer: Any) -> frozenset[str]:
    """The first tokens of the refusal wordings, as text."""
    encode = tokenizer.backend_tokenizer.encode
    return frozenset(tokenizer.decode(encode(w).ids[:1]) for w in REFUSAL_WORDINGS)


@torch.no_grad()
def reply_to(
    model: Any, tokenizer: Any, contents: Sequence[str], most: int = 60, rows: int = 64
) -> list[str]:
    """Greedy replies to single user turns, special tokens left out. `most`: new tokens."""
    texts = [render([("user", c)]) for c in contents]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [""] * len(texts)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        batch = tokenizer(
            [texts[i] for i in part], return_tensors="pt", padding=True, add_special_tokens=False
        )
        batch.pop("token_type_ids", None)
        ids = model.generate(**batch, max_new_tokens=most, do_sample=False)
        new = tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for i, text in zip(part, new, strict=True):
            found[i] = text
    return found


def expected_repetition(tokenizer: Any, prompt: str) -> str:
    """The request as a faithful reply repeats it: its first REPEATED_TOKENS tokens."""
    ids = tokenizer(prompt.strip(), add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:REPEATED_TOKENS], skip_special_tokens=True))
