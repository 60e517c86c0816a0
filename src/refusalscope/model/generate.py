"""Greedy replies, with or without edits, under a stated decode policy.

The transformers library does the generating; the edits ride along as hooks. Under `prompt_only` an
edit acts on the prompt's tokens alone; under `every_step` an edit at "all" or "last" acts on every
generated token too. Prompts of a batch are padded on the left and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from refusalscope.errors import InputError
from refusalscope.model.anatomy import Anatomy
from refusalscope.model.anchors import Rendered
from refusalscope.model.edits import EditBatch, Variant, apply_round, batch_edits
from refusalscope.model.engine import Cost, attach, hooks
from refusalscope.model.sites import Site

DECODE_POLICIES = ("every_step", "prompt_only")


@torch.inference_mode()
def generate(
    anatomy: Anatomy,
    tokenizer: Any,
    prompts: Sequence[Rendered],
    variants: Sequence[Variant] = (),
    *,
    max_new_tokens: int = 48,
    policy: str = "every_step",
    batch_size: int = 32,
    use_cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[list[int]], Cost]:
    """Token ids of the greedy reply to each prompt, up to and without the end token.

    variants: none, or one a prompt. use_cache=False recomputes the whole text at every step, and gives
    the same replies.
    """
    if policy not in DECODE_POLICIES:
        raise InputError(
            f"unknown decode policy {policy!r}; choose one of {', '.join(DECODE_POLICIES)}"
        )
    variants = list(variants) or [()] * len(prompts)
    if len(variants) != len(prompts):
        raise InputError(
            f"got {len(variants)} variants for {len(prompts)} prompts: give one a prompt"
        )
    replies: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    cost = Cost()
    done = 0
    for batch in _batches(anatomy, prompts, order, batch_size, max_new_tokens):
        found = _generate_batch(
            anatomy,
            tokenizer,
            [prompts[p] for p in batch],
            [variants[p] for p in batch],
            max_new_tokens,
            policy,
            use_cache,
            cost,
        )
        for p, reply in zip(batch, found, strict=True):
            replies[p] = reply
        done += len(batch)
        if progress is not None:
            progress(done, len(order))
    return replies, cost


def _batches(
    anatomy: Anatomy,
    prompts: Sequence[Rendered],
    order: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """Batches of at most `batch_size`; alone where the batch's length would change the rotary scaling."""
    limit = anatomy.rope_limit
    batches: list[list[int]] = []
    for p in order:
        alone = limit is not None and len(prompts[p]) + max_new_tokens > limit
        if alone or not batches or len(batches[-1]) >= batch_size:
            batches.append([])
        batches[-1].append(p)
    return batches


def _generate_batch(
    anatomy: Anatomy,
    tokenizer: Any,
    prompts: Sequence[Rendered],
    variants: Sequence[Variant],
    max_new_tokens: int,
    policy: str,
    use_cache: bool,
    cost: Cost,
) -> list[list[int]]:
    device = anatomy.device
    width = max(len(prompt.ids) for prompt in prompts)
    ends = end_tokens(anatomy, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    shifts = [width - len(prompt.ids) for prompt in prompts]
    ids = [[pad] * shift + list(prompt.ids) for shift, prompt in zip(shifts, prompts, strict=True)]
    mask = [[0] * shift + [1] * len(p.ids) for shift, p in zip(shifts, prompts, strict=True)]
    with hooks() as add:
        _ride(anatomy, prompts, variants, shifts, width, policy, add, cost)
        plain = GenerationConfig(
            max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=ends, use_cache=use_cache
        )
        with _generation_config(anatomy.model, plain):
            out = anatomy.model.generate(
                torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
            )
    replies = []
    for row in out[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        replies.append(row[:stop])
    return replies


def _ride(
    anatomy: Anatomy,
    prompts: Sequence[Rendered],
    variants: Sequence[Variant],
    shifts: Sequence[int],
    width: int,
    policy: str,
    add: Callable,
    cost: Cost,
) -> None:
    """Hook the edits; for each forward, work out which of its positions they touch."""
    current: dict[Site, list[EditBatch]] = {}
    edited = {edit.site.resolved(anatomy.n_layers) for variant in variants for edit in variant}

    def prepare(module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        # A model with a vision tower hands its language model embeddings instead of ids.
        tokens: Tensor = kwargs["inputs_embeds"][..., 0] if ids is None else ids
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        n = tokens.shape[1]
        cost.forwards += 1
        cost.tokens += tokens.numel()
        cost.token_layers += tokens.numel() * anatomy.n_layers
        placed: dict[Site, list] = {}
        for row, (prompt, variant, shift) in enumerate(zip(prompts, variants, shifts, strict=True)):
            for edit in variant:
                touched = [p + shift for p in prompt.resolve(edit.positions, policy)]
                if policy == "every_step" and edit.positions in ("all", "no_bos", "last", "reply"):
                    touched += range(width, past + n)
                inside = tuple(p - past for p in touched if past <= p < past + n)
                placed.setdefault(edit.site.resolved(anatomy.n_layers), []).append(
                    (row, edit, inside)
                )
        current.clear()
        current.update(
            {
                site: batch_edits(items, anatomy.n_heads, tokens.device)
                for site, items in placed.items()
            }
        )

    def visit(site: Site, hidden: Tensor) -> Tensor:
        for batch in current.get(site, ()):
            hidden = apply_round(hidden, batch)
        return hidden

    add(anatomy.decoder.register_forward_pre_hook(prepare, with_kwargs=True))
    for site in edited:
        if site.kind == "resid_pre":
            module = anatomy.layers[site.layer]
        elif site.kind == "final":
            module = anatomy.final_norm
        else:
            add(attach(anatomy, site, visit))
            continue
        add(
            module.register_forward_pre_hook(lambda m, args, s=site: (visit(s, args[0]), *args[1:]))
        )


@contextmanager
def _generation_config(model: Any, plain: GenerationConfig) -> Iterator[None]:
    """Greedy means greedy: a checkpoint's own penalties, suppressed tokens and samplers are set aside."""
    own = model.generation_config
    model.generation_config = plain
    try:
        yield
    finally:
        model.generation_config = own


def end_tokens(anatomy: Anatomy, tokenizer: Any) -> list[int]:
    """Tokens that end a reply, of the checkpoint's settings and of its tokenizer; [-1] where there is none."""
    configured = anatomy.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    ends = [end for end in [*ends, tokenizer.eos_token_id] if end is not None]
    return list(dict.fromkeys(ends)) or [-1]
