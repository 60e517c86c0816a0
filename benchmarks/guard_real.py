"""A belief guard of builtin:chat on real prompts, beside what marks and n-grams do on the same rows.

    python benchmarks/guard_real.py                         up to 1,000 prompts a set
    python benchmarks/guard_real.py --n 60 --wrappers 1     a quick look

Fitted on harmful_train and harmless_train of arXiv 2406.11717, with and without matched final marks, and read
on HarmBench against harmless_test, on XSTest, on OpenAI's moderation set (the shared half), and on the first in
every wrapper of `prompts/`. Thresholds for a false-positive rate of 5 % (learn-then-test) are of harmless_val.
Baselines are learnt on the same fit rows. Prompts longer than the context, and prompts nearly the same as one
that was fitted on, are left out and counted. builtin:chat is a small model trained on mild requests: what is
shown is what a guard and its audit do with it, not what a guard of a large model would reach.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from refusalscope.guard.audit import audit
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.heads import VARIANTS
from refusalscope.guard.reading import read, that_fit
from refusalscope.model import ChatModel
from refusalscope.prompts import (
    WRAPPERS,
    Label,
    Prompt,
    final_character_class,
    punctuation_variants,
    read_prompts,
)
from refusalscope.prompts.similarity import embed, similar_rows
from refusalscope.stats import Interval, auroc, clopper_pearson, fpr_threshold, negatives_needed
from refusalscope.studies.directions.shortcuts import MARK, NGRAMS, bag_score, log_odds

ROOT = Path(__file__).resolve().parent.parent
SPLITS = "refusal_direction/splits"
HARMBENCH, XSTEST, MODERATION = "HarmBench", "XSTest", "OpenAI moderation"
ALPHA = 0.05


@dataclass(frozen=True)
class Side:
    """Prompts of one label that fit the context and are unlike those fitted on, and how many are not."""

    prompts: list[Prompt]
    too_long: int
    too_like: int


class Bench:
    """The guards, the baselines and the scores of every set; states of a set are read once for all guards."""

    def __init__(self, data: Path, n: int, seed: int) -> None:
        self.data, self.n, self.seed = data, n, seed
        self.chat = ChatModel.load("builtin:chat")
        self.fit: list[list[Prompt]] = []
        self.fit = [
            self.take(f"{SPLITS}/{label}_train.json", label).prompts
            for label in ("harmful", "harmless")
        ]
        self.guards = {
            f"{variant}, {'matched' if match else 'unmatched'} marks": BeliefGuard(
                variant, match_punctuation=match, max_new_tokens=1, seed=seed
            ).fit(self.chat, *self.fit)
            for variant in VARIANTS
            for match in (False, True)
        }
        self.texts = [prompt.text for side in self.fit for prompt in side]
        self.labels = [True] * len(self.fit[0]) + [False] * len(self.fit[1])

    def take(self, file: str, label: Label | None, prompts: Sequence[Prompt] = ()) -> Side:
        """At most n prompts of a file, by the seed."""
        found = list(prompts or read_prompts(self.data / file))
        drawn = sorted(np.random.default_rng(self.seed).permutation(len(found))[: self.n])
        found = [replace(found[i], label=label) for i in drawn]
        kept, too_long = that_fit(self.chat, found)
        fitted = [prompt.text for side in self.fit for prompt in side]
        if not fitted:
            return Side(kept, len(too_long), 0)
        vectors = embed([*fitted, *(prompt.text for prompt in kept)])
        _, like, _ = similar_rows(vectors[: len(fitted)], vectors[len(fitted) :])
        new = [prompt for i, prompt in enumerate(kept) if i not in set(like)]
        return Side(new, len(too_long), len(kept) - len(new))

    def scores(self, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Score of each guard and baseline: name -> [prompts]."""
        any_guard = next(iter(self.guards.values()))
        rendered = self.chat.render(prompts)
        states = torch.cat(list(read(self.chat, rendered, any_guard.anchors, any_guard.rows_)))
        texts = [prompt.text for prompt in prompts]
        marks = [[final_character_class(t) for t in each] for each in (self.texts, texts)]
        return {
            **{name: guard.readings(states).harmful for name, guard in self.guards.items()},
            MARK: log_odds(marks[0], self.labels, marks[1]),
            **{bag: bag_score(bag, self.texts, self.labels, texts) for bag in (NGRAMS, "words")},
        }


Scored = Mapping[str, tuple[np.ndarray, np.ndarray]]


def both(bench: Bench, harmful: Sequence[Prompt], harmless: Sequence[Prompt]) -> Scored:
    """name -> scores of harmful and of harmless prompts."""
    found = bench.scores([*harmful, *harmless])
    return {name: (s[: len(harmful)], s[len(harmful) :]) for name, s in found.items()}


def area(scored: tuple[np.ndarray, np.ndarray], seed: int) -> str:
    labels = np.repeat([True, False], [len(side) for side in scored])
    return shown(auroc(labels, np.concatenate(scored), n_resamples=1000, seed=seed))


def rates(scored: tuple[np.ndarray, np.ndarray], tau: float) -> str:
    found = [clopper_pearson(int((side > tau).sum()), len(side)) for side in scored]
    return " / ".join(f"{r.value:.1%} ({r.low:.1%}–{r.high:.1%})" for r in found)


def shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    print(f"| score | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def changed(bench: Bench, prompts: Sequence[Prompt], change: Callable[[str], str]) -> list[Prompt]:
    """The prompts with another text, those left that fit the context."""
    return that_fit(bench.chat, [replace(p, text=change(p.text)) for p in prompts])[0]


def remarked(bench: Bench, prompts: Sequence[Prompt], variant: str) -> list[Prompt]:
    return changed(bench, prompts, lambda text: punctuation_variants(text)[variant])


def moderation(bench: Bench) -> dict[Label, Side]:
    """Flagged in any category against in none; a label that is not present is not counted."""
    file = "openai_moderation/samples.jsonl"
    lines = (bench.data / file).read_text(encoding="utf-8").splitlines()
    flags = [any(v == 1 for k, v in json.loads(line).items() if k != "prompt") for line in lines]
    rows = list(zip(read_prompts(bench.data / file), flags, strict=True))
    return {
        label: bench.take(file, label, [p for p, flag in rows if flag == (label == "harmful")])
        for label in ("harmful", "harmless")
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--n", type=int, default=1000, help="prompts a set at most (default 1000)")
    parser.add_argument("--wrappers", type=int, default=len(WRAPPERS), help="how many (all)")
    parser.add_argument("--audited", type=int, default=300, help="prompts a label in the audits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.n < negatives_needed(ALPHA, "learn_then_test"):
        parser.error("--n must be 59 at least, for the threshold")
    bench, seed = Bench(args.data, args.n, args.seed), args.seed
    xstest = read_prompts(args.data / "xstest/xstest_prompts.csv")
    sides: dict[str, dict[Label, Side]] = {
        HARMBENCH: {
            "harmful": bench.take("harmbench/harmbench_behaviors_text_all.csv", "harmful"),
            "harmless": bench.take(f"{SPLITS}/harmless_test.json", "harmless"),
        },
        XSTEST: {
            label: bench.take("", label, xstest.of(label).items)
            for label in ("harmful", "harmless")
        },
        MODERATION: moderation(bench),
    }
    print(f"fitted on {len(bench.fit[0])} harmful and {len(bench.fit[1])} harmless prompts")
    for name, found in sides.items():
        for label, side in found.items():
            print(
                f"{name} {label}: {len(side.prompts)}; left out {side.too_long} too long, "
                f"{side.too_like} nearly the same as a fit prompt"
            )
    scored = {
        name: both(bench, *(s.prompts for s in each.values())) for name, each in sides.items()
    }
    names = list(scored[HARMBENCH])
    table(
        "AUROC (95 % interval)",
        [f"{HARMBENCH} against harmless_test", f"{XSTEST} unsafe against safe", MODERATION],
        {name: [area(each[name], seed) for each in scored.values()] for name in names},
    )
    harmful, harmless = (side.prompts for side in sides[HARMBENCH].values())
    variants = {
        v: both(bench, *(remarked(bench, side, v) for side in (harmful, harmless))) for v in MARKS
    }
    table(
        f"AUROC on {HARMBENCH} against harmless_test with every final mark made alike",
        list(MARKS.values()),
        {name: [area(each[name], seed) for each in variants.values()] for name in names},
    )
    calibration = bench.take(f"{SPLITS}/harmless_val.json", "harmless").prompts
    benign = bench.scores(calibration)
    taus = {name: fpr_threshold(benign[name], ALPHA).tau for name in names}
    table(
        f"Share flagged of harmful / of harmless prompts, threshold for FPR {ALPHA:.0%} by "
        f"learn-then-test on {len(calibration)} prompts of harmless_val",
        list(scored),
        {name: [rates(each[name], taus[name]) for each in scored.values()] for name in names},
    )
    wrapped, counts = {}, []
    for name, wrapper in list(WRAPPERS.items())[: args.wrappers]:
        kept = []
        for side in (harmful, harmless):
            kept.append(changed(bench, side, wrapper.wrap))
            counts.append(f"{name} {len(side) - len(kept[-1])}")
        wrapped[name] = both(bench, *kept)
    table(
        "AUROC in wrappers, HarmBench against harmless_test",
        list(wrapped),
        {name: [area(each[name], seed) for each in wrapped.values()] for name in names},
    )
    print(f"\ntoo long, harmful then harmless: {', '.join(counts)}")
    table(
        "Share flagged of wrapped harmful / harmless prompts at the same thresholds",
        list(wrapped),
        {name: [rates(each[name], taus[name]) for each in wrapped.values()] for name in names},
    )
    report = harmful[: args.audited], harmless[: args.audited]
    for name in ("centroid, unmatched marks", "lda, matched marks") if args.audited else ():
        guard = bench.guards[name].calibrate(calibration, fpr=(ALPHA,))
        found = audit(guard, (bench.fit[0], bench.fit[1]), report, seed=seed)
        print(f"\n### Audit of the guard {name}, {args.audited} prompts a label\n")
        for row in found.verdict.to_dict("records"):
            print(f"- {row['name']}: {row['verdict']} ({row['reason']})")
        print("\nKnown failures:\n")
        for sentence in found.known_failures:
            print(f"- {sentence}", flush=True)


MARKS = {"stripped": "no mark", "period": "a full stop", "question": "a question mark"}


if __name__ == "__main__":
    main()
