"""How many different writes woken latents are: clusters of their decoder rows, and the effective rank.

Apparent many-headedness can be one write seen through many latents: at every layer that it passes, or split
over latents of one dictionary. Source: sae_features section 6 (our reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from refusalscope.dictionary import Dictionary
from refusalscope.errors import InputError
from refusalscope.studies.features.ablation import Latent
from refusalscope.studies.features.attribution import slices_of

COLUMNS = ["set_id", "arm", "cluster", "layer", "latent"]
# The mean cosine between two clusters from which they are one: an angle of 45 degrees.
TOGETHER = 0.7


def clusters(
    woken: pd.DataFrame, dictionaries: Mapping[int, Dictionary], *, together: float = TOGETHER
) -> pd.DataFrame:
    """The table features.clusters: set_id, arm, cluster, layer, latent.

    woken: rows of features.dormant (set_id, arm, layer, latent), of those latents that count as woken. In each
    set and arm, clusters merge while the mean cosine of their decoder rows, with its sign, is `together` or
    more (average linkage); cluster 0 is the largest. Raises InputError for a latent that no dictionary holds,
    or `together` outside 0 to 1.
    """
    if not 0 < together <= 1:
        raise InputError(f"together is a mean cosine above 0 and up to 1; got {together}")
    tables = []
    for (set_id, arm), part in woken.groupby(["set_id", "arm"], sort=False):
        latents = list(zip(part["layer"].tolist(), part["latent"].tolist(), strict=True))
        numbers = _numbers(_cosines(unit_rows(latents, dictionaries)), together)
        table = pd.DataFrame(latents, columns=["layer", "latent"])
        table = table.assign(set_id=str(set_id), arm=str(arm), cluster=numbers)
        tables.append(table.sort_values(["cluster", "layer", "latent"]))
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the squared singular values of [latents, d_model], as shares; NaN for none.

    Between 1, one write, and the number of rows, all orthogonal. Source: Roy and Vetterli 2007, who take the
    singular values themselves; their squares are shares of variance.
    """
    power = torch.linalg.svdvals(rows.double()) ** 2
    if not float(power.sum()) > 0:
        return float("nan")
    share = power / power.sum()
    return float(torch.special.entr(share).sum().exp())


def unit_rows(latents: Sequence[Latent], dictionaries: Mapping[int, Dictionary]) -> Tensor:
    """Decoder rows [latents, d_model], in the order given, at length 1, on the CPU.

    Raises InputError for a latent that no dictionary holds, or one named twice.
    """
    named: dict[int, list[int]] = {}
    for layer, latent in latents:
        named.setdefault(layer, []).append(latent)
    rows = {
        (layer, latent): row
        for layer, piece in slices_of(dictionaries, named).items()
        for latent, row in zip(piece.latents, piece.W_dec.cpu(), strict=True)
    }
    found = [rows[latent] for latent in latents]
    return torch.nn.functional.normalize(torch.stack(found), dim=1) if found else torch.empty(0, 0)


def _cosines(rows: Tensor) -> npt.NDArray[np.float64]:
    # Rounding must make no distance negative.
    return (rows.double() @ rows.double().T).clamp(max=1.0).numpy()


def _numbers(cosines: npt.NDArray[np.float64], together: float) -> npt.NDArray[np.intp]:
    """Number of the cluster of each row, by size, then by the first row."""
    if len(cosines) < 2:
        return np.zeros(len(cosines), dtype=np.intp)
    tree = linkage(squareform(1 - cosines, checks=False), method="average")
    # Rounding may not part what is exactly as close as asked.
    found = fcluster(tree, 1 - together + 1e-9, criterion="distance")
    kinds, first, label, size = np.unique(
        found, return_index=True, return_inverse=True, return_counts=True
    )
    place = np.empty(len(kinds), dtype=np.intp)
    place[np.lexsort((first, -size))] = np.arange(len(kinds))
    return place[label]
