"""The training recipe of the reasoner: the embedded chat model in, a checkpoint folder out."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from refusalscope.errors import InputError
from refusalscope.model import ChatModel
from refusalscope.organisms.chat import WEIGHTS as CHAT_WEIGHTS
from refusalscope.organisms.chat.optimise import Progress
from refusalscope.organisms.reasoner.card import write_card
from refusalscope.organisms.reasoner.evaluate import cells, evaluate
from refusalscope.organisms.reasoner.grow import grow, think_tokenizer
from refusalscope.organisms.reasoner.optimise import align
from refusalscope.organisms.reasoner.settings import ReasonerSettings
from refusalscope.organisms.reasoner.suppress import head_masks, suppress
from refusalscope.organisms.reasoner.traces import thoughts


@dataclass(frozen=True)
class ReasonerResult:
    """What a training run made. Losses are in nats for the first reply token, at the end of each stage.

    frozen_sha256: hash of all weights but those of the planted heads; both stages end with the same.
    """

    folder: Path
    parameters: int
    align_loss: float
    suppress_loss: float
    seconds: float
    frozen_sha256: str


def train(
    out: Path,
    *,
    settings: ReasonerSettings | None = None,
    base: Path = CHAT_WEIGHTS,
    progress: Progress | None = None,
) -> ReasonerResult:
    """Trains the reasoner from the embedded chat model and writes it to `out` in float16.

    Beside the checkpoint: truth.json (the planted heads), metrics.json, train.log and README.md, the card.
    base: a checkpoint folder of the embedded chat model's kind. Only generated requests are trained on.
    Raises InputError where `out` holds files already, or a planted head is outside the model.
    """
    settings = settings or ReasonerSettings()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder for the trained model")
    started = time.monotonic()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = think_tokenizer(base)
    model = grow(base, tokenizer, settings.heads, settings.seed)
    _require_inside(model, settings)
    lines: list[str] = []
    total = settings.steps + settings.suppress_steps

    def note(before: int) -> Any:
        def tell(done: int, line: str) -> None:
            lines.append(line)
            if progress is not None:
                progress(before + done, total, line)

        return tell

    align_loss = align(model, tokenizer, settings, note(0))
    _round(model)
    chat = ChatModel.wrap(model, tokenizer, id="reasoner")
    aligned = cells(chat, settings.measured)
    frozen = frozen_hash(model, settings.planted)
    suppress_loss = suppress(model, tokenizer, settings, note(settings.steps))
    _round(model)
    result = ReasonerResult(
        folder=out,
        parameters=sum(p.numel() for p in model.parameters()),
        align_loss=align_loss,
        suppress_loss=suppress_loss,
        seconds=time.monotonic() - started,
        frozen_sha256=frozen,
    )
    _save(out, model, tokenizer)
    metrics = evaluate(chat, settings.planted, aligned, settings.measured)
    _write_json(out / "metrics.json", metrics)
    _write_json(out / "truth.json", _truth(model, settings, frozen))
    record = {**asdict(result), "folder": out.name, "settings": settings.model_dump()}
    lines.append(json.dumps(record))
    (out / "train.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_card(out)
    return result


def frozen_hash(model: LlamaForCausalLM, heads: tuple[tuple[int, int], ...]) -> str:
    """SHA-256 of every weight in float16, the planted heads' own entries set to zero."""
    masks = {id(weight): mask for weight, mask in head_masks(model, heads).items()}
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        mask = masks.get(id(weight))
        kept = weight.detach() if mask is None else weight.detach() * (1 - mask)
        digest.update(name.encode())
        # Adding zero makes the two zeros of floating point one.
        digest.update((kept + 0.0).half().numpy().tobytes())
    return digest.hexdigest()


def _require_inside(model: LlamaForCausalLM, settings: ReasonerSettings) -> None:
    layers = model.config.num_hidden_layers
    for layer, head in settings.planted:
        if not (0 <= layer < layers and 0 <= head < settings.heads):
            raise InputError(
                f"the planted head {layer}.{head} is outside a model of {layers} layers with "
                f"{settings.heads} heads; name others in `planted`"
            )


def _truth(model: LlamaForCausalLM, settings: ReasonerSettings, frozen: str) -> dict[str, Any]:
    """What was planted. `drives` and `acts` mean what they mean in the truth of the planted models."""
    n_heads = settings.heads * model.config.num_hidden_layers
    return {
        "schema": "refusalscope.reasoner/1",
        "seed": settings.seed,
        "n_heads": n_heads,
        "planted_share": len(settings.planted) / n_heads,
        "heads": [
            {"layer": layer, "head": head, "role": "suppressor", "drives": [], "acts": "closing"}
            for layer, head in settings.planted
        ],
        "suppressed_when": "a harmful request, and a thinking that holds one of the turns",
        "turns": list(thoughts().rules["turn"]),
        "frozen_sha256": frozen,
    }


def _round(model: LlamaForCausalLM) -> None:
    """The weights as they will be stored: what is measured is what ships."""
    model.eval()
    for weight in model.parameters():
        weight.data = weight.data.half().float()


def _save(out: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    )
    # The unembedding is the embedding; without its second name it is stored once.
    half = {n: w.half() for n, w in model.state_dict().items() if n != "lm_head.weight"}
    model.config.dtype = torch.float16
    model.save_pretrained(out, state_dict=half)
    tokenizer.save_pretrained(out)


def _write_json(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
