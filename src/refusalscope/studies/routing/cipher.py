"""Is the circuit still used when the same request stands in a wrapper, such as a letter cipher?

Source: arXiv 2604.04385, cipher interchange; alignment_routes section 8. The published swap copies from the
left, so behind a cipher's long instruction it never reaches the token that decides, and its collapse says
nothing; here every map counts from the end. Shares are of the plain gap, so that the arms compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from refusalscope.errors import InputError
from refusalscope.model import ChatModel, RefusalMargin
from refusalscope.prompts.sets import PairSet
from refusalscope.prompts.wrappers import Wrapper
from refusalscope.stats import mean_interval, paired_difference
from refusalscope.stats.bootstrap import bootstrap_bounds
from refusalscope.stats.interval import cluster_codes
from refusalscope.studies.heads import WHOLE, Head, Unit, clusters_of, units_of
from refusalscope.studies.routing.attribution import attribute
from refusalscope.studies.routing.contrast import intervals
from refusalscope.studies.routing.interchange import Pair, Screen, screen
from refusalscope.studies.routing.maps import MapName

Array = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


def wrapped(chat: ChatModel, pairs: PairSet, wrapper: Wrapper | None = None) -> list[Pair]:
    """Both members of every pair, rendered inside the wrapper, or as they stand without one.

    Ids and order are those of the pairs. Raises InputError where a wrapped prompt is longer than the model's
    context: nothing is truncated, since a prompt without its end has another last token.
    """
    members = [prompt for pair in pairs for prompt in pair.prompts()]
    if wrapper is not None:
        members = [replace(prompt, text=wrapper.wrap(prompt.text)) for prompt in members]
    rendered = chat.render(members)
    return [Pair(*both) for both in zip(rendered[::2], rendered[1::2], strict=True)]


@dataclass(frozen=True)
class Arms:
    """What the heads do with and without the wrapper.

    plain, cipher: screens of all heads under the metric "margin" (nats). direct: by arm (plain and cipher are
    the harmful requests, benign and benign_cipher their controls) the direct contribution of every head at the
    prompt's last token, [pairs, layers, heads], in logits. layers: those that have heads.
    """

    plain: Screen
    cipher: Screen
    direct: Mapping[str, Array]
    layers: tuple[int, ...]


def measure_arms(
    chat: ChatModel,
    plain: Sequence[Pair],
    hidden: Sequence[Pair],
    margin: RefusalMargin,
    *,
    positions: MapName = "suffix",
    screened: Screen | None = None,
    progress: Progress | None = None,
) -> Arms:
    """Screen and attribute the plain and the wrapped pairs; raises InputError for different pairs.

    screened: the screen of the plain pairs under the metric "margin" and this map, where it was run before; its
    first donor, the partner, is taken.
    """
    require_same_pairs(plain, hidden)
    heads = [unit for unit in units_of(chat.anatomy) if unit[0][1] != WHOLE]
    layers = list(chat.anatomy.softmax_layers)

    def swapped(pairs: Sequence[Pair], number: int, of: int) -> Screen:
        def whole(done: int, total: int) -> None:
            if progress is not None:
                progress(number * total + done, of * total)

        return screen(
            chat, pairs, {"margin": margin}, units=heads, positions=positions, progress=whole
        )

    if screened is None:
        screens = swapped(plain, 0, 2), swapped(hidden, 1, 2)
    else:
        screens = _partners(screened, heads), swapped(hidden, 0, 1)

    prompts = {
        "plain": [pair.harmful for pair in plain],
        "cipher": [pair.harmful for pair in hidden],
        "benign": [pair.control for pair in plain],
        "benign_cipher": [pair.control for pair in hidden],
    }
    return Arms(
        *screens,
        {arm: attribute(chat, each, margin).heads[:, layers] for arm, each in prompts.items()},
        chat.anatomy.softmax_layers,
    )


def _partners(screened: Screen, heads: Sequence[Unit]) -> Screen:
    """The margin of a screen, cut to these heads and to the first donor of each prompt."""
    columns = [screened.units.index(unit) for unit in heads]
    return Screen(
        tuple(heads),
        {"margin": screened.harmful["margin"]},
        {"margin": screened.control["margin"]},
        {"margin": screened.necessity["margin"][:, :1, columns]},
        {"margin": screened.sufficiency["margin"][:, :1, columns]},
    )


def arms_table(
    arms: Arms, *, wrapper: str, categories: Sequence[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Table `routing.cipher`, a row an arm and head.

    Columns: wrapper, arm, layer, head, necessity (mean over pairs and donors, as a share of the plain gap in
    every arm; NaN in the benign arms, whose prompts have no refusal to lose), dla (mean direct contribution
    at the last token, logits), each with _low and _high (95 %, BCa, whole categories where there are
    MIN_CLUSTERS or more). Raises InputError where the plain prompts and their controls score alike.
    """
    gap = arms.plain.gap("margin")
    if not abs(gap) > 0:
        raise InputError(
            "the plain harmful prompts and their controls score alike, so there is no gap to share; "
            "check that the model refuses one side of the pairs"
        )
    n = len(arms.direct["plain"])
    places = [unit[0] for unit in arms.plain.units]
    nothing = np.full((3, len(places)), np.nan)
    frames = []
    for arm, direct in arms.direct.items():
        necessity = nothing
        if arm in ("plain", "cipher"):
            found: Screen = getattr(arms, arm)
            shares = found.necessity["margin"].mean(axis=1) / gap
            necessity = intervals(shares, categories, seed)
        dla = intervals(direct.reshape(n, -1), categories, seed)
        columns: dict[str, object] = {"wrapper": wrapper, "arm": arm}
        columns["layer"], columns["head"] = zip(*places, strict=True)
        for name, values in (("necessity", necessity), ("dla", dla)):
            columns[name], columns[f"{name}_low"], columns[f"{name}_high"] = values
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def collapse_table(
    plain_screen: Screen,
    cipher_screen: Screen,
    metric: str,
    heads: Sequence[Head],
    *,
    wrapper: str,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Table `routing.collapse`: is a head's necessity lost under the wrapper? A row a head.

    Columns: wrapper, layer, head, plain and cipher (signed mean necessity, in the metric's unit) with _low and
    _high, change (cipher / plain - 1) with _low and _high (bootstrap of the ratio over the same pairs), p (sign
    flips of the paired difference), collapsed: plain's interval excludes 0, and cipher's lies within half of
    plain's value on either side of 0. A head that turns round is thus not collapsed. The change is NaN where
    plain's interval holds 0: a share of nothing is no number. Give heads above the effect floor: a tiny effect
    is consistent too. Raises InputError for screens of different pairs, no head, or one not screened by itself.
    """
    if not heads:
        raise InputError("there is no head whose collapse could be measured; give at least one")
    tables = [found.necessity[metric].mean(axis=1) for found in (plain_screen, cipher_screen)]
    if len(tables[0]) != len(tables[1]):
        raise InputError(
            f"the plain screen has {len(tables[0])} pairs and the wrapped one {len(tables[1])}: "
            f"screen the same pairs both times"
        )
    clusters = clusters_of(categories)
    rows = []
    for head in heads:
        first, second = (
            table[:, _column(found, head)]
            for table, found in zip(tables, (plain_screen, cipher_screen), strict=True)
        )
        before, after = (mean_interval(each, clusters, seed=seed) for each in (first, second))
        known = before.low > 0 or before.high < 0
        change = (float("nan"),) * 3
        if known:
            change = (after.value / before.value - 1, *_ratio_bounds(first, second, clusters, seed))
        half = abs(before.value) / 2
        row: dict[str, object] = {"wrapper": wrapper, "layer": head[0], "head": head[1]}
        for name, interval in (("plain", before), ("cipher", after)):
            row |= {
                name: interval.value,
                f"{name}_low": interval.low,
                f"{name}_high": interval.high,
            }
        row |= zip(("change", "change_low", "change_high"), change, strict=True)
        row["p"] = paired_difference(first, second, clusters, seed=seed).p
        row["collapsed"] = bool(known and -half < after.low and after.high < half)
        rows.append(row)
    return pd.DataFrame(rows)


def compat_collapse(plain: Array, cipher: Array) -> dict[str, float]:
    """The published collapse of one head's effects [pairs], kept to replay it and for nothing else.

    mean_abs_plain and mean_abs_cipher; collapse_pct: 100 (1 - their ratio); drop_pct: the same of the signed
    means, as in the authors' files. Averaging |.| hides direction: effects that cancel over pairs count as
    much as effects that agree, and noise never averages out.
    """
    before, after = float(np.abs(plain).mean()), float(np.abs(cipher).mean())
    return {
        "mean_abs_plain": before,
        "mean_abs_cipher": after,
        "collapse_pct": 100 * (1 - after / before),
        "drop_pct": 100 * (1 - float(cipher.mean()) / float(plain.mean())),
    }


def require_same_pairs(plain: Sequence[Pair], hidden: Sequence[Pair]) -> None:
    """Raises InputError unless both are the same pairs, by id, in the same order."""
    if len(plain) != len(hidden):
        raise InputError(
            f"there are {len(plain)} plain pairs and {len(hidden)} wrapped ones: wrap the same pairs"
        )
    for a, b in zip(plain, hidden, strict=True):
        if (a.harmful.id, a.control.id) != (b.harmful.id, b.control.id):
            raise InputError(
                f"the plain pair {a.harmful.id!r} stands against the wrapped pair {b.harmful.id!r}: "
                f"give both in one order"
            )


def _column(found: Screen, head: Head) -> int:
    if (head,) not in found.units:
        raise InputError(
            f"L{head[0]}.H{head[1]} is not a unit of the screen; screen it by itself, or leave it out"
        )
    return found.units.index((head,))


def _ratio_bounds(
    plain: Array, cipher: Array, clusters: npt.NDArray | None, seed: int
) -> tuple[float, float]:
    """Bounds of sum(cipher) / sum(plain) - 1, the same pairs or whole clusters drawn for both."""
    codes = cluster_codes(clusters, plain.size)
    sums = np.bincount(codes, plain), np.bincount(codes, cipher)
    if sums[0].size < 2:
        return float("nan"), float("nan")
    return bootstrap_bounds(
        sums,
        lambda before, after, axis: after.sum(axis) / before.sum(axis) - 1,
        paired=True,
        method="bca",
        n_resamples=2000,
        level=0.95,
        seed=seed,
    )
