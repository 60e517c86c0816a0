"""Cliff organisms as the studies of heads take them: traces by group, a probe, the planted heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from organisms import cliff_oracle
from refusalscope.model import ChatModel, RefusalMargin, Rendered, Site
from refusalscope.organisms.planted import Planted, build, tokens
from refusalscope.prompts import Prompt
from refusalscope.studies.cliff import Probe, Trace, traces_of

MARGIN = RefusalMargin((tokens.REFUSE,), (tokens.COMPLY,))
SUPPRESSORS, STATIC, PROMOTER, INTENT = {(4, 1), (5, 6), (6, 3)}, (3, 0), (6, 5), (1, 2)


@dataclass(frozen=True)
class Case:
    planted: Planted
    chat: ChatModel
    oracle: cliff_oracle.Traces
    probe: Probe
    groups: dict[str, list[Trace]]


@cache
def case(variant: str = "base", seed: int = 0, pairs: int = 24) -> Case:
    planted = build("planted-cliff", variant, seed=seed, pairs=pairs)
    chat = ChatModel.wrap(planted.model, planted.tokenizer, id="planted")
    oracle = cliff_oracle.Traces(planted)
    fitted = oracle.probes["closing"]
    probe = Probe(torch.tensor(fitted.weights).float(), fitted.bias, Site("final"), True)
    groups: dict[str, list[Trace]] = {}
    for trace, truth in zip(traces_of(chat, planted.prompts), planted.truth.thinking, strict=True):
        groups.setdefault(truth.group, []).append(trace)
    return Case(planted, chat, oracle, probe, groups)


def trace(ids: list[int], thinking: range, name: str = "x") -> Trace:
    """A trace of given tokens; all after the thinking closes it."""
    n = len(ids)
    rendered = Rendered(name, "", tuple(ids), n, (0, 0), {"prompt_last": n - 1})
    return Trace(Prompt(name, "a request"), rendered, thinking, tuple(range(thinking.stop, n)))


def random_traces(lengths: tuple[int, ...] = (14, 9, 12, 21)) -> list[Trace]:
    """Traces of a tiny model of tests/model/tiny.py, of unequal lengths, with three closing tokens each."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(10, 300, (len(lengths), max(lengths)), generator=generator).tolist()
    return [
        trace([1, *row[: n - 4], 40, 41, 42], range(3, n - 3), str(i))
        for i, (row, n) in enumerate(zip(ids, lengths, strict=True))
    ]
