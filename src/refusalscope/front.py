"""What the front doors share: the patient by name, its prompts, and what a run says of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from refusalscope.dictionary import Dictionary, builtin_dictionaries
from refusalscope.errors import InputError, ModelError
from refusalscope.judge import Judge
from refusalscope.judge.correction import judge_errors
from refusalscope.model import ChatModel
from refusalscope.prompts import (
    PairSet,
    PromptSet,
    bundled_pairs,
    check_leakage,
    require_enough,
    split,
)
from refusalscope.prompts.wrappers import Wrapper
from refusalscope.runs import Run

if TYPE_CHECKING:
    from refusalscope.organisms.planted import Planted
    from refusalscope.organisms.reasoner.traces import Kind

PLANTED = "builtin:planted-"
REASONER = "builtin:reasoner"
TWO_BELIEFS = "builtin:two-beliefs"
PLANTED_PAIRS = 160
PathLike = str | Path
Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Patient:
    """A chat model; what it needs of a study's settings, and wrappers of its own, where it has such."""

    chat: ChatModel
    needs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Wrapper, ...] = ()


def load_patient(
    model: str | ChatModel,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    revision: str | None = None,
) -> Patient:
    """A model by name, or one that is loaded already; revision: of a model on the hub.

    `builtin:planted-routes`, or `builtin:planted-routes:VARIANT`, is built on the spot, with the words that
    it understands as prompts; `builtin:two-beliefs`, with VARIANT or without, is trained on the spot. Raises
    ModelError for a name that is none.
    """
    if isinstance(model, ChatModel):
        return Patient(model)
    # It knows some 200 words or fewer: its replies are single words, and no wrapper in English reaches it.
    needs = {"judge": "phrases:planted", "wrappers": ()}
    if model.startswith(TWO_BELIEFS):
        from refusalscope.organisms.planted import two_beliefs_by_name

        made = two_beliefs_by_name(model)
        return Patient(ChatModel.wrap(made.model, made.tokenizer, id=model), needs)
    if not model.startswith(PLANTED):
        return Patient(
            ChatModel.load(
                model, dtype=dtype, device=device, device_map=device_map, revision=revision
            )
        )
    from refusalscope.organisms.planted.prompts import code_wrapper

    planted = _planted(model)
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id=model)
    coded = planted.truth.variant == "cipher"
    return Patient(chat, needs, (code_wrapper(),) if coded else ())


def default_pairs(model: str | ChatModel) -> PairSet:
    """The prompts of a model where the user gives none: its own for a planted one, else the bundled pairs."""
    if isinstance(model, str) and model.startswith(PLANTED):
        return _planted(model).pairs
    if isinstance(model, str) and model.startswith(TWO_BELIEFS):
        from refusalscope.organisms.planted import two_beliefs_by_name

        return two_beliefs_by_name(model).pairs
    return bundled_pairs()


def default_splits(model: str | ChatModel) -> Mapping[str, PromptSet] | None:
    """Prompts of a planted model that come in splits: fit, select and report; None where there are none.

    Every split of the two-beliefs organism has as many prompts of each quadrant of harm and refusal; its
    pairs are of the two coherent ones alone.
    """
    if not isinstance(model, str) or not model.startswith(TWO_BELIEFS):
        return None
    from refusalscope.organisms.planted import two_beliefs_by_name

    return two_beliefs_by_name(model).splits


def default_traces(model: str | ChatModel) -> PromptSet:
    """Prompts with thinking for a builtin reasoning model. Raises InputError where the user must give some."""
    if model == REASONER:
        from refusalscope.organisms.reasoner.pool import reasoner_prompts

        kinds: tuple[tuple[Kind, int], ...] = (
            *(("plain", 90), ("aside", 60), ("persuaded", 120), ("rejected", 30)),
        )
        sets = [
            reasoner_prompts(label, kind, n)
            for label in ("harmful", "harmless")
            for kind, n in kinds
        ]
        return PromptSet(
            tuple(prompt for each in sets for prompt in each),
            tuple(source for each in sets for source in each.sources),
        )
    if isinstance(model, str) and model.startswith(PLANTED):
        planted = _planted(model)
        if planted.prompts is not None:
            return planted.prompts
    raise InputError(
        "no traces were given; give --traces with a file of labelled prompts of a reasoning model, with their "
        "thinking or without"
    )


