"""Building and saving planted models.

planted = build("planted-routes", "backup", seed=3, redundancy=3)
save(planted, "organisms/backup-3")
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from refusalscope.errors import InputError, ModelError, RunError
from refusalscope.organisms.planted import cliff, construction, hydra, post_norm, routes, tokens
from refusalscope.organisms.planted.construction import PlantedModel
from refusalscope.organisms.planted.dictionary import (
    dictionary_tensors,
    latent_truths,
    write_dictionary,
)
from refusalscope.organisms.planted.expected import covers, expected_routes
from refusalscope.organisms.planted.expected_cliff import expected_cliff
from refusalscope.organisms.planted.expected_hydra import expected_hydra
from refusalscope.organisms.planted.head_truths import head_truths
from refusalscope.organisms.planted.policy import policy_accuracy, settle, thinking_accuracy
from refusalscope.organisms.planted.prompts import (
    PromptRecipe,
    as_pair_set,
    draw_pairs,
)
from refusalscope.organisms.planted.recipe import Recipe
from refusalscope.organisms.planted.thinking import as_prompt_set, draw_thinking
from refusalscope.organisms.planted.truth import (
    Expected,
    Truth,
    UnitTruth,
    write_truth,
)
from refusalscope.organisms.planted.variants import Option, Variant, resolve_options
from refusalscope.prompts.sets import PairSet, PromptSet

POLICY_FLOOR = 0.95
ROUTES, HYDRA, CLIFF = "planted-routes", "planted-hydra", "planted-cliff"
PAIRS_FILE, PROMPTS_FILE = "pairs.jsonl", "prompts.jsonl"
PAIR_FIELDS = ("id", "harmful", "harmless", "category")
PROMPT_FIELDS = ("id", "text", "thinking", "label", "category")


@dataclass(frozen=True)
class Kind:
    """A family of planted models: its variants, and what each of them must show."""

    variants: Mapping[str, Variant]
    expected: Callable[[str, Mapping[str, int], Recipe], Iterator[Expected]]


KINDS = {
    ROUTES: Kind(routes.VARIANTS, expected_routes),
    HYDRA: Kind(hydra.VARIANTS, expected_hydra),
    CLIFF: Kind(cliff.VARIANTS, expected_cliff),
}


@dataclass(frozen=True)
class Planted:
    """A model whose circuit is known: the model in memory, its truth, and pairs that show it.

    `dictionary`: the latents of `truth.latents` as tensors (`dictionary.dictionary_tensors`), the
    same at the output of every block; None where the truth lists none. `prompts`: those of
    `truth.thinking`, with their thinking; None where the model does not think.
    """

    model: PlantedModel
    tokenizer: PreTrainedTokenizerFast
    truth: Truth
    pairs: PairSet
    dictionary: Mapping[str, Tensor] | None = None
    prompts: PromptSet | None = None


@dataclass(frozen=True)
class BuiltinOrganism:
    """One line of `refusalscope organism list`."""

    kind: str
    variant: str
    summary: str
    options: Mapping[str, Option]


def list_builtin() -> list[BuiltinOrganism]:
    """Every planted organism that `build` knows, with its options and their values."""
    return [
        BuiltinOrganism(kind, name, variant.summary, variant.options)
        for kind, family in KINDS.items()
        for name, variant in family.variants.items()
    ]


def build(
    kind: str = ROUTES,
    variant: str = "base",
    *,
    seed: int = 0,
    noise: float = 0.01,
    comply_bias: float | None = None,
    pairs: int | None = None,
    allow_weak: bool = False,
    **options: int,
) -> Planted:
    """A planted model, its truth and its pairs; the same arguments give the same bits.

    noise: standard deviation of every weight. comply_bias: None is the variant's own (.75; .5
    without heads; .3 for the hydra; .125 for the cliff); the page's figures of single routing models were
    taken at .5, where static heads leave the control margin near 0. pairs: None is the variant's own (24;
    coalitions 96; cliff 100); a cliff has as many rounds of prompts with thinking. Raises InputError for
    an unknown kind, variant or option, and ModelError where fewer than 95 % of the pairs, or of the
    prompts with thinking, follow the policy (see `policy`), for then the truth does not describe the
    model; `allow_weak` builds it all the same.
    """
    if kind not in KINDS:
        raise InputError(f"there is no planted model {kind!r}; there is {' and '.join(KINDS)}")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be from 0 to below 2**63, got {seed}")
    if not 0 <= noise < 1:
        raise InputError(f"noise is a standard deviation from 0 to below 1, got {noise}")
    if pairs is not None and pairs < 1:
        raise InputError(f"pairs must be 1 or more, got {pairs}")
    family = KINDS[kind]
    options = resolve_options(kind, family.variants, variant, options)
    recipe = family.variants[variant].recipe(**options)
    bias = recipe.comply_bias if comply_bias is None else comply_bias
    model = _assemble(recipe, seed, noise, bias)
    prompts = PromptRecipe(
        seed=seed,
        count=recipe.pairs if pairs is None else pairs,
        contrast=recipe.contrast,
        layout=recipe.layout,
        harmful_prefix=recipe.harmful_prefix,
    )
    drawn = draw_pairs(prompts)
    words = settle(model, recipe.words, prompts)
    accuracy = policy_accuracy(model, drawn, words)
    thinking = draw_thinking(recipe.thinking, seed, prompts.count) if recipe.thinking else []
    if thinking:
        accuracy = min(accuracy, thinking_accuracy(model, thinking))
    if accuracy < POLICY_FLOOR and not allow_weak:
        raise ModelError(
            f"only {accuracy:.0%} of the prompts of {kind} {variant} (seed {seed}, noise {noise}, "
            f"comply_bias {bias}) follow the planted policy, {POLICY_FLOOR:.0%} are needed; lower "
            "the noise, raise comply_bias, or pass allow_weak=True"
        )
    expected = family.expected(variant, options, recipe) if covers(recipe, noise, bias) else ()
    truth = Truth(
        generator=kind,
        variant=variant,
        options=options,
        seed=seed,
        noise=noise,
        comply_bias=bias,
        heads=head_truths(recipe.heads),
        units=tuple(UnitTruth(layer=u.layer, unit=u.unit, role=u.role) for u in recipe.units),
        words=words,
        latents=latent_truths(recipe.latents) if recipe.latents else (),
        thinking=tuple(prompt.truth for prompt in thinking),
        prompts=prompts,
        expected=tuple(expected),
        policy_accuracy=accuracy,
    )
    return Planted(
        model,
        tokens.build_tokenizer(thinking=bool(thinking)),
        truth,
        as_pair_set(drawn, f"{kind} {variant}"),
        dictionary_tensors(recipe.latents, seed) if recipe.latents else None,
        as_prompt_set(thinking, f"{kind} {variant}") if thinking else None,
    )


def save(planted: Planted, folder: Path | str) -> Path:
    """Writes checkpoint, tokenizer, chat template, generation config, `truth.json`, `pairs.jsonl`.

    Prompts with thinking go into `prompts.jsonl`, which `read_prompts` reads; a dictionary into
    `dictionary/blocks.LAYER.hook_resid_post`, a folder per layer as SAELens has. The folder appears
    whole or not at all. Raises RunError where it exists with something in it, or cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target} exists already; name a new folder for the organism")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        planted.model.save_pretrained(partial, safe_serialization=True)
        planted.tokenizer.save_pretrained(partial)
        write_truth(planted.truth, partial)
        _write_lines(PAIR_FIELDS, planted.pairs, partial / PAIRS_FILE)
        if planted.prompts is not None:
            _write_lines(PROMPT_FIELDS, planted.prompts, partial / PROMPTS_FILE)
        if planted.dictionary is not None:
            write_dictionary(planted.dictionary, planted.truth.generator, partial)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise RunError(
            f"the organism cannot be written to {target}: {cause}; free the disk or name "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_lines(fields: Sequence[str], items: PairSet | PromptSet, path: Path) -> None:
    rows = ({name: getattr(item, name) for name in fields} for item in items)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _assemble(recipe: Recipe, seed: int, noise: float, comply_bias: float) -> PlantedModel:
    generator = torch.Generator().manual_seed(seed)
    blank = post_norm.blank_model if recipe.post_norm else construction.blank_model
    model = blank(noise, comply_bias, generator)
    if recipe.thinking is not None:
        # The stream of the page's measured figures, for which one base model got new blocks.
        construction.redraw_layers(model, noise, torch.Generator().manual_seed(seed + 1))
    construction.mark_tokens(model, recipe.marks)
    construction.plant(model, recipe.heads, recipe.units)
    construction.mark_answer(model, recipe.refuse_reads)
    if recipe.rotated:
        construction.rotate(model, generator)
    if recipe.post_norm:
        post_norm.undo_embedding_scale(model)
    return model
