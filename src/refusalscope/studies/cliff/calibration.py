"""One scale for all positions: what a logit means is learnt anew in each position class.

A constant shift of the state at the closing tokens moves every logit there, and looks like a cliff of every
trace (refusal_cliff section 3.4). Traces whose behaviour is known and settled, refused harmful ones and
complied harmless ones, say what a logit stands for in the thinking and at each closing token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from refusalscope.errors import InputError
from refusalscope.studies.cliff.traces import Trace

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
# Slope and intercept of a logit, by position class.
Scales = dict[str, tuple[float, float]]
# Indices of the refused harmful traces, and of the complied harmless ones.
Settled = tuple[list[int], list[int]]


def settled(harmful: Mask, refused: Mask) -> Settled:
    """Traces of known and settled behaviour on either side. Raises InputError where a side has none."""
    sides = [np.flatnonzero(side).tolist() for side in (harmful & refused, ~harmful & ~refused)]
    if not all(sides):
        raise InputError(
            f"calibration needs refused harmful traces and complied harmless ones, got {len(sides[0])} "
            f"and {len(sides[1])}; give more prompts to the split 'select'"
        )
    return sides[0], sides[1]


def learn_scales(traces: Sequence[Trace], logits: Sequence[Array], known: Settled) -> Scales:
    """Slope and intercept by position class that turn logits [tokens] a trace into calibrated ones.

    A trace weighs the same however long its thinking is, and both sides weigh the same. The scale of "prompt"
    is learnt on the tail between the request and the thinking. Targets are Platt's (1999): as sure as that many
    traces can make one. A class in which the logit does not rise with refusal gets slope 0.
    """
    scales = {}
    for name, places in _places(traces, known).items():
        parts = [
            (
                logits[i][at],
                np.full(len(at), _target(refused, len(known[1 - refused]))),
                np.full(len(at), 0.5 / len(known[1 - refused]) / len(at)),
            )
            for i, refused, at in places
        ]
        scales[name] = _platt(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return scales


def centred(
    scales: Mapping[str, tuple[float, float]],
    traces: Sequence[Trace],
    logits: Sequence[Array],
    known: Settled,
) -> Scales:
    """The slopes of `scales` with intercepts that make the mean logit of each position class 0."""
    found = {}
    for name, places in _places(traces, known).items():
        sides = [[logits[i][at].mean() for i, side, at in places if side == s] for s in (0, 1)]
        slope = scales[name][0]
        found[name] = (slope, -slope * float(np.mean([np.mean(side) for side in sides if side])))
    return found


def _places(traces: Sequence[Trace], known: Settled) -> dict[str, list[tuple[int, int, list[int]]]]:
    """Position class -> (trace, 1 if it refused, its tokens in the class) of every settled trace."""
    found: dict[str, list[tuple[int, int, list[int]]]] = {}
    for side, members in enumerate(known):
        for i in members:
            trace = traces[i]
            first = trace.thinking.start
            tail = list(range(trace.rendered.instruction[1] + 1, first))
            tokens = {"prompt": tail or list(range(first)), "thinking": list(trace.thinking)}
            tokens |= {f"closing[{n}]": [at] for n, at in enumerate(trace.closing)}
            for name, at in tokens.items():
                found.setdefault(name, []).append((i, 1 - side, at))
    return found


def _target(refused: int, n: int) -> float:
    sure = (n + 1) / (n + 2)
    return sure if refused else 1 - sure


def _platt(logits: Array, targets: Array, weights: Array) -> tuple[float, float]:
    """Slope and intercept of least weighted cross-entropy, the slope 0 or more."""
    centre, spread = logits.mean(), logits.std()
    if spread == 0:
        return 0.0, 0.0
    x = np.column_stack([(logits - centre) / spread, np.ones(len(logits))])

    def loss(beta: Array) -> tuple[float, Array]:
        z = x @ beta
        value = weights @ (np.logaddexp(0, z) - targets * z)
        return float(value), x.T @ (weights * (expit(z) - targets))

    best = minimize(loss, np.zeros(2), jac=True, bounds=[(0, None), (None, None)]).x
    slope = best[0] / spread
    return float(slope), float(best[1] - slope * centre)
