"""The methods that are scored: each gives every head a score and claims some of them.

All but the published procedure claim by the same rule, sign flips over pairs and the effect floor of the
settings, so that what differs is the effect they measure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.judge import Judge
from refusalscope.judge.behaviour import prompt_table, reply
from refusalscope.model import ChatModel, RefusalMargin, Scale, Site
from refusalscope.organisms.planted import Planted, tokens
from refusalscope.runs import Run
from refusalscope.stats import max_t_signflip
from refusalscope.studies.heads import Head
from refusalscope.studies.routing import RoutingSettings, attribute, preset, run_routing
from refusalscope.studies.routing.interchange import Pair
from refusalscope.studies.routing.problem import Problem, pose
from refusalscope.studies.routing.published import published
from refusalscope.studies.subject import Subject

Array = npt.NDArray[np.float64]
MARGIN = RefusalMargin((tokens.REFUSE,), (tokens.COMPLY,))
# What precision and recall are about; the trials of the circuit are checked apart.
SETTINGS = preset("recommended", metrics=(), alphas=(), wrappers=(), n_gates=0)


@dataclass(frozen=True)
class Claim:
    """score [layers, heads]: how much a method thinks of every head; heads: those it claims.

    roles: by head, for a method that gives them.
    """

    score: Array
    heads: frozenset[Head]
    roles: dict[Head, str]


@dataclass(frozen=True)
class Bench:
    """An organism with its prompts rendered and its pairs posed. claims: by method, as they are made."""

    planted: Planted
    chat: ChatModel
    subject: Subject
    problem: Problem
    claims: dict[str, Claim] = field(default_factory=dict)


def set_up(planted: Planted, settings: RoutingSettings = SETTINGS) -> Bench:
    """The organism as the study meets it; all of its pairs are reported on."""
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id=planted.truth.variant)
    prompts = tuple(planted.pairs.prompts())
    rendered = tuple(chat.render(prompts))
    judge = Judge.from_name("phrases:planted")
    said = reply(chat, prompts, rendered, judge, max_new_tokens=2)
    empty = np.full(len(prompts), np.nan)
    table = prompt_table(prompts, rendered, ["report"] * len(prompts), said.judgements, empty)
    subject = Subject(chat, prompts, rendered, table, MARGIN, judge)
    return Bench(planted, chat, subject, pose(subject, planted.pairs, MARGIN, settings))


def claim(bench: Bench, method: str) -> Claim:
    """What a method claims of an organism, worked out once."""
    if method not in bench.claims:
        bench.claims[method] = METHODS[method](bench)
    return bench.claims[method]


def recommended(bench: Bench) -> Claim:
    """The study as it ships, in a run folder that is thrown away."""
    table = study(bench, SETTINGS)["routing.heads"]
    anatomy = bench.chat.anatomy
    score = np.zeros((anatomy.n_layers, anatomy.n_heads))
    claimed, roles = [], {}
    for row in table.to_dict("records"):
        head = (int(row["layer"]), int(row["head"]))
        hidden = 0.0 if np.isnan(row["conditional"]) else abs(row["conditional"])
        score[head] = max(abs(row["effect"]), hidden)
        roles[head] = str(row["role"])
        if row["passes"] or hidden:
            claimed.append(head)
    return Claim(score, frozenset(claimed), roles)


def study(bench: Bench, settings: RoutingSettings) -> dict[str, pd.DataFrame]:
    """The tables of one run of the study on an organism."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(
            Path(folder) / "run", command="routing", settings=settings.model_dump(), inputs={}
        )
        run_routing(run, bench.subject, bench.planted.pairs, settings)
        found = {name: run.table(name) for name in run.tables()}
        run.finish()
    return found


def attribution(bench: Bench) -> Claim:
    """Direct logit attribution: harmful minus control."""
    pairs = bench.problem.pairs
    harmful = attribute(bench.chat, [pair.harmful for pair in pairs], MARGIN)
    control = attribute(bench.chat, [pair.control for pair in pairs], MARGIN)
    gap = float((harmful.total - control.total).mean())
    return _claim((harmful.heads - control.heads) / gap)


