"""The routing problem: rendered pairs with their donors, their categories, and what swaps are scored by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refusalscope.errors import InputError
from refusalscope.model import KL, ChatModel, Metric, RefusalMargin, ReplyNLL, Site, StateMetric
from refusalscope.prompts import PairSet
from refusalscope.studies.heads import MIN_CLUSTERS
from refusalscope.studies.routing.interchange import Pair
from refusalscope.studies.routing.settings import RoutingSettings
from refusalscope.studies.subject import Subject

# Tokens of the control's reply that the teacher-forced metric reads (authors' code).
REPLY_TOKENS = 5
UNEQUAL = 2.0


@dataclass(frozen=True)
class Problem:
    """What the study works on. pairs, prompts and categories go together, pair by pair.

    prompts: the report split's pairs in words; categories: None where they are too few to be clusters.
    """

    chat: ChatModel
    margin: RefusalMargin
    prompts: PairSet
    pairs: tuple[Pair, ...]
    categories: tuple[str, ...] | None

    @property
    def partners(self) -> tuple[Pair, ...]:
        """The pairs with one donor a prompt, its partner."""
        return tuple(replace(pair, to_harmful=(), to_control=()) for pair in self.pairs)


def pose(
    subject: Subject, prompts: PairSet, margin: RefusalMargin, settings: RoutingSettings
) -> Problem:
    """Pair the rendered prompts of the report split and draw their donors by the seed.

    prompts: the pairs of the report split. A donor beside the partner is a member of another pair, of the
    same category where there is one. Raises InputError where a member of a pair is missing.
    """
    rendered = {p.id: r for p, r in zip(subject.prompts, subject.rendered, strict=True)}
    members = []
    for pair in prompts:
        harmful, control = (rendered.get(prompt.id) for prompt in pair.prompts())
        if harmful is None or control is None:
            raise InputError(f"pair {pair.id!r} lacks a member; give both of every pair")
        members.append((harmful, control))
    rng = np.random.default_rng(settings.seed)
    names = [pair.category or "" for pair in prompts]
    pairs = []
    for i, (harmful, control) in enumerate(members):
        others = _others(i, names, settings.donors - 1, rng)
        pairs.append(
            Pair(
                harmful,
                control,
                tuple(members[j][1] for j in others),
                tuple(members[j][0] for j in others),
            )
        )
    known = all(names) and len(set(names)) >= MIN_CLUSTERS
    return Problem(subject.chat, margin, prompts, tuple(pairs), tuple(names) if known else None)


def _others(i: int, names: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """Other pairs whose members stand in as donors: of the same category first."""
    alike = [j for j, name in enumerate(names) if j != i and name == names[i]]
    unlike = [j for j, name in enumerate(names) if j != i and name != names[i]]
    order = [*rng.permutation(alike), *rng.permutation(unlike)]
    return [int(j) for j in order[:count]]


def state_metrics(
    subject: Subject, problem: Problem, settings: RoutingSettings
) -> Mapping[str, Metric | StateMetric]:
    """The refusal margin and, as asked for, probe and KL: what one row of a screen gives at once."""
    found: dict[str, Metric | StateMetric] = {"margin": problem.margin}
    if "probe" in settings.metrics:
        found["probe"] = _probe(subject)
    if "kl" in settings.metrics:
        found["kl"] = KL()
    return found


def _probe(subject: Subject) -> StateMetric:
    """Mean difference of harmful and harmless prompts of the fit split before the final norm, at length 1."""
    sides = [subject.take(subject.pick("fit", label)) for label in ("harmful", "harmless")]
    means = [
        subject.chat.capture(side, [Site("final")], ["last"])[Site("final")][:, 0].mean(0)
        for side in sides
    ]
    direction = means[0] - means[1]
    return StateMetric(Site("final"), "last", direction / direction.norm().clamp_min(1e-12))


def with_replies(problem: Problem) -> tuple[Pair, ...] | None:
    """Pairs whose members are followed by the opening of the control's own greedy reply.

    None where a control's reply is empty, so that there is nothing to score.
    """
    chat = problem.chat
    controls = [pair.control for pair in problem.pairs]
    replies = chat.generate(controls, max_new_tokens=REPLY_TOKENS)
    if not all(replies):
        return None
    return tuple(
        Pair(pair.harmful.with_reply(reply), pair.control.with_reply(reply))
        for pair, reply in zip(problem.partners, replies, strict=True)
    )


def nll() -> ReplyNLL:
    """Mean NLL of the control's reply opening (metric NLLc of the authors' code)."""
    return ReplyNLL(REPLY_TOKENS)


def unequal(pairs: Sequence[Pair]) -> list[str]:
    """Ids of harmful prompts that are more than UNEQUAL times as long as their control, or as much shorter."""
    return [
        pair.harmful.id
        for pair in pairs
        if max(pair.harmful.n_prompt, pair.control.n_prompt)
        > UNEQUAL * min(pair.harmful.n_prompt, pair.control.n_prompt)
    ]
