"""The three scores of a guard against their plain formulas, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from refusalscope.errors import GuardError, InputError
from refusalscope.guard.heads import VARIANTS, Head

ROWS, WIDTH = 3, 12


def states(seed: int, n: int, shift: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(n, ROWS, WIDTH, generator=generator) @ mixing
    # What both classes share is large, as in a real residual stream.
    return noise + 10 + shift * torch.arange(WIDTH) / WIDTH


POSITIVE, NEGATIVE = states(0, 40, 4.0), states(1, 30, 0.0)
NEW = torch.cat([states(2, 5, 4.0), states(3, 5, 0.0)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def plain(variant: str, state: torch.Tensor) -> list[float]:
    """One prompt's score of each row, from the formulas."""
    found = []
    for row in range(ROWS):
        p, q = POSITIVE[:, row].double().numpy(), NEGATIVE[:, row].double().numpy()
        h, towards, away = state[row].double().numpy(), p.mean(0), q.mean(0)
        if variant == "centroid":
            found.append(cosine(h, towards) - cosine(h, away))
        elif variant == "centred":
            middle = (towards + away) / 2
            found.append(cosine(h - middle, towards - middle) - cosine(h - middle, away - middle))
        else:
            inside = np.concatenate([p - towards, q - away])
            # The covariance itself, built and inverted.
            covariance, _ = ledoit_wolf(inside, assume_centered=True)
            weight = np.linalg.inv(covariance) @ (towards - away)
            spread = np.sqrt(weight @ covariance @ weight)
            found.append(float(weight @ (h - (towards + away) / 2) / spread))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_profile_is_the_formula_row_by_row(variant):
    head = Head.fit(variant, POSITIVE, NEGATIVE)
    expected = np.array([plain(variant, state) for state in NEW])
    assert np.allclose(head.profile(NEW), expected, atol=2e-5)
    assert np.allclose(head.score(NEW), expected.mean(1), atol=2e-5)


def test_each_variant_tells_the_classes_apart_better_than_the_one_before():
    new, labels = torch.cat([states(4, 200, 4.0), states(5, 200, 0.0)]), np.repeat([1, 0], 200)
    areas = {
        variant: roc_auc_score(labels, Head.fit(variant, POSITIVE, NEGATIVE).score(new))
        for variant in VARIANTS
    }
    assert areas["lda"] > areas["centred"] > areas["centroid"] > 0.6


def test_what_says_nothing_scores_nothing():
    """Row 0 of a template token is the same for every prompt."""
    same = POSITIVE.clone(), NEGATIVE.clone()
    for each in same:
        each[:, 0] = 1.0
    head = Head.fit("lda", *same)
    assert head.profile(same[0])[:, 0].abs().max() == 0


@pytest.mark.parametrize("variant", ["centroid", "centred"])
def test_more_states_are_as_if_they_had_been_there(variant):
    whole = Head.fit(variant, POSITIVE, NEGATIVE)
    grown = Head.fit(variant, POSITIVE[:25], NEGATIVE).with_more(POSITIVE[25:])
    assert grown.n_towards == whole.n_towards == 40
    assert torch.allclose(grown.towards, whole.towards, atol=1e-6)
    assert torch.allclose(grown.score(NEW), whole.score(NEW), atol=1e-5)


def test_a_covariance_that_is_not_kept_cannot_grow():
    with pytest.raises(GuardError, match="fit it again"):
        Head.fit("lda", POSITIVE, NEGATIVE).with_more(POSITIVE)


def test_likeness_is_the_cosine_to_the_nearer_mean():
    head = Head.fit("centroid", POSITIVE, NEGATIVE)
    expected = [
        max(
            np.mean([cosine(s[r].numpy(), mean[r].numpy()) for r in range(ROWS)])
            for mean in (head.towards, head.away)
        )
        for s in NEW
    ]
    assert np.allclose(head.likeness(NEW), expected, atol=1e-6)
    assert head.likeness(-NEW).max() < head.likeness(NEW).min()


def test_heads_that_cannot_be():
    with pytest.raises(InputError, match="centroid, centred, lda"):
        Head.fit("mean", POSITIVE, NEGATIVE)
    with pytest.raises(InputError, match="0 states of one class"):
        Head.fit("centroid", POSITIVE[:0], NEGATIVE)
    with pytest.raises(InputError, match="2 of each"):
        Head.fit("lda", POSITIVE[:1], NEGATIVE)
