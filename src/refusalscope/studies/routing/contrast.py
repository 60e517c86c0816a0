"""Cipher contrast: how much a head's direct contribution depends on reading the request in plain text.

    kappa3 = |mean D(harmful) - mean D(wrapped harmful)|
    kappa4 = mean { [D(harmful) - D(benign)] - [D(wrapped harmful) - D(wrapped benign)] }

Source: arXiv 2604.04385, cipher contrast, for the three arms; the fourth, the control inside the wrapper, is
our reconstruction (alignment_routes section 8): it takes out what the wrapper does to any request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from refusalscope.errors import InputError
from refusalscope.stats import max_t_signflip, mean_interval
from refusalscope.studies.heads import clusters_of

Array = npt.NDArray[np.float64]


def contrast_table(
    direct: Mapping[str, Array],
    *,
    wrapper: str,
    layers: Sequence[int] | None = None,
    categories: Sequence[str] | None = None,
    min_kappa: float = 0.1,
    min_plain: float = 0.05,
    n_flips: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Table `routing.contrast`, a row a head.

    direct: arm -> contributions [pairs, layers, heads] in logits, such as `Arms.direct`; layers: their
    numbers, all in turn without it. Without the arm
    benign_cipher the columns of kappa4 are NaN. Columns: wrapper, layer, head, kappa3, kappa4 (signed) with
    kappa4_low, kappa4_high (BCa) and p_familywise (max-T sign flips), plain (mean D of the harmful prompts),
    contrast (mean D(harmful) - D(benign), what kappa3 is mostly made of), kept (kappa3 > min_kappa and
    |plain| >= min_plain), side of a kept head: pro refusal where plain is positive, counter where it is
    negative, and "" for the others. Raises InputError for arms that are missing or of different shape.
    """
    _check(direct)
    plain, cipher, benign = (direct[arm] for arm in ("plain", "cipher", "benign"))
    n, n_layers, n_heads = plain.shape
    mean_plain = plain.mean(axis=0).ravel()
    kappa3 = np.abs(mean_plain - cipher.mean(axis=0).ravel())
    kappa4 = np.full((3, n_layers * n_heads), np.nan)
    p = kappa4[0]
    if "benign_cipher" in direct:
        change = ((plain - benign) - (cipher - direct["benign_cipher"])).reshape(n, -1)
        kappa4 = intervals(change, categories, seed)
        p = max_t_signflip(change, n_flips, seed=seed).p_familywise
    kept = (kappa3 > min_kappa) & (np.abs(mean_plain) >= min_plain)
    return pd.DataFrame(
        {
            "wrapper": wrapper,
            "layer": np.repeat(layers if layers is not None else range(n_layers), n_heads),
            "head": np.tile(np.arange(n_heads), n_layers),
            "kappa3": kappa3,
            "kappa4": kappa4[0],
            "kappa4_low": kappa4[1],
            "kappa4_high": kappa4[2],
            "p_familywise": p,
            "plain": mean_plain,
            "contrast": mean_plain - benign.mean(axis=0).ravel(),
            "kept": kept,
            "side": np.where(kept, np.where(mean_plain > 0, "pro", "counter"), ""),
        }
    )


def contrast_agreement(
    kappa: npt.ArrayLike, contrast: npt.ArrayLike, top: int = 20
) -> dict[str, float]:
    """How alike two measures order the heads [heads], by size: where they agree, one adds little to the other.

    spearman and pearson of the absolute values, jaccard of the `top` largest of each.
    """
    first, second = (np.abs(np.asarray(values, dtype=np.float64)) for values in (kappa, contrast))
    best, other = (
        set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (first, second)
    )
    return {
        "spearman": float(spearmanr(first, second).statistic),
        "pearson": float(pearsonr(first, second).statistic),
        "jaccard": len(best & other) / len(best | other),
    }


def intervals(table: Array, categories: Sequence[str] | None, seed: int) -> Array:
    """Mean of every column of [pairs, columns] with its interval: [3, columns], mean, low, high."""
    clusters = clusters_of(categories)
    found = [mean_interval(column, clusters, seed=seed) for column in table.T]
    return np.array([[one.value, one.low, one.high] for one in found]).T


def _check(direct: Mapping[str, Array]) -> None:
    missing = [arm for arm in ("plain", "cipher", "benign") if arm not in direct]
    if missing:
        raise InputError(
            f"the cipher contrast needs the arm {missing[0]!r}; give plain, cipher and benign, and "
            f"benign_cipher for kappa4"
        )
    shapes = {arm: values.shape for arm, values in direct.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{arm} {list(shape)}" for arm, shape in shapes.items())
        raise InputError(
            f"the arms differ in shape ({listed}): attribute the same pairs in every arm"
        )
