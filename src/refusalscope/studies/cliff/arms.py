"""Which heads an ablation removes: the top of a ranking, and random heads matched with them one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.studies.heads import Head

# A random head is one of so many, of its layer, whose writes are nearest in length.
NEAREST = 4


@dataclass(frozen=True)
class Arm:
    """Heads that are removed together. draw: of random heads, else -1. norm_ratio: their write norms over
    those of the heads that they are matched with, geometric mean."""

    name: str
    share: float
    heads: tuple[Head, ...]
    draw: int = -1
    norm_ratio: float = 1.0


def arms_of(
    ranked: pd.DataFrame,
    shares: Sequence[float],
    draws: int,
    controls: Mapping[str, Sequence[Head]],
    seed: int,
) -> Iterator[Arm]:
    """The arms of an ablation: nothing, then for each share the first heads of the ranking and random ones,
    then the controls. No head of any of the shares is drawn as a random one.

    ranked: heads from the most suppressing on, columns layer, head and write_norm.
    """
    order = list(zip(ranked["layer"].astype(int), ranked["head"].astype(int), strict=True))
    norms = dict(zip(order, ranked["write_norm"].astype(float), strict=True))
    generator = np.random.default_rng(seed)
    yield Arm("clean", 0.0, ())
    tops = {share: _top(order, share) for share in shares}
    barred = {head for top in tops.values() for head in top}
    for share, top in tops.items():
        yield Arm("top", share, top)
        for draw in range(draws):
            other = matched(top, norms, barred, generator)
            sizes = [
                np.log([max(norms[head], 1e-30) for head in heads]).mean() for heads in (other, top)
            ]
            yield Arm("random", share, other, draw, float(np.exp(sizes[0] - sizes[1])))
    for name, heads in controls.items():
        yield Arm(name, len(heads) / len(order), tuple(heads))


def matched(
    heads: Sequence[Head],
    norms: Mapping[Head, float],
    barred: Collection[Head],
    generator: np.random.Generator,
) -> tuple[Head, ...]:
    """A random head for each of `heads`, none twice: of its layer, among the NEAREST in write norm.

    norms: of all heads. barred: heads not to be drawn, beside those to be matched. Where a layer has no head
    left, the nearest layer that has one lends it. Raises InputError where the model has too few heads.
    """
    left = set(norms) - set(barred) - set(heads)
    drawn = []
    for layer, head in sorted(heads, key=lambda head: -norms[head]):
        if not left:
            raise InputError("there are too few heads to match every one removed; lower the share")
        near = min(abs(other - layer) for other, _ in left)
        size = np.log(max(norms[layer, head], 1e-30))
        pool = sorted(
            (other for other in left if abs(other[0] - layer) == near),
            key=lambda other: (abs(np.log(max(norms[other], 1e-30)) - size), other),
        )[:NEAREST]
        pick = pool[int(generator.integers(len(pool)))]
        left.discard(pick)
        drawn.append(pick)
    return tuple(drawn)


def _top(order: Sequence[Head], share: float) -> tuple[Head, ...]:
    if not 0 < share <= 1:
        raise InputError(f"a share of heads must be above 0 and at most 1, got {share}")
    return tuple(order[: max(1, round(share * len(order)))])
