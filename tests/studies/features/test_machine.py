"""The factorization machine against its definition, what it cannot learn, and the split around it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from refusalscope.errors import InputError
from refusalscope.studies.features import (
    FactorizationMachine,
    LatentInputs,
    fit_contrast,
    latent_scores,
    pair_weights,
    random_masks,
    top_latents,
)
from refusalscope.studies.features.machine import machine_score
from studies.features.test_interactions import TWELVE, D, measured, redundant_pairs


def slow_score(row, bias, weights, factors):
    total = bias + sum(w * x for w, x in zip(weights, row, strict=True))
    for i, j in combinations(range(len(row)), 2):
        total += factors[i] @ factors[j] * row[i] * row[j]
    return total


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_fast_form_equals_the_sum_over_pairs(latents, k, seed):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(4, latents)), rng.normal(size=latents)
    factors, bias = rng.normal(size=(latents, k)), rng.normal()
    parts = (torch.as_tensor(v, dtype=torch.float64) for v in (x, bias, weights, factors))
    fast = machine_score(*parts)
    slow = [slow_score(row, bias, weights, factors) for row in x]
    np.testing.assert_allclose(fast.numpy(), slow, atol=1e-9)


def test_a_latent_that_is_never_active_has_exactly_no_gradient():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.random((32, 6)))
    x[:, [1, 4]] = 0
    weights = torch.tensor(rng.normal(size=6), requires_grad=True)
    factors = torch.tensor(rng.normal(size=(6, 3)), requires_grad=True)
    z = machine_score(x, torch.tensor(0.1), weights, factors)
    labels = torch.tensor(rng.integers(0, 2, 32).astype(float))
    torch.nn.functional.binary_cross_entropy_with_logits(z, labels).backward()
    silent = torch.tensor([False, True, False, False, True, False])
    assert weights.grad[silent].abs().max() == 0
    assert factors.grad[silent].abs().max() == 0
    assert weights.grad[~silent].abs().min() > 0


def interaction(seed, rows=400):
    """Labels that only the product of latents 0 and 1 tells; 2 is noise, 3 is never active."""
    rng = np.random.default_rng(seed)
    x = np.c_[rng.choice([-1.0, 1.0], (rows, 2)), rng.normal(size=rows), np.zeros(rows)]
    return x, (x[:, 0] * x[:, 1] > 0).astype(float)


@pytest.fixture(scope="module")
def taught():
    x, y = interaction(0)
    return FactorizationMachine(learning_rate=0.02, k=4).fit(x, y)


def test_it_learns_a_product_that_no_linear_model_can(taught):
    x, y = interaction(1)
    assert ((taught.decision_function(x) > 0) == y).mean() > 0.95
    np.testing.assert_allclose(
        taught.decision_function(x[:5]),
        [slow_score(row, taught.bias_, taught.weights_, taught.factors_) for row in x[:5]],
    )


def test_never_active_latents_are_flagged_and_never_ranked(taught):
    assert taught.active_.tolist() == [True, True, True, False]
    assert taught.weights_[3] == 0
    assert not taught.factors_[3].any()
    x, y = interaction(0)
    for readout in ("pairs", "linear_pairs", "norm"):
        scores = latent_scores(taught, x[y == 1], [0, 3], readout)
        assert np.isnan(scores).tolist() == [False, False, False, True]
        assert 3 not in top_latents(scores, 4)
    assert top_latents(latent_scores(taught, x[y == 1], [0]), 1) == [1]


def test_the_readouts_equal_their_sums(taught):
    rng = np.random.default_rng(2)
    x = rng.random((9, 4))
    pairs = pair_weights(taught, x, [2, 0])
    for row, i in enumerate((2, 0)):
        for j in range(4):
            want = taught.factors_[i] @ taught.factors_[j] * np.mean(x[:, i] * x[:, j])
            if i == j or j == 3:
                assert np.isnan(pairs[row, j])
            else:
                assert pairs[row, j] == pytest.approx(want)
    want = [np.nansum(np.abs(pairs[:, j])) for j in range(3)]
    np.testing.assert_allclose(latent_scores(taught, x, [2, 0])[:3], want)
    linear = latent_scores(taught, x, [2, 0], "linear_pairs")[:3] - want
    np.testing.assert_allclose(linear, np.abs(taught.weights_[:3]) * x.mean(axis=0)[:3])
    norms = latent_scores(taught, x, [2, 0], "norm")[:3]
    np.testing.assert_allclose(norms, np.sqrt((taught.factors_[:3] ** 2).sum(axis=1)))


def test_the_seed_decides_and_the_settings_are_copied():
    x, y = interaction(0, rows=40)
    machine = FactorizationMachine(epochs=2)
    first, again = clone(machine).fit(x, y), clone(machine).fit(x, y)
    np.testing.assert_array_equal(first.factors_, again.factors_)
    other = clone(machine).set_params(random_state=1).fit(x, y)
    assert np.abs(first.factors_ - other.factors_).max() > 1e-4
    assert machine.get_params()["k"] == 20


def test_trained_on_masks_it_ranks_planted_pairs():
    upper = np.triu_indices(D, 1)
    labels = np.zeros((D, D), dtype=int)
    labels[tuple(np.transpose(TWELVE))] = 1
    masks = random_masks(1000, D, seed=0)
    y = measured(redundant_pairs, masks, 1.3, 0)
    machine = FactorizationMachine(loss="squared").fit(masks, y)
    pair = machine.factors_ @ machine.factors_.T
    assert roc_auc_score(labels[upper], -pair[upper]) > 0.85


def test_inputs_are_scaled_by_what_the_training_rows_say():
    peaks = np.array([[0.0, 2.0, 5.0, 1.0], [1.0, 0.0, 0.0, 1.0], [4.0, 0.0, 0.0, 1.0]])
    inputs = LatentInputs([1.5, 2.0, 1.0, 1.0]).fit(peaks, [0, 1, 1])
    assert inputs.kept_.tolist() == [0, 3]
    column = np.log1p(peaks[:, 0] * 1.5)
    new = np.array([[2.0, 9.0, 9.0, 3.0]])
    want = [[np.log1p(3.0) / column.std(), np.log1p(3.0)]]
    np.testing.assert_allclose(inputs.transform(new), want)


def prompts_and_latents(seed=0):
    """Harmful prompts fire latent 0 or 1, harmless ones 2; each prompt is there twice; 3 is never on."""
    rng = np.random.default_rng(seed)
    names = [f"p{i // 2}" for i in range(160)]
    harmful = np.array([(i // 2) % 2 for i in range(160)], dtype=float)
    x = rng.random((160, 4)) * 0.2
    x[:, 0] += harmful * 2
    x[:, 2] += (1 - harmful) * 2
    x[:, 3] = 0
    return x, harmful, names


def test_no_prompt_stands_on_both_sides_and_both_models_separate():
    x, harmful, names = prompts_and_latents()
    found = fit_contrast(x, harmful, names, np.ones(4), seed=3)
    sides = [{names[i] for i in rows} for rows in (found.train, found.test)]
    assert not sides[0] & sides[1]
    assert len(found.train) + len(found.test) == 160
    assert len(found.test) == 32
    assert found.machine_accuracy.n == found.probe_accuracy.n == 32
    assert found.machine_accuracy.value > 0.95
    assert found.probe_accuracy.value > 0.95
    assert found.machine_accuracy.low < 0.95
    assert found.inputs.kept_.tolist() == [0, 1, 2]
    assert found.probe_weights.shape == (3,)
    alone = LatentInputs(np.ones(4)).fit(x[found.train], harmful[found.train])
    np.testing.assert_array_equal(found.inputs.scale_, alone.scale_)


def test_shuffled_labels_are_not_learnt():
    x, harmful, names = prompts_and_latents()
    swapped = np.random.default_rng(1).permutation(harmful[::2]).repeat(2)
    found = fit_contrast(x, swapped, names, np.ones(4), seed=0)
    assert found.machine_accuracy.low < 0.5 < found.machine_accuracy.high


def test_wrong_input_is_said_to_be_wrong():
    x, harmful, names = prompts_and_latents()
    machine = FactorizationMachine()
    for act, message in (
        (lambda: machine.fit(x, harmful[:3]), "as many"),
        (lambda: machine.fit(x, harmful * 2), "labels of 0 and of 1"),
        (lambda: machine.fit(x * 0, harmful), "no latent is active"),
        (lambda: FactorizationMachine(loss="hinge").fit(x, harmful), "no loss"),
        (lambda: LatentInputs(np.ones(4)).fit(-x, harmful), "0 or more"),
        (lambda: LatentInputs(np.ones(3)).fit(x, harmful), "as many"),
        (lambda: LatentInputs(np.ones(4)).fit(x, harmful[:9]), "as many"),
        (lambda: LatentInputs(np.ones(4)).fit(x, harmful * 0), "no latent is active"),
        (lambda: fit_contrast(x, harmful, names[:3], np.ones(4)), "do not fit"),
        (lambda: fit_contrast(x, harmful * 0, names, np.ones(4)), "a side of the split"),
        (lambda: latent_scores(machine, x, [0], "best"), "no read-out"),
    ):
        with pytest.raises(InputError, match=message):
            act()
