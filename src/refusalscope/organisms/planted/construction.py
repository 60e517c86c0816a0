"""Planting heads and MLP units into a small Llama whose other weights are noise.

The construction of ../shared/methods/planted_models.md, section 1. Two tricks make a real
transformer do planned arithmetic. Channel 0 of every embedding is 8 = sqrt(d_model), so RMSNorm is
the identity up to |s|^2 / 128 with s the rest of the stream. The rotary base is 1e12, so the pair
of dimensions 7 and 15 of a head hardly turns, and keys written there do not depend on position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from transformers import Gemma2ForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from refusalscope.organisms.planted import tokens

D_MODEL, LAYERS, HEADS, KV_HEADS, HEAD_DIM, D_MLP = 64, 8, 8, 4, 16, 64
KEY_DIM = 7
CONST_SCALE = 8.0
TOKEN_NOISE = 0.15
FIRST_NOISE_CHANNEL = 16
UNIT_GAIN = 20.0
STOP_LOGIT = 40.0
SHAPE: dict[str, Any] = {
    "vocab_size": tokens.VOCAB_SIZE,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e12},
    "tie_word_embeddings": False,
    "bos_token_id": tokens.BOS,
    "eos_token_id": tokens.EOS,
    "pad_token_id": tokens.PAD,
    "dtype": "float32",
}
BLIND_TO_CONST = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


class Channel(IntEnum):
    """What a dimension of the residual stream means; those not named carry token noise."""

    CONST = 0
    HARM = 1
    BEN = 2
    ASST = 3
    TEND = 4
    DET = 5
    ROUTE = 6
    U = 7
    BOSM = 8
    CIPH = 9
    NUIS = 10
    R2 = 11
    R3 = 12
    R4 = 13
    HARM2 = 14
    DET2 = 15
    # Marks a decision word as already said, so that the next token is <eos>. The last channel of
    # the token noise is given up for it.
    SAID = 63


C = Channel
Weights = Mapping[Channel, float]
PlantedModel = LlamaForCausalLM | Gemma2ForCausalLM


@dataclass(frozen=True)
class HeadPlan:
    """One planted head: what it looks for, what it carries, where it writes.

    `query`, `key`, `value` and `output` are weights on residual channels; `value2` and `output2`
    are a second value dimension. Heads of one key/value group share key and values, so the plans
    of siblings must agree on them.
    """

    layer: int
    head: int
    role: str
    query: Weights
    key: Weights
    value: Weights
    output: Weights
    value2: Weights | None = None
    output2: Weights | None = None
    sink: float = 3.0


@dataclass(frozen=True)
class UnitPlan:
    """One planted MLP unit: `outputs` times relu(sum of `terms` + `constant`)."""

    layer: int
    unit: int
    role: str
    terms: Weights
    constant: float
    outputs: Weights


def content_head(
    layer: int, head: int, role: str, key: Weights, value: Weights, output: Weights
) -> HeadPlan:
    """Attends from everywhere to the token that carries `key`, to <bos> (value 0) without one."""
    return HeadPlan(layer, head, role, {C.CONST: 1.5}, key, value, output)


def tail_head(layer: int, head: int, role: str, value: Weights, output: Weights) -> HeadPlan:
    """Attends from the prompt's tail to itself; its attention is uniform elsewhere."""
    return HeadPlan(layer, head, role, {C.ASST: 12.0}, {C.ASST: 8.0}, value, output)


def blank_model(noise: float, comply_bias: float, generator: torch.Generator) -> LlamaForCausalLM:
    """The Llama of section 1 with noise weights, marked embeddings and the decision unembedding.

    `noise` is the standard deviation of every weight. Query, key, value, gate and up projections
    do not read CONST, or the noise would see a constant of 8.
    """
    config = LlamaConfig(**SHAPE)
    # The constructor draws weights of its own from the global stream: neither the draws nor the
    # stream of the caller may depend on the other.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    furnish(model, noise, comply_bias, generator)
    return model


def furnish(
    model: PlantedModel, noise: float, comply_bias: float, generator: torch.Generator
) -> None:
    """Gives an empty model of the shape of section 1 its noise, its marks and its decision words.

    Norms are left as they are.
    """
    # In this order, the embedding's discarded draw included, the stream of seed 0 is that of the
    # page's measured figures.
    for name, parameter in model.named_parameters():
        _redraw(name, parameter, noise, generator)
    model.lm_head.weight.mul_(0.5)
    _mark_embeddings(model, generator)
    _mark_unembedding(model, comply_bias)
    model.generation_config = GenerationConfig(
        bos_token_id=tokens.BOS,
        eos_token_id=tokens.EOS,
        pad_token_id=tokens.PAD,
        do_sample=False,
        max_new_tokens=8,
    )


def redraw_layers(model: PlantedModel, noise: float, generator: torch.Generator) -> None:
    """Other noise in the blocks; embedding and unembedding stay. Whatever was planted there is gone."""
    for name, parameter in model.model.layers.named_parameters():
        _redraw(name, parameter, noise, generator)