def ablation(bench: Bench) -> Claim:
    """Single heads set to zero at the last token of the harmful prompt."""
    anatomy = bench.chat.anatomy
    heads = [(layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads)]
    variants = [(Scale(Site("z", layer), "last", head=head, factor=0.0),) for layer, head in heads]
    pairs = bench.problem.pairs
    prompts = [pair.harmful for pair in pairs]
    scores = bench.chat.measure(prompts, [(), *variants], {"m": MARGIN}).scores["m"]
    controls = [pair.control for pair in pairs]
    clean = bench.chat.measure(controls, [()], {"m": MARGIN}).scores["m"][:, 0]
    gap = float((scores[:, 0] - clean).mean())
    lost = (scores[:, :1] - scores[:, 1:]).reshape(len(pairs), anatomy.n_layers, anatomy.n_heads)
    return _claim(lost / gap)


def patching(bench: Bench) -> Claim:
    """Attribution patching: the interchange to first order, from one backward pass a prompt."""
    anatomy, chat = bench.chat.anatomy, bench.chat
    sites = [Site("z", layer) for layer in range(anatomy.n_layers)]
    pairs = bench.problem.pairs
    theirs = chat.capture([pair.control for pair in pairs], sites, ["last"])
    controls = [pair.control for pair in pairs]
    clean = chat.measure(controls, [()], {"m": MARGIN}).scores["m"][:, 0]
    lost = np.zeros((len(pairs), anatomy.n_layers, anatomy.n_heads))
    values = np.zeros(len(pairs))
    for i, pair in enumerate(pairs):
        found = chat.first_order(pair.harmful, MARGIN, sites)
        values[i] = found.value
        at = pair.harmful.n_prompt - 1
        for site in sites:
            change = (theirs[site][i, 0] - found.activations[site][at]) * found.gradients[site][at]
            lost[i, site.layer] = -change.reshape(anatomy.n_heads, -1).sum(-1).cpu().numpy()
    return _claim(lost / float((values - clean).mean()))


def as_published(bench: Bench) -> Claim:
    """The published procedure; a candidate is claimed where its necessity is above the floor, untested."""
    pairs: list[Pair] = list(bench.problem.partners)
    replies = bench.chat.generate([pair.control for pair in pairs], max_new_tokens=5)
    # A reply that is only the end token has no text to score; its word is what the model would say.
    forced = [tuple(reply) or (tokens.COMPLY,) for reply in replies]
    found = published(bench.chat, pairs, MARGIN, forced).interchange
    anatomy = bench.chat.anatomy
    score = np.zeros((anatomy.n_layers, anatomy.n_heads))
    for row in found.to_dict("records"):
        score[int(row["layer"]), int(row["head"])] = abs(row["necessity_share"]) / 100
    return Claim(score, _above(score, SETTINGS.floor), {})


METHODS: dict[str, Callable[[Bench], Claim]] = {
    "recommended": recommended,
    "direct attribution": attribution,
    "single-head ablation": ablation,
    "attribution patching": patching,
    "as published": as_published,
}


def _claim(effects: Array) -> Claim:
    """effects [pairs, layers, heads], as shares of the gap, tested as the study tests its own."""
    n, n_layers, n_heads = effects.shape
    test = max_t_signflip(effects.reshape(n, -1), SETTINGS.n_flips, seed=SETTINGS.seed)
    passes = (test.p_familywise < SETTINGS.alpha).reshape(n_layers, n_heads)
    score = np.abs(effects.mean(axis=0))
    return Claim(score, _above(score * passes, SETTINGS.floor), {})


def _above(score: Array, floor: float) -> frozenset[Head]:
    return frozenset(
        (int(layer), int(head)) for layer, head in zip(*np.nonzero(score > floor), strict=True)
    )
