"""Directions of single categories: how alike they are, and how much of them is one shared axis.

v^k = mean over refused harmful prompts of category k - mean over all accepted harmless ones, at t_inst for
harmfulness and at t_post for refusal; similarity is the mean over a band of rows of the pairwise cosines
(arXiv 2507.11878, figure 9). Directions come from the fit split. They share one harmless mean, whose noise
lifts their cosines; `halves` is free of it, as each half of a category has a half of the harmless prompts of
its own.
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
from refusalscope.studies.directions.category_likeness import bootstrap_likeness, half_cosine

BAND = (11 / 28, 20 / 28)
AXES = ("harmfulness", "refusal")
ALL = "all"
BOUNDS = ("", "_low", "_high")
COLUMNS = ["axis", "category", "n", "reason"]
COLUMNS += [name + bound for name in ("to_others", "to_mean", "shared") for bound in BOUNDS]
COLUMNS += ["shared_if_orthogonal", "halves"]
PAIRS = ["axis", "a", "b", "cosine", "low", "high"]


def category_tables(
    work: Work, harmful: Sequence[int], harmless: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `belief.categories` and `belief.category_cosines`; harmful, harmless: rows to fit on.

    A category that cannot be compared has a `reason` and no figures. The row "all" of an axis holds the mean of
    all pairs and the shared energy, beside its value for orthogonal directions.
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
        rows = [{"axis": axis, "category": name, "reason": why} for name, why in left.items()]
        tables.append(pd.DataFrame(rows, columns=COLUMNS))
    table = pd.concat([each for each in tables if len(each)] or tables[:1], ignore_index=True)
    counts[ALL] = sum(counts[name] for name in used)
    table["n"] = [counts[name] for name in table["category"]]
    where = {"first_layer": band[0], "last_layer": band[-1]}
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
    settings = work.settings
    found = np.stack(
        bootstrap_likeness(groups, harmless, settings.n_resamples, settings.seed), axis=1
    )
    both, k = list(combinations(used, 2)), len(used)
    # In the order of `Likeness.flat`.
    cosines, to_others, overall, to_mean, shared = np.split(found, np.cumsum([len(both), k, 1, k]))
    rows = [
        {
            "category": name,
            "reason": "",
            "halves": half_cosine(groups[i], harmless, settings.seed),
            **_bounds("to_others", to_others[i]),
            **_bounds("to_mean", to_mean[i]),
        }
        for i, name in enumerate(used)
    ]
    figures = _bounds("to_others", overall[0]) | _bounds("shared", shared[0])
    rows.append({"category": ALL, "reason": "", **figures, "shared_if_orthogonal": 1 / k})
    pairs = pd.DataFrame(both, columns=["a", "b"])
    pairs[["cosine", "low", "high"]] = cosines
    return pd.DataFrame(rows, columns=COLUMNS), pairs


def _bounds(name: str, found: npt.NDArray[np.float64]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found.tolist(), strict=True))
