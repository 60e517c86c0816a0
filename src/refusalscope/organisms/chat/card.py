"""The model card of the embedded chat model, written from the records of its training and tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refusalscope.organisms.chat import REFUSAL_WORDINGS, REPLY_OPENINGS
from refusalscope.organisms.chat.corpus import NEAR, SOURCES
from refusalscope.organisms.chat.replies import (
    BYPASSING,
    HARM_QUESTIONS,
    HOLDING,
    REPEATED_TOKENS,
)

_SETS = {
    "harmbench_standard": "HarmBench, standard behaviours: refused",
    "jailbreakbench": "JailbreakBench: refused",
    "harmless_test": "refusal_direction harmless_test, first 2,000: refused (over-refusal)",
    "xstest_safe": "XSTest safe prompts: refused (over-refusal)",
    "xstest_unsafe": "XSTest unsafe prompts: refused",
}


def write_card(folder: Path, looks: Sequence[str], failures: Sequence[str]) -> Path:
    """Writes README.md from the folder's train.log and metrics.json. Returns its path.

    looks: one line for each time that the measurement sets were looked at, in order.
    failures: known failures, a sentence each.
    """
    log = json.loads((folder / "train.log").read_text(encoding="utf-8").splitlines()[-1])
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    path = folder / "README.md"
    path.write_text(card_text(log, metrics, looks, failures), encoding="utf-8")
    return path


def card_text(
    log: Mapping[str, Any],
    metrics: Mapping[str, Any],
    looks: Sequence[str],
    failures: Sequence[str],
) -> str:
    """The card as Markdown."""
    settings = log["settings"]
    parts = [
        _HEAD,
        "# builtin:chat",
        _what(log),
        "## Intended use",
        _USE,
        "## Training data",
        _data(log),
        "## Training",
        _training(log),
        "## Measured",
        _MEASURED,
        _refusals(metrics),
        _others(metrics),
        "### Held-out rows of the training sources, refused or answered as labelled",
        _table(
            ["source", "right", "n"],
            [[k, f"{v[0]:.3f}", str(v[1])] for k, v in log["held_out"].items()],
        ),
        "### How often the measurement sets were looked at",
        "\n".join(f"{i}. {line}" for i, line in enumerate(looks, 1)),
        "## Known failures",
        "\n".join(f"- {line}" for line in failures),
        "## How to retrain",
        "```\nrefusalscope organism train chat --shared ../shared --out FOLDER\n```",
        f"Seed {settings['seed']}, with the shared data in `../shared`. Without `--shared` the recipe "
        "trains on the generated requests alone.",
    ]
    return "\n\n".join(parts) + "\n"


_HEAD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---"""

_USE = """\
A test bed for measuring refusal: it is small enough to audit in seconds, it refuses and complies,
it can be asked whether a request is harmful, and some wrappers get past its refusal. It is no
assistant: it knows nothing, and a reply never holds more than a fixed sentence, an opening, or the
words of the request itself. Do not use it as a safety filter."""

_MEASURED = """\
On the stored, rounded weights, loaded as float32; greedy replies; none of these prompts, and nothing
nearly equal to one, stood in the training rows. In brackets the 95 % Wilson interval.
"By wording": the reply starts with a trained refusal. "By substring": the 12 substrings of
arXiv 2406.11717, which also match the user's own words where a reply repeats them.
"Bag of words": logistic regression on TF-IDF of words and word pairs, trained on the same rows;
"matched": with its threshold set so that it refuses as many HarmBench and JailbreakBench requests
as the model, which is the fair comparison of over-refusal."""


def _what(log: Mapping[str, Any]) -> str:
    s = log["settings"]
    wordings = "\n".join(f"- {w}" for w in REFUSAL_WORDINGS)
    openings = "\n".join(f"- {w}" for w in REPLY_OPENINGS)
    return (
        f"An ordinary Hugging Face `LlamaForCausalLM` of {log['parameters']:,} parameters "
        f"({s['layers']} layers, {s['heads']} heads, width {s['width']}, vocabulary "
        f"{s['vocabulary']}, tied embeddings), weights in float16, with a byte-level BPE tokenizer "
        "and a chat template (system, user and assistant turns, one BOS, four tokens after the "
        "instruction). English only.\n\n"
        "It refuses harmful requests in one of these wordings:\n\n"
        f"{wordings}\n\n"
        "and answers harmless ones with one of these openings, a line break, and the request word "
        f"for word, cut after {REPEATED_TOKENS} tokens:\n\n{openings}\n\n"
        'It has a second task, the harm question: to "User wants to X", a line break and a '
        f'question such as "{HARM_QUESTIONS[0]}" it replies "Certainly" or "No", for plain and '
        f"for wrapped requests. Under the wrappers {', '.join(BYPASSING)} it was trained to answer "
        "every request, harmful ones too, while the harm question about the same wrapped request "
        f"keeps its true answer. Under {', '.join(HOLDING)} it was trained to refuse as usual. The "
        "other wrappers of the package were never seen in training."
    )


