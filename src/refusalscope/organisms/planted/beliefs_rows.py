"""Prompts of a two-beliefs organism as tokens: plain chat, and questions about a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refusalscope.organisms.chat.replies import harm_question
from refusalscope.organisms.planted.beliefs_words import HEAD, PAD, TAIL, VOCABULARY, pieces


@dataclass(frozen=True)
class Row:
    """A prompt in tokens: where its instruction (or the request that a question is about) ends; the reply."""

    ids: tuple[int, ...]
    last: int
    reply: str


def chat_row(text: str, reply: str) -> Row:
    """The prompt of plain chat."""
    return _row((*HEAD, *pieces(text)), TAIL, reply)


def question_row(text: str, question: str, reply: str) -> Row:
    """The prompt that asks about a request."""
    before, after = harm_question("", "\n")[:-2], ["\n", *pieces(question)]
    return _row((*HEAD, *pieces(before), *pieces(text)), (*after, *TAIL), reply)


def _row(before: Sequence[str], after: Sequence[str], reply: str) -> Row:
    ids = tuple(VOCABULARY[word] for word in (*before, *after))
    return Row(ids, len(before) - 1, reply)


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, padded on the right: ids [rows, tokens], last and end [rows]."""

    ids: Tensor
    last: Tensor
    end: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        """The prompts with their replies, so that the token after a reply is taught too."""
        longest = max(len(row.ids) for row in rows) + 1
        ids = torch.full((len(rows), longest), VOCABULARY[PAD])
        for i, row in enumerate(rows):
            ids[i, : len(row.ids) + 1] = torch.tensor([*row.ids, VOCABULARY[row.reply]])
        return cls(
            ids,
            torch.tensor([row.last for row in rows]),
            torch.tensor([len(row.ids) - 1 for row in rows]),
        )
