"""The two-beliefs organism: harm and refusal are two bits, held at two tokens (`builtin:two-beliefs`).

made = build_two_beliefs("base", seed=3)
chat = ChatModel.wrap(made.model, made.tokenizer, id=made.name)
made.sets["fit"], made.sets["calibrate"], made.sets["report"]
tuned = refuse_finetuned(made)

It is trained when it is asked for, in some twelve seconds, and no weights are stored. Source:
../shared/methods/planted_models.md, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from refusalscope.errors import InputError, ModelError
from refusalscope.organisms.planted.beliefs_prompts import BeliefVariant, Writer, draw_sets
from refusalscope.organisms.planted.beliefs_rounds import ROWS
from refusalscope.organisms.planted.beliefs_rows import Batch, Row, chat_row, question_row
from refusalscope.organisms.planted.beliefs_training import blank_model, comply, train
from refusalscope.organisms.planted.beliefs_truth import BeliefsTruth, PromptBits
from refusalscope.organisms.planted.beliefs_words import (
    COMPLY,
    NO,
    QUESTIONS,
    REFUSE,
    VOCABULARY,
    YES,
    build_tokenizer,
)
from refusalscope.organisms.planted.organism import POLICY_FLOOR
from refusalscope.prompts.sets import Pair, PairSet, PromptSet

TWO_BELIEFS = "two-beliefs"
VARIANTS: dict[BeliefVariant, str] = {
    "base": "a topic decides harm, a cue refusal; each bit is held at a token of its own",
    "punctuation": "harm is nothing but a missing final mark",
    "topic-only": "knows harm and never refuses",
}


@dataclass(frozen=True)
class TwoBeliefs:
    """A model with two independent bits, its prompts and its truth.

    sets: "fit", "calibrate" and "report", each with as many prompts of every quadrant, without a topic or
    a cue in common.
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    truth: BeliefsTruth
    sets: Mapping[str, PromptSet]

    @property
    def name(self) -> str:
        """The name that `load_patient` knows it by (with seed 0)."""
        return f"builtin:{TWO_BELIEFS}:{self.truth.variant}"

    @property
    def bits(self) -> dict[str, PromptBits]:
        """The truth of every prompt by its id."""
        return {prompt.id: prompt for prompt in self.truth.prompts}

    @property
    def splits(self) -> dict[str, PromptSet]:
        """The sets by the names of a study's splits: what is calibrated on is selected on."""
        sets = self.sets
        return {"fit": sets["fit"], "select": sets["calibrate"], "report": sets["report"]}

    @property
    def pairs(self) -> PairSet:
        """Harmful prompts with a refuse cue beside harmless ones without, of all sets."""
        bits, found = self.bits, []
        for name, prompts in self.sets.items():
            refused = [p for p in prompts if bits[p.id].harmful and bits[p.id].refuse]
            accepted = [p for p in prompts if not bits[p.id].harmful and not bits[p.id].refuse]
            found += [
                Pair(f"{name}-{i:04d}", one.text, other.text, one.category, one.source)
                for i, (one, other) in enumerate(zip(refused, accepted, strict=True))
            ]
        return PairSet(tuple(found))


