"""What a set is compared with: random latents like its own, and how often a latent wakes by accident.

sae_features sections 6 and 8 (our reconstruction; nothing of the kind is published).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import poisson_binom

from refusalscope.errors import InputError
from refusalscope.stats import fdr_bh, wilson
from refusalscope.stats.interval import Seed, numbers

Array = npt.NDArray[np.float64]
MIN_DRAWS = 20
# A member's stand-in is drawn from this many of the latents most like it.
NEIGHBOURS = 10


@dataclass(frozen=True)
class Matched:
    """Draws of random latents like the members. sets: [draws][members], stand-ins in the members' order.

    norm_gap, mass_gap: mean of stand-ins less mean of members over all draws, in standard deviations of the
    members' layers, of the log decoder norm and of log1p of the mass; far from 0 means a poor match.
    """

    sets: tuple[tuple[int, ...], ...]
    norm_gap: float
    mass_gap: float


def matched_sets(
    members: Sequence[int],
    layers: npt.ArrayLike,
    decoder_norms: npt.ArrayLike,
    masses: npt.ArrayLike,
    *,
    draws: int = MIN_DRAWS,
    seed: Seed,
) -> Matched:
    """Random sets with the members' layers exactly, and about their decoder norms and activation masses.

    layers, decoder_norms, masses: [latents]; mass is the summed activation over the clean runs, so that a
    dormant member (mass 0) is stood for by a dormant latent where its layer has enough. Each stand-in is drawn
    from the NEIGHBOURS nearest of its layer, no member among them, none twice in a draw. Raises InputError for
    fewer than MIN_DRAWS draws, no member, one twice, or a layer with too few other latents.
    """
    if draws < MIN_DRAWS:
        raise InputError(f"{draws} draws are too few for a null; ask for {MIN_DRAWS} or more")
    if not members or len(set(members)) < len(members):
        raise InputError("a matched null needs at least one member and none twice")
    chosen = np.asarray(members, dtype=np.intp)
    layer = np.asarray(layers)
    norm, mass = numbers(decoder_norms, "decoder_norms"), numbers(masses, "masses")
    if not len(layer) == len(norm) == len(mass):
        raise InputError("layers, decoder_norms and masses must have one value a latent")
    if (norm <= 0).any() or (mass < 0).any():
        raise InputError("decoder norms must be above 0 and masses 0 or more")
    free = np.setdiff1d(np.arange(len(layer)), chosen)
    look = _alike(layer, np.log(norm), np.log1p(mass))
    rng = np.random.default_rng(seed)
    sets = [_draw(chosen, free, layer, look, rng) for _ in range(draws)]
    gap = np.mean(look[np.array(sets)] - look[chosen], axis=(0, 1))
    return Matched(tuple(tuple(map(int, found)) for found in sets), float(gap[0]), float(gap[1]))


def _alike(layer: npt.NDArray, *columns: Array) -> Array:
    """Columns [latents, columns] in standard deviations of their layer; 0 where a layer does not vary."""
    out = np.zeros((len(layer), len(columns)))
    for name in np.unique(layer):
        rows = layer == name
        for k, column in enumerate(columns):
            spread = column[rows].std()
            out[rows, k] = (column[rows] - column[rows].mean()) / spread if spread > 0 else 0.0
    return out


def _draw(
    members: npt.NDArray[np.intp],
    free: npt.NDArray[np.intp],
    layer: npt.NDArray,
    look: Array,
    rng: np.random.Generator,
) -> npt.NDArray[np.intp]:
    found = np.empty_like(members)
    left = np.isin(np.arange(len(layer)), free)
    # In random order, so that no member is always the first to choose.
    for place in rng.permutation(len(members)):
        own = members[place]
        candidates = np.flatnonzero(left & (layer == layer[own]))
        if not len(candidates):
            raise InputError(
                f"layer {layer[own]} has too few latents outside the set to match its members; "
                f"give more latents of that layer"
            )
        distance = ((look[candidates] - look[own]) ** 2).sum(axis=1)
        nearest = candidates[np.argsort(distance, kind="stable")[:NEIGHBOURS]]
        found[place] = rng.choice(nearest)
        left[found[place]] = False
    return found


Draws = Literal["per_prompt", "shared"]
DRAWS: tuple[Draws, ...] = get_args(Draws)


def waking_table(
    woken: npt.ArrayLike, null: npt.ArrayLike, *, draws: Draws, q: float = 0.05
) -> pd.DataFrame:
    """Which latents the edit wakes more often than edits by chance do, at a false discovery rate q.

    woken: [prompts, latents], true where the latent was silent in the clean run and fires under the edit; null:
    [draws, prompts, latents], the same under random directions or matched sets. The p is that the edit is one
    more random one. draws: `per_prompt`, each prompt had random edits of its own: exact, the edit's wakings
    against the sum over prompts of chances (wakings of all edits / edits). `shared`, one random edit served all
    prompts of a draw: (1 + draws with as many wakings) / (1 + draws), which cannot fall below 1 / (1 + draws).

    One row a latent: latent, woken (prompts), rate with low and high (Wilson), null_rate, p, p_adjusted
    (Benjamini-Hochberg), more (p_adjusted < q). A latent that no edit wakes is no test: p is NaN. Raises
    InputError for shapes that do not fit or fewer than MIN_DRAWS draws.
    """
    real, chance = np.asarray(woken, dtype=bool), np.asarray(null, dtype=bool)
    if draws not in DRAWS:
        raise InputError(f"there is no {draws!r} kind of draws; choose one of {', '.join(DRAWS)}")
    if real.ndim != 2 or chance.shape[1:] != real.shape or not real.size:
        raise InputError(
            f"woken has shape {real.shape} and null {chance.shape}: expected [prompts, latents] and "
            f"[draws, prompts, latents]"
        )
    if len(chance) < MIN_DRAWS:
        raise InputError(f"{len(chance)} draws are too few for a null; make {MIN_DRAWS} or more")
    counts = real.sum(axis=0)
    tested = counts + chance.sum(axis=(0, 1)) > 0
    p = np.full(len(counts), np.nan)
    if draws == "shared":
        at_least = (chance.sum(axis=1) >= counts).sum(axis=0)
        p[tested] = ((1 + at_least) / (1 + len(chance)))[tested]
    else:
        share = (real + chance.sum(axis=0)) / (1 + len(chance))
        for j in np.flatnonzero(tested):
            # At least as many: the survival function counts more than.
            p[j] = np.clip(poisson_binom.sf(counts[j] - 1, share[:, j]), 0.0, 1.0)
    rates = [wilson(int(count), len(real)) for count in counts]
    adjusted = fdr_bh(p)
    return pd.DataFrame(
        {
            "latent": np.arange(len(counts)),
            "woken": counts,
            "rate": [rate.value for rate in rates],
            "low": [rate.low for rate in rates],
            "high": [rate.high for rate in rates],
            "null_rate": chance.mean(axis=(0, 1)),
            "p": p,
            "p_adjusted": adjusted,
            "more": adjusted < q,
        }
    )
