"""The slow and obvious reference for cliff organisms: one forward per run, a probe by Newton's method.

A pre-hook on `self_attn.o_proj` zeroes the slice of heads in `z` at all positions. All rows of one run
have equal length, so nothing is padded. States are those after the final norm, where the probe reads.
Definitions: ../shared/methods/refusal_cliff.md, sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from refusalscope.model import ChatModel
from refusalscope.organisms.planted import Planted

CLOSING = 3
THINKING = slice(-CLOSING - 24, -CLOSING)
LAST_TWENTY = slice(-CLOSING - 20, -CLOSING)
TRAINED_ON = 100
L2 = 1e-3
Head = tuple[int, int]
Renorm = Literal["none", "per_token", "official_batch"]


@dataclass(frozen=True)
class Probe:
    """sigmoid(weights . state + bias) is the refusal score."""

    weights: np.ndarray
    bias: float

    def logits(self, states: np.ndarray) -> np.ndarray:
        return states @ self.weights + self.bias

    def scores(self, states: np.ndarray) -> np.ndarray:
        return sigmoid(self.logits(states))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def states(
    model, rows: Sequence[list[int]], removed: Iterable[Head] = (), renorm: Renorm = "none"
) -> np.ndarray:
    """States after the final norm, [rows, positions, d_model], with the z of `removed` heads set to 0.

    `renorm` then scales all of a layer's z back to its old Frobenius norm: each token for itself, or
    the whole batch at once.
    """
    found = []
    with ExitStack() as stack, torch.no_grad():
        for layer in {layer for layer, _ in removed}:
            heads = [head for other, head in removed if other == layer]

            def zero(module, args, heads=heads):
                z = args[0].clone()
                for head in heads:
                    z[..., head * 16 : (head + 1) * 16] = 0
                if renorm == "per_token":
                    z = z * (args[0].norm(dim=-1) / z.norm(dim=-1))[..., None]
                if renorm == "official_batch":
                    z = z * args[0].norm() / z.norm()
                return (z,)

            attention = model.model.layers[layer].self_attn
            stack.callback(attention.o_proj.register_forward_pre_hook(zero).remove)

        def keep(module, args, out):
            found.append(out.double().numpy())

        stack.callback(model.model.norm.register_forward_hook(keep).remove)
        model(torch.tensor(rows))
    return found[0]


def fit_probe(positives: np.ndarray, negatives: np.ndarray, l2: float = L2) -> Probe:
    """Logistic regression on centred features, mean loss + l2 |w|^2, by Newton: [rows, d_model] each."""
    features = np.concatenate([positives, negatives])
    centre = features.mean(0)
    design = np.column_stack([features - centre, np.ones(len(features))])
    labels = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
    penalty = np.diag([2 * l2] * (design.shape[1] - 1) + [0.0])
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        p = sigmoid(design @ beta)
        gradient = design.T @ (p - labels) / len(labels) + penalty @ beta
        curvature = (design.T * (p * (1 - p))) @ design / len(labels) + penalty
        step = np.linalg.solve(curvature, gradient)
        beta = beta - step
        if np.abs(step).max() < 1e-10:
            break
    else:
        raise ValueError("the probe did not converge")
    return Probe(beta[:-1], float(beta[-1] - beta[:-1] @ centre))


def head_writes(model, rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """What every head writes, [rows, layers, heads, positions, d_model], and the RMS of the last
    stream, [rows, positions]."""
    z: dict[int, torch.Tensor] = {}
    stream = []
    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(model.model.layers):

            def keep(module, args, layer=layer):
                z[layer] = args[0].double()

            stack.callback(block.self_attn.o_proj.register_forward_pre_hook(keep).remove)
        hook = model.model.norm.register_forward_pre_hook(lambda m, args: stream.append(args[0]))
        stack.callback(hook.remove)
        model(torch.tensor(rows))
    writes = []
    for layer, block in enumerate(model.model.layers):
        output = block.self_attn.o_proj.weight.double()
        heads = range(output.shape[1] // 16)
        parts = [slice(head * 16, (head + 1) * 16) for head in heads]
        writes.append(torch.stack([z[layer][..., part] @ output[:, part].T for part in parts], 1))
    rms = stream[0].double().pow(2).mean(-1).sqrt()
    return torch.stack(writes, 1).numpy(), rms.numpy()


def head_scores(model, rows: Sequence[list[int]], probe: Probe) -> dict[str, np.ndarray]:
    """Means over rows of three scores of every head, each [layers, heads]: "published" W_O z . w / |w|
    at the last token; "folded" through the final norm; "contrast" folded minus its plateau mean."""
    writes, rms = head_writes(model, rows)
    gain = model.model.norm.weight.double().numpy()
    plain = writes @ probe.weights
    folded = writes @ (probe.weights * gain) / rms[:, None, None, :]
    return {
        "published": (plain[..., -1] / np.linalg.norm(probe.weights)).mean(0),
        "folded": folded[..., -1].mean(0),
        "contrast": (folded[..., -1] - folded[..., THINKING].mean(-1)).mean(0),
    }


class Traces:
    """The prompts of an organism as their chat model renders them, and what a probe reads in them."""

    def __init__(self, planted: Planted):
        self.model, self.truths = planted.model, planted.truth.thinking
        chat = ChatModel.wrap(planted.model, planted.tokenizer, id="planted")
        self._ids = [list(rendered.ids) for rendered in chat.render(list(planted.prompts))]
        self._seen: dict[tuple, np.ndarray] = {}

    def rows(self, group: str, intensity: float | None = None, staged: bool = False):
        """Token ids of the prompts of a group, without a stage word unless `staged`."""
        return [
            ids
            for ids, truth in zip(self._ids, self.truths, strict=True)
            if truth.group == group
            and intensity in (None, truth.intensity)
            and (truth.stage_at is not None) == staged
        ]

    def states(self, group: str, removed=(), renorm: Renorm = "none", **which) -> np.ndarray:
        """`states` of the rows of a group, run once."""
        key = (group, tuple(removed), renorm, *sorted(which.items()))
        if key not in self._seen:
            self._seen[key] = states(self.model, self.rows(group, **which), removed, renorm)
        return self._seen[key]

    def fit(self, position: int) -> Probe:
        """Harmful unsuppressed against benign prompts at one position."""
        positives, negatives = (
            self.states(group)[:TRAINED_ON, position] for group in ("unsuppressed", "benign")
        )
        return fit_probe(positives, negatives)

    @cached_property
    def probes(self) -> dict[str, Probe]:
        return {"closing": self.fit(-1), "thinking": self.fit(-CLOSING - 1)}

    def scores(self, group: str, probe: str = "closing", removed=(), renorm="none", **which):
        """The probe's score at every position: [rows, positions]."""
        return self.probes[probe].scores(self.states(group, removed, renorm, **which))

    @cached_property
    def head_scores(self) -> dict[str, np.ndarray]:
        """`head_scores` on the suppressed prompts."""
        return head_scores(self.model, self.rows("suppressed"), self.probes["closing"])

    def ablation(self, group: str, head: Head) -> float:
        """Mean logit at the last token minus the same with one head zeroed at all positions."""
        clean, edited = (
            self.probes["closing"].logits(self.states(group, removed)[:, -1])
            for removed in ((), (head,))
        )
        return float((clean - edited).mean())

    def found(self, item) -> float:
        """The value of an expected quantity."""
        reading = item.reading
        which = {"intensity": reading.intensity, "staged": reading.staged}
        if item.quantity == "plateau":
            scores = self.scores(reading.group, reading.probe, **which)
            return float(np.median(scores[:, LAST_TWENTY], axis=1).mean())
        if item.quantity == "final":
            scores = self.scores(reading.group, reading.probe, item.heads, **which)
            return float(scores[:, -1].mean())
        if item.quantity == "head_ablation":
            return float(np.mean([self.ablation(reading.group, head) for head in item.heads]))
        scores = self.head_scores[item.quantity.removeprefix("head_")]
        return float(np.mean([scores[head] for head in item.heads]))

    def failed(self, expected) -> list[str]:
        """The expected values that the organism does not show, in words."""
        wrong = []
        for item in expected:
            found = self.found(item)
            if not abs(found - item.value) <= item.tolerance:
                wrong.append(
                    f"{item.quantity} {list(item.heads)} {item.reading.group}: {found:.4f}, expected "
                    f"{item.value} +- {item.tolerance}"
                )
        return wrong
