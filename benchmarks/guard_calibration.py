"""Whether a guard's thresholds keep their promise: 1,000 calibrations on real prompts.

    python benchmarks/guard_calibration.py --shared ../shared

A guard of builtin:chat scores 6,000 harmless prompts (refusal_direction's harmless_test). Each of 1,000 draws
takes n of them to calibrate on; the false-positive rate is measured on the others. learn_then_test promises
that it is at most alpha in 95 % of draws, conformal that it is so on average.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.reading import that_fit
from refusalscope.model import ChatModel
from refusalscope.prompts import bundled_pairs, read_prompts
from refusalscope.stats import fpr_threshold

DRAWS = 1000
SIZES = ((0.05, 100), (0.05, 400), (0.01, 400), (0.01, 1000))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--n", type=int, default=6000)
    args = parser.parse_args()
    chat, pairs = ChatModel.load("builtin:chat"), bundled_pairs()
    guard = BeliefGuard("lda").fit(chat, pairs.of("harmful"), pairs.of("harmless"))
    path = args.shared / "data/refusal_direction/splits/harmless_test.json"
    prompts, left_out = that_fit(chat, read_prompts(path, label="harmless")[: args.n])
    scores = guard.decision_function(prompts)
    print(f"{len(scores)} harmless prompts scored, {len(left_out)} too long")
    print(
        "| rule | alpha | n | mean rate | draws within alpha (95 % interval) |\n|---|---|---|---|---|"
    )
    rng = np.random.default_rng(0)
    for alpha, n in SIZES:
        for rule in ("learn_then_test", "conformal"):
            rates = np.array([rate_of(scores, n, alpha, rule, rng) for _ in range(DRAWS)])
            within = binomtest(int((rates <= alpha).sum()), DRAWS)
            bounds = within.proportion_ci(method="wilson")
            print(
                f"| {rule} | {alpha:g} | {n} | {rates.mean():.4f} | {within.statistic:.3f} "
                f"({bounds.low:.3f} to {bounds.high:.3f}) |"
            )


def rate_of(scores, n: int, alpha: float, rule, rng) -> float:
    order = rng.permutation(len(scores))
    found = fpr_threshold(scores[order[:n]], alpha, rule=rule)
    return float((scores[order[n:]] > found.tau).mean())


if __name__ == "__main__":
    main()