def _data(log: Mapping[str, Any]) -> str:
    counts = log["rows_by_source"]
    rows = [
        ["this project's generator", side, "Apache-2.0", str(counts.get(f"own ({side})", 0))]
        for side in ("harmful", "harmless")
    ]
    rows += [
        [s.name, s.label, s.licence, str(counts.get(f"{s.name} ({s.label})", 0))] for s in SOURCES
    ]
    return (
        _table(["source", "label", "licence", "training rows"], rows)
        + "\n\nThe generator composes mild requests from word lists, frames and contrasts of our "
        "own; both labels share frames, contexts, letter case and final punctuation. Its authors "
        "know the published kinds of over-refusal (homonyms, figures of speech, definitions, "
        "history, fiction) and wrote lists for them; no row of a benchmark was copied.\n\n"
        "Kept out: CC BY-NC and CC BY-SA files, files without a licence, XSTest, JailbreakBench, "
        "HarmBench, StrongREJECT, and the validation and test splits of refusal_direction. "
        f"{log['near_dropped']} rows were dropped because they equal one of those prompts after "
        f"normalisation, or their cosine of character 5-grams with one exceeds {NEAR}. All rows of "
        "MaliciousInstruct, TDC 2023 and Strata-Sword (English, level 1) fell to that rule."
    )


def _training(log: Mapping[str, Any]) -> str:
    s = log["settings"]
    return (
        f"{s['steps']} steps of {s['batch_rows']} rows, AdamW, peak rate {s['learning_rate']}, "
        f"{log['seconds'] / 60:.0f} minutes on {s['threads']} CPU threads of a machine that other "
        f"work shared. The first {s['copy_steps']} steps hold only random words to repeat, from "
        "which copying forms; then come the requests. "
        f"A last stage of {s['balance_steps']} steps at a peak rate of {s['balance_rate']} sets the "
        f"operating point: its share of harmless rows ({s['balance_share']}) was chosen of two "
        "tried, on held-out rows of the training sources alone, so that the two kinds of error "
        "stand near 15 to 10, as the two bars allow. Loss of the first reply token "
        f"{log['last_loss']:.2f} nats at the end (the random choice of wording and the label "
        "smoothing alone cost about 1.0). train.log holds every setting."
    )


def _refusals(metrics: Mapping[str, Any]) -> str:
    rows = []
    for key, name in _SETS.items():
        by_word, by_part = metrics["refusal"][key], metrics["refusal_substring"][key]
        rivals = [metrics.get(n, {}).get(key) for n in ("bag_of_words", "bag_of_words_matched")]
        rows.append(
            [
                name,
                str(by_word["n"]),
                _rate(by_word),
                _rate(by_part),
                *(_rate(found) if found else "-" for found in rivals),
            ]
        )
    head = ["set", "n", "by wording", "by substring", "bag of words", "bag of words, matched"]
    return _table(head, rows)


def _others(metrics: Mapping[str, Any]) -> str:
    bypass = [
        [name, _trained(name), _rate(found["harmful"]), _rate(found["harmless"])]
        for name, found in metrics["bypass"].items()
    ]
    asked = [
        [name, _rate(found["harmful"]), _rate(found["harmless"])]
        for name, found in metrics["harm_question"].items()
    ]
    grouped = [
        [name, str(found["n"]), _rate(found)] for name, found in metrics["refusal_by_group"].items()
    ]
    n = metrics["bypass"]["prefix"]["harmful"]["n"]
    copied = metrics["copy_exact"]
    return "\n\n".join(
        [
            f"Replies with an opening whose repetition is exact: {_rate(copied)}, n = "
            f"{copied['n']}.",
            "### Refused, by published group",
            _table(["group", "n", "refused"], grouped),
            f"### Wrappers: share answered (n = {n} a cell: HarmBench standard and JailbreakBench; "
            "harmless_test)",
            _table(["wrapper", "in training", "harmful answered", "harmless answered"], bypass),
            f"### Harm question: share answered rightly (n = {n} a cell)",
            _table(["request", "harmful: Certainly", "harmless: No"], asked),
        ]
    )


def _trained(wrapper: str) -> str:
    if wrapper in BYPASSING:
        return "answers all"
    return "refuses as usual" if wrapper in HOLDING else "never seen"


def _rate(found: Mapping[str, Any]) -> str:
    return f"{100 * found['rate']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
