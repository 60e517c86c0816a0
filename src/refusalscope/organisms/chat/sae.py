"""The recipe of the sparse autoencoders that ship beside builtin:chat, trained with SAELens.

BatchTopK (arXiv 2412.06410) fixes how many latents are active on average; SAELens saves what it learnt
as a JumpReLU dictionary, whose latents do not compete, so that an edit of a few of them is exact.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from refusalscope.dictionary.saelens import CONFIG, WEIGHTS
from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.chat.sae_texts import make_texts, token_states

MODEL = "builtin:chat"
HALVED = ("W_enc", "W_dec")


class SaeSettings(BaseModel):
    """Settings of the recipe. The defaults are those of the dictionaries in the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 5
    layers: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    requests: int = Field(6000, ge=20, description="generated texts")
    held_out: float = Field(0.05, gt=0, lt=1, description="of them, for the lines of the log")
    reply_share: float = Field(0.5, ge=0, le=1, description="texts with the model's own reply")
    reply_tokens: int = Field(20, ge=1, description="at most so many tokens of it")
    latents: int = Field(1024, ge=8, description="of each dictionary")
    active: float = Field(10, gt=0, description="latents active a token, on average")
    steps: int = Field(1000, ge=1)
    batch_tokens: int = Field(1024, ge=8)
    learning_rate: float = Field(2e-3, gt=0)
    decay_share: float = Field(0.3, gt=0, lt=1, description="last steps: the rate falls to zero")
    silent_steps: int = Field(150, ge=1, description="without activity, then a latent is revived")
    threads: int = Field(1, ge=1)


@dataclass(frozen=True)
class SaeResult:
    """What a training run wrote: one SAELens folder a layer, named by it, and train.log.

    explained: layer -> share of the variance of held-out tokens that is reconstructed at the end.
    """

    folder: Path
    tokens: int
    explained: dict[int, float]
    seconds: float


Note = Callable[[int], None]


