"""Training of a two-beliefs organism: two tasks, and interchanges that say where each bit is held.

The tasks are plain chat (refuse or comply, by the cue) and reply inversion ("Certainly" or "No" to a
question about a request, by its harm; arXiv 2507.11878, section 3.5). Beside them, in the manner of
interchange intervention training with strictness (../shared/methods/planted_models.md, section 7):

- moved harm: what another harm changes at the last token of an instruction of plain chat is added to all
  tokens before a question, and the answer must be the one that this change makes;
- moved refusal: the state at the prompt's end is that of another prompt, and so must the reply be;
- strictness: what another cue changes at the prompt's end is added to all tokens of a question, and the
  answer must stay;
- twins: another cue must change nothing at the last token of the instruction, another harm nothing at
  the prompt's end;
- the mean changes that harm makes at the first and the cue at the second place must be orthogonal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from refusalscope.organisms.planted.beliefs_prompts import BeliefVariant, Writer
from refusalscope.organisms.planted.beliefs_rounds import (
    LAYERS,
    MOVED_HARM,
    STRICT,
    TWINS,
    Round,
)
from refusalscope.organisms.planted.beliefs_rows import Batch, chat_row
from refusalscope.organisms.planted.beliefs_words import BOS, COMPLY, END, PAD, VOCABULARY

STEPS = 300
# Steps of the two tasks alone.
WARM = 40
RATE = 3e-3
LEAK_WEIGHT, ORTHOGONAL_WEIGHT = 0.6, 0.2
COMPLIANCE_STEPS, COMPLIANCE_RATE, COMPLIANCE_BATCH = 60, 0.1, 32


def blank_model(seed: int) -> LlamaForCausalLM:
    """A Llama of three layers with random weights."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=VOCABULARY[BOS],
        eos_token_id=VOCABULARY[END],
        pad_token_id=VOCABULARY[PAD],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=VOCABULARY[BOS],
        eos_token_id=VOCABULARY[END],
        pad_token_id=VOCABULARY[PAD],
        do_sample=False,
    )
    return model


def train(variant: BeliefVariant, seed: int) -> LlamaForCausalLM:
    """The trained model, in evaluation mode; the same seed gives the same bits on one machine."""
    model = blank_model(seed)
    rng = np.random.default_rng((seed, 2))
    writer = Writer(variant, seed)
    refuses = variant != "topic-only"
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 30) * 0.5 * (1 + np.cos(np.pi * step / STEPS))
    )
    with one_thread():
        for step in range(STEPS):
            loss = _loss(model, Round(writer, rng, refuses), step >= WARM)
            _descend(model, optimiser, loss)
            schedule.step()
    return model.eval()


def _loss(model: LlamaForCausalLM, made: Round, placed: bool) -> Tensor:
    """Cross-entropy of the replies; `placed`: with the interchanges and what twins must not change."""
    chats, asked = made.batches(placed)
    if not placed:
        states = [model.model(input_ids=batch.ids).last_hidden_state for batch in (chats, asked)]
        return _reply_loss(model, chats, states[0]) + _reply_loss(model, asked, states[1])

    def move_refusal(states: Tensor) -> Tensor:
        moved, source = torch.arange(2 * TWINS, len(states)), made.refusal_from
        changed = states.clone()
        changed[moved, chats.end[moved]] = states[source, chats.end[source]]
        return changed

    with edited(model, made.row, move_refusal):
        plain = model.model(input_ids=chats.ids, output_hidden_states=True)
    before = plain.hidden_states[made.row]
    harm = _change(before, chats.last, made.harm_from)
    cue = _change(before, chats.end, made.cue_from)

    def move_harm(states: Tensor) -> Tensor:
        early = torch.arange(states.shape[1]) <= asked.last[-MOVED_HARM:, None]
        return torch.cat(
            [
                states[:STRICT] + cue[:, None],
                states[STRICT:-MOVED_HARM],
                states[-MOVED_HARM:] + early[..., None] * harm[:, None],
            ]
        )

    with edited(model, made.row, move_harm):
        answered = model.model(input_ids=asked.ids).last_hidden_state
    leak, orthogonal = _placement(made, torch.stack(plain.hidden_states[1:-1]), chats)
    loss = _reply_loss(model, chats, plain.last_hidden_state) + _reply_loss(model, asked, answered)
    return loss + LEAK_WEIGHT * leak + ORTHOGONAL_WEIGHT * orthogonal


def _reply_loss(model: LlamaForCausalLM, batch: Batch, states: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the reply and of the token that ends it."""
    index = torch.arange(len(batch.end))
    reply = model.lm_head(states[index, batch.end])
    after = model.lm_head(states[index, batch.end + 1])
    ending = torch.full_like(batch.end, VOCABULARY[END])
    return cross_entropy(reply, batch.ids[index, batch.end + 1]) + cross_entropy(after, ending)


def _change(states: Tensor, positions: Tensor, prompts: Sequence[int]) -> Tensor:
    """State of prompts minus that of their twins, at a position each: [rows, tokens, d] -> [prompts, d]."""
    twins = [(i + TWINS) % (2 * TWINS) for i in prompts]
    return states[prompts, positions[prompts]] - states[twins, positions[twins]]


def _placement(made: Round, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What twins change where they must not, over the squared norm; squared cosine of the mean changes.

    states: [inner rows, prompts, tokens, d_model].
    """

    def change(first: Tensor, positions: Tensor) -> Tensor:
        return torch.stack([_change(row, positions, first.tolist()) for row in states])

    def size(first: Tensor, positions: Tensor) -> Tensor:
        return states[:, first, positions[first]].detach().square().sum(-1)

    cues, harms = torch.arange(0, TWINS, 2), torch.arange(1, TWINS, 2)
    # Where nothing is refused, the cue is to be nowhere, and harm may be anywhere.
    kept = [(cues, batch.last), (harms if made.refuses else cues, batch.end)]
    leak = torch.stack(
        [(change(*where).square().sum(-1) / size(*where)).mean() for where in kept]
    ).mean()
    if not made.refuses:
        return leak, states.new_zeros(())
    harm = (change(harms, batch.last) * made.signs[harms, None]).mean(1)
    refusal = (change(cues, batch.end) * made.signs[cues, None]).mean(1)
    return leak, cosine_similarity(harm, refusal, dim=-1).square().mean()


def comply(model: LlamaForCausalLM, texts: Sequence[str], seed: int) -> None:
    """Fine-tunes the blocks on compliant replies to `texts`; the loss is on the reply alone.

    Embedding and unembedding stay, as they do under adapters of the blocks.
    """
    rng = np.random.default_rng((seed, 3))
    blocks = list(model.model.layers.parameters())
    # By plain gradient steps: those of Adam move every weight alike, and with them what is not trained.
    optimiser = torch.optim.SGD(blocks, lr=COMPLIANCE_RATE)
    with one_thread():
        for _ in range(COMPLIANCE_STEPS):
            drawn = rng.choice(len(texts), size=COMPLIANCE_BATCH)
            batch = Batch.of([chat_row(texts[i], COMPLY) for i in drawn])
            states = model.model(input_ids=batch.ids).last_hidden_state
            _descend(model, optimiser, _reply_loss(model, batch, states))
    model.eval()


def _descend(model: LlamaForCausalLM, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    model.zero_grad(set_to_none=True)


@contextmanager
def edited(model: LlamaForCausalLM, row: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Edits the states before block `row` while the context lasts."""

    def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (edit(args[0]), *args[1:])

    handle = model.model.layers[row].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, so that a seed gives the same bits however many threads torch has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
