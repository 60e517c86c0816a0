"""The routing organisms: which heads and units each variant plants, and what must be seen.

Recipes of ../shared/methods/planted_models.md, sections 2 and 5. In all of them a detector reads
the harmful word, a gate routes the detection at the prompt's tail, amplifiers turn the routed
signal into U = refuse minus comply, and static heads write U in every prompt alike.
"""

from __future__ import annotations

from dataclasses import replace

from refusalscope.organisms.planted import graded, post_norm, tokens
from refusalscope.organisms.planted.construction import C, UnitPlan, content_head, tail_head
from refusalscope.organisms.planted.recipe import (
    AMPLIFIERS,
    BASE_HEADS,
    BYSTANDERS,
    DETECTOR,
    GATE,
    STATICS,
    SUPPRESSOR,
    TOPIC,
    Recipe,
    backup,
    gate,
)
from refusalscope.organisms.planted.variants import Option, Variant

HARM_INTENSITY = (0.7, 0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.3)
HARM2_SIGN = (1, -1, -1, 1, 1, -1, -1, 1)
CHAIN_CHANNELS = (C.ROUTE, C.R2, C.R3, C.R4)
GATE_PLACES = ((3, 1), (2, 4), (4, 2), (3, 6))


def base() -> Recipe:
    """O1: one detector, one gate, three amplifiers."""
    return Recipe(BASE_HEADS)


def redundant(redundancy: int) -> Recipe:
    """O2: gates that stand in for one another, so that no single one is necessary."""
    gates = (GATE, backup(4, 2)) if redundancy == 2 else (gate(2, 1), backup(3, 1), backup(4, 2))
    return Recipe((DETECTOR, *gates, *AMPLIFIERS, TOPIC, *BYSTANDERS))


def split(parts: int) -> Recipe:
    """O3: the gate's work shared equally by heads 0 to parts-1 of layer 3 (by head 1 alone)."""
    places = (1,) if parts == 1 else range(parts)
    gates = tuple(gate(3, head, output={C.ROUTE: 1 / parts}) for head in places)
    return Recipe((DETECTOR, *gates, *AMPLIFIERS, TOPIC, *BYSTANDERS))


def coalitions() -> Recipe:
    """O4: amplifiers and counter heads that read the same gate and pull apart.

    Harmful words carry a second intensity, uncorrelated with the first, that only counters read.
    """
    reader = replace(DETECTOR, value2={C.HARM2: 1}, output2={C.DET2: 1})
    counters = tuple(
        tail_head(layer, head, "counter", {C.ROUTE: 1, C.DET2: 0.555}, {C.U: -0.7})
        for layer, head in ((5, 5), (6, 7))
    )
    marks = {
        word: {C.HARM: harm, C.HARM2: 0.2 * sign}
        for word, harm, sign in zip(tokens.HARMFUL_WORDS, HARM_INTENSITY, HARM2_SIGN, strict=True)
    }
    heads = (reader, GATE, *AMPLIFIERS, *counters, *BYSTANDERS)
    return Recipe(heads, marks=marks, pairs=96)


def rotated() -> Recipe:
    """O14: the plain organism in a randomly turned residual basis."""
    return replace(base(), rotated=True)


def no_circuit() -> Recipe:
    """O10: an MLP unit reads the tail token itself; no head carries anything between the prompts.

    Without static heads U is 3 or 0, so a comply bias of .75 would be a knife edge: .5 it is.
    """
    reader = UnitPlan(3, 0, "tail_reader", {C.HARM2: 4, C.ASST: 4}, -6, {C.U: 1.5})
    return Recipe(
        units=(reader,),
        marks={tokens.TAIL2: {C.ASST: 1.0, C.HARM2: 1.0}},
        comply_bias=0.5,
        contrast="tail",
    )


def long_prefix(prefix: int) -> Recipe:
    """O7': the plain organism, every harmful prompt behind `prefix` filler tokens."""
    return replace(base(), harmful_prefix=prefix)


def chain(depth: int) -> Recipe:
    """O5: the gate's signal is handed on by `depth` heads, one a layer; only the last writes U."""
    *between, last = CHAIN_CHANNELS[:depth]
    handing_on = [
        tail_head(4 + i, 1, "chain", {channel: 1}, {CHAIN_CHANNELS[i + 1]: 1})
        for i, channel in enumerate(between)
    ]
    writer = tail_head(3 + depth, 1, "chain", {last: 1}, {C.U: 3})
    return Recipe((DETECTOR, GATE, *handing_on, writer, *STATICS, SUPPRESSOR))


def cipher() -> Recipe:
    """O7: a decoder recognises code words, but in a layer after the gate: it knows too late."""
    decoder = content_head(4, 1, "decoder", {C.CIPH: 8}, {C.CIPH: 1}, {C.DET: 1})
    return Recipe((*BASE_HEADS, decoder))


def relocated(place: int) -> Recipe:
    """O9: the plain organism with its gate at another of four places."""
    return Recipe((DETECTOR, gate(*GATE_PLACES[place]), *AMPLIFIERS, TOPIC, *BYSTANDERS))


def sibling() -> Recipe:
    """O12: beside the gate, a head of its key/value group that writes off the path to U."""
    beside = content_head(3, 0, "sibling", {C.ASST: 8}, {C.DET: 1}, {C.NUIS: 1})
    return Recipe((*BASE_HEADS, beside))


VARIANTS: dict[str, Variant] = {
    "base": Variant("one gate drives three amplifiers", base),
    "backup": Variant(
        "gates that stand in for one another", redundant, {"redundancy": Option(2, (2, 3))}
    ),
    "split": Variant(
        "a gate shared equally by several heads", split, {"parts": Option(2, (1, 2, 4, 8))}
    ),
    "coalitions": Variant("heads for and against refusal read one gate", coalitions),
    "rotated": Variant("the base model in a random residual basis", rotated),
    "no_circuit": Variant("an MLP unit decides; no head matters", no_circuit),
    "long_prefix": Variant(
        "the base model, harmful prompts behind filler",
        long_prefix,
        {"prefix": Option(60, range(1, 513))},
    ),
    "chain": Variant(
        "the gate's signal passes through a chain of heads",
        chain,
        {"depth": Option(2, range(1, 5))},
    ),
    "dose": Variant(
        "an MLP gate that saturates, words of eight intensities; threshold in hundredths",
        graded.dose,
        {"threshold": Option(30, (30, 60))},
    ),
    "cipher": Variant("code words are recognised only after the gate", cipher),
    "families": Variant("two families of words, a threshold of the MLP gate each", graded.families),
    "relocated": Variant(
        "the base model with its gate elsewhere", relocated, {"place": Option(1, range(4))}
    ),
    "sibling": Variant("a bystander shares key and value with the gate", sibling),
    "post_norm": Variant("the base circuit in a Gemma-2, with post-norms", post_norm.recipe),
}