def default_pool(model: str | ChatModel) -> PromptSet:
    """Prompts to repair a builtin reasoning model on. Raises InputError where the user must give some."""
    if model == REASONER:
        from refusalscope.organisms.reasoner.pool import reasoner_pool

        return reasoner_pool()
    raise InputError(
        "no pool was given; give --pool with a file of harmful prompts, with or without their thinking"
    )


def default_dictionaries(model: str | ChatModel, chat: ChatModel) -> dict[int, Dictionary]:
    """The dictionaries that come with a builtin model. Raises InputError where the user must name some."""
    if model == "builtin:chat":
        return builtin_dictionaries("chat-sae")
    if isinstance(model, str) and model.startswith(PLANTED):
        from refusalscope.organisms.planted.dictionary import held_dictionaries

        planted = _planted(model)
        if planted.dictionary is not None:
            return held_dictionaries(planted.dictionary, model)
    raise InputError(
        "no dictionary was named; give --sae with a folder of sparse autoencoders of this model, or "
        "RELEASE:SAE_ID as SAELens names them"
    )


def with_needs(settings: Settings, patient: Patient) -> Settings:
    """The settings with what the patient needs, in the fields that it has and that were not asked for."""
    fields = set(type(settings).model_fields) - settings.model_fields_set
    return settings.model_copy(update={k: v for k, v in patient.needs.items() if k in fields})


def _planted(name: str) -> Planted:
    """The planted model `builtin:KIND` or `builtin:KIND:VARIANT`, with seed 0."""
    from refusalscope.organisms.planted import build, list_builtin

    kind, _, variant = name.removeprefix("builtin:").partition(":")
    known = [(entry.kind, entry.variant) for entry in list_builtin()]
    if (kind, variant or "base") not in known:
        names = ", ".join(f"builtin:{a}:{b}" for a, b in known)
        raise ModelError(f"there is no model {name!r}; there is {names}")
    return build(kind, variant or "base", pairs=PLANTED_PAIRS)


def split_prompts(
    data: PairSet | PromptSet, fractions: Mapping[str, float], seed: int
) -> Mapping[str, PairSet | PromptSet]:
    """Disjoint splits; raises LeakageError should a prompt stand on two sides."""
    require_enough(data)
    splits: Mapping[str, PairSet | PromptSet]
    if isinstance(data, PairSet):
        splits = split(data, fractions, seed=seed)
    else:
        splits = split(data, fractions, seed=seed)
    check_leakage(splits)
    return splits


def describe(
    run: Run,
    chat: ChatModel,
    judge: Judge,
    data: PairSet | PromptSet,
    splits: Mapping[str, PairSet | PromptSet],
    seeds: Mapping[str, int],
) -> None:
    """Write into run.json what was run: the model, the judge and what it misses, sources, seeds, splits."""
    marks = chat.fingerprint
    run.update(
        model=about_model(chat),
        judge={"name": judge.name, **judge_errors(judge.name, seeds["bootstrap"])},
        tokenizer_sha256=marks["tokenizer_sha256"],
        template_sha256=marks["template_sha256"],
        sources=[
            {
                "name": source.name,
                "path": Path(source.path).name,
                "sha256": source.sha256,
                "licence": source.licence,
                "n": source.n,
            }
            for source in data.sources
        ],
        seeds=dict(seeds),
        split_sizes={name: len(prompts) for name, prompts in splits.items()},
    )
    for bad in data.skipped[:20]:
        run.warn(f"Row {bad.line} of a prompt file was not used: {bad.reason}.")
    if len(data.skipped) > 20:
        run.warn(f"{len(data.skipped) - 20} more rows of the prompt files were not used.")


def about_model(chat: ChatModel) -> dict[str, Any]:
    """What a run says of a model. A folder is named without its path: a run may be shown to others."""
    marks, anatomy = chat.fingerprint, chat.anatomy
    return {
        "id": Path(chat.id).name if Path(chat.id).is_dir() else chat.id,
        "sha256": marks["weights_sha256"],
        "config_sha256": marks["config_sha256"],
        "architecture": anatomy.architecture.name,
        "n_layers": anatomy.n_layers,
        "n_heads": anatomy.n_heads,
        "d_model": anatomy.d_model,
        "dtype": str(chat.dtype).removeprefix("torch."),
        "device": str(chat.device),
    }
