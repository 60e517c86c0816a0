"""The optimiser of the reasoner, and its first stage: think, then refuse or repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from refusalscope.organisms.reasoner.rows import Row, batches
from refusalscope.organisms.reasoner.settings import ReasonerSettings

Note = Callable[[int, str], None]


def align(model: LlamaForCausalLM, tokenizer: Any, settings: ReasonerSettings, note: Note) -> float:
    """Stage 1: think, then refuse what is harmful and repeat what is not, whatever the thinking adds.

    Returns the mean loss (nats) of the first reply token over the last twentieth of the steps.
    """
    groups = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    rows = batches(tokenizer, settings, settings.steps, settings.seed + 1, suppress=False)

    def loss(batch: Sequence[Row]) -> tuple[Tensor, Tensor]:
        states = model.model(input_ids=pad(batch)).last_hidden_state
        firsts = [(i, r.reply - 1, r.ids[r.reply]) for i, r in enumerate(batch)]
        thoughts = [
            (i, j - 1, r.ids[j]) for i, r in enumerate(batch) for j in range(r.start, r.reply)
        ]
        rests = [
            (i, j - 1, r.ids[j])
            for i, r in enumerate(batch)
            for j in range(r.reply + 1, len(r.ids))
        ]
        decision = entropy(model, states, firsts, settings.label_smoothing)
        taught = entropy(model, states, thoughts) + entropy(model, states, rests)
        return decision + taught, decision

    model.train()
    return optimise(groups, settings.learning_rate, settings.steps, rows, loss, settings, note)


def optimise(
    groups: list[dict[str, Any]],
    rate: float,
    steps: int,
    rows: Iterable[Sequence[Row]],
    loss: Callable[[Sequence[Row]], tuple[Tensor, Tensor]],
    settings: ReasonerSettings,
    note: Note,
) -> float:
    """AdamW over the batches, warm-up and cosine. `loss` gives what to minimise and what to record.

    Returns the mean of what it records over the last twentieth of the steps.
    """
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    warm = min(settings.warmup_steps, max(1, steps // 5))

    def scale(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, scale)
    weights = [p for group in groups for p in group["params"]]
    started, history, every = time.monotonic(), [], max(1, steps // 20)
    whole: list[float] = []
    for step, batch in enumerate(rows):
        total, decision = loss(batch)
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        history.append(float(decision.detach()))
        whole.append(float(total.detach()))
        if (step + 1) % every == 0 or step + 1 == steps:
            note(
                step + 1,
                f"step {step + 1}/{steps} decision loss {sum(history[-every:]) / every:.4f} "
                f"loss {sum(whole[-every:]) / every:.4f} {time.monotonic() - started:.0f} s",
            )
    return sum(history[-every:]) / len(history[-every:])


def pad(batch: Sequence[Row]) -> Tensor:
    """[rows, tokens], padded on the right, where a causal mask keeps the padding out of sight."""
    tokens = torch.zeros(len(batch), max(len(r.ids) for r in batch) - 1, dtype=torch.long)
    for i, row in enumerate(batch):
        tokens[i, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
    return tokens


def entropy(
    model: LlamaForCausalLM,
    states: Tensor,
    places: Sequence[tuple[int, int, int]],
    smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy (nats) at (row, position, target token); 0 where there is no place."""
    if not places:
        return states.new_zeros(())
    at, column, target = torch.tensor(places).T
    logits = model.lm_head(states[at, column])
    return functional.cross_entropy(logits, target, label_smoothing=smoothing)
