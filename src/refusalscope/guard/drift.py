"""Whether the scores in a log still look like those at calibration. It reports; it moves no threshold."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import MonteCarloMethod, binom, binomtest, chi2_contingency, ks_2samp
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from refusalscope.errors import InputError
from refusalscope.stats import clopper_pearson, fdr_bh
from refusalscope.stats.interval import numbers

Array: TypeAlias = npt.NDArray[np.float64]

PSI_BINS = 10
# Rows that each must hold: with fewer a bin, a population stability index is mostly noise.
MIN_ROWS = {"reference": 5 * PSI_BINS, "log": 10 * PSI_BINS}
PSI_WATCH, PSI_DRIFTED = 0.1, 0.25
# A flag rate matters from this many times the promised rate.
RATE_WATCH, RATE_DRIFTED = 1.25, 1.5
LEVEL = 0.05

COLUMNS = (
    *("measure", "test", "statistic", "effect", "shift", "low", "high", "limit", "p", "p_adjusted"),
    *("n_reference", "n_log", "verdict"),
)


def drift(reference: pd.DataFrame, log: pd.DataFrame, promised: float | None) -> pd.DataFrame:
    """One row a measure: how far `log` lies from `reference`, and a verdict in words.

    Both frames hold one row a prompt, with the fields of `Belief`: delta_harmful and delta_refuse, and, where
    they were kept, per_layer (a sequence of equal length in every row) and t_inst_class
    (`final_character_class` of the token where harm was read). The log also holds `flagged` when a
    false-positive rate was `promised`. The reference is best of the kind of prompts that the log should hold; a
    promised rate is one of harmless prompts, so an attack raises the flag rate too.

    delta_harmful, delta_refuse, per_layer 0, 1, ...: `statistic` and p of a two-sample Kolmogorov-Smirnov test;
    `shift` is mean(log) - mean(reference) with Welch's 95 % bounds `low` and `high`; `effect` is the population
    stability index (`psi`) over deciles of the reference.
    last token class: chi-squared over t_inst_class, p by 9,999 tables drawn with the
    same margins (seed 0); `effect` is the index over the classes.
    flag rate: `statistic` is the share flagged, `effect` its ratio to the promised rate, `shift` what it lies
    above it with Clopper-Pearson bounds, `limit` the rate that a log of this size exceeds by chance in at most
    5 %, p the exact one-sided binomial. A rate below the promise keeps it.

    A verdict other than steady needs both p_adjusted (Benjamini-Hochberg over the measures made) < 0.05 and an
    effect: an index of 0.1 or a rate of 1.25 times the promise to watch, 0.25 or 1.5 times for drifted. So a
    short log is not alarmed by noise, nor a long one by trivia. Rows must be independent: a client that repeats
    a prompt counts as many.

    Raises InputError for fewer than 50 rows in the reference or 100 in the log, a column that is missing or not
    finite, profiles of different lengths, or a promised rate outside 0..1.
    """
    for frame, name in ((reference, "reference"), (log, "log")):
        if len(frame) < MIN_ROWS[name]:
            raise InputError(
                f"drift needs at least {MIN_ROWS[name]} rows in the {name}, got {len(frame)}: "
                f"{'score more prompts at calibration' if frame is reference else 'wait for more'}"
            )
    rows = [
        _scores(name, _column(reference, name, "reference"), _column(log, name, "log"))
        for name in ("delta_harmful", "delta_refuse")
        # A guard without a refusal axis has no delta_refuse to compare.
        if not (name == "delta_refuse" and reference[name].isna().all())
    ]
    rows += _profile(reference, log)
    rows.append(_last_tokens(reference, log))
    rows.append(_flag_rate(log, promised))
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    frame["n_reference"], frame["n_log"] = len(reference), len(log)
    frame["p_adjusted"] = fdr_bh(frame["p"].to_numpy(dtype=float))
    frame["verdict"] = [_verdict(row, p) for row, p in zip(rows, frame["p_adjusted"], strict=True)]
    return frame


def psi(reference: npt.ArrayLike, log: npt.ArrayLike) -> float:
    """Population stability index of two counts [bins]: sum of (q - p) ln(q / p).

    p, q: the shares, after half a row of the smaller sample is added to every bin of both, so that an empty
    bin stays finite and equal shares score 0 whatever the sizes.
    """
    first, second = np.asarray(reference, dtype=float), np.asarray(log, dtype=float)
    half = 0.5 / min(first.sum(), second.sum())
    p, q = ((counts / counts.sum() + half) / (1 + half * counts.size) for counts in (first, second))
    return float(((q - p) * np.log(q / p)).sum())


def decile_counts(reference: Array, log: Array) -> tuple[npt.NDArray, npt.NDArray]:
    """Rows of each between the deciles of the reference; a value is in the bin whose upper end it is.

    Where several deciles are one value, that value is a bin of its own, so that a constant reference sees
    shifts to either side.
    """
    # Whole numbers: in floats, six tenths of five rows are a little more than three.
    ranks = -(-np.arange(1, PSI_BINS) * reference.size // PSI_BINS) - 1
    edges, times = np.unique(np.sort(reference)[ranks], return_counts=True)
    # Place 2 j lies below edge j, place 2 j + 1 on it, which is a bin of its own if several deciles meet there.
    starts = np.ones(2 * edges.size + 1, dtype=int)
    starts[1::2] = times > 1
    bins = np.cumsum(starts) - 1
    first, second = (
        np.bincount(
            bins[np.searchsorted(edges, values) + np.searchsorted(edges, values, side="right")],
            minlength=bins[-1] + 1,
        )
        for values in (reference, log)
    )
    return first, second


def _scores(measure: str, reference: Array, log: Array) -> dict[str, Any]:
    test = ks_2samp(reference, log, method="asymp")
    shift = float(log.mean() - reference.mean())
    low = high = shift
    if np.ptp(reference) > 0 or np.ptp(log) > 0:
        means = CompareMeans(DescrStatsW(log), DescrStatsW(reference))
        low, high = map(float, means.tconfint_diff(usevar="unequal"))
    effect = psi(*decile_counts(reference, log))
    return {
        "measure": measure,
        "test": "two-sample Kolmogorov-Smirnov",
        "statistic": float(test.statistic),
        "effect": effect,
        "shift": shift,
        "low": low,
        "high": high,
        "p": float(test.pvalue),
        "words": f"mean moved by {shift:+.3g} since calibration, stability index {effect:.2f}",
    }


def _profile(reference: pd.DataFrame, log: pd.DataFrame) -> list[dict[str, Any]]:
    absent = _absent("per_layer", reference, log)
    if absent:
        return [{"measure": "per_layer", "words": absent}]
    first, second = _stack(reference, "reference"), _stack(log, "log")
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"per_layer has {second.shape[1]} rows in the log and {first.shape[1]} in the reference: "
            "both must come from the same guard"
        )
    return [_scores(f"per_layer {i}", first[:, i], second[:, i]) for i in range(first.shape[1])]


def _last_tokens(reference: pd.DataFrame, log: pd.DataFrame) -> dict[str, Any]:
    measure = "last token class"
    absent = _absent("t_inst_class", reference, log)
    if absent:
        return {"measure": measure, "words": absent}
    first, second = (
        Counter(frame["t_inst_class"].fillna("empty").astype(str)) for frame in (reference, log)
    )
    classes = sorted(first.keys() | second.keys())
    counts = np.array([[found[name] for name in classes] for found in (first, second)])
    test = chi2_contingency(
        counts, correction=False, method=MonteCarloMethod(rng=np.random.default_rng(0))
    )
    effect = psi(*counts)
    shares = counts / counts.sum(1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    before, now = 100 * shares[:, most]
    return {
        "measure": measure,
        "test": "chi-squared",
        "statistic": float(test.statistic),
        "effect": effect,
        "p": float(test.pvalue),
        "words": f"final mark {classes[most]!r} on {now:.0f} % of prompts, {before:.0f} % at "
        f"calibration, stability index {effect:.2f}",
    }


def _flag_rate(log: pd.DataFrame, promised: float | None) -> dict[str, Any]:
    measure = "flag rate"
    if promised is None:
        return {"measure": measure, "words": "not measured: no rate was promised"}
    if not 0 < promised < 1:
        raise InputError(f"a promised rate must lie strictly between 0 and 1, got {promised}")
    if "flagged" not in log or not log["flagged"].isin([True, False]).all():
        raise InputError(
            "the log holds prompts without True or False in the column flagged: "
            "score it at an operating point of the guard"
        )
    n, flagged = len(log), int(log["flagged"].astype(bool).sum())
    rate = clopper_pearson(flagged, n)
    limit = float(binom.ppf(1 - LEVEL, n, promised)) / n
    return {
        "measure": measure,
        "test": "one-sided binomial",
        "statistic": rate.value,
        "effect": rate.value / promised,
        "shift": rate.value - promised,
        "low": rate.low - promised,
        "high": rate.high - promised,
        "limit": limit,
        "p": float(binomtest(flagged, n, promised, alternative="greater").pvalue),
        "words": f"{100 * rate.value:.2g} % flagged, promised at most {100 * promised:g} % "
        f"(control limit {100 * limit:.2g} %)",
    }


def _verdict(row: dict[str, Any], p_adjusted: float) -> str:
    """Steady, or the words of the row behind watch or drifted; the words alone where nothing was measured."""
    if np.isnan(p_adjusted):
        return row["words"]
    watch, drifted = (
        (RATE_WATCH, RATE_DRIFTED) if row["measure"] == "flag rate" else (PSI_WATCH, PSI_DRIFTED)
    )
    if p_adjusted >= LEVEL or row["effect"] < watch:
        return "steady"
    return f"{'drifted' if row['effect'] >= drifted else 'watch'}: {row['words']}"


def _column(frame: pd.DataFrame, name: str, where: str) -> Array:
    if name not in frame:
        raise InputError(f"the {where} has no column {name}: give the frame that a guard scored")
    return numbers(pd.to_numeric(frame[name], errors="coerce"), f"{name} of the {where}")


def _stack(frame: pd.DataFrame, where: str) -> Array:
    profiles = [np.asarray(profile) for profile in frame["per_layer"]]
    if len({profile.shape for profile in profiles}) != 1 or profiles[0].ndim != 1:
        raise InputError(
            f"per_layer of the {where} must be a list of the same length in every row: "
            "drop the rows where it was not kept, or the column"
        )
    return numbers(np.stack(profiles), f"per_layer of the {where}", ndim=2)


def _absent(name: str, reference: pd.DataFrame, log: pd.DataFrame) -> str:
    """Why a column that may be left out cannot be compared; empty when it can."""
    without = [where for where, f in (("reference", reference), ("log", log)) if name not in f]
    return f"not measured: {name} was not kept in the {' and '.join(without)}" if without else ""
