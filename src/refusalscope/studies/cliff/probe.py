"""Probes of the intention to refuse: as published, and on behaviour crossed with harm.

A probe is fitted on the state at the last closing token. The published one takes refused harmful against
harmless prompts, so its label is also that of the topic (refusal_cliff section 2). The recommended one takes
{harmful, harmless} by {refused, complied}, each cell with a weight of its own, and is calibrated by
position class before scores of two classes are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Site
from refusalscope.progress import Progress
from refusalscope.studies.cliff.calibration import centred, learn_scales, settled
from refusalscope.studies.cliff.curves import LATE
from refusalscope.studies.cliff.fits import adam, cell_weights, choose_l2, logistic, spread_of
from refusalscope.studies.cliff.scores import score_probes
from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# Rows a class in the authors' code.
LIMIT = 200
# Tokens of the last LATE of the thinking that a settled trace lends to the fit.
THOUGHTS = 4
# The paper names no L2; without any, classes that separate have no optimum.
WEAK = 1e-3


@dataclass(frozen=True, eq=False)
class Probe:
    """`weight . state + bias` is the logit of the refusal score.

    weight: [d_model] float64. normed: the state at `site` goes through the final norm first. calibration:
    position class -> slope and intercept on that logit; empty where there is none.
    """

    weight: Tensor
    bias: float
    site: Site
    normed: bool
    calibration: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @torch.no_grad()
    def logits(self, chat: ChatModel, states: Tensor) -> Tensor:
        """Logits before any calibration: states [..., d_model] at the site -> [...] float64, on the CPU."""
        return _read(chat, states, self.normed) @ self.weight.double() + self.bias

    def calibrated(self, logits: Array, classes: Sequence[str]) -> Array:
        """Logits [tokens] put on the scale of their position class; InputError for a class without one."""
        missing = set(classes) - self.calibration.keys()
        if missing:
            raise InputError(
                f"the probe has no calibration for {', '.join(sorted(missing))}; calibrate it on traces "
                f"that close as these do"
            )
        slope, intercept = np.array([self.calibration[name] for name in classes]).T
        return slope * logits + intercept


@dataclass(frozen=True)
class Fitted:
    """A probe, the traces of each cell it was fitted on, and probes of its size that can know nothing.

    cells: (harmful, refused) -> traces. shuffled: fitted alike on labels in another order. random: random
    directions of the probe's norm. Both have its slopes where it is calibrated, and are centred.
    """

    probe: Probe
    cells: Mapping[tuple[bool, bool], int]
    shuffled: tuple[Probe, ...]
    random: tuple[Probe, ...]


def fit_published(
    chat: ChatModel,
    traces: Sequence[Trace],
    refused: Sequence[bool],
    *,
    solver: Literal["adam", "logistic"] = "adam",
    n_nulls: int = 20,
    seed: int = 0,
) -> Fitted:
    """Refused harmful against all harmless traces, after the final norm, at the last closing token.

    At most 200 a class, balanced, four fifths to fit on. solver: "adam" as in the authors' code (25 steps, the
    epoch with the best validation accuracy), "logistic" as in the paper. Raises InputError for a class of
    fewer than two.
    """
    rng = np.random.default_rng(seed)
    harmful, said = harmful_of(traces), np.asarray(refused, dtype=bool)
    sides = [rng.permutation(np.flatnonzero(mask)) for mask in (harmful & said, ~harmful)]
    size = min(LIMIT, *(len(side) for side in sides))
    if size < 2:
        raise InputError(
            f"a probe needs refused harmful traces and harmless ones, got {len(sides[0])} and "
            f"{len(sides[1])}; give at least two of each"
        )
    rows = rng.permutation(np.concatenate([side[:size] for side in sides]))
    site = Site("final")
    features = _states(chat, [traces[i] for i in rows], site, True)
    label, n_fit = harmful[rows], int(0.8 * len(rows))

    def direction(label: Mask) -> tuple[Array, float]:
        if solver == "logistic":
            return logistic(features[:n_fit], label[:n_fit], np.ones(n_fit), WEAK)
        return adam(features, label, n_fit, seed)

    weight, bias = direction(label)
    probe = Probe(torch.tensor(weight), bias, site, True)
    blind = [direction(rng.permutation(label))[0] for _ in range(n_nulls)]
    cells = _cells(harmful[rows[:n_fit]], said[rows[:n_fit]])
    return Fitted(probe, cells, *_nulls(probe, blind, features[:n_fit], 1.0, seed))


def fit_recommended(
    chat: ChatModel,
    traces: Sequence[Trace],
    refused: Sequence[bool],
    splits: Sequence[str],
    *,
    sites: Sequence[Site] = (),
    n_nulls: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Fitted]:
    """A probe at each of `sites`: fitted on the traces of the split "fit", calibrated on those of "select".

    Rows are the last closing token of every trace, and a few late tokens of the thinking of traces whose
    behaviour is settled (refused harmful, complied harmless), of equal weight: what tells behaviours apart
    where the thinking ends need not be readable while the model thinks.

    sites: the state after the final norm and that of the middle layer if none is given. refused: what each
    trace came to. A cell without traces is left out; without complied harmful traces the label is that of
    the topic, as the `cells` of the result then show. Raises InputError where "fit" lacks refused or complied
    traces, or "select" traces of settled behaviour (refused harmful, complied harmless).
    """
    rng = np.random.default_rng(seed)
    harmful, said, split = harmful_of(traces), np.asarray(refused, dtype=bool), np.asarray(splits)
    fit, select = (np.flatnonzero(split == name).tolist() for name in ("fit", "select"))
    if len(set(said[fit].tolist())) < 2:
        raise InputError(
            "the traces to fit on need refused and complied ones; give more prompts, or traces of both kinds"
        )
    known = settled(harmful[select], said[select])
    # What a trace of unsettled behaviour intends while it thinks is the question, and teaches nothing.
    calm = harmful[fit] == said[fit]
    n_layers, found = chat.anatomy.n_layers, []
    for site in sites or (Site("final"), Site("resid_pre", n_layers // 2)):
        normed = site.resolved(n_layers).kind == "final"
        states = _states(chat, [traces[i] for i in [*fit, *select]], site, normed)
        mine, other = states[: len(fit)], states[len(fit) :]
        label, weights = said[fit], cell_weights(harmful[fit], said[fit])
        check = [(other, said[select])]
        if calm.any():
            thought, owner = _thinking_states(
                chat, [traces[i] for i in np.array(fit)[calm]], site, normed
            )
            mine = np.concatenate([mine, thought])
            label = np.concatenate([label, said[fit][calm][owner]])
            inside = cell_weights(harmful[fit][calm][owner], said[fit][calm][owner])
            weights = np.concatenate([weights, inside])
            quiet = [i for side in known for i in side]
            held, whose = _thinking_states(chat, [traces[select[i]] for i in quiet], site, normed)
            check.append((held, said[select][quiet][whose]))
        spread = spread_of(mine)
        l2 = choose_l2(mine, label, weights, spread, check)
        weight, bias = logistic(mine, label, weights, l2, spread)
        probe = Probe(torch.tensor(weight), bias, site, normed)
        orders = [rng.permutation(len(label)) for _ in range(n_nulls)]
        blind = [logistic(mine, label[o], weights[o], l2, spread)[0] for o in orders]
        cells = _cells(harmful[fit], said[fit])
        found.append(Fitted(probe, cells, *_nulls(probe, blind, mine, spread, seed)))
    chosen = [traces[i] for i in select]
    probes = [probe for one in found for probe in (one.probe, *one.shuffled, *one.random)]
    scores = score_probes(chat, chosen, probes, progress=progress)
    rows = iter([each[row] for each in scores] for row in range(len(probes)))

    def calibrated(one: Fitted) -> Fitted:
        scales = learn_scales(chosen, next(rows), known)
        shuffled, random = (
            tuple(
                replace(null, calibration=centred(scales, chosen, next(rows), known))
                for null in nulls
            )
            for nulls in (one.shuffled, one.random)
        )
        return Fitted(replace(one.probe, calibration=scales), one.cells, shuffled, random)

    return [calibrated(one) for one in found]


def harmful_of(traces: Sequence[Trace]) -> Mask:
    """Which traces are harmful: [traces]. Raises InputError for a trace without a label."""
    unlabelled = [trace.prompt.id for trace in traces if trace.prompt.label is None]
    if unlabelled:
        raise InputError(
            f"prompt {unlabelled[0]!r} is neither harmful nor harmless; give every trace a label"
        )
    return np.array([trace.prompt.label == "harmful" for trace in traces], dtype=bool)


def _cells(harmful: Mask, refused: Mask) -> dict[tuple[bool, bool], int]:
    kinds = (True, False)
    return {(h, r): int(((harmful == h) & (refused == r)).sum()) for h in kinds for r in kinds}


def _read(chat: ChatModel, states: Tensor, normed: bool) -> Tensor:
    if normed:
        norm = chat.anatomy.final_norm
        states = norm(states.to(norm.weight.device))
    return states.double().cpu()


@torch.no_grad()
def _states(chat: ChatModel, traces: Sequence[Trace], site: Site, normed: bool) -> Array:
    """States at the last closing token: [traces, d_model]."""
    states = chat.capture([trace.rendered for trace in traces], [site], [(-1,)])[site]
    return _read(chat, states[:, 0], normed).numpy()


@torch.no_grad()
def _thinking_states(
    chat: ChatModel, traces: Sequence[Trace], site: Site, normed: bool
) -> tuple[Array, npt.NDArray[np.intp]]:
    """States at a few tokens late in the thinking: [rows, d_model], and the trace of each row."""
    rows: list[Array] = []
    owner: list[int] = []
    for count in sorted({len(trace.closing) for trace in traces}):
        mine = [i for i, trace in enumerate(traces) if len(trace.closing) == count]
        shortest = min(len(traces[i].thinking) for i in mine)
        back = [k for k in range(0, LATE, LATE // THOUGHTS) if k < shortest]
        states = chat.capture(
            [traces[i].rendered for i in mine], [site], [(-count - 1 - k,) for k in back]
        )[site]
        rows.append(_read(chat, states.flatten(0, 1), normed).numpy())
        owner += [i for i in mine for _ in back]
    return np.concatenate(rows), np.array(owner)


def _nulls(
    probe: Probe, shuffled: Sequence[Array], states: Array, spread: Array | float, seed: int
) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """Probes of these weights, and of as many random ones of the probe's norm on features over `spread`.

    They are 0 on average over the states [traces, d_model] it was fitted on.
    """

    def centre(weight: Array) -> Probe:
        bias = -float(weight @ states.mean(0))
        return replace(probe, weight=torch.tensor(weight), bias=bias)

    drawn = np.random.default_rng(seed).normal(size=(len(shuffled), len(probe.weight)))
    drawn *= np.linalg.norm(probe.weight.numpy() * spread) / np.linalg.norm(drawn, axis=1)[:, None]
    return tuple(map(centre, shuffled)), tuple(map(centre, drawn / spread))