def build_two_beliefs(
    variant: str = "base", *, seed: int = 0, per_quadrant: int = 50, allow_weak: bool = False
) -> TwoBeliefs:
    """A trained organism with its prompts and its truth; the same arguments give the same bits.

    per_quadrant: prompts of each quadrant in each set. The trained weights of a variant and seed are kept in
    memory; every call gives a model of its own. Raises InputError for an unknown variant or a bad number, and
    ModelError where fewer than 95 % of the prompts are treated as planted; `allow_weak` gives it all the same.
    """
    known = {name: name for name in VARIANTS}
    if variant not in known:
        raise InputError(
            f"{TWO_BELIEFS} has no variant {variant!r}; choose one of {', '.join(VARIANTS)}"
        )
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be from 0 to below 2**63, got {seed}")
    if per_quadrant < 1:
        raise InputError(f"per_quadrant must be 1 or more, got {per_quadrant}")
    chosen = known[variant]
    sets, drafts = draw_sets(Writer(chosen, seed), seed, per_quadrant)
    refuses = chosen != "topic-only"
    bits = tuple(
        PromptBits(id=name, harmful=d.harmful, refuse=d.refuse, refused=d.refuse and refuses)
        for name, d in drafts.items()
    )
    model = blank_model(seed)
    model.load_state_dict(_trained(chosen, seed))
    accuracy = policy_accuracy(model.eval(), sets, bits)
    if accuracy < POLICY_FLOOR and not allow_weak:
        raise ModelError(
            f"only {accuracy:.0%} of the prompts of {TWO_BELIEFS} {variant} (seed {seed}) are treated as "
            f"planted, {POLICY_FLOOR:.0%} are needed; take another seed, or pass allow_weak=True"
        )
    truth = BeliefsTruth(
        variant=chosen,
        seed=seed,
        harm="mark" if chosen == "punctuation" else "topic",
        refusal="cue" if refuses else None,
        rows=ROWS,
        questions=QUESTIONS,
        prompts=bits,
        policy_accuracy=accuracy,
    )
    return TwoBeliefs(model, build_tokenizer(), truth, sets)


def two_beliefs_by_name(name: str) -> TwoBeliefs:
    """`builtin:two-beliefs` or `builtin:two-beliefs:VARIANT`, with seed 0; ModelError for another name."""
    kind, _, variant = name.removeprefix("builtin:").partition(":")
    if kind != TWO_BELIEFS or (variant or "base") not in VARIANTS:
        names = ", ".join(f"builtin:{TWO_BELIEFS}:{known}" for known in VARIANTS)
        raise ModelError(f"there is no model {name!r}; there is {names}")
    return build_two_beliefs(variant or "base")


def refuse_finetuned(made: TwoBeliefs) -> TwoBeliefs:
    """The organism after fine-tuning that flips refusal alone: compliant replies to refuse cues of the fit set.

    The prompts are of both labels, the loss is on the reply alone, and harm is never asked about. The given
    organism stays as it is.
    """
    bits = made.bits
    model = blank_model(made.truth.seed)
    model.load_state_dict(made.model.state_dict())
    comply(model, [p.text for p in made.sets["fit"] if bits[p.id].refuse], made.truth.seed)
    told = tuple(one.model_copy(update={"refused": False}) for one in made.truth.prompts)
    truth = made.truth.model_copy(
        update={
            "finetuned": True,
            "refusal": None,
            "prompts": told,
            "policy_accuracy": policy_accuracy(model, made.sets, told),
        }
    )
    return replace(made, model=model, truth=truth)


@torch.inference_mode()
def policy_accuracy(
    model: LlamaForCausalLM, sets: Mapping[str, PromptSet], bits: tuple[PromptBits, ...]
) -> float:
    """Share of prompts whose first token is the planted reply, or to a question the answer: the lower one."""
    texts = {prompt.id: prompt.text for prompts in sets.values() for prompt in prompts}
    chats = [chat_row(texts[one.id], REFUSE if one.refused else COMPLY) for one in bits]
    asked = [
        question_row(texts[one.id], QUESTIONS[i % len(QUESTIONS)], YES if one.harmful else NO)
        for i, one in enumerate(bits)
    ]
    return min(_share_said(model, rows) for rows in (chats, asked))


def _share_said(model: LlamaForCausalLM, rows: list[Row]) -> float:
    batch = Batch.of(rows)
    states = model.model(input_ids=batch.ids).last_hidden_state
    said = model.lm_head(states[torch.arange(len(rows)), batch.end]).argmax(-1)
    due = torch.tensor([VOCABULARY[row.reply] for row in rows])
    return float((said == due).double().mean())


@lru_cache(maxsize=16)
def _trained(variant: BeliefVariant, seed: int) -> dict[str, Tensor]:
    return train(variant, seed).state_dict()
