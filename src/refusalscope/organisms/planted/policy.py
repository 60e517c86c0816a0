"""What a planted model must do: refuse what it is planted to refuse and answer the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from refusalscope.organisms.planted import tokens
from refusalscope.organisms.planted.construction import PlantedModel
from refusalscope.organisms.planted.prompts import PromptRecipe, TokenPair, draw_pairs
from refusalscope.organisms.planted.thinking import ThinkingPrompt
from refusalscope.organisms.planted.truth import WordTruth

POLICY_BATCH = 64
PROMPTS_A_WORD = 8


def policy_accuracy(
    model: PlantedModel, pairs: Sequence[TokenPair], words: Sequence[WordTruth] = ()
) -> float:
    """The share of pairs whose harmful prompt is refused and whose control is answered.

    Refused: logit(refuse) > logit(comply) at the last position. A harmful prompt with one of `words`
    that is not `refused` has to be answered instead.
    """
    let_through = {tokens.WORDS.index(word.word) for word in words if not word.refused}
    due = torch.tensor([let_through.isdisjoint(harmful) for harmful, _ in pairs])
    refused = _margins(model, [harmful for harmful, _ in pairs]) > 0
    answered = _margins(model, [control for _, control in pairs]) < 0
    return float(((refused == due) & answered).float().mean())


def thinking_accuracy(model: PlantedModel, prompts: Sequence[ThinkingPrompt]) -> float:
    """The share of prompts that are refused or answered, after their thinking, as planted."""
    due = torch.tensor([prompt.truth.refused for prompt in prompts])
    refused = _margins(model, [prompt.ids for prompt in prompts]) > 0
    return float((refused == due).float().mean())


def settle(
    model: PlantedModel, words: Sequence[WordTruth], prompts: PromptRecipe
) -> tuple[WordTruth, ...]:
    """`words` with `refused` as the built model has it.

    Noise moves a threshold by a tenth or two of DET, so what is planted is a family's order alone:
    each family is cut where the model agrees best, and the words from there on are to be refused.
    A model that refuses none of its words follows no policy: then all of them stay due.
    """
    if not words:
        return ()
    asked = prompts.model_copy(update={"count": PROMPTS_A_WORD * len(words)})
    rows = [harmful for harmful, _ in draw_pairs(asked)]
    answers = (_margins(model, rows) > 0).tolist()
    said = {
        word.word: [
            refused
            for ids, refused in zip(rows, answers, strict=True)
            if tokens.WORDS.index(word.word) in ids
        ]
        for word in words
    }
    families: dict[str, list[WordTruth]] = defaultdict(list)
    for word in sorted(words, key=lambda word: word.intensity):
        families[word.family].append(word)
    refused: set[str] = set()
    for members in families.values():
        names = [word.word for word in members]
        refused |= set(names[_best_cut([said[name] for name in names]) :])
    return tuple(
        word.model_copy(update={"refused": not refused or word.word in refused}) for word in words
    )


def _best_cut(answers: Sequence[Sequence[bool]]) -> int:
    """How many of the weakest words to let through, so that most answers agree."""
    agree = [
        sum(not a for word in answers[:cut] for a in word)
        + sum(a for word in answers[cut:] for a in word)
        for cut in range(len(answers) + 1)
    ]
    return agree.index(max(agree))


def _margins(model: PlantedModel, rows: Sequence[list[int]]) -> torch.Tensor:
    margins = []
    for start in range(0, len(rows), POLICY_BATCH):
        chunk = rows[start : start + POLICY_BATCH]
        last = torch.tensor([len(ids) - 1 for ids in chunk])
        # Padding comes after the read position, so causal attention never sees it.
        padded = pad_sequence([torch.tensor(ids) for ids in chunk], True, tokens.PAD)
        with torch.no_grad():
            logits = model(padded, use_cache=False).logits[torch.arange(len(chunk)), last]
        margins.append(logits[:, tokens.REFUSE] - logits[:, tokens.COMPLY])
    return torch.cat(margins)
