"""The pruned search finds exactly what the whole product finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from refusalscope.prompts.similarity import embed, near_duplicate_groups, normalise, similar_rows


def _oracle(
    left: sparse.csr_matrix, right: sparse.csr_matrix, threshold: float
) -> dict[tuple[int, int], float]:
    product = (left @ right.T).toarray()
    return {
        (int(i), int(j)): float(product[i, j]) for i, j in np.argwhere(product >= threshold - 1e-9)
    }


def _found(
    left: sparse.csr_matrix, right: sparse.csr_matrix, threshold: float
) -> dict[tuple[int, int], float]:
    rows, columns, cosines = similar_rows(left, right, threshold)
    return dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), cosines, strict=True))


WORDS = st.sampled_from(["bake", "bread", "the", "a", "red", "car", "wash", "how", "tell", "me"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=7).map(" ".join), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(left=TEXTS, right=TEXTS, threshold=st.sampled_from([0.3, 0.6, 0.8, 1.0]))
def test_pruned_search_equals_the_whole_product(
    left: list[str], right: list[str], threshold: float
) -> None:
    vectors = embed(left + right)
    a, b = vectors[: len(left)], vectors[len(left) :]
    expected = _oracle(a, b, threshold)
    found = _found(a, b, threshold)
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - expected[key]) < 1e-9 for key in found)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_pruned_search_equals_the_whole_product_on_real_prompts(
    shared: Path, threshold: float
) -> None:
    splits = shared / "data/refusal_direction/splits"
    texts = [
        row["instruction"]
        for name, rows in (("harmless_test", 1500), ("harmful_test", 566))
        for row in json.loads((splits / f"{name}.json").read_text("utf-8"))[:rows]
    ]
    vectors = embed(texts)
    expected = _oracle(vectors[:1500], vectors, threshold)
    assert _found(vectors[:1500], vectors, threshold).keys() == expected.keys()
    assert len(expected) > 1500


def test_groups_follow_chains_of_near_duplicates() -> None:
    texts = [
        "Name the colours of the rainbow.",
        "Name the colours in the rainbow",
        "Tell me how a bicycle stays upright when it rolls.",
        "name the colours of a rainbow!",
        "Why do cats purr?",
    ]
    groups = near_duplicate_groups(texts)
    assert groups[0] == groups[1] == groups[3]
    assert len(set(groups[[0, 2, 4]])) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bake  Bread!", "bake bread"),
        ("ＢＡＫＥ it", "bake it"),
        ("straße", "STRASSE"),
        ("?!", "?!"),
    ],
)
def test_normalised_texts_are_equal(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1 + 1", "1 1"), ("?", "!"), ("कि", "का"), ("a b", "ab")]
)
def test_normalising_keeps_what_carries_meaning(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)