def plant(
    model: PlantedModel, heads: Iterable[HeadPlan] = (), units: Iterable[UnitPlan] = ()
) -> None:
    """Adds planned heads and units to the model's weights.

    Raises ValueError where two heads of one key/value group disagree on what they read.
    """
    shared: dict[tuple[int, int], HeadPlan] = {}
    for plan in heads:
        group = plan.head * KV_HEADS // HEADS
        sibling = shared.get((plan.layer, group))
        attention = model.model.layers[plan.layer].self_attn
        if sibling is None:
            shared[plan.layer, group] = plan
            key_row, value_row = group * HEAD_DIM + KEY_DIM, group * HEAD_DIM
            _add(attention.k_proj.weight[key_row], plan.key)
            _add(attention.k_proj.weight[key_row], {C.BOSM: plan.sink})
            _add(attention.v_proj.weight[value_row], plan.value)
            _add(attention.v_proj.weight[value_row + 1], plan.value2 or {})
        elif _reads(sibling) != _reads(plan):
            raise ValueError(
                f"heads {sibling.head} and {plan.head} of layer {plan.layer} share a key/value "
                "group and must have the same key, values and sink"
            )
        column = plan.head * HEAD_DIM
        _add(attention.q_proj.weight[column + KEY_DIM], plan.query)
        _add(attention.o_proj.weight[:, column], plan.output)
        _add(attention.o_proj.weight[:, column + 1], plan.output2 or {})
    for unit in units:
        _plant_unit(model, unit)


def rotate(model: PlantedModel, generator: torch.Generator) -> None:
    """Turns the residual stream by a random orthogonal matrix: same function, no axis-aligned part.

    Norm weights are 1, so RMSNorm commutes with the turn (organism O14).
    """
    square = torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(square).Q
    readers = [model.model.embed_tokens.weight, model.lm_head.weight]
    writers = []
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        reading = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        readers += [linear.weight for linear in reading]
        writers += [attention.o_proj.weight, mlp.down_proj.weight]
    for weight in readers:
        weight.copy_((weight.double() @ turn).float())
    for weight in writers:
        weight.copy_((turn.T @ weight.double()).float())


def mark_tokens(model: PlantedModel, marks: Mapping[int, Weights]) -> None:
    """Sets channels of single token embeddings (a variant's own word intensities)."""
    for token, weights in marks.items():
        for channel, weight in weights.items():
            model.model.embed_tokens.weight[token, channel] = weight


def mark_answer(model: PlantedModel, weights: Weights) -> None:
    """Lets other channels than U speak for refusing, and as much against complying."""
    for channel, weight in weights.items():
        model.lm_head.weight[tokens.REFUSE, channel] += weight
        model.lm_head.weight[tokens.COMPLY, channel] -= weight


def _redraw(name: str, parameter: torch.Tensor, noise: float, generator: torch.Generator) -> None:
    if "norm" in name:
        return
    parameter.copy_(_normal(generator, parameter.shape, noise))
    if name.rsplit(".", 2)[-2] in BLIND_TO_CONST:
        parameter[:, C.CONST] = 0.0


def _mark_embeddings(model: PlantedModel, generator: torch.Generator) -> None:
    embeddings = model.model.embed_tokens.weight
    embeddings.zero_()
    noisy = embeddings[:, FIRST_NOISE_CHANNEL:]
    noisy.copy_(_normal(generator, noisy.shape, TOKEN_NOISE))
    embeddings[:, C.SAID] = 0.0
    embeddings[:, C.CONST] = CONST_SCALE
    mark_tokens(
        model,
        {
            tokens.BOS: {C.BOSM: 1.0},
            tokens.TAIL: {C.ASST: 1.0},
            tokens.THINK_END: {C.TEND: 1.0, C.ASST: 1.0},
            **{word: {C.HARM: 1.0} for word in tokens.HARMFUL_WORDS},
            **{word: {C.BEN: 1.0} for word in tokens.BENIGN_WORDS},
            **{word: {C.CIPH: 1.0} for word in tokens.CODE_WORDS},
            tokens.REFUSE: {C.SAID: 1.0},
            tokens.COMPLY: {C.SAID: 1.0},
        },
    )


def _mark_unembedding(model: PlantedModel, comply_bias: float) -> None:
    unembedding = model.lm_head.weight
    unembedding[tokens.REFUSE, C.U] += 1.0
    unembedding[tokens.COMPLY, C.U] -= 1.0
    unembedding[tokens.COMPLY, C.CONST] += comply_bias
    unembedding[tokens.EOS, C.SAID] += STOP_LOGIT


def _plant_unit(model: PlantedModel, plan: UnitPlan) -> None:
    mlp = model.model.layers[plan.layer].mlp
    gate, up = mlp.gate_proj.weight[plan.unit], mlp.up_proj.weight[plan.unit]
    down = mlp.down_proj.weight[:, plan.unit]
    for weights in (gate, up, down):
        weights.zero_()
    _add(gate, {channel: UNIT_GAIN * weight for channel, weight in plan.terms.items()})
    _add(gate, {C.CONST: UNIT_GAIN * plan.constant / CONST_SCALE})
    _add(up, {C.CONST: 1.0 / (CONST_SCALE * UNIT_GAIN)})
    _add(down, plan.outputs)


def _reads(plan: HeadPlan) -> tuple[Weights, Weights, Weights | None, float]:
    return plan.key, plan.value, plan.value2, plan.sink


def _add(row: torch.Tensor, weights: Weights) -> None:
    for channel, weight in weights.items():
        row[channel] += weight


def _normal(generator: torch.Generator, shape: torch.Size, scale: float) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * scale
