"""What single organisms promise beside precision and recall, each as one number a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from refusalscope.model import Add, Site
from refusalscope.model.edits import frozen
from refusalscope.organisms.planted import build
from refusalscope.organisms.planted.prompts import code_wrapper
from refusalscope.organisms.scoreboard.methods import (
    MARGIN,
    SETTINGS,
    Bench,
    claim,
    set_up,
)
from refusalscope.stats import max_t_signflip
from refusalscope.studies.routing import collapse_table, screen, wrapped
from refusalscope.studies.routing.drift import drift
from refusalscope.studies.routing.rescue import rescue

# Shuffles of roles for the type-I error, a seed, and the sign flips of each test.
SHUFFLES, FLIPS = 200, 999


def redundancy(bench: Bench) -> dict[str, float]:
    """O2: are the gate and all of its backups found?"""
    found = claim(bench, "recommended").heads
    truth = bench.planted.truth
    gates = {*truth.with_role("gate"), *truth.with_role("backup")}
    return {"gate and backups found": float(gates <= found)}


def no_claim(bench: Bench) -> dict[str, float]:
    """O10: no head carries anything, and none may be claimed."""
    return {"no head claimed": float(not claim(bench, "recommended").heads)}


def norm_only(bench: Bench) -> dict[str, float]:
    """O11: the topic head acts through the norm alone, and is said to."""
    roles = claim(bench, "recommended").roles
    topics = bench.planted.truth.with_role("topic")
    return {
        "topic head called norm-only": float(all(roles[head] == "norm-only" for head in topics))
    }


def cipher(bench: Bench) -> dict[str, float]:
    """O7: under the code words the gate's necessity collapses, and its plain activation brings refusal back."""
    wrapper = code_wrapper()
    pairs, chat = bench.planted.pairs, bench.chat
    plain, hidden = wrapped(chat, pairs), wrapped(chat, pairs, wrapper)
    (gate,) = bench.planted.truth.with_role("gate")
    before, after = (
        screen(chat, each, {"margin": MARGIN}, units=[(gate,)]) for each in (plain, hidden)
    )
    found = collapse_table(before, after, "margin", [gate], wrapper=wrapper.name, seed=0)
    others = [(layer, head) for layer in (2, 3, 4) for head in range(8)]
    circuit = {(h.layer, h.head) for h in bench.planted.truth.heads}
    saved = rescue(
        chat,
        pairs,
        plain,
        hidden,
        gate,
        MARGIN,
        bench.subject.judge,
        wrapper=wrapper.name,
        others=[head for head in others if head not in circuit],
        max_new_tokens=2,
        seed=0,
    )
    rates = saved[saved["policy"].isin(["", "every_step"])].set_index("arm")["rate"]
    return {
        "collapse found": float(found["collapsed"].iloc[0]),
        "refused inside the cipher": float(rates["cipher"]),
        "rescued": float(rates["rescued"]),
        "rescued by a random head": float(rates["random_head"]),
        "rescued by the benign activation": float(rates["benign"]),
    }


def prefix(bench: Bench) -> dict[str, float]:
    """O7': a long benign prefix changes no necessity, so no collapse may be claimed.

    The same model without the prefix is the plain arm; both are screened under the suffix map.
    """
    truth = bench.planted.truth
    short = set_up(build(variant="base", seed=truth.seed, noise=truth.noise))
    screens = [
        screen(each.chat, each.problem.partners, {"margin": MARGIN}, positions="suffix")
        for each in (short, bench)
    ]
    shares = [
        found.necessity["margin"].mean(axis=(0, 1)) / found.gap("margin") for found in screens
    ]
    heads = sorted(truth.circuit)
    table = collapse_table(screens[0], screens[1], "margin", heads, wrapper="prefix", seed=0)
    (gate,) = truth.with_role("gate")
    left = screen(
        bench.chat,
        bench.problem.partners,
        {"margin": MARGIN},
        units=[(gate,)],
        positions="compat_left",
    )
    return {
        "collapse claimed": float(table["collapsed"].any()),
        "largest change of a necessity": float(np.abs(shares[1] - shares[0]).max()),
        "gate's necessity, left-aligned": left.necessity["margin"].mean() / left.gap("margin"),
    }


