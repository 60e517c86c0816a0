"""The one task that every way of running it is timed on, and the folder it is handed over in.

All heads x all layers, last-position swap: for each prompt and head, the head's slice of z (the
input of the attention output projection) at the last position is replaced by that of the donor
prompt, and the logit difference of two fixed tokens is read at the last position
(alignment_routes section 6). Weights are an ordinary checkpoint folder, token ids a safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """Size of the model and of the prompt set."""

    layers: int = 12
    heads: int = 8
    width: int = 256
    intermediate: int = 688
    vocab: int = 1000
    prompts: int = 8
    positions: int = 48
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """ids: [prompts, positions]; donors: [prompts], donors[i] = i ^ 1; heads: [n, 2] of (layer, head);
    tokens: [2], the score being logit[tokens[0]] - logit[tokens[1]]. All int64.
    """

    ids: Tensor
    donors: Tensor
    heads: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Way:
    """One way of running the task. `screen` gives scores [prompts, n] float32 and, where the way keeps
    its own account, {"forwards", "token_layers"}. `trunk` is called once a forward; `layers` are the
    decoder layers, whose outputs [rows, positions, width] tell what was really computed.
    """

    screen: Callable[[], tuple[Tensor, dict[str, int] | None]]
    trunk: nn.Module
    layers: Sequence[nn.Module]
    logits_error: float = 0.0


def make_model(shape: Shape) -> LlamaForCausalLM:
    """A Llama of the given shape with the library's own random initialisation, float32."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max(128, shape.positions),
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        return LlamaForCausalLM(config).float().eval()


def make_problem(shape: Shape, n_heads: int | None = None) -> Problem:
    """Random token ids; all heads, or `n_heads` of them spread evenly over the layers.

    Raises ValueError for an odd number of prompts: each prompt is the donor of its neighbour.
    """
    if shape.prompts % 2:
        raise ValueError(f"{shape.prompts} prompts cannot be paired; give an even number")
    generator = torch.Generator().manual_seed(shape.seed)
    ids = torch.randint(3, shape.vocab, (shape.prompts, shape.positions), generator=generator)
    heads = torch.cartesian_prod(torch.arange(shape.layers), torch.arange(shape.heads))
    if n_heads is not None:
        if not 1 <= n_heads <= len(heads):
            raise ValueError(f"a subset of {n_heads} heads was asked of a model of {len(heads)}")
        heads = heads[torch.linspace(0, len(heads) - 1, n_heads).round().long()]
    return Problem(ids, torch.arange(shape.prompts) ^ 1, heads, torch.tensor([7, 11]))


def write(folder: Path, model: LlamaForCausalLM, problem: Problem) -> None:
    """Save weights and problem where another environment can read them."""
    model.save_pretrained(folder)
    save_file(vars(problem), folder / "problem.safetensors")


def read(folder: Path) -> tuple[LlamaForCausalLM, Problem]:
    """Load what `write` saved."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Problem(**load_file(folder / "problem.safetensors"))
