"""Hub datasets go through the datasets library, or end in one clear sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from refusalscope.errors import InputError
from refusalscope.prompts import read_pairs, read_prompts


class FakeDataset(list[dict[str, Any]]):
    column_names = ("prompt", "category")
    info = SimpleNamespace(license="mit")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    seen: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None, split: str) -> FakeDataset:
        seen.append((name, config, split))
        if name == "who/gone":
            raise ConnectionError("no way\nto the hub")
        return FakeDataset([{"prompt": "Bake.", "category": "food"}, {"prompt": ""}])

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return seen


def test_a_hub_dataset_is_read_like_a_file(calls: list[Any]) -> None:
    prompts = read_prompts("hf:some-one/bench.v1:hard:train", label="harmless")
    assert calls == [("some-one/bench.v1", "hard", "train")]
    assert [(p.id, p.text, p.category) for p in prompts] == [("bench.v1-1", "Bake.", "food")]
    assert prompts.skipped[0].line == 2
    (source,) = prompts.sources
    assert (source.path, source.licence, source.n) == ("hf:some-one/bench.v1:hard:train", "mit", 1)
    assert len(source.sha256) == 64
    read_prompts(Path("hf:some-one/bench:test"))
    assert calls[-1] == ("some-one/bench", None, "test")


@pytest.mark.parametrize("address", ["hf:bench", "hf:a/b", "hf:a/b:c:d:e", "hf:a/../b:test"])
def test_a_wrong_address_raises(address: str) -> None:
    with pytest.raises(InputError, match="hf:owner/name:split"):
        read_prompts(address)


@pytest.mark.usefixtures("calls")
def test_a_dataset_that_does_not_load_raises_one_line() -> None:
    with pytest.raises(InputError, match=r"does not load \(no way\); check") as caught:
        read_pairs("hf:who/gone:train")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"install refusalscope\[train\]"):
        read_prompts("hf:a/b:train")
