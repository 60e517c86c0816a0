"""The patient: a chat model with its tokenizer, loaded for measurement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusalscope.errors import InputError, ModelError
from refusalscope.model import generate as _generate
from refusalscope.model.anatomy import Anatomy, inspect
from refusalscope.model.anchors import Rendered, render, reply_tokens
from refusalscope.model.clean import Clean, Plan, capture, run_clean
from refusalscope.model.edits import Variant
from refusalscope.model.engine import Cost
from refusalscope.model.gradients import Gradients, first_order
from refusalscope.model.metrics import Metric, StateMetric
from refusalscope.model.plan import Measurement, measure
from refusalscope.model.sites import Positions, Site
from refusalscope.prompts import Prompt

PACKAGED = Path(__file__).resolve().parent.parent / "organisms"
BUILTIN = {name: PACKAGED / name / "weights" for name in ("chat", "reasoner")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ChatModel:
    """A causal LM with a chat template, its anatomy, and what was spent on it so far."""

    id: str
    model: Any
    tokenizer: Any
    anatomy: Anatomy
    plan: Plan = field(default_factory=Plan)
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        revision: str | None = None,
        plan: Plan | None = None,
    ) -> ChatModel:
        """Load `builtin:NAME`, a folder, or a hub id.

        dtype: "auto" is float32 on a CPU and the checkpoint's own on an accelerator. device_map: handed
        to accelerate for a model too large for one device. Raises ModelError, in one sentence, for what
        cannot be loaded: a missing folder, pickled weights, no chat template, an unknown architecture.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = _resolve(name)
        device = choose_device(device)
        if dtype not in ("auto", *DTYPES):
            raise InputError(f"unknown dtype {dtype!r}; choose auto, {', '.join(DTYPES)}")
        torch_dtype = DTYPES.get(dtype, torch.float32 if device == "cpu" else "auto")
        try:
            with without_bars():
                tokenizer = AutoTokenizer.from_pretrained(
                    source, revision=revision, trust_remote_code=False
                )
                model = AutoModelForCausalLM.from_pretrained(
                    source,
                    revision=revision,
                    dtype=torch_dtype,
                    device_map=device_map,
                    use_safetensors=True,
                    trust_remote_code=False,
                )
        except Exception as error:
            raise ModelError(_why_not(name, source, error)) from error
        if device_map is None:
            model.to(device)  # type: ignore[arg-type]
        return cls.wrap(model, tokenizer, id=name, plan=plan)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, *, id: str, plan: Plan | None = None) -> ChatModel:
        """Use a model and tokenizer that are loaded already. The model is put in evaluation mode."""
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer of {id} cannot give character offsets; install a fast tokenizer for it"
            )
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {id} has no chat template: set tokenizer.chat_template, or take "
                f"the instruction-tuned checkpoint"
            )
        anatomy = inspect(model.eval())
        return cls(id, model, tokenizer, anatomy, plan or Plan(max_bytes=_budget(model)))

    @property
    def device(self) -> torch.device:
        return self.anatomy.device

    @property
    def dtype(self) -> torch.dtype:
        return self.anatomy.lm_head.weight.dtype

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes that tie a result to this model: weights, config, tokenizer, chat template."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            # A large tensor is sampled: the hash tells checkpoints apart, it does not seal them.
            if tensor.device.type == "meta":
                # Offloaded by accelerate: its shape is all that is at hand.
                digest.update(str(tuple(tensor.shape)).encode())
                continue
            flat = tensor.detach().flatten()
            step = max(1, flat.numel() // 65536)
            digest.update(flat[::step].to("cpu", torch.float32).numpy().tobytes())
        config = self.model.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(key, None)
        return {
            "weights_sha256": digest.hexdigest(),
            "config_sha256": _sha(json.dumps(config, sort_keys=True, default=str)),
            "tokenizer_sha256": _sha(self.tokenizer.backend_tokenizer.to_str()),
            "template_sha256": _sha(str(self.tokenizer.chat_template)),
        }

    def render(self, prompts: Sequence[Prompt]) -> list[Rendered]:
        """Render prompts with the chat template; see `anchors.render`."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return [render(prompt, self.tokenizer, limit) for prompt in prompts]

    def with_reply(self, rendered: Rendered, reply: str) -> Rendered:
        """The prompt with a teacher-forced reply."""
        return rendered.with_reply(reply_tokens(rendered, reply, self.tokenizer))

    def measure(
        self,
        prompts: Sequence[Rendered],
        variants: Sequence[Variant] | Sequence[Sequence[Variant]],
        metrics: Mapping[str, Metric | StateMetric],
        *,
        policy: str = "every_step",
        clean: Clean | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Measurement:
        """Score every variant on every prompt by the cheapest exact plan; see `plan.measure`."""
        result = measure(
            self.anatomy,
            prompts,
            variants,
            metrics,
            plan=self.plan,
            policy=policy,
            clean=clean,
            progress=progress,
        )
        self.cost.add(result.cost)
        return result

    def capture(
        self,
        prompts: Sequence[Rendered],
        sites: Sequence[Site],
        positions: Sequence[Positions],
        *,
        variant: Variant | list[Variant] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[Site, Tensor]:
        """Activations at sites and positions: site -> [prompts, positions, width]; see `clean.capture`."""
        states, cost = capture(
            self.anatomy,
            prompts,
            sites,
            positions,
            variant=variant,
            plan=self.plan,
            progress=progress,
        )
        self.cost.add(cost)
        return states

    def run_clean(
        self,
        prompts: Sequence[Rendered],
        sites: Sequence[Site] = (),
        positions: Sequence[Positions] = (),
    ) -> Clean:
        """A clean run whose states feed variants and whose prefix `measure` reuses."""
        clean = run_clean(self.anatomy, prompts, sites, positions, plan=self.plan)
        self.cost.add(clean.cost)
        return clean

    def first_order(
        self, prompt: Rendered, metric: Metric, sites: Sequence[Site], *, variant: Variant = ()
    ) -> Gradients:
        """Gradients of a metric at sites from one forward and one backward; see `gradients`."""
        result = first_order(self.anatomy, prompt, metric, sites, variant=variant)
        self.cost.add(result.cost)
        return result

    def generate(
        self,
        prompts: Sequence[Rendered],
        variants: Sequence[Variant] = (),
        *,
        max_new_tokens: int = 48,
        policy: str = "every_step",
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """Token ids of greedy replies; see `generate.generate`."""
        replies, cost = _generate.generate(
            self.anatomy,
            self.tokenizer,
            prompts,
            variants,
            max_new_tokens=max_new_tokens,
            policy=policy,
            progress=progress,
        )
        self.cost.add(cost)
        return replies

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the transformers library from drawing progress bars of its own."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _resolve(name: str) -> str:
    if name.startswith("builtin:"):
        key = name.removeprefix("builtin:")
        if key not in BUILTIN:
            raise ModelError(
                f"there is no builtin model {key!r}; there is {', '.join(BUILTIN)} "
                f"(planted models are built into a folder with `refusalscope organism build`)"
            )
        return str(BUILTIN[key])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {name} holds no config.json, so it is not a saved model")
        if not any(path.glob("*.safetensors")):
            pickled = any([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
            raise ModelError(
                f"the folder {name} holds pickled weights, which can run code when they are read; "
                f"convert them to safetensors first"
                if pickled
                else f"the folder {name} holds no *.safetensors weights"
            )
        return str(path)
    if path.exists():
        raise ModelError(f"{name} is a file; a model is a folder with config.json and safetensors")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name}; give builtin:chat, a folder or a hub id")
    return name


def _why_not(name: str, source: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not Path(source).is_dir():
        return (
            f"the model {name!r} could not be fetched from the hub ({first[:160]}); check the id and "
            f"the connection, or give a local folder or builtin:chat"
        )
    return f"the model in {name} could not be read ({first[:200]}); check or re-save the checkpoint"


def choose_device(name: str) -> str:
    """The device to load to; raises InputError for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise InputError(f"there is no device {name!r}; choose auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("this build of torch sees no CUDA device; choose --device cpu")
    return name


def _budget(model: Any) -> int:
    """Memory for one pass: half of what the fullest accelerator has free, or half a gigabyte on a CPU."""
    devices = {parameter.device for parameter in model.parameters()}
    free = [torch.cuda.mem_get_info(device)[0] for device in devices if device.type == "cuda"]
    return min(free) // 2 if free else 512 * 2**20


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
