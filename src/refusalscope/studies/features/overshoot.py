"""Decoder overshoot: does a latent write as much refusal as its decoder row claims?

Zeroing a latent takes f d out of the stream whether or not the model wrote that much along the refusal
direction v; where the row claims more, ablation turns into steering. d . v is what the row claims; the slope of
the stream's projection on v against f, over tokens where the latent is active, is what goes with it in fact.
Source: sae_features section 6 (our reconstruction).

The slope is read in the run without the set's other members: reserves sleep until those are gone, and members
that rise and fall together would each be credited with the writes of all. What the rows of the others overclaim
is taken out in that run too, so that where several members overclaim together each slope is too low: it tells
that ablating the set steers, not by how much each row does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.dictionary import Dictionary, DictionarySlice, latent_variant
from refusalscope.dictionary.activations import states
from refusalscope.errors import InputError
from refusalscope.model import ChatModel, Rendered
from refusalscope.stats.bootstrap import bootstrap_bounds
from refusalscope.stats.interval import NAN, Clusters, Interval, Seed, cluster_codes
from refusalscope.studies.features.ablation import Latent, by_layer
from refusalscope.studies.features.attribution import slices_of, unit_direction
from refusalscope.studies.features.ledger import Members

Array = npt.NDArray[np.float64]
COLUMNS = ["set_id", "layer", "latent", "claimed", "slope", "slope_low", "slope_high", "n"]
# Members whose decoder rows are this close are one write that the stream carries over layers.
CARRIED = 0.9
# With fewer prompts too many resamples hold one prompt alone, and no slope.
FEWEST = 5


def overshoot(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    members: Members,
    dictionaries: Mapping[int, Dictionary],
    direction: Tensor,
    *,
    set_id: str = "S",
    arm: str = "no_bos",
    clusters: Clusters = None,
    seed: Seed,
) -> pd.DataFrame:
    """The table features.overshoot: set_id, layer, latent, claimed, slope, slope_low, slope_high, n.

    claimed: d_i . v; slope: of the stream's projection on v against f_i, at its layer, over the n tokens of an
    arm where f_i > 0, with a bootstrap over prompts, or over `clusters`, one label a prompt; both in units of
    the stream for one of f_i. The run leaves out the other members, except at other layers those whose decoder
    row has a cosine of CARRIED or more with this one: they are the same write. slope is NaN where the latent
    has no two different activations, its bounds with fewer than FEWEST prompts or clusters. Costs a forward a
    member and prompt. Raises InputError for a direction of another width or zero, no prompts or members, or one
    that no dictionary holds.
    """
    unit = unit_direction(direction, chat.anatomy.d_model)
    pieces = slices_of(dictionaries, dict(sorted(members.items())))
    if not pieces or not prompts:
        raise InputError(
            f"overshoot needs prompts and members, {{layer: latents}}; got {len(prompts)} prompts and "
            f"{sum(map(len, members.values()))} latents"
        )
    names = [(layer, latent) for layer, piece in pieces.items() for latent in piece.latents]
    writes = torch.cat([piece.W_dec.cpu() for piece in pieces.values()])
    units = torch.nn.functional.normalize(writes, dim=1)
    same = units @ units.T >= CARRIED
    codes = cluster_codes(clusters, len(prompts))
    rows = []
    for i, (layer, latent) in enumerate(names):
        others = [
            name for j, name in enumerate(names) if j != i and (name[0] == layer or not same[i, j])
        ]
        f, y, owner = _read(chat, prompts, (layer, latent), others, pieces, unit, arm)
        found = slope(f, y, codes[owner], seed=seed)
        claimed = float(writes[i] @ unit)
        rows.append((set_id, layer, latent, claimed, found.value, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=COLUMNS)


def slope(x: Array, y: Array, clusters: npt.NDArray[np.intp], *, seed: Seed) -> Interval:
    """Least-squares slope of y on x, with an intercept, and a bootstrap over clusters; n: rows."""
    if len(x) < 2 or np.ptp(x) == 0:
        return Interval(NAN, NAN, NAN, len(x))
    # Centred, so that the sums below lose no digits.
    x, y = x - x.mean(), y - y.mean()
    codes = np.unique(clusters, return_inverse=True)[1]
    sums = [np.bincount(codes, w) for w in (np.ones(len(x)), x, y, x * x, x * y)]
    value = float(sums[4].sum() / sums[3].sum())

    def resampled(*parts: Array, axis: int) -> Array:
        n, sx, sy, sxx, sxy = (part.sum(axis) for part in parts)
        above, below = n * sxy - sx * sy, n * sxx - sx * sx
        # One cluster drawn every time carries no slope of its own.
        return np.divide(
            above, below, where=below > 1e-12 * n * sxx, out=np.full(below.shape, value)
        )

    if len(sums[0]) < FEWEST:
        return Interval(value, NAN, NAN, len(x))
    low, high = bootstrap_bounds(
        sums, resampled, paired=True, method="percentile", n_resamples=2000, level=0.95, seed=seed
    )
    return Interval(value, low, high, len(x))


def _read(
    chat: ChatModel,
    prompts: Sequence[Rendered],
    name: Latent,
    others: Sequence[Latent],
    pieces: Mapping[int, DictionarySlice],
    unit: Tensor,
    arm: str,
) -> tuple[Array, Array, npt.NDArray[np.intp]]:
    """f, the projection, and the prompt of each token where f > 0, in the run without the others."""
    piece = pieces[name[0]]
    column = piece.members([name[1]])[0]
    variant = latent_variant(pieces, by_layer(others), positions=arm)
    runs = states(chat, prompts, [piece.site], [variant] * len(prompts))
    places = [list(prompt.resolve(arm)) for prompt in prompts]
    x = torch.cat([run[piece.site][rows] for run, rows in zip(runs, places, strict=True)])
    owner = np.repeat(np.arange(len(prompts)), [len(rows) for rows in places])
    acts, scale = piece.encode_scaled(x)
    # In units of the stream also where the dictionary normalises each token.
    f = acts[:, column] if scale is None else acts[:, column] * scale[:, 0]
    active = (f > 0).numpy()
    return f.double().numpy()[active], (x @ unit).double().numpy()[active], owner[active]
