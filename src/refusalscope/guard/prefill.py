"""The belief of a prompt from the very forward that answers it: hooks that copy a few rows, no second pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.reading import read, user_turns
from refusalscope.guard.readings import Readings, worst_turn
from refusalscope.model import ChatModel, Rendered
from refusalscope.prompts import Prompt


class StateReader:
    """Copies the states of chosen tokens out of the model's own forwards while it is open.

    rows: as in `reading.site_of`. Before a forward, `expect(positions)` names the tokens, [batch, places];
    `done()` gives their states, [batch, places, rows, d_model] float32 on the model's device. A forward that
    nothing was expected of is left alone. The hooks are gone when the block ends, whatever happened in it.
    """

    def __init__(self, chat: ChatModel, rows: Sequence[int]) -> None:
        self.chat, self.rows = chat, list(rows)
        self.states: Tensor | None = None
        self._places: Tensor | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> StateReader:
        anatomy = self.chat.anatomy
        for number, row in enumerate(self.rows):
            module = anatomy.layers[row] if row < anatomy.n_layers else anatomy.final_norm

            def copy(_: nn.Module, args: tuple, number: int = number) -> None:
                self._copy(number, args[0])

            self._handles.append(module.register_forward_pre_hook(copy))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def expect(self, positions: Tensor) -> None:
        """Tokens to read in the next forward: [batch, places], counted in what that forward is given."""
        shape = (*positions.shape, len(self.rows), self.chat.anatomy.d_model)
        if self.states is None or self.states.shape != shape:
            self.states = torch.empty(shape, device=self.chat.device)
        batch = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self._places = torch.stack([batch.expand_as(positions), positions])

    def done(self) -> Tensor:
        """What was read since `expect`; later forwards are left alone."""
        assert self.states is not None
        self._places = None
        return self.states

    def _copy(self, number: int, hidden: Tensor) -> None:
        if self._places is None:
            return
        assert self.states is not None
        row, token = self._places.to(hidden.device)
        self.states[:, :, number].copy_(hidden[row, token])


@dataclass(frozen=True)
class Prefilled:
    """A prompt after its prefill: what was read, the logits of the first reply token [vocab], the cache."""

    reading: Readings
    token: str
    logits: Tensor
    cache: Any


@torch.inference_mode()
def prefill(
    guard: BeliefGuard, reader: StateReader, prompt: Prompt, rendered: Rendered
) -> Prefilled:
    """Run one prompt once, for its reply and for its belief. reader: open, with the guard's rows.

    Earlier user turns are read in the same forward where the conversation begins with their tokens (attention
    is causal, so their states are the same), else in a forward of their own.
    """
    chat = guard.chat_
    turns = [*chat.render(user_turns(prompt)[:-1]), rendered]
    inside = [i for i, turn in enumerate(turns) if _begins(rendered, turn, guard.anchor)]
    # The refusal axis is read once, at the end of the whole prompt.
    end = rendered.anchor(guard.anchors[1])
    places = [place for i in inside for place in (turns[i].anchor(guard.anchor), end)]
    reader.expect(torch.tensor([places], device=chat.device))
    ids = torch.tensor([rendered.ids], device=chat.device)
    out = chat.model(input_ids=ids, use_cache=True, logits_to_keep=1)
    states = dict(zip(inside, reader.done()[0].unflatten(0, (len(inside), 2)).cpu(), strict=True))
    for i, turn in enumerate(turns):
        if i not in states:
            (block,) = read(chat, [turn], guard.anchors, guard.rows_)
            states[i] = block[0]
    found = guard.readings(torch.stack([states[i] for i in range(len(turns))]))
    reading, worst = worst_turn(found)
    return Prefilled(
        reading, guard.token_read(turns[worst]), out.logits[0, -1], out.past_key_values
    )


def _begins(rendered: Rendered, turn: Rendered, anchor: str) -> bool:
    last = turn.anchor(anchor) + 1
    return rendered.ids[:last] == turn.ids[:last]
