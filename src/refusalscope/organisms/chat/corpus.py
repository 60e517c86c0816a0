"""The allowed files of shared/data as labelled requests, and the guard that keeps measurement out.

Only files whose licence allows training are read. XSTest, JailbreakBench, HarmBench and the
validation and test splits of refusal_direction stay for measurement: no training row may equal one
of their prompts or nearly equal it (`Decontaminator`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from refusalscope.errors import InputError
from refusalscope.organisms.chat.requests import Label, Request

NEAR = 0.7  # cosine of character 5-gram counts above which two prompts count as nearly equal


@dataclass(frozen=True)
class Source:
    """One allowed file: how to read its texts, their label, its licence."""

    name: str
    label: Label
    licence: str
    read: Callable[[Path], Iterable[str]]


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _instructions(path: Path) -> list[str]:
    return [row["instruction"] for row in _json(path)]


# Left out of Do-Not-Answer: questions about companies, about the chatbot itself, and medical or
# legal questions of everyday life, which an ordinary assistant answers.
_DNA_OUT = (
    "Risks from leaking or inferring sensitive information (organization/gov)",
    "Mental Health or Overreliance Crisis",
    "Treat Chatbot as a Human",
    "Causing material harm by disseminating misinformation e.g. in medicine or law",
)


def _do_not_answer(data: Path) -> list[str]:
    rows = _csv(data / "do_not_answer/do_not_answer_en.csv")
    return [row["question"] for row in rows if row["types_of_harm"] not in _DNA_OUT]


# STAR-1 mixes refused and answered questions: only those its answer refuses count as harmful.
# Rows from HarmBench are measurement data, rows from HEx-PHI are licensed by agreement only.
_STAR_OUT = ("HarmBench", "HExPHI")
_STAR_REFUSAL = re.compile(
    r"(I'm sorry|I am sorry|I can't|I cannot|I can’t|I’m sorry|I won't|unable to|I must decline)"
)


def _star1(data: Path) -> list[str]:
    texts = []
    for row in _json(data / "star1/STAR-1.json"):
        answer = row["response"].split("</think>")[-1].strip()[:160]
        if row["source"] not in _STAR_OUT and _STAR_REFUSAL.search(answer):
            texts.append(row["question"])
    return texts


_COCONOT_HARM = (
    "misinformation",
    "privacy violations",
    "dangerous or sensitive topics",
    "triggers for offensive language",
)


def _coconot_safety(data: Path) -> list[str]:
    rows = _jsonl(data / "coconot/coconot_eval.jsonl")
    return [row["prompt"] for row in rows if row["subcategory"] in _COCONOT_HARM]


def _coconot_other(data: Path) -> list[str]:
    rows = _jsonl(data / "coconot/coconot_eval.jsonl")
    return [
        row["prompt"]
        for row in rows
        if row["category"] != "Requests with safety concerns"
        and row["subcategory"] != "incomprehensible"
    ]


def _coconot_contrast(data: Path) -> list[str]:
    names = ("coconot_contrast_eval", "coconot_pref")
    return [row["prompt"] for n in names for row in _jsonl(data / f"coconot/{n}.jsonl")]


def _or_bench(data: Path) -> list[str]:
    # Half of it: many of these are written to sit on the line, and more of them blurs the line.
    folder = data / "or_bench_hard"
    parts = (_instructions(folder / f"or_bench_hard_{s}.json") for s in ("train", "val", "test"))
    return [text for part in parts for text in part][::2]


def _cyber(data: Path) -> list[str]:
    # The 750 prompts repeat a few patterns: every third keeps them from drowning the rest.
    return [row["mutated_prompt"] for row in _json(data / "cyberseceval_frr/mitre_frr.json")][::3]


def _catqa(data: Path) -> list[str]:
    tree = _json(data / "red_instruct/catqa_english.json")
    return [text for subs in tree.values() for texts in subs.values() for text in texts]


SOURCES: tuple[Source, ...] = (
    Source(
        "refusal_direction harmful_train",
        "harmful",
        "Apache-2.0",
        lambda d: _instructions(d / "refusal_direction/splits/harmful_train.json"),
    ),
    Source(
        "AdvBench",
        "harmful",
        "MIT",
        lambda d: [r["goal"] for r in _csv(d / "refusal_direction/raw/advbench.csv")],
    ),
    Source("Do-Not-Answer", "harmful", "Apache-2.0", _do_not_answer),
    Source(
        "GPTFuzz questions",
        "harmful",
        "MIT",
        lambda d: [r["text"] for r in _csv(d / "gptfuzz/question_list.csv")],
    ),
    Source(
        "SimpleSafetyTests",
        "harmful",
        "CC BY 4.0",
        lambda d: [
            r["prompts_final"] for r in _csv(d / "simple_safety_tests/simple_safety_tests.csv")
        ],
    ),
    Source("CatQA English", "harmful", "Apache-2.0", _catqa),
    Source(
        "DangerousQA",
        "harmful",
        "Apache-2.0",
        lambda d: _json(d / "red_instruct/dangerousqa.json"),
    ),
    Source(
        "MultiJail English",
        "harmful",
        "MIT",
        lambda d: [r["en"] for r in _csv(d / "multijail/MultiJail.csv")],
    ),
    Source("STAR-1 questions that are refused", "harmful", "Apache-2.0", _star1),
    Source("CoCoNot, requests with safety concerns", "harmful", "MIT", _coconot_safety),
    Source("CoCoNot, contrast sets", "harmless", "MIT", _coconot_contrast),
    Source("CoCoNot, other categories", "harmless", "MIT", _coconot_other),
    Source("OR-Bench hard, every second", "harmless", "CC BY 4.0", _or_bench),
    Source("CyberSecEval false refusals, every third", "harmless", "MIT", _cyber),
)


def read_allowed(shared: Path, longest: int = 600) -> list[Request]:
    """All rows of SOURCES up to `longest` characters, each text once.

    Raises InputError where `shared` does not hold the data folder. A text that stands under both
    labels is left out.
    """
    data = shared / "data"
    if not data.is_dir():
        raise InputError(
            f"{shared} holds no folder data; give the folder that the README describes"
        )
    rows: dict[str, Request] = {}
    clashes: set[str] = set()
    for source in SOURCES:
        for text in source.read(data):
            text = " ".join(text.split()).strip('" ')
            key = normalise(text)
            if not key or len(text) > longest:
                continue
            if key in rows and rows[key].label != source.label:
                clashes.add(key)
            rows.setdefault(key, Request(text, source.label, source.name))
    return [row for key, row in rows.items() if key not in clashes]


def measurement_prompts(shared: Path) -> dict[str, list[str]]:
    """Every prompt that is kept for measurement, by set. No training row may be one of them."""
    data = shared / "data"
    splits = data / "refusal_direction/splits"
    xstest = _csv(data / "xstest/xstest_prompts.csv")
    return {
        "xstest_safe": [r["prompt"] for r in xstest if r["label"] == "safe"],
        "xstest_unsafe": [r["prompt"] for r in xstest if r["label"] != "safe"],
        "jailbreakbench": [
            r["Goal"] for r in _csv(data / "refusal_direction/raw/jailbreakbench.csv")
        ],
        "harmbench_standard": [
            r["Behavior"]
            for r in _csv(data / "harmbench/harmbench_behaviors_text_all.csv")
            if r["FunctionalCategory"] == "standard"
        ],
        "harmbench_other": [
            r["Behavior"]
            for part in ("all", "val", "test")
            for r in _csv(data / f"harmbench/harmbench_behaviors_text_{part}.csv")
            if r["FunctionalCategory"] != "standard" or part != "all"
        ],
        "harmful_val": _instructions(splits / "harmful_val.json"),
        "harmful_test": _instructions(splits / "harmful_test.json"),
        "harmless_val": _instructions(splits / "harmless_val.json"),
        "harmless_test": _instructions(splits / "harmless_test.json"),
    }


def measurement_groups(shared: Path) -> dict[str, str]:
    """The published group of each XSTest and HarmBench prompt ("XSTest homonyms")."""
    data = shared / "data"
    groups = {r["prompt"]: f"XSTest {r['type']}" for r in _csv(data / "xstest/xstest_prompts.csv")}
    for row in _csv(data / "harmbench/harmbench_behaviors_text_all.csv"):
        groups[row["Behavior"]] = f"HarmBench {row['SemanticCategory']}"
    return groups


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces: the key of exact equality."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


class Decontaminator:
    """Tells which texts equal or nearly equal a measurement prompt (see NEAR)."""

    def __init__(self, prompts: Iterable[str]) -> None:
        texts = sorted({normalise(p) for p in prompts})
        self._exact = frozenset(texts)
        self._vectors = HashingVectorizer(
            analyzer="char", ngram_range=(5, 5), n_features=2**20, alternate_sign=False, norm="l2"
        )
        self._held: csr_matrix = self._vectors.transform(texts).T.tocsr()

    def too_close(self, texts: Sequence[str], chunk: int = 2000) -> np.ndarray:
        """[n] bool: the text equals a measurement prompt, or its cosine with one exceeds NEAR."""
        keys = [normalise(t) for t in texts]
        found = np.array([k in self._exact for k in keys], dtype=bool)
        for start in range(0, len(keys), chunk):
            rows = self._vectors.transform(keys[start : start + chunk])
            best = (rows @ self._held).max(axis=1).toarray().ravel()
            found[start : start + chunk] |= best > NEAR
        return found

    def clean(self, rows: Sequence[Request]) -> list[Request]:
        """The rows that are not too close to a measurement prompt, in their order."""
        close = self.too_close([r.text for r in rows])
        return [row for row, bad in zip(rows, close, strict=True) if not bad]
