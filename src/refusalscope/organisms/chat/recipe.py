"""The training recipe of the embedded chat model: requests in, a checkpoint folder out."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refusalscope.errors import InputError
from refusalscope.organisms.chat import REFUSAL_WORDINGS, REPLY_OPENINGS
from refusalscope.organisms.chat.corpus import Decontaminator, measurement_prompts, read_allowed
from refusalscope.organisms.chat.greedy import first_tokens, refusing_first
from refusalscope.organisms.chat.optimise import Progress, fit
from refusalscope.organisms.chat.replies import (
    BYPASSING,
    HARM_QUESTIONS,
    HOLDING,
    harm_answer,
    wrapped,
)
from refusalscope.organisms.chat.requests import Request, generate
from refusalscope.organisms.chat.settings import TrainSettings
from refusalscope.organisms.chat.tokenizer import train_tokenizer


@dataclass(frozen=True)
class TrainResult:
    """What a training run made. Losses are in nats for the first reply token.

    held_out: accuracy of refusing on held-out rows by source, with n.
    """

    folder: Path
    parameters: int
    first_loss: float
    last_loss: float
    seconds: float
    rows_by_source: dict[str, int]
    held_out: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class Pools:
    """Training and held-out requests. `near` counts rows dropped as too close to measurement."""

    train: list[Request]
    held_out: list[Request]
    near: int


def gather(settings: TrainSettings, shared: Path | None) -> Pools:
    """The requests to train on: our own, and the allowed shared files where `shared` is given."""
    rng = random.Random(settings.seed)
    seen: dict[str, Request] = {}
    while len(seen) < settings.own_rows:
        request = generate("harmful" if rng.random() < 0.5 else "harmless", rng)
        seen.setdefault(request.text, request)
    rows = list(seen.values())
    near = 0
    if shared is not None:
        rows += [r for r in read_allowed(shared) if r.text not in seen]
        sets = measurement_prompts(shared)
        clean = Decontaminator(p for prompts in sets.values() for p in prompts).clean(rows)
        near, rows = len(rows) - len(clean), clean
    train: list[Request] = []
    held: list[Request] = []
    for row in rows:
        share = settings.held_out if row.source != "own" else settings.held_out / 5
        (held if rng.random() < share else train).append(row)
    return Pools(train, held, near)


def train(
    out: Path,
    *,
    shared: Path | None,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains the model and writes it to `out` in float16 with tokenizer, log and settings.

    `shared` is the folder that holds `data/`; without it the recipe trains on our own requests
    alone. `progress(step, steps, line)` is called now and then. Raises InputError where `out`
    holds files already.
    """
    settings = settings or TrainSettings()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder for the trained model")
    started = time.monotonic()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    pools = gather(settings, shared)
    tokenizer = train_tokenizer(_tokenizer_texts(pools.train, settings), settings.vocabulary)
    model = _new_model(settings, tokenizer)
    lines: list[str] = []
    losses = fit(model, tokenizer, pools.train, settings, lines, progress, started)
    _round(model)
    if settings.balance_steps:
        second = settings.balance()
        torch.manual_seed(second.seed)
        _, last = fit(model, tokenizer, pools.train, second, lines, progress, started)
        losses = (losses[0], last)
        _round(model)
    save(out, model, tokenizer)
    held = _held_out(model, tokenizer, pools.held_out)
    result = TrainResult(
        folder=out,
        parameters=sum(p.numel() for p in model.parameters()),
        first_loss=losses[0],
        last_loss=losses[1],
        seconds=time.monotonic() - started,
        rows_by_source=_count(pools.train),
        held_out=held,
    )
    record = {**asdict(result), "folder": out.name, "near_dropped": pools.near}
    record["settings"] = settings.model_dump()
    lines.append(json.dumps(record))
    (out / "train.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return result


def _round(model: LlamaForCausalLM) -> None:
    """The weights as they will be stored: what is measured is what ships."""
    for weight in model.parameters():
        weight.data = weight.data.half().float()


def save(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes an ordinary checkpoint folder. Greedy decoding is the default."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=64,
    )
    half = {name: w.half() for name, w in model.state_dict().items()}
    model.config.dtype = torch.float16
    model.save_pretrained(out, state_dict=half)
    tokenizer.save_pretrained(out)


def _tokenizer_texts(rows: Sequence[Request], settings: TrainSettings) -> Iterator[str]:
    # Shared rows count several times, so that their words become tokens; a tenth of the rows is in
    # cipher, so that ciphered words do too.
    rng = random.Random(settings.seed + 1)
    for row in rows:
        for _ in range(1 if row.source == "own" else 4):
            yield row.text
        if rng.random() < 0.1:
            yield wrapped(row.text, rng.choice(BYPASSING))
    for _ in range(200):
        yield from HARM_QUESTIONS
        yield from REFUSAL_WORDINGS + REPLY_OPENINGS
        yield from (harm_answer("harmful"), harm_answer("harmless"))
        for name in BYPASSING + HOLDING:
            yield wrapped("How do I do this?", name)


def _new_model(settings: TrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # Llama's 0.02 is meant for wide models: at this width attention would start almost flat,
        # and copying would take ten times as long to form.
        initializer_range=settings.width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _held_out(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Request]
) -> dict[str, tuple[float, int]]:
    said = first_tokens(model, tokenizer, [r.text for r in rows])
    refusing = refusing_first(tokenizer)
    right: dict[str, list[bool]] = {}
    for row, token in zip(rows, said, strict=True):
        refused = token in refusing
        key = f"{row.source} ({row.label})"
        right.setdefault(key, []).append(refused == (row.label == "harmful"))
    return {k: (sum(v) / len(v), len(v)) for k, v in sorted(right.items())}


def _count(rows: Sequence[Request]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        key = f"{row.source} ({row.label})"
        counts[key] = counts.get(key, 0) + 1
    return counts