def relocation(bench: Bench) -> dict[str, float]:
    """O9: against the plain organism the gate has moved, and behaviour has not."""
    truth = bench.planted.truth
    plain = set_up(build(variant="base", seed=truth.seed, noise=truth.noise))
    screens = [
        screen(each.chat, plain.problem.partners, {"margin": MARGIN}) for each in (plain, bench)
    ]
    moved, whole = drift(screens[0], screens[1], "margin", seed=0)
    places = {
        (int(row["layer"]), int(row["head"])) for row in moved[moved["moved"]].to_dict("records")
    }
    gates = {*plain.planted.truth.with_role("gate"), *truth.with_role("gate")}
    same = [each.subject.table["refused"].to_numpy() for each in (plain, bench)]
    return {
        "overlap of the rankings": float(whole["rbo"].iloc[0]),
        "p of the overlap": float(whole["p"].iloc[0]),
        "only the gates moved": float(places == (gates if len(gates) > 1 else set())),
        "same behaviour": float((same[0] == same[1]).mean()),
    }


def dose(bench: Bench) -> dict[str, float]:
    """O6: the dose at which a word is no longer refused is linear in its planted intensity."""
    chat, truth = bench.chat, bench.planted.truth
    intensity = {word.word: word.intensity for word in truth.words}
    harmful = [pair.harmful for pair in bench.problem.partners]
    control = [pair.control for pair in bench.problem.partners]
    states = [chat.capture(each, [Site("resid_post", 1)], ["last"]) for each in (harmful, control)]
    difference = [found[Site("resid_post", 1)][:, 0] for found in states]
    # One unit of the detection signal: the mean difference over the mean planted intensity.
    words = [pair.category or "" for pair in bench.planted.pairs]
    mean = float(np.mean([intensity[word] for word in words]))
    unit = (difference[0] - difference[1]).mean(0) / mean
    alphas = np.round(np.arange(0, 2.01, 0.02), 2)
    variants = [
        (Add(Site("resid_post", 1), "all", vector=frozen(unit), scale=-float(alpha)),)
        for alpha in alphas
    ]
    margins = chat.measure(harmful, variants, {"m": MARGIN}).scores["m"]
    crossing = _crossings(alphas, margins)
    frame = pd.DataFrame({"word": words, "alpha50": crossing}).groupby("word")["alpha50"].median()
    known = frame[frame > 0]
    at = np.array([intensity[str(word)] for word in known.index])
    slope, _ = np.polyfit(at, known.to_numpy(), 1)
    return {
        "correlation of dose and intensity": float(np.corrcoef(at, known.to_numpy())[0, 1]),
        "slope": float(slope),
        "words refused": float(len(known)),
    }


def families(bench: Bench) -> dict[str, float]:
    """O8: two families of words with a threshold each: what is refused is what was planted as refused."""
    refused = bench.subject.table[bench.subject.table["label"] == "harmful"]
    rate = refused.groupby("category")["refused"].mean()
    planted = {word.word: word.refused for word in bench.planted.truth.words}
    agree = [float((rate[word] > 0.5) == planted[str(word)]) for word in rate.index]
    return {"words refused as planted": float(np.mean(agree))}


def type_one_error(seeds: Sequence[int]) -> dict[str, float]:
    """How often the familywise test finds a head where roles are shuffled, so that none has an effect.

    Swapping the roles of a pair turns the mean of its necessity and sufficiency into its opposite, so with
    roles drawn at random that mean has no sign, and every claim is false.
    """
    false, tests = 0, 0
    for seed in seeds:
        bench = set_up(build(variant="base", seed=seed, allow_weak=True))
        found = screen(bench.chat, bench.problem.partners, {"margin": MARGIN})
        effect = (found.necessity["margin"] + found.sufficiency["margin"])[:, 0] / 2
        rng = np.random.default_rng(seed)
        for shuffle in range(SHUFFLES):
            roles = rng.choice([-1.0, 1.0], size=(len(effect), 1))
            test = max_t_signflip(roles * effect, FLIPS, seed=shuffle)
            false += bool((test.p_familywise < SETTINGS.alpha).any())
            tests += 1
    return {"type-I error of the familywise test": false / tests, "shuffles": float(tests)}


CHECKS: dict[str, Callable[[Bench], dict[str, float]]] = {
    "O2": redundancy,
    "O6": dose,
    "O7": cipher,
    "O7'": prefix,
    "O8": families,
    "O9": relocation,
    "O10": no_claim,
    "O11": norm_only,
}


def _crossings(alphas: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """The first dose at which the margin is no longer positive: [prompts]; NaN where there is none."""
    below = margins <= 0
    first = below.argmax(axis=1)
    return np.where(below.any(axis=1), alphas[first], np.nan)
