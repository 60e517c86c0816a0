"""One axis of belief: a score of states, larger towards one class of prompts than the other.

Variants: `centroid` is the paper's (arXiv 2507.11878, Eq. 2 to 4); `centred` takes the midpoint of the two
centroids off first, since raw cosines are ruled by what both classes share; `lda` weighs the dimensions by
the shrunk covariance within the classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor
from torch.nn.functional import cosine_similarity

from refusalscope.errors import GuardError, InputError
from refusalscope.studies.directions.belief import profile as cosine_difference

HeadVariant = Literal["centroid", "centred", "lda"]
VARIANTS: tuple[HeadVariant, ...] = get_args(HeadVariant)
TENSORS = ("towards", "away", "weight", "bias")


@dataclass(frozen=True)
class Head:
    """Class means [rows, d_model] float32 and counts; `lda` has a weight [rows, d] and a bias [rows] too."""

    variant: HeadVariant
    towards: Tensor
    away: Tensor
    n_towards: int
    n_away: int
    weight: Tensor | None = None
    bias: Tensor | None = None

    @classmethod
    def fit(cls, variant: HeadVariant, positive: Tensor, negative: Tensor) -> Head:
        """Fit on states [n, rows, d_model] of both classes. Raises InputError for an empty class."""
        if variant not in VARIANTS:
            raise InputError(f"there is no variant {variant!r}; choose {', '.join(VARIANTS)}")
        least = 1 if variant != "lda" else 2
        if min(len(positive), len(negative)) < least:
            raise InputError(
                f"a head is fitted on {len(positive)} states of one class and {len(negative)} of the other, "
                f"{least} of each are needed; give more prompts"
            )
        require_finite(positive, negative)
        towards, away = (each.double().mean(0).float() for each in (positive, negative))
        head = cls(variant, towards, away, len(positive), len(negative))
        if variant != "lda":
            return head
        found = [
            _discriminant(positive[:, row].double(), negative[:, row].double())
            for row in range(positive.shape[1])
        ]
        weight, bias = (torch.stack(part).float() for part in zip(*found, strict=True))
        return replace(head, weight=weight, bias=bias)

    def profile(self, states: Tensor) -> Tensor:
        """Score of each row: states [n, rows, d_model] -> [n, rows]; 0 is between the classes."""
        if self.variant == "centroid":
            return cosine_difference(states, self.towards, self.away)
        if self.variant == "centred":
            middle = (self.towards + self.away) / 2
            return cosine_difference(states - middle, self.towards - middle, self.away - middle)
        assert self.weight is not None
        assert self.bias is not None
        return torch.einsum("nrd,rd->nr", states, self.weight) + self.bias

    def score(self, states: Tensor) -> Tensor:
        """Mean over rows: [n, rows, d_model] -> [n]."""
        return self.profile(states).mean(-1)

    def likeness(self, states: Tensor) -> Tensor:
        """Cosine to the nearer of the two means, mean over rows: [n]; low where neither class is near."""
        near = [
            cosine_similarity(states, mean, dim=-1).mean(-1) for mean in (self.towards, self.away)
        ]
        return torch.maximum(*near)

    def with_more(self, positive: Tensor) -> Head:
        """The same head with further states [m, rows, d_model] in the class that it points to.

        Raises GuardError for `lda`, whose covariance is not kept.
        """
        if self.variant == "lda":
            raise GuardError(
                "an lda guard does not keep the states it was fitted on, so no example can be added; fit it "
                "again with them among the harmful prompts, or use the variant centroid or centred"
            )
        n = self.n_towards + len(positive)
        total = self.towards.double() * self.n_towards + positive.double().sum(0)
        return replace(self, towards=(total / n).float(), n_towards=n)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it."""
        found = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def require_finite(*states: Tensor) -> None:
    """Raises GuardError for states that are not finite: no score of them means anything."""
    if not all(torch.isfinite(each).all() for each in states):
        raise GuardError(
            "the model's states are not finite, so it cannot be guarded; load it in another precision"
        )


def _discriminant(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher's weight and bias of one row, in within-class standard deviations of the score.

    The covariance within the classes is shrunk towards its mean variance by Ledoit and Wolf's share. It is
    inverted in the smaller of its two spaces: with fewer states than dimensions it is never built (Woodbury).
    """
    means = positive.mean(0), negative.mean(0)
    inside = torch.cat([positive - means[0], negative - means[1]])
    n, width = inside.shape
    difference = means[0] - means[1]
    mean_variance = inside.square().sum() / (n * width)
    if mean_variance == 0 or difference.norm() == 0:
        # Row 0 of a template token is the same for every prompt: it says nothing.
        return torch.zeros_like(difference), difference.new_zeros(())
    share = float(ledoit_wolf_shrinkage(inside.numpy(), assume_centered=True))
    # A share of 0 would leave directions without variance, which no inverse has.
    ridge = max(share, 1e-6) * mean_variance
    scale = (1 - share) / n
    if n > width:
        covariance = inside.T @ inside * scale + ridge * torch.eye(width, dtype=inside.dtype)
        weight = torch.linalg.solve(covariance, difference)
    else:
        gram = torch.eye(n, dtype=inside.dtype) + inside @ inside.T * (scale / ridge)
        inner = torch.linalg.solve(gram, inside @ difference)
        weight = (difference - inside.T @ inner * (scale / ridge)) / ridge
    weight = weight / torch.sqrt(weight @ difference)
    return weight, -(weight @ (means[0] + means[1]) / 2)
