"""Harmful against harmless prompts by their latents: the factorization machine, and a linear probe beside it.

sae_features section 7.2: inputs, split and probe are our reconstruction; the probe is the published baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit

from refusalscope.errors import InputError
from refusalscope.stats import Interval, wilson
from refusalscope.stats.interval import numbers
from refusalscope.studies.features.machine import FactorizationMachine

Array = npt.NDArray[np.float64]
# A latent varies from this standard deviation on, as a share of its largest input.
VARIES = 1e-4


class LatentInputs(TransformerMixin, BaseEstimator):
    """Peak activations made inputs: times |decoder row|, log1p, over the standard deviation in training.

    decoder_norms: [latents]. Fitted: kept_, the latents that are active on at least one harmful training row,
    in order; scale_ [kept], 1 where a latent never varies. `transform` gives the kept ones alone.
    """

    def __init__(self, decoder_norms: npt.ArrayLike) -> None:
        self.decoder_norms = decoder_norms

    def fit(self, x: npt.ArrayLike, y: npt.ArrayLike) -> LatentInputs:
        """x: [rows, latents], largest activation over the tokens but BOS; y: [rows], 1 for harmful.

        Raises InputError for negative activations, shapes that do not fit, or no latent left.
        """
        peaks = self._peaks(x)
        labels = numbers(y, "y")
        if len(labels) != len(peaks):
            raise InputError(f"x has {len(peaks)} rows and y {len(labels)}: expected as many")
        self.kept_ = np.flatnonzero((peaks[labels == 1] > 0).any(axis=0))
        if not len(self.kept_):
            raise InputError(
                "no latent is active on a harmful training row; take latents of a run in which they wake"
            )
        heights = np.log1p(peaks[:, self.kept_])
        spread = heights.std(axis=0)
        # A token that every prompt has, such as one of the template, varies by rounding alone.
        self.scale_ = np.where(spread > VARIES * heights.max(axis=0), spread, 1.0)
        return self

    def transform(self, x: npt.ArrayLike) -> Array:
        """Inputs [rows, kept]."""
        return np.log1p(self._peaks(x)[:, self.kept_]) / self.scale_

    def _peaks(self, x: npt.ArrayLike) -> Array:
        activations = numbers(x, "x", ndim=2)
        norms = numbers(self.decoder_norms, "decoder_norms")
        if activations.shape[1] != len(norms):
            raise InputError(
                f"x has {activations.shape[1]} latents and decoder_norms {len(norms)}: expected as many"
            )
        if (activations < 0).any():
            raise InputError("activations of latents are 0 or more; give them after the threshold")
        return activations * norms


@dataclass(frozen=True)
class Contrast:
    """Both models on one split. train, test: rows; accuracies on the test rows, with Wilson intervals.

    probe_weights: [latents of `inputs.kept_`], whose absolute values are the probe's ranking.
    """

    inputs: LatentInputs
    machine: FactorizationMachine
    probe_weights: Array
    train: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]
    machine_accuracy: Interval
    probe_accuracy: Interval


def fit_contrast(
    activations: npt.ArrayLike,
    harmful: npt.ArrayLike,
    prompts: Sequence[object],
    decoder_norms: npt.ArrayLike,
    *,
    machine: FactorizationMachine | None = None,
    test_share: float = 0.2,
    seed: int = 0,
) -> Contrast:
    """Train both on one split in which no prompt stands on both sides.

    activations: [rows, latents], see `LatentInputs`; harmful: [rows] of 1 and 0; prompts: [rows], the same name
    for rows that must stay together; machine: its settings (the published ones without it), copied, and seeded
    by `seed`. Raises InputError where a side of the split lacks a class, and as the parts do.
    """
    x, y = numbers(activations, "activations", ndim=2), numbers(harmful, "harmful")
    if not len(x) == len(y) == len(prompts) or len(set(prompts)) < 2:
        raise InputError(
            f"{len(x)} rows, {len(y)} labels and {len(prompts)} names of {len(set(prompts))} prompts do not "
            f"fit: expected as many of each, and two prompts or more"
        )
    codes = np.unique(np.asarray([str(name) for name in prompts]), return_inverse=True)[1]
    splitter = GroupShuffleSplit(1, test_size=test_share, random_state=seed)
    train, test = next(splitter.split(x, y, codes))
    if any(len(np.unique(y[rows])) < 2 for rows in (train, test)):
        raise InputError(
            "a side of the split holds harmful or harmless rows alone; give more prompts or another seed"
        )
    inputs = LatentInputs(decoder_norms).fit(x[train], y[train])
    seen, unseen = inputs.transform(x[train]), inputs.transform(x[test])
    settings = FactorizationMachine() if machine is None else machine
    fitted = clone(settings).set_params(random_state=seed).fit(seen, y[train])
    probe = LogisticRegression(max_iter=1000).fit(seen, y[train])
    right = (fitted.decision_function(unseen) > 0) == (y[test] == 1)
    probed = probe.predict(unseen) == y[test]
    return Contrast(
        *(inputs, fitted, probe.coef_[0], train, test),
        *(wilson(int(right.sum()), len(test)), wilson(int(probed.sum()), len(test))),
    )
