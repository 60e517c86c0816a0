"""What the model believes of a prompt: harmfulness and refusal as two scores, and their geometry.

delta_harmful = mean over rows of cos(h_tinst, mu_harm) - cos(h_tinst, mu_harmless), delta_refuse likewise at
the prompt's end (arXiv 2507.11878, Eq. 3 and 4).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from refusalscope.errors import InputError
from refusalscope.studies.directions.extract import Centroids

QUADRANTS = {
    (True, True): "coherent harmful",
    (True, False): "suppressed refusal",
    (False, True): "over-refusal",
    (False, False): "coherent harmless",
}


def profile(states: Tensor, towards: Tensor, away: Tensor) -> Tensor:
    """Row-wise score s_l (Eq. 2): states [prompts, rows, d], centroids [rows, d] -> [prompts, rows]."""
    return cosine_similarity(states, towards, dim=-1) - cosine_similarity(states, away, dim=-1)


def belief_rows(name: str, n_layers: int) -> list[int]:
    """Rows that belief averages over, for a setting's name. Raises InputError for a model without any."""
    rows = {
        "inner": list(range(1, n_layers)),
        "with_final": list(range(1, n_layers + 1)),
        "all": list(range(n_layers + 1)),
    }[name]
    if not rows:
        raise InputError(
            "the model has too few layers for the rows 'inner', which leave out the first and the last; use "
            "'with_final'"
        )
    return rows


def belief_scores(
    at_instruction: Tensor, at_end: Tensor, means: Centroids, rows: list[int]
) -> pd.DataFrame:
    """delta_harmful, delta_refuse and the quadrant of each prompt; states [prompts, L+1, d]."""
    harm = profile(at_instruction[:, rows], means.harm[rows], means.harmless[rows])
    # Row 0 of the refusal centroids coincides at the prompt's end; its score is 0, as in the released code.
    refuse = profile(at_end[:, rows], means.refuse[rows], means.accept[rows])
    delta_harmful, delta_refuse = harm.mean(-1).numpy(), refuse.mean(-1).numpy()
    quadrant = [
        QUADRANTS[bool(h >= 0), bool(r >= 0)]
        for h, r in zip(delta_harmful, delta_refuse, strict=True)
    ]
    return pd.DataFrame(
        {
            "delta_harmful": delta_harmful.astype(float),
            "delta_refuse": delta_refuse.astype(float),
            "quadrant": quadrant,
        }
    )


def geometry(
    at_instruction: Tensor, at_end: Tensor, harmful: Tensor, n_resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Cosine of the harmfulness and refusal directions by row, with a basic bootstrap over prompts.

    Classes are resampled apart. Rows 1..L (row 0 of the refusal direction is zero). Norms are those of the
    directions; `residual_norm` is the mean norm of the states at the prompt's end.
    """
    rng = np.random.default_rng(seed)

    def directions(weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Difference of weighted class means at both positions; weights [prompts of a class]."""
        found = []
        for states in (at_instruction, at_end):
            means = [
                torch.einsum("n,nrd->rd", weight, states[mask])
                for weight, mask in zip(weights, (harmful, ~harmful), strict=True)
            ]
            found.append(means[0] - means[1])
        return found[0], found[1]

    sizes = [int(harmful.sum()), int((~harmful).sum())]
    v_harm, v_refuse = directions(
        (torch.full((sizes[0],), 1 / sizes[0]), torch.full((sizes[1],), 1 / sizes[1]))
    )
    draws = []
    for _ in range(n_resamples):
        first, second = (
            torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n)) / n).float() for n in sizes
        )
        draws.append(cosine_similarity(*directions((first, second)), dim=-1))
    cosine = cosine_similarity(v_harm, v_refuse, dim=-1).numpy()
    # Noise in a resample pulls a cosine towards 0, so the basic bootstrap, which corrects that bias.
    high, low = 2 * cosine - np.quantile(torch.stack(draws).numpy(), [0.025, 0.975], axis=0)
    n_rows = v_harm.shape[0]
    frame = pd.DataFrame(
        {
            "layer": range(n_rows),
            "cosine": cosine.astype(float),
            "low": low.clip(-1, 1).astype(float),
            "high": high.clip(-1, 1).astype(float),
            "harmfulness_norm": v_harm.norm(dim=-1).numpy().astype(float),
            "refusal_norm": v_refuse.norm(dim=-1).numpy().astype(float),
            "residual_norm": at_end.norm(dim=-1).mean(0).numpy().astype(float),
        }
    )
    return frame[frame["layer"] > 0].reset_index(drop=True)
