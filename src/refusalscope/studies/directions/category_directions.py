"""Directions of single categories: how alike they are, and how much of them is one shared axis.

v^k = mean over refused harmful prompts of category k - mean over accepted harmless ones, at t_inst for
harmfulness and at t_post for refusal; similarity is the mean over a band of rows of the pairwise cosines
(arXiv 2507.11878, figure 9). Directions come from the fit split. As published all start from one harmless
mean, whose noise lifts their cosines; with `category_harmless="halves"` two never do.

Where the categories say nothing, directions of as many prompts dealt out at random are as alike as theirs
(`_null`): below that range categories have directions of their own, within it none was shown. `halves` is
how alike a category is to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from refusalscope.studies.directions.belief_work import ENDS, Work, band_rows, in_parts
from refusalscope.studies.directions.category_likeness import (
    bootstrap_likeness,
    half_cosine,
    shuffled_likeness,
)

BAND = (11 / 28, 20 / 28)
AXES = ("harmfulness", "refusal")
ALL = "all"
BOUNDS = ("", "_low", "_high")
COLUMNS = ["axis", "category", "total", "n", "reason"]
COLUMNS += [name + bound for name in ("to_others", "to_mean", "shared") for bound in BOUNDS]
for name in ("to_others", "shared"):
    COLUMNS += [*(f"{name}_null{bound}" for bound in BOUNDS), f"{name}_p"]
COLUMNS += ["halves", "unsteady"]
PAIRS = ["axis", "a", "b", "cosine", "low", "high"]


def category_tables(
    work: Work, harmful: Sequence[int], harmless: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `belief.categories` and `belief.category_cosines`; harmful, harmless: rows to fit on.

    A category that cannot be compared has a `reason` and no figures. The row "all" of an axis (`total`) holds
    the mean of all pairs and the shared energy. `_null`: mean and 95 % range over random categories of the
    same sizes, and the two-sided p. `unsteady`: less like itself in another half than like the others.
    """
    names = np.array([str(work.subject.prompts[i].category or "") for i in harmful])
    counts = {str(name): int((names == name).sum()) for name in np.unique(names) if name}
    enough = [name for name, n in counts.items() if n >= work.settings.min_category]
    used = enough if len(enough) >= 2 else []
    band = band_rows(work.settings.category_band, BAND, work.chat.anatomy.n_layers)
    tables = [pd.DataFrame(columns=COLUMNS)]
    pairs = [pd.DataFrame(columns=PAIRS)]
    if used:
        mine = np.isin(names, used)
        states = _band_states(work, np.asarray(harmful)[mine].tolist(), band)
        groups = [states[torch.from_numpy(names[mine] == name)] for name in used]
        other = _band_states(work, harmless, band)
        for k, axis in enumerate(AXES):
            found = _axis(work, used, [group[:, k] for group in groups], other[:, k])
            tables.append(found[0].assign(axis=axis))
            pairs.append(found[1].assign(axis=axis))
    left = {
        name: "no other category has enough prompts" if name in enough else "too few prompts"
        for name in counts
        if name not in used
    }
    for axis in AXES:
        rows = [
            {"axis": axis, "category": name, "n": counts[name], "reason": why}
            for name, why in left.items()
        ]
        tables.append(pd.DataFrame(rows, columns=COLUMNS))
    table = pd.concat([each for each in tables if len(each)] or tables[:1], ignore_index=True)
    flags = {name: table[name].eq(True) for name in ("total", "unsteady")}
    table = table.assign(n=table["n"].astype(int), **flags)
    where = {
        "first_layer": band[0],
        "last_layer": band[-1],
        "harmless": work.settings.category_harmless,
    }
    found_pairs = pd.concat(pairs[1:] or pairs, ignore_index=True)
    return table[COLUMNS].assign(**where), found_pairs[PAIRS].assign(**where)


def _band_states(work: Work, rows: Sequence[int], band: list[int]) -> Tensor:
    """States at t_inst and t_post: [prompts, 2, band, d_model]."""
    parts = in_parts(
        work.chat, work.subject.take(rows), ENDS, "states of the categories", work.progress
    )
    return torch.cat([states[:, :, band] for states in parts])


def _axis(
    work: Work, used: Sequence[str], groups: Sequence[Tensor], harmless: Tensor
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a category and one of all, and one row a pair; states [prompts, band, d_model]."""
    n, seed = work.settings.n_resamples, work.settings.seed
    shared_mean = work.settings.category_harmless == "shared"
    found = np.stack(bootstrap_likeness(groups, harmless, shared_mean, n, seed), axis=1)
    both, k = list(combinations(used, 2)), len(used)
    # In the order of `Likeness.flat`.
    ends = np.cumsum([len(both), k, 1, k])
    cosines, to_others, overall, to_mean, shared = np.split(found, ends)
    shuffled = shuffled_likeness(groups, harmless, shared_mean, n, seed)
    _, null_others, null_overall, _, null_shared = np.split(shuffled, ends, axis=1)
    rows = []
    for i, name in enumerate(used):
        halves = half_cosine(groups[i], harmless, seed)
        rows.append(
            {
                **{"category": name, "n": len(groups[i]), "reason": "", "halves": halves},
                "unsteady": halves < to_others[i, 0],
                **_bounds("to_others", to_others[i]),
                **_null("to_others", to_others[i, 0], null_others[:, i]),
                **_bounds("to_mean", to_mean[i]),
            }
        )
    rows.append(
        {
            **{"category": ALL, "total": True, "n": sum(map(len, groups)), "reason": ""},
            **_bounds("to_others", overall[0]),
            **_null("to_others", overall[0, 0], null_overall[:, 0]),
            **_bounds("shared", shared[0]),
            **_null("shared", shared[0, 0], null_shared[:, 0]),
        }
    )
    pairs = pd.DataFrame(both, columns=["a", "b"])
    pairs[["cosine", "low", "high"]] = cosines
    return pd.DataFrame(rows, columns=COLUMNS), pairs


def _bounds(name: str, found: npt.NDArray[np.float64]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found.tolist(), strict=True))


def _null(name: str, value: float, null: npt.NDArray[np.float64]) -> dict[str, float]:
    """Mean and 95 % range of a figure over shuffles [shuffles], and the two-sided p of the value found."""
    tail = min(int((null <= value).sum()), int((null >= value).sum()))
    middle = [float(null.mean()), *np.quantile(null, [0.025, 0.975])]
    return _bounds(f"{name}_null", np.array(middle)) | {
        f"{name}_p": min(1.0, 2 * (1 + tail) / (1 + len(null)))
    }
