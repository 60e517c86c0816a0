"""Where each architecture keeps its parts.

An architecture is registered by the name of its causal-LM class. What is not registered is refused:
a module called `post_attention_layernorm` is a pre-MLP norm in Llama and a post-norm in Gemma-2, so
a guess would be wrong without any sign of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from refusalscope.errors import InputError, ModelError


@dataclass(frozen=True)
class Architecture:
    """How one class of models is laid out. Paths are relative to a layer unless said.

    mixer: what stands in the place of `self_attn` in layers of linear attention, where there are such.
    """

    name: str
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    gain_offset: float = 0.0
    decoder: str = "model"
    mixer: str | None = None


REGISTRY: dict[str, Architecture] = {}


def register(architecture: Architecture) -> None:
    """Make an architecture known. Raises ModelError when its name is taken."""
    if architecture.name in REGISTRY:
        raise ModelError(f"the architecture {architecture.name} is registered already")
    REGISTRY[architecture.name] = architecture


for _name in ("Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Mistral", "Phi3", "Glm"):
    register(Architecture(f"{_name}ForCausalLM"))
for _name in ("Qwen3Next", "Qwen3_5"):
    register(Architecture(f"{_name}ForCausalLM", gain_offset=1.0, mixer="linear_attn"))
# Gemma-3 of 4B and more loads with its vision tower; the language model inside is the same.
for _name, _decoder in (
    ("Gemma2ForCausalLM", "model"),
    ("Gemma3ForCausalLM", "model"),
    ("Gemma3ForConditionalGeneration", "model.language_model"),
):
    register(
        Architecture(
            _name,
            attn_post_norm="post_attention_layernorm",
            mlp_post_norm="post_feedforward_layernorm",
            gain_offset=1.0,
            decoder=_decoder,
        )
    )
register(
    Architecture(
        "Glm4ForCausalLM",
        attn_post_norm="post_self_attn_layernorm",
        mlp_post_norm="post_mlp_layernorm",
    )
)
register(
    Architecture(
        "Olmo2ForCausalLM",
        attn_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
)


@dataclass(frozen=True)
class Anatomy:
    """The parts of one loaded model.

    softmax_layers: the layers whose token mixer is softmax attention, and has heads; all, in most models.
    """

    architecture: Architecture
    model: Any
    decoder: Any
    layers: Any
    final_norm: Any
    lm_head: Any
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    vocab_size: int
    softcap: float | None
    rope_limit: int | None
    softmax_layers: tuple[int, ...]

    @property
    def recurrent(self) -> bool:
        """Whether some layers carry a state instead of keys and values, so that no prefix can be cached."""
        return len(self.softmax_layers) < self.n_layers

    @property
    def device(self) -> torch.device:
        """Where token ids go: the embedding's device, or the computing one where its weights are offloaded."""
        device = self.decoder.embed_tokens.weight.device
        if device.type == "meta":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return device

    def attention_output(self, layer: int) -> nn.Linear:
        """The attention output projection of a layer; its input is the site `z`.

        Raises InputError for a layer without attention heads.
        """
        if layer not in self.softmax_layers:
            raise InputError(
                f"layer {layer} of this model has no attention heads, so it has no site 'z': take "
                f"Site('attn_out', {layer}), what its whole mixer writes, or one of the layers "
                f"{', '.join(map(str, self.softmax_layers))}"
            )
        return self.layers[layer].self_attn.o_proj

    def attn_write(self, layer: int) -> nn.Module:
        """The module whose output the token mixer, attention or another, adds to the residual stream."""
        if self.architecture.mixer is not None and layer not in self.softmax_layers:
            return getattr(self.layers[layer], self.architecture.mixer)
        return getattr(self.layers[layer], self.architecture.attn_post_norm or "self_attn")

    def mlp_write(self, layer: int) -> nn.Module:
        """The module whose output the MLP block adds to the residual stream."""
        return getattr(self.layers[layer], self.architecture.mlp_post_norm or "mlp")

    def logits(self, normed: Tensor) -> Tensor:
        """Logits (float32) from states after the final norm: [..., d_model] -> [..., vocab]."""
        logits = self.lm_head(normed)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def norm_gain(self, norm: Any) -> Tensor:
        """The gain a norm multiplies by (1 + w in the Gemma family): [d_model]."""
        return norm.weight.float() + self.architecture.gain_offset

    def head_writes(self, layer: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """What each head and the bias write into the residual stream, post-norm folded in.

        z: [..., n_heads * head_dim] -> (writes [..., n_heads, d_model], bias [..., d_model]); writes
        summed over heads plus bias equal the site `attn_out`. With a post-norm the writes share the
        norm's scale, taken from their sum (exact split, alignment_routes section 1).
        """
        projection = self.attention_output(layer)
        weight = projection.weight.view(self.d_model, self.n_heads, self.head_dim)
        heads = torch.einsum("...hk,dhk->...hd", z.unflatten(-1, (self.n_heads, -1)), weight)
        bias = torch.zeros_like(heads[..., 0, :])
        if projection.bias is not None:
            bias = bias + projection.bias
        if self.architecture.attn_post_norm is None:
            return heads, bias
        norm = self.attn_write(layer)
        total = (heads.sum(-2) + bias).float()
        eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon")  # noqa: B009
        scale = self.norm_gain(norm) * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + eps)
        return heads.float() * scale.unsqueeze(-2), bias.float() * scale