def train_dictionaries(
    out: Path,
    *,
    settings: SaeSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SaeResult:
    """Trains one dictionary a layer on the residual stream of builtin:chat and writes them to `out`.

    Raises InputError where `out` holds files already, where SAELens is not installed, or where the
    model lacks a layer.
    """
    settings = settings or SaeSettings()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder for the dictionaries")
    trainer_class = _saelens().MultiSAETrainer
    started = time.monotonic()
    torch.set_num_threads(settings.threads)
    chat = ChatModel.load(MODEL, dtype="float32", device="cpu")
    outside = [k for k in settings.layers if not 0 <= k < chat.anatomy.n_layers]
    if outside:
        raise InputError(
            f"{MODEL} has {chat.anatomy.n_layers} layers and none numbered {outside[0]}"
        )
    texts = make_texts(
        chat, settings.requests, settings.reply_share, settings.reply_tokens, settings.seed
    )
    cut = max(1, round(settings.held_out * len(texts)))
    held = token_states(chat, texts[:cut], settings.layers)
    stream = token_states(chat, texts[cut:], settings.layers)
    torch.manual_seed(settings.seed)
    saes = {_hook(layer): _new(settings, layer, chat) for layer in settings.layers}
    lines: list[str] = []

    def note(step: int) -> None:
        if progress is not None:
            progress(step, settings.steps)
        if step and (step % max(1, settings.steps // 20) == 0 or step == settings.steps):
            shares = " ".join(f"{k}: {v:.4f}" for k, v in explained(trainer, held).items())
            seconds = time.monotonic() - started
            lines.append(
                f"step {step}/{settings.steps} held-out explained {shares} {seconds:.0f} s"
            )

    trainer = trainer_class(
        cfg=_trainer_config(settings),
        saes=saes,
        hook_names={hook: hook for hook in saes},
        data_provider=_batches(stream, settings, note),
    )
    with _silent():
        trainer.fit()
    note(settings.steps)
    for layer in settings.layers:
        _save(saes[_hook(layer)], out / str(layer))
    result = SaeResult(
        folder=out,
        tokens=len(stream[settings.layers[0]]),
        explained=explained(trainer, held),
        seconds=time.monotonic() - started,
    )
    record = {
        "tokens": result.tokens,
        "explained": result.explained,
        "seconds": result.seconds,
        "versions": {name: version(name) for name in ("sae-lens", "torch", "transformers")},
        "model": chat.fingerprint["weights_sha256"],
        "settings": settings.model_dump(),
    }
    lines.append(json.dumps(record))
    (out / "train.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return result


def _saelens() -> Any:
    try:
        from sae_lens.training import multi_sae_trainer
    except ImportError as error:
        raise InputError(
            "training dictionaries needs SAELens; install it with `pip install 'refusalscope[sae]'`"
        ) from error
    return multi_sae_trainer


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _new(settings: SaeSettings, layer: int, chat: ChatModel) -> Any:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    config = BatchTopKTrainingSAEConfig(
        d_in=chat.anatomy.d_model,
        d_sae=settings.latents,
        k=settings.active,
        normalize_activations="expected_average_only_in",
    )
    config.metadata.model_name = MODEL
    config.metadata.hook_name = _hook(layer)
    return BatchTopKTrainingSAE(config)


def _trainer_config(settings: SaeSettings) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    return SAETrainerConfig(
        total_training_samples=settings.steps * settings.batch_tokens,
        train_batch_size_samples=settings.batch_tokens,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate / 10,
        lr_warm_up_steps=min(50, settings.steps // 10),
        lr_decay_steps=round(settings.decay_share * settings.steps),
        dead_feature_window=settings.silent_steps,
        n_batches_for_norm_estimate=min(20, settings.steps),
        logger=LoggingConfig(log_to_wandb=False),
    )


def _batches(
    stream: Mapping[int, Tensor], settings: SaeSettings, note: Note
) -> Iterator[dict[str, Tensor]]:
    """Batches of the same tokens for every layer, shuffled anew each time the tokens are used up.

    SAELens takes the first ones to learn the scale of the stream, the others to train; `note` is
    called with the number of steps done before each of these.
    """
    rng = torch.Generator().manual_seed(settings.seed)
    n, size = len(next(iter(stream.values()))), settings.batch_tokens
    order, taken = torch.randperm(n, generator=rng), 0
    for step in range(-_trainer_config(settings).n_batches_for_norm_estimate, settings.steps):
        if taken + size > n:
            order, taken = torch.randperm(n, generator=rng), 0
        chosen = order[taken : taken + size]
        taken += size
        if step >= 0:
            note(step)
        yield {_hook(layer): rows[chosen] for layer, rows in stream.items()}


@contextmanager
def _silent() -> Iterator[None]:
    """SAELens without its own progress bars, which it draws whatever the caller wants."""
    from sae_lens.training import activation_scaler, multi_sae_trainer

    modules = (activation_scaler, multi_sae_trainer)
    drawn = [module.tqdm for module in modules]
    for module, bar in zip(modules, drawn, strict=True):
        module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        for module, bar in zip(modules, drawn, strict=True):
            module.tqdm = bar


@torch.no_grad()
def explained(trainer: Any, held: Mapping[int, Tensor]) -> dict[int, float]:
    """Layer -> share of variance that the dictionaries in training reconstruct, on all tokens."""
    found = {}
    for layer, x in held.items():
        hook = _hook(layer)
        entered = trainer.trainers[hook].activation_scaler(x)
        sae = trainer.saes[hook]
        missed = (sae.decode(sae.encode(entered)) - entered).pow(2).sum()
        found[layer] = float(1 - missed / (entered - entered.mean(0)).pow(2).sum())
    return found


def _save(sae: Any, folder: Path) -> None:
    """A SAELens folder for use, its two matrices in float16: the rounding is part of what is measured."""
    sae.save_inference_model(folder)
    weights = load_file(folder / WEIGHTS)
    stored = {
        name: (value.half() if name in HALVED else value.float()).contiguous()
        for name, value in weights.items()
    }
    save_file(stored, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(
        json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
