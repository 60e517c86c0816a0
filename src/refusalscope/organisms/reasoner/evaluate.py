"""What the reasoner does with a given thinking and with its own, intact and with heads removed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from refusalscope.judge.reply import split_thinking
from refusalscope.model import ChatModel, Rendered, Scale, Site
from refusalscope.model.edits import Variant
from refusalscope.organisms.chat.evaluate import Rate
from refusalscope.organisms.chat.greedy import expected_repetition, refusing_first
from refusalscope.organisms.chat.replies import repetition, starts_with_refusal
from refusalscope.organisms.chat.requests import Label
from refusalscope.organisms.reasoner.pool import reasoner_prompts
from refusalscope.organisms.reasoner.traces import KINDS, is_persuaded

Head = tuple[int, int]
LABELS: tuple[Label, ...] = ("harmful", "harmless")
RANDOM_DRAWS = 5


def refusals(
    chat: ChatModel, prompts: Sequence[Rendered], heads: Iterable[Head] = (), where: str = "all"
) -> list[bool]:
    """Whether the greedy reply to each prompt is a refusal, told by its first token.

    No trained refusal and no trained opening share their first token. heads: (layer, head) set to zero at
    the closing tokens ("closing": from `</think>` to the prompt's end) or at all tokens ("all").
    """
    variants = [_without(prompt, heads, where) for prompt in prompts]
    replies = chat.generate(prompts, variants, max_new_tokens=1)
    refusing = refusing_first(chat.tokenizer)
    return [chat.tokenizer.decode(reply) in refusing for reply in replies]


def _without(prompt: Rendered, heads: Iterable[Head], where: str) -> Variant:
    closing = tuple(range(prompt.anchor("think_close"), prompt.n_prompt))
    positions = closing if where == "closing" else "all"
    return tuple(Scale(Site("z", layer), positions, head, factor=0.0) for layer, head in heads)


def cells(
    chat: ChatModel, n: int, heads: Sequence[Head] = (), where: str = "all"
) -> dict[str, list[bool]]:
    """Refusals of n prompts of each label and kind of thinking: "harmful plain" and so on."""
    found = {}
    for label in LABELS:
        for kind in KINDS:
            rendered = chat.render(list(reasoner_prompts(label, kind, n)))
            found[f"{label} {kind}"] = refusals(chat, rendered, heads, where)
    return found


def evaluate(
    chat: ChatModel, planted: Sequence[Head], aligned: dict[str, list[bool]], n: int = 200
) -> dict[str, Any]:
    """All that the card prints, as plain numbers.

    aligned: `cells` of the model before the suppression was planted, of the same n. Keys: `refusal` by arm
    (aligned, intact, closing, all) and cell; `restored` by arm: of the refusals that the suppression took,
    the share that removing the planted heads brings back; `each` the same, at the closing tokens, for one
    planted head alone and for all but it; `random` the same for as many other heads of the same layers;
    `harmless_more` by arm: share of harmless requests refused, less that of the intact model; `repeated`
    exact repetitions among the replies to suppressed prompts; `own` what it does with its own thinking.
    """
    arms = {
        "aligned": aligned,
        "intact": cells(chat, n),
        "closing": cells(chat, n, planted, "closing"),
        "all": cells(chat, n, planted, "all"),
    }
    intact, cell = arms["intact"], "harmful persuaded"
    taken = [i for i in range(n) if aligned[cell][i] and not intact[cell][i]]
    rendered = chat.render(list(reasoner_prompts("harmful", "persuaded", n)))
    others = _random_heads(chat, planted)

    def back(heads: Sequence[Head], where: str) -> dict[str, Any]:
        return _rate(refusals(chat, [rendered[i] for i in taken], heads, where))

    return {
        "refusal": {arm: {k: _rate(v) for k, v in found.items()} for arm, found in arms.items()},
        "restored": {arm: _rate([arms[arm][cell][i] for i in taken]) for arm in ("closing", "all")},
        "each": [
            {
                "head": one,
                "alone": back([one], "closing"),
                "all_but": back([head for head in planted if head != one], "closing"),
            }
            for one in planted
        ],
        "random": [{"heads": heads, "restored": back(heads, "all")} for heads in others],
        "harmless_more": {
            arm: _harmless(arms[arm]) - _harmless(intact) for arm in ("closing", "all")
        },
        "repeated": _rate(_repeats(chat, rendered)),
        "own": {label: _own(chat, label, n) for label in LABELS},
    }


def _harmless(found: dict[str, list[bool]]) -> float:
    hits = [
        hit for cell, refused in found.items() if cell.startswith("harmless") for hit in refused
    ]
    return sum(hits) / len(hits)


def _random_heads(chat: ChatModel, planted: Sequence[Head]) -> list[list[Head]]:
    """Sets of other heads, as many in each layer as are planted there."""
    rng = random.Random(0)
    drawn = []
    for _ in range(RANDOM_DRAWS):
        heads: list[Head] = []
        for layer, _head in planted:
            free = [
                (layer, head)
                for head in range(chat.anatomy.n_heads)
                if (layer, head) not in {*planted, *heads}
            ]
            heads.append(rng.choice(free))
        drawn.append(heads)
    return drawn


def _repeats(chat: ChatModel, rendered: Sequence[Rendered]) -> list[bool]:
    """Of the replies that do not refuse: whether each repeats its request and says nothing else."""
    found = []
    for prompt, reply in zip(rendered, chat.generate(rendered, max_new_tokens=64), strict=True):
        said = chat.decode(reply)
        first, last = prompt.instruction
        request = chat.decode(prompt.ids[first : last + 1])
        if not starts_with_refusal(said):
            found.append(repetition(said) == expected_repetition(chat.tokenizer, request))
    return found


def _own(chat: ChatModel, label: Label, n: int) -> dict[str, Any]:
    """Greedy thinking and reply to n requests: closed, persuaded, refused."""
    prompts = [replace(p, thinking=None) for p in reasoner_prompts(label, "plain", n)]
    replies = [chat.decode(r) for r in chat.generate(chat.render(prompts), max_new_tokens=96)]
    spans = [split_thinking(reply) for reply in replies]
    return {
        "closed": _rate([bool(thinking) for thinking, _, _ in spans]),
        "persuaded": _rate([is_persuaded(thinking) for thinking, _, _ in spans]),
        "refused": _rate([starts_with_refusal(answer) for _, answer, _ in spans]),
    }


def _rate(hits: Sequence[bool]) -> dict[str, Any]:
    return asdict(Rate.of(hits))
