"""The base circuit in a Gemma-2, whose blocks normalise what they write (page, section 5, O13).

A post-norm would blow the noise of a block with little to say up to unit RMS. So every block also
writes a constant 8 into CONST, by value dimension 1 of head 6 and by the last MLP unit, and the
post-norm's own gain takes it out again: the rest of the write passes nearly as it is.

Two things are stricter than on the page, whose figures are of one seed. Head 7 shares the constant
value, and its noise would carry 8 times .01 of it into every channel: its column is closed too. And
the constant is read at <bos>, which is the same in both prompts, not where noise happens to look.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from refusalscope.organisms.planted import construction
from refusalscope.organisms.planted.construction import (
    CONST_SCALE,
    D_MLP,
    HEAD_DIM,
    LAYERS,
    C,
    HeadPlan,
    PlantedModel,
    UnitPlan,
    Weights,
)
from refusalscope.organisms.planted.recipe import BASE_HEADS, Recipe

CONSTANT_HEAD, SIBLING = CONSTANT_GROUP = (6, 7)
CONSTANT_UNIT = D_MLP - 1
CONSTANT: Weights = {C.CONST: 1}


def recipe() -> Recipe:
    """O13: the heads of the plain organism, and constant writers in every block."""
    planted = {(head.layer, head.head): _beside_constant(head) for head in BASE_HEADS}
    for layer in range(LAYERS):
        sibling = planted.get((layer, SIBLING))
        planted.setdefault((layer, CONSTANT_HEAD), _constant_head(layer, sibling))
    units = tuple(
        UnitPlan(layer, CONSTANT_UNIT, "static", {}, CONST_SCALE, CONSTANT)
        for layer in range(LAYERS)
    )
    return Recipe(tuple(planted.values()), units, post_norm=True)


def blank_model(noise: float, comply_bias: float, generator: torch.Generator) -> Gemma2ForCausalLM:
    """A Gemma-2 of the shape of section 1 with noise weights; its post-norms drop CONST.

    The embeddings are those of the Llama: see `undo_embedding_scale`.
    """
    config = Gemma2Config(
        **construction.SHAPE,
        query_pre_attn_scalar=HEAD_DIM,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    with torch.random.fork_rng(devices=[]):
        model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    construction.furnish(model, noise, comply_bias, generator)
    constant_columns = [head * HEAD_DIM + 1 for head in CONSTANT_GROUP]
    for block in model.model.layers:
        # Noise that carries the constant elsewhere would leak into every prompt.
        block.self_attn.o_proj.weight[:, constant_columns] = 0.0
        for writer in (block.self_attn.o_proj, block.mlp.down_proj):
            writer.weight[C.CONST] = 0.0
        for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
            norm.weight[C.CONST] = -1.0
    return model


def undo_embedding_scale(model: PlantedModel) -> None:
    """Divides the stored embeddings by 8 = sqrt(d_model), by which a Gemma multiplies them."""
    model.model.embed_tokens.weight.div_(CONST_SCALE)


def _beside_constant(head: HeadPlan) -> HeadPlan:
    """The same head, with the constant's value where it is in the constant's group."""
    if head.head not in CONSTANT_GROUP:
        return head
    output2 = CONSTANT if head.head == CONSTANT_HEAD else None
    return replace(head, value2=CONSTANT, output2=output2)


def _constant_head(layer: int, sibling: HeadPlan | None) -> HeadPlan:
    """Writes CONST; beside a planted sibling it has no query, and attends to all tokens alike."""
    if sibling is None:
        return HeadPlan(
            layer,
            CONSTANT_HEAD,
            "static",
            query={C.CONST: 1.5},
            key={C.BOSM: 8},
            value={},
            output={},
            value2=CONSTANT,
            output2=CONSTANT,
        )
    return replace(
        sibling, head=CONSTANT_HEAD, role="static", query={}, output={}, output2=CONSTANT
    )
