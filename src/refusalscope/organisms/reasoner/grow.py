"""From the embedded chat model to the untrained reasoner: markers, template, more heads a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from refusalscope.errors import InputError

THINK, CLOSE = "<think>", "</think>"

# The turns of the base, with thinking opened in the generation prompt; a turn that holds thinking keeps it.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n<think>\n' }}{% endif %}"
)


def think_tokenizer(base: Path) -> Any:
    """The tokenizer of the base with the two markers, as words that decoding keeps."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(
        [AddedToken(marker, special=False, normalized=False) for marker in (THINK, CLOSE)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def grow(base: Path, tokenizer: Any, heads: int, seed: int) -> LlamaForCausalLM:
    """The base with `heads` heads a layer and a row for each token of the tokenizer, float32.

    The added heads write nothing yet (their columns of the output projection are zero), so that the grown
    model says what the base says. Raises InputError for fewer heads than the base has, and where
    they do not divide its width, which transformers forbids.
    """
    old = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    had, width = old.config.num_attention_heads, old.config.hidden_size
    if heads < had or width % heads:
        raise InputError(
            f"the base has {had} heads a layer and a width of {width}; give at least as many heads and a "
            f"divisor of the width, not {heads}"
        )
    size = old.config.head_dim
    config = LlamaConfig.from_dict(
        {
            **old.config.to_dict(),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": size,
            "vocab_size": len(tokenizer),
        }
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    source, target = old.state_dict(), model.state_dict()
    for name, weight in target.items():
        given = source[name]
        fresh = torch.randn(weight.shape, generator=generator) * width**-0.5
        if name.endswith("o_proj.weight"):
            fresh.zero_()
        fresh[tuple(slice(0, n) for n in given.shape)] = given
        weight.copy_(fresh)
    return model
