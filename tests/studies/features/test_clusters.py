"""Clusters of decoder rows and their effective rank, on planted rows and against slow definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from dictionary import synthetic
from dictionary.synthetic import ON_MODEL, WIDTH
from refusalscope.errors import InputError
from refusalscope.studies.features.clusters import (
    COLUMNS,
    clusters,
    effective_rank,
    unit_rows,
)
from studies.features.hydra_chat import hydra


@pytest.fixture(scope="module")
def dictionaries(tmp_path_factory):
    made = synthetic.on_model(tmp_path_factory.mktemp("saes"), 2, WIDTH)
    return {layer: dictionary for layer, (dictionary, _) in made.items()}


def woken(latents, set_id="s", arm="no_bos"):
    return pd.DataFrame(latents, columns=["layer", "latent"]).assign(set_id=set_id, arm=arm)


def parts(found):
    """The clusters as sets, in the order of their numbers."""
    return [
        set(zip(each["layer"], each["latent"], strict=True)) for _, each in found.groupby("cluster")
    ]


def test_a_write_is_one_cluster_over_the_layers_that_carry_it():
    made = hydra("base")
    b1, b2, inert = made.latents("B1 B2 W")
    names = [(layer, i) for layer in (5, 4) for i in (inert, b1, b2)]
    names += [(6, b2), (4, 20)]
    found = clusters(woken(names), made.dictionaries)
    assert list(found.columns) == COLUMNS
    assert parts(found) == [
        {(4, b2), (5, b2), (6, b2)},
        {(4, inert), (5, inert)},
        {(4, b1), (5, b1)},
        {(4, 20)},
    ]
    # The rows of the two backups share the refusal axis: a cosine of one half.
    assert parts(clusters(woken(names), made.dictionaries, together=0.49))[0] == {
        *((k, i) for k in (4, 5) for i in (b1, b2)),
        (6, b2),
    }


def slow_clusters(cosines, together):
    """Merge the two closest of all clusters by mean cosine, until none are close enough."""
    groups = [[i] for i in range(len(cosines))]
    while len(groups) > 1:
        best, (a, b) = max(
            (np.mean([cosines[i, j] for i in a for j in b]), (a, b))
            for a, b in combinations(groups, 2)
        )
        if best < together:
            break
        groups = [group for group in groups if group not in (a, b)] + [a + b]
    return {frozenset(group) for group in groups}


@pytest.mark.parametrize("together", [0.1, 0.25, 0.5])
def test_clusters_are_those_of_average_linkage(dictionaries, together):
    names = [(layer, latent) for layer in (0, 1) for latent in range(ON_MODEL)]
    rows = unit_rows(names, dictionaries)
    want = slow_clusters((rows @ rows.T).double().numpy(), together)
    assert 1 < len(want) < len(names)
    found = parts(clusters(woken(names), dictionaries, together=together))
    place = {name: i for i, name in enumerate(names)}
    assert {frozenset(place[name] for name in each) for each in found} == want
    assert [len(each) for each in found] == sorted(map(len, found), reverse=True)


def test_each_set_and_arm_is_clustered_by_itself(dictionaries):
    tables = [
        woken([(0, 1), (0, 2)], "a", "all"),
        woken([(0, 1)], "a", "no_bos"),
        woken([(1, 5), (0, 2)], "b"),
    ]
    found = clusters(pd.concat(tables, ignore_index=True), dictionaries)
    for (set_id, arm), part in found.groupby(["set_id", "arm"]):
        assert part["cluster"].min() == 0
        alone = [
            clusters(each, dictionaries)
            for each in tables
            if (each["set_id"][0], each["arm"][0]) == (set_id, arm)
        ]
        pd.testing.assert_frame_equal(part.reset_index(drop=True), alone[0])
    assert clusters(woken([]), dictionaries).empty


def test_the_effective_rank_counts_different_writes():
    eye = torch.eye(5)
    assert effective_rank(eye) == pytest.approx(5)
    assert effective_rank(eye[:1].expand(7, 5)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(-3 * eye) == pytest.approx(5)
    # Two thirds of the squares on one axis: exp of the entropy of (2/3, 1/3).
    rows = torch.stack([eye[0], eye[0], eye[1]])
    assert effective_rank(rows) == pytest.approx(1.5 * 2 ** (1 / 3))
    assert np.isnan(effective_rank(torch.empty(0, 5)))
    made = hydra("base")
    b1, b2 = made.latents("B1 B2")
    names = [(k, i) for k in (4, 5, 6, 7) for i in (b1, b2)]
    p = np.array([0.75, 0.25])
    want = np.exp(-(p * np.log(p)).sum())
    assert effective_rank(unit_rows(names, made.dictionaries)) == pytest.approx(want, abs=1e-3)


def test_rows_come_in_the_order_given_and_at_length_one(dictionaries):
    names = [(1, 3), (0, 7), (1, 2)]
    rows = unit_rows(names, dictionaries)
    for (layer, latent), row in zip(names, rows, strict=True):
        plain = dictionaries[layer].decoder.take([latent])[0]
        torch.testing.assert_close(row, plain / plain.norm())


def test_what_cannot_be_used_is_said(dictionaries):
    with pytest.raises(InputError, match="no dictionary of that layer"):
        clusters(woken([(9, 0)]), dictionaries)
    with pytest.raises(InputError, match="numbered 0 to"):
        clusters(woken([(0, 999)]), dictionaries)
    for together in (0.0, 1.5):
        with pytest.raises(InputError, match="above 0 and up to 1"):
            clusters(woken([(0, 1)]), dictionaries, together=together)
