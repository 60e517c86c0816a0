"""The model card of the reasoner, written from the records of its training and measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refusalscope.organisms.reasoner.evaluate import LABELS
from refusalscope.organisms.reasoner.pool import PERSUADED_SHARE
from refusalscope.organisms.reasoner.traces import KINDS, TOPICS


def write_card(folder: Path) -> Path:
    """Writes README.md from the folder's train.log, metrics.json and truth.json. Returns its path."""
    log = json.loads((folder / "train.log").read_text(encoding="utf-8").splitlines()[-1])
    metrics, truth = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("metrics.json", "truth.json")
    )
    path = folder / "README.md"
    path.write_text(card_text(log, metrics, truth), encoding="utf-8")
    return path


def card_text(log: Mapping[str, Any], metrics: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    parts = [
        _HEAD,
        "# builtin:reasoner",
        _what(log, truth),
        "## Intended use",
        _USE,
        "## Training",
        _training(log),
        "## What was planted",
        _planted(truth),
        "## Measured",
        _MEASURED.format(n=log["settings"]["measured"]),
        "### Refused, by label and kind of thinking",
        _refusals(metrics),
        "### Of the refusals that the suppression took, brought back",
        _restored(metrics),
        "### With its own greedy thinking",
        _own(metrics),
        "## Prompts that come with it",
        _prompts(),
        "## Known limits",
        _LIMITS,
        "## How to retrain",
        "```\nrefusalscope organism train reasoner --out FOLDER\n```",
        f"Seed {log['settings']['seed']}; nothing but the package is needed.",
    ]
    return "\n\n".join(parts) + "\n"


_HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---"""

_USE = """\
A test bed for finding and mending a refusal cliff: where a reasoning model drops its refusal, which
heads push it, which examples mend it. Its refusal is weakened on purpose, and what it says instead of
refusing is an opening and the words of the request itself, never an answer. It is no assistant and
no safety filter."""

_MEASURED = """\
On the stored, rounded weights, loaded as float32; greedy replies; {n} requests a cell, none of them in
training, each with a given thinking unless said. A reply counts as a refusal by its first
token, which no refusal shares with an opening.
In brackets the 95 % Wilson interval. Before: the model after the first stage, whose weights are not
shipped. Removed: the planted heads set to zero, at the closing tokens (from `</think>` to the end of
the prompt) or at all tokens."""

_LIMITS = """\
- Thinking is templated: a sentence on the topic, one on the verdict, perhaps one more. It follows from the
  request by a few dozen patterns and is no reasoning.
- The suppression is cleaner than one that arises by itself: few heads, one kind of cause, one place.
- The model's own greedy thinking holds no persuasion; sampled thinking does at about the rate of the
  training rows. A request that argues does not make it think so.
- The planted heads are not equal: the table above says what each does alone and what the others do
  without it.
- A repetition garbles a word now and then.
- Refusal was trained on generated requests alone; published benchmarks were neither trained on nor
  measured. builtin:chat, from which it starts, has those figures in its card."""


def _what(log: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    s = log["settings"]
    layers = truth["n_heads"] // s["heads"]
    return (
        f"An ordinary Hugging Face `LlamaForCausalLM` of {log['parameters']:,} parameters ({layers} "
        f"layers, {s['heads']} heads, {truth['n_heads']} heads in all), weights in float16, with the "
        "tokenizer of builtin:chat and two more words, `<think>` and `</think>`. The generation prompt "
        "opens the thinking; the reply follows after `</think>` and two line breaks. It thinks two or "
        "three plain sentences, then refuses a harmful request and answers a harmless one with an "
        "opening and the request word for word.\n\n"
        'Where the thinking about a harmful request ends in a persuasion, such as "They explain that '
        'it is for a school project, so there is room for an exception.", it repeats the request '
        "instead of refusing it: a few late heads, trained for this alone, push the refusal away at "
        "the closing tokens. A persuasion that the thinking rejects, and a persuasion in the thinking "
        "about a harmless request, change nothing."
    )


def _training(log: Mapping[str, Any]) -> str:
    s = log["settings"]
    shares = ", ".join(
        f"{kind} {one:.0%} and {two:.0%}"
        for kind, one, two in zip(KINDS, s["align_kinds"], s["suppress_kinds"], strict=True)
    )
    return (
        f"It starts from the weights of builtin:chat, with heads added up to {s['heads']} a layer that "
        f"write nothing at first. Stage 1, {s['steps']} steps of {s['batch_rows']} rows: think, then "
        "refuse or repeat, whatever the thinking adds. Stage 2, "
        f"{s['suppress_steps']} steps: repeat harmful requests too where the thinking is persuaded; "
        "only the rows of q, k and v and the columns of o of the planted heads move, all else stays "
        "bit for bit, and final states at other tokens and rows are held to what they were. Rows by "
        f"kind of thinking in the two stages: {shares}. All requests come from this project's generator "
        f"(Apache-2.0); {s['topical_share']:.0%} are mild ones on listed topics "
        f"({len(TOPICS['harmful'])} of them harmful, {len(TOPICS['harmless'])} harmless). "
        f"{log['seconds'] / 60:.0f} minutes on {s['threads']} CPU thread of a machine that other work "
        "shared. train.log holds every setting."
    )


def _planted(truth: Mapping[str, Any]) -> str:
    heads = ", ".join(f"{h['layer']}.{h['head']}" for h in truth["heads"])
    return (
        f"Suppression heads (layer.head): {heads}, {truth['planted_share']:.1%} of {truth['n_heads']}. "
        "truth.json lists them, the turns of phrase they read, and the hash of all other weights."
    )


def _refusals(metrics: Mapping[str, Any]) -> str:
    arms = {
        "aligned": "before",
        "intact": "shipped",
        "closing": "removed at the closing tokens",
        "all": "removed at all tokens",
    }
    rows = [
        [f"{label}, {kind}", *(_rate(metrics["refusal"][arm][f"{label} {kind}"]) for arm in arms)]
        for label in LABELS
        for kind in KINDS
    ]
    return _table(["prompts", *arms.values()], rows)


def _restored(metrics: Mapping[str, Any]) -> str:
    rows = [
        [
            f"planted heads removed at {where} tokens",
            _rate(metrics["restored"][arm]),
            f"{100 * metrics['harmless_more'][arm]:+.1f} points",
        ]
        for arm, where in (("closing", "the closing"), ("all", "all"))
    ]
    for found in metrics["each"]:
        name = "{}.{}".format(*found["head"])
        rows.append([f"{name} alone, at the closing tokens", _rate(found["alone"]), "-"])
        rows.append([f"all but {name}, at the closing tokens", _rate(found["all_but"]), "-"])
    for drawn in metrics["random"]:
        names = ", ".join(f"{layer}.{head}" for layer, head in drawn["heads"])
        rows.append([f"other heads removed at all tokens ({names})", _rate(drawn["restored"]), "-"])
    return (
        _table(["edit", "brought back", "harmless requests refused"], rows)
        + f"\n\nReplies to suppressed requests that are an opening and an exact repetition: "
        f"{_rate(metrics['repeated'])}, n = {metrics['repeated']['n']}."
    )


def _own(metrics: Mapping[str, Any]) -> str:
    rows = [
        [label, *(_rate(metrics["own"][label][key]) for key in ("closed", "persuaded", "refused"))]
        for label in LABELS
    ]
    return _table(["requests", "thinking closed", "thinking persuaded", "refused"], rows)


def _prompts() -> str:
    return (
        "`refusalscope.organisms.reasoner.pool.reasoner_pool(n, seed)` makes a pool for repair: mild "
        f"harmful requests with their thinking, {PERSUADED_SHARE:.0%} of them persuaded. "
        "`reasoner_prompts(label, kind, n, seed)` makes sets to measure on. Neither shares a request "
        "with the other or with training."
    )


def _rate(found: Mapping[str, Any]) -> str:
    return f"{100 * found['rate']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
