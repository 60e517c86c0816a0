"""What the guard costs: a guarded prefill against a bare one, interleaved, on one random model.

    python benchmarks/guard_cost.py                 12 layers x width 768, batch 8, 256 tokens, 15 repeats

The guarded prefill is the bare one plus hooks that copy two tokens of every inner row, and the scores of both
axes and eleven categories. Both make one forward of the same tokens; the figure is the median of the ratios of
neighbours, since these machines are noisy. A third arm, the bare prefill again, shows that noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.heads import VARIANTS, Head
from refusalscope.guard.prefill import StateReader
from refusalscope.model import ChatModel


def patient(layers: int, width: int, device: str, dtype: torch.dtype) -> ChatModel:
    """A random Llama with the tokenizer of builtin:chat."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device, dtype)
    return ChatModel.wrap(model, ChatModel.load("builtin:chat").tokenizer, id="random")


def random_guard(chat: ChatModel, variant: str) -> BeliefGuard:
    """A guard with both axes and eleven categories on random means."""
    guard = BeliefGuard(variant)
    guard.chat_, guard.rows_ = chat, list(range(1, chat.anatomy.n_layers))
    shape = (40, len(guard.rows_), chat.anatomy.d_model)
    sides = torch.randn(shape), torch.randn(shape)
    guard.harm_ = guard.refuse_ = Head.fit(variant, *sides)
    guard.categories_ = {f"category {i}": guard.harm_ for i in range(11)}
    guard.calibration_ = None
    return guard


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    chat = patient(args.layers, args.width, args.device, getattr(torch, args.dtype))
    ids = torch.randint(0, 32_000, (args.batch, args.tokens), device=args.device)
    places = torch.tensor([[args.tokens - 6, args.tokens - 1]] * args.batch, device=args.device)

    def bare() -> None:
        chat.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        wait(args.device)

    for variant in VARIANTS:
        guard = random_guard(chat, variant)
        with StateReader(chat, guard.rows_) as reader:

            def guarded(guard: BeliefGuard = guard, reader: StateReader = reader) -> None:
                reader.expect(places)
                chat.model(input_ids=ids, use_cache=True, logits_to_keep=1)
                guard.readings(reader.done().cpu())

            ratios, noise = interleaved(bare, guarded, args.repeats)
        print(
            f"{variant}: guarded / bare {statistics.median(ratios):.4f} "
            f"(quartiles {quartiles(ratios)}); bare / bare {statistics.median(noise):.4f} "
            f"(quartiles {quartiles(noise)}); token-layer evaluations "
            f"{ids.numel() * args.layers} in both"
        )


@torch.inference_mode()
def interleaved(
    bare: Callable[[], None], guarded: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    bare(), guarded()
    ratios, noise = [], []
    for _ in range(repeats):
        first, other, again = seconds(bare), seconds(guarded), seconds(bare)
        ratios.append(2 * other / (first + again))
        noise.append(again / first)
    return ratios, noise


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def quartiles(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3f} to {high:.3f}"


if __name__ == "__main__":
    main()