def inspect(model: Any) -> Anatomy:
    """Find the parts of a causal LM. Raises ModelError for an architecture that is not registered."""
    name = type(model).__name__
    if name not in REGISTRY:
        raise ModelError(
            f"{name} is not a registered architecture (known: {', '.join(sorted(REGISTRY))}); "
            f"describe where it keeps its parts with refusalscope.model.anatomy.register("
            f'Architecture("{name}", ...)) and check it with the exactness rules of tests/model'
        )
    architecture = REGISTRY[name]
    config = model.config.get_text_config()
    try:
        decoder = attrgetter(architecture.decoder)(model)
        layers = decoder.layers
        softmax_layers = _softmax_layers(architecture, layers)
        projection = layers[softmax_layers[0]].self_attn.o_proj
        final_norm, lm_head = decoder.norm, model.get_output_embeddings()
    except AttributeError as error:
        raise ModelError(
            f"{name} does not keep its parts where its registered layout says: {error}; "
            f"check the transformers version (5 or newer is needed)"
        ) from error
    n_heads = config.num_attention_heads
    return Anatomy(
        architecture=architecture,
        model=model,
        decoder=decoder,
        layers=layers,
        final_norm=final_norm,
        lm_head=lm_head,
        n_layers=len(layers),
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        # Not hidden_size // heads (wrong for Qwen3, Gemma, GLM-4) and not config.head_dim (absent in some).
        head_dim=projection.in_features // n_heads,
        d_model=projection.out_features,
        vocab_size=lm_head.weight.shape[0],
        softcap=getattr(config, "final_logit_softcapping", None),
        rope_limit=_rope_limit(config),
        softmax_layers=softmax_layers,
    )


def _softmax_layers(architecture: Architecture, layers: Any) -> tuple[int, ...]:
    mixer = architecture.mixer
    found = tuple(i for i, layer in enumerate(layers) if mixer is None or not hasattr(layer, mixer))
    if not found:
        raise ModelError(
            f"this {architecture.name} has no layer of softmax attention, so there is no head to "
            f"study; take a model that has some"
        )
    return found


def _rope_limit(config: Any) -> int | None:
    """Length beyond which the rotary embedding scales with the length of the whole batch, if it does."""
    scaling = (
        getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    )
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("longrope", "dynamic"):
        return None
    original = scaling.get("original_max_position_embeddings")
    own = getattr(config, "original_max_position_embeddings", None)
    return original or own or config.max_position_embeddings
