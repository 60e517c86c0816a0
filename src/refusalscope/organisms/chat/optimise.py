"""The optimisation of the embedded chat model: batches, the loss, the schedule.

Every row gives its prompt and the first token of the reply (which decides between refusing and
answering); a share of the rows gives the whole reply besides (which teaches the wordings and the
repetition), and a sample of the request tokens is predicted too (which teaches words). Token
dropout on requests, dropout on activations, label smoothing and weight decay keep a small model
from learning the rows by heart.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from refusalscope.organisms.chat.examples import Example, ExampleMaker, Mix
from refusalscope.organisms.chat.requests import Request
from refusalscope.organisms.chat.settings import TrainSettings
from refusalscope.organisms.chat.tokenizer import UNK, token_id

Progress = Callable[[int, int, str], None]


def fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Request],
    settings: TrainSettings,
    lines: list[str],
    progress: Progress | None,
    started: float,
) -> tuple[float, float]:
    """Runs the optimiser. Returns the mean decision loss of the first and the last twentieth."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _rate(s, settings))
    generator = torch.Generator().manual_seed(settings.seed)
    handles: list[torch.utils.hooks.RemovableHandle] = []
    model.train()
    history: list[float] = []
    spoken: list[float] = []
    unk = token_id(tokenizer, UNK)
    every = max(1, settings.steps // 46)
    try:
        for step, batch in enumerate(_batches(tokenizer, rows, settings)):
            if step == min(settings.copy_steps, settings.steps - 1):
                # Not before: dropout keeps copying from forming.
                handles = _add_dropout(model, settings.dropout)
            loss, decision, speech = _loss(model, batch, settings, unk, generator)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            history.append(decision)
            spoken.append(speech)
            if (step + 1) % every == 0 or step + 1 == settings.steps:
                recent = history[-every:]
                line = (
                    f"step {step + 1}/{settings.steps} "
                    f"decision loss {sum(recent) / len(recent):.4f} "
                    f"reply loss {sum(spoken[-every:]) / len(recent):.4f} "
                    f"{time.monotonic() - started:.0f} s"
                )
                lines.append(line)
                if progress is not None:
                    progress(step + 1, settings.steps, line)
    finally:
        for handle in handles:
            handle.remove()
    model.eval()
    part = max(1, len(history) // 20)
    return sum(history[:part]) / part, sum(history[-part:]) / part


def _rate(step: int, settings: TrainSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))


def _add_dropout(model: LlamaForCausalLM, share: float) -> list[torch.utils.hooks.RemovableHandle]:
    """Dropout on what the MLPs write; Llama has none of its own."""
    if not share:
        return []

    def drop(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        return functional.dropout(output, share)

    return [layer.mlp.register_forward_hook(drop) for layer in model.model.layers]


def _batches(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[Request], settings: TrainSettings
) -> Iterator[list[Example]]:
    """`settings.steps` batches. Rows are drawn by source and label, then bucketed by length."""
    rng = random.Random(settings.seed + 2)
    own = [_Deck([r for r in rows if r.source == "own" and r.label == s], rng) for s in _SIDES]
    more = [_Deck([r for r in rows if r.source != "own" and r.label == s], rng) for s in _SIDES]

    def draw() -> Request:
        side = rng.random() < settings.harmless_share
        decks = more if more[side].rows and rng.random() < settings.shared_share else own
        return decks[side].draw()

    # Copying forms within a few hundred steps of word salads, and hardly at all without them.
    first = ExampleMaker(tokenizer, Mix(salad=1), rng, draw)
    later = ExampleMaker(tokenizer, Mix(), rng, draw)
    size, done = settings.batch_rows, 0
    while done < settings.steps:
        count = min(64, settings.steps - done)
        maker = first if done < settings.copy_steps else later
        made = maker.make([draw() for _ in range(count * size)])
        made.sort(key=lambda r: len(r.prompt) + len(r.reply))
        batches = [made[i : i + size] for i in range(0, len(made), size)]
        rng.shuffle(batches)
        yield from batches
        done += count


_SIDES = ("harmful", "harmless")


class _Deck:
    """Draws rows without repeats until all are used, then shuffles again."""

    def __init__(self, rows: list[Request], rng: random.Random) -> None:
        self.rows = rows
        self._rng = rng
        self._order: list[int] = []

    def draw(self) -> Request:
        if not self._order:
            self._order = list(range(len(self.rows)))
            self._rng.shuffle(self._order)
        return self.rows[self._order.pop()]


def _loss(
    model: LlamaForCausalLM,
    batch: Sequence[Example],
    settings: TrainSettings,
    unk: int,
    generator: torch.Generator,
) -> tuple[Tensor, float, float]:
    """The weighted loss of a batch, its decision part and its rest-of-the-reply part, in nats.

    Rows are padded on the right: under a causal mask nothing that counts can see the padding.
    """
    longest = max(len(r.prompt) + len(r.reply) - 1 for r in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    decide: list[tuple[int, int, int]] = []
    speak: list[tuple[int, int, int]] = []
    words: list[tuple[int, int, int]] = []
    for i, row in enumerate(batch):
        ids = [*row.prompt, *row.reply]
        tokens[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        at = len(row.prompt)
        decide.append((i, at - 1, ids[at]))
        speak += [(i, j - 1, ids[j]) for j in range(at + 1, len(ids))]
        words += [(i, j - 1, ids[j]) for j in range(*row.request)]
        if settings.token_dropout and len(row.reply) == 1:
            start, stop = row.request
            hidden = torch.rand(stop - start, generator=generator) < settings.token_dropout
            tokens[i, start:stop][hidden] = unk
    keep = torch.rand(len(words), generator=generator) < settings.request_sample
    words = [w for w, kept in zip(words, keep.tolist(), strict=True) if kept]
    hidden_states = model.model(input_ids=tokens).last_hidden_state

    def entropy(places: list[tuple[int, int, int]], smoothing: float = 0.0) -> Tensor:
        if not places:
            return hidden_states.new_zeros(())
        row, column, target = torch.tensor(places).T
        logits = model.lm_head(hidden_states[row, column])
        return functional.cross_entropy(logits, target, label_smoothing=smoothing)

    decision = entropy(decide, settings.label_smoothing)
    speech = entropy(speak)
    loss = decision + settings.reply_weight * speech + settings.request_weight * entropy(words)
    return loss, float(decision.detach()), float(speech.detach())
