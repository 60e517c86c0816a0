"""What a variant is scored by.

A metric reads logits at the positions it names (nothing else of the unembedding is computed) and gives
one number a row. All scores are float32 log-probabilities; no epsilon stands inside a logarithm except
where a published score has it (`compat_eps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from refusalscope.errors import InputError
from refusalscope.model.anchors import Rendered
from refusalscope.model.sites import Positions, Site


class Metric(Protocol):
    """Scores rows of one prompt. `needs_clean` asks for the clean run's logits at the same positions."""

    @property
    def needs_clean(self) -> bool: ...

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        """Token indices whose logits the metric reads."""
        ...

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        """logits: [rows, reads, vocab]; clean: [reads, vocab] or None -> scores [rows]."""
        ...


@dataclass(frozen=True)
class StateMetric:
    """A linear score of an activation: state at `site` and `position` times `weight` plus `bias`."""

    site: Site
    position: Positions
    weight: Tensor
    bias: float = 0.0

    def score(self, states: Tensor) -> Tensor:
        """states: [rows, width] -> [rows]."""
        return states.float() @ self.weight.to(states.device, torch.float32) + self.bias


@dataclass(frozen=True)
class RefusalMargin:
    """Log-odds, in nats, of opening tokens of refusals against those of replies, at the prompt's end.

    refuse, reply: token ids, learnt on a calibration split with `learn_openings`.
    """

    refuse: tuple[int, ...]
    reply: tuple[int, ...]
    needs_clean: bool = False

    def __post_init__(self) -> None:
        if not self.refuse or not self.reply or set(self.refuse) & set(self.reply):
            raise InputError("a refusal margin needs two disjoint, non-empty sets of token ids")

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return (prompt.n_prompt - 1,)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        last = logits[:, -1]
        return last[:, list(self.refuse)].logsumexp(-1) - last[:, list(self.reply)].logsumexp(-1)


@dataclass(frozen=True)
class RefusalScore:
    """log P(R) - log(1 - P(R)) of the refusal tokens R at the prompt's end (arXiv 2406.11717, 2.3).

    `compat_eps` adds the published 1e-8 inside both logarithms, computed in float64 as published.
    """

    tokens: tuple[int, ...]
    compat_eps: bool = False
    needs_clean: bool = False

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return (prompt.n_prompt - 1,)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        last = logits[:, -1].double()
        if self.compat_eps:
            p = last.softmax(-1)[:, list(self.tokens)].sum(-1)
            return ((p + 1e-8).log() - (1 - p + 1e-8).log()).float()
        rest = torch.ones(last.shape[-1], dtype=torch.bool, device=last.device)
        rest[list(self.tokens)] = False
        inside = last[:, ~rest].logsumexp(-1)
        return (inside - last[:, rest].logsumexp(-1)).float()


@dataclass(frozen=True)
class OpeningProbability:
    """Probability that the reply opens with one of these tokens, at the prompt's end.

    The surrogate of arXiv 2509.09708, P("I") there; a note on it says logit (sae_features section 4).
    """

    tokens: tuple[int, ...]
    needs_clean: bool = False

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return (prompt.n_prompt - 1,)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        return logits[:, -1].softmax(-1)[:, list(self.tokens)].sum(-1)


@dataclass(frozen=True)
class LogitDifference:
    """logit[plus] - logit[minus] at the prompt's end."""

    plus: int
    minus: int
    needs_clean: bool = False

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return (prompt.n_prompt - 1,)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        return logits[:, -1, self.plus] - logits[:, -1, self.minus]


@dataclass(frozen=True)
class ReplyNLL:
    """Mean negative log-likelihood (nats a token) of the first `n_tokens` teacher-forced reply tokens."""

    n_tokens: int | None = None
    needs_clean: bool = False

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return _before_reply(prompt, self.n_tokens)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        n = logits.shape[1]
        targets = torch.tensor(
            prompt.ids[prompt.n_prompt : prompt.n_prompt + n], device=logits.device
        )
        log_p = logits.log_softmax(-1)
        return -log_p.gather(-1, targets.expand(len(logits), -1).unsqueeze(-1)).mean((1, 2))


@dataclass(frozen=True)
class KL:
    """KL(clean || variant) in nats, mean over positions ("last": the prompt's end only).

    `compat_eps` adds the published 1e-6 inside both logarithms (arXiv 2406.11717, authors' code).
    """

    positions: Positions = "last"
    compat_eps: bool = False
    needs_clean: bool = True

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return prompt.resolve(self.positions, "prompt_only")

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        if clean is None:
            raise InputError("KL needs the clean run's logits")
        if self.compat_eps:
            p, q = clean.double().softmax(-1), logits.double().softmax(-1)
            return (p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean(-1).float()
        p, q = clean.log_softmax(-1), logits.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean(-1)


@dataclass(frozen=True)
class ReplyKL:
    """KL(clean || variant) in nats, mean over the tokens of a teacher-forced reply.

    Each is read where the reply is predicted, from the prompt's last token on: the first token alone would
    miss a reply that goes astray later.
    """

    needs_clean: bool = True

    def reads(self, prompt: Rendered) -> tuple[int, ...]:
        return _before_reply(prompt, None)

    def __call__(self, logits: Tensor, prompt: Rendered, clean: Tensor | None) -> Tensor:
        return KL()(logits, prompt, clean)


def _before_reply(prompt: Rendered, n_tokens: int | None) -> tuple[int, ...]:
    """Where the first `n_tokens` of the reply are predicted, all where None."""
    n_reply = len(prompt.ids) - prompt.n_prompt
    if not n_reply:
        raise InputError(f"prompt {prompt.id!r} has no reply to score; use Rendered.with_reply")
    n = min(n_reply, n_tokens or n_reply)
    return tuple(range(prompt.n_prompt - 1, prompt.n_prompt - 1 + n))


def learn_openings(
    refusals: Sequence[int],
    replies: Sequence[int],
    min_share: float = 0.02,
    min_odds: float = 4.0,
) -> RefusalMargin:
    """Learn the opening tokens of refusals and of replies from judged replies of a calibration split.

    refusals, replies: the first token of each. A token joins a side when at least `min_share` of that side
    opens with it, and `min_odds` times more often than the other side does (add-half smoothing). Raises
    InputError when a side has no token of its own.
    """
    first = [np.array(side) for side in (refusals, replies)]
    if not len(first[0]) or not len(first[1]):
        raise InputError(
            f"the calibration split has {len(first[0])} refusals and {len(first[1])} replies; "
            f"both are needed to learn how they open: give more prompts of either kind"
        )
    sides: list[list[int]] = [[], []]
    for token in np.unique(np.concatenate(first)):
        share = [((side == token).sum() + 0.5) / (len(side) + 1) for side in first]
        seen = [(side == token).mean() for side in first]
        for side in (0, 1):
            if seen[side] >= min_share and share[side] / share[1 - side] >= min_odds:
                sides[side].append(int(token))
    if not sides[0] or not sides[1]:
        raise InputError(
            "refusals and replies of the calibration split open with the same tokens, so no refusal "
            "margin can be learnt; judge by generated replies instead"
        )
    return RefusalMargin(tuple(sides[0]), tuple(sides[1]))
