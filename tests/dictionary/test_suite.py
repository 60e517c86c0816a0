"""Several dictionaries by the names that a user gives, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dictionary import synthetic
from dictionary.synthetic import LAYERS, WIDTH, gemma_scope, llama_scope, saelens, tensors
from model import tiny
from refusalscope.dictionary import load_dictionary, load_suite, suite
from refusalscope.errors import InputError
from refusalscope.model import ChatModel


@pytest.fixture(scope="module")
def anatomy():
    return ChatModel.wrap(tiny.model("llama"), tiny.tokenizer(), id="tiny").anatomy


def at(folder: Path, layer: int, seed: int = 0, **options) -> Path:
    weights = tensors(seed, WIDTH, synthetic.ON_MODEL)
    hook = f"blocks.{layer}.hook_resid_post"
    return saelens(folder, weights=weights, hook=hook, **options)


def refused(names, anatomy, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_suite(names, anatomy)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_folders_are_loaded_by_their_layer_whatever_their_order(tmp_path, anatomy):
    folders = [at(tmp_path / name, layer) for name, layer in (("b", 3), ("a", 0), ("c", 1))]
    found = load_suite([str(folder) for folder in folders], anatomy)
    assert list(found) == [0, 1, 3]
    assert [each.name for each in found.values()] == [str(tmp_path / name) for name in "acb"]
    assert all(each.site.layer == layer for layer, each in found.items())


def test_a_folder_of_folders_is_all_that_it_holds(tmp_path, anatomy):
    for layer in range(LAYERS):
        at(tmp_path / "saes" / f"layer{layer}", layer, seed=layer)
    (tmp_path / "saes" / "notes").mkdir()
    (tmp_path / "saes" / "README.md").write_text("mine")
    assert list(load_suite([str(tmp_path / "saes")], anatomy)) == list(range(LAYERS))
    # One name alone is a name too, not its letters.
    assert list(load_suite(str(tmp_path / "saes"), anatomy)) == list(range(LAYERS))


def test_a_file_of_a_dictionary_names_it(tmp_path, anatomy):
    folder = at(tmp_path / "one", 2)
    assert list(load_suite([str(folder / "cfg.json")], anatomy)) == [2]


def test_layouts_can_be_mixed(tmp_path, anatomy):
    weights = tensors(0, WIDTH, synthetic.ON_MODEL)
    folders = [
        gemma_scope(tmp_path, weights, layer=1),
        llama_scope(tmp_path / "Llama3_1-8B-Base-L3R-8x", weights),
        at(tmp_path / "one", 0),
    ]
    found = load_suite([str(folder) for folder in folders], anatomy)
    assert list(found) == [0, 1, 3]


def test_the_package_has_dictionaries_of_its_own(anatomy):
    chat = ChatModel.load("builtin:chat").anatomy
    found = load_suite(["builtin:chat-sae"], chat)
    assert len(found) > 1
    layer = max(found)
    (one,) = load_suite([f"builtin:chat-sae/{layer}"], chat).values()
    assert one.name == found[layer].name == f"builtin:chat-sae/{layer}"
    refused(["builtin:nope"], chat, "builtin dictionaries 'nope'", "chat-sae")
    refused(["builtin:chat-sae/99"], chat, "no dictionary builtin:chat-sae/99", "there are")
    refused(["builtin:chat-sae"], anatomy, f"residual stream has {WIDTH}")


def releases(monkeypatch, folder: Path) -> list[tuple[str, str]]:
    """Loads of a release, noted and answered from a folder with one dictionary a layer."""
    asked = []

    def load(release, sae_id):
        asked.append((release, sae_id))
        return load_dictionary(folder / str(len(asked) - 1))

    monkeypatch.setattr(suite, "load_release", load)
    return asked


def test_a_release_and_an_id_are_fetched(tmp_path, anatomy, monkeypatch):
    at(tmp_path / "0", 2)
    asked = releases(monkeypatch, tmp_path)
    name = "gemma-scope-2b-pt-res:layer_2/width_16k/average_l0_82"
    assert list(load_suite([name], anatomy)) == [2]
    assert asked == [("gemma-scope-2b-pt-res", "layer_2/width_16k/average_l0_82")]


def test_a_llama_scope_release_alone_is_fetched_for_every_layer(tmp_path, anatomy, monkeypatch):
    for layer in range(LAYERS):
        at(tmp_path / str(layer), layer)
    asked = releases(monkeypatch, tmp_path)
    assert list(load_suite(["llama_scope_lxr_8x"], anatomy)) == list(range(LAYERS))
    assert asked == [("llama_scope_lxr_8x", f"l{layer}r_8x") for layer in range(LAYERS)]


def test_a_folder_is_not_taken_for_a_release(tmp_path, anatomy, monkeypatch):
    folder = at(tmp_path / "mine:2", 2)
    asked = releases(monkeypatch, tmp_path)
    assert list(load_suite([str(folder)], anatomy)) == [2]
    assert not asked


def test_names_that_name_nothing(tmp_path, anatomy):
    refused([], anatomy, "no dictionary was named", "--sae")
    refused([str(tmp_path / "none")], anatomy, "there is no folder", "RELEASE:SAE_ID")
    refused(["gemma-scope-2b-pt-res"], anatomy, "names no dictionary", "RELEASE:SAE_ID")
    (tmp_path / "empty").mkdir()
    refused([str(tmp_path / "empty")], anatomy, "holds no dictionary", "cfg.json")


def test_two_dictionaries_of_one_layer(tmp_path, anatomy):
    first, second = at(tmp_path / "first", 1), at(tmp_path / "second", 1, seed=1)
    refused(
        [str(first), str(second)], anatomy, "first", "second", "layer 1", "leave one of them out"
    )
    refused([str(first), str(first)], anatomy, "both dictionaries of layer 1")


def test_dictionaries_of_another_model(tmp_path, anatomy):
    narrow = saelens(tmp_path / "narrow")
    refused([str(narrow)], anatomy, "reads 12 dimensions", f"has {WIDTH}", "trained on this model")
    high = at(tmp_path / "high", LAYERS)
    refused([str(high)], anatomy, f"layers are 0 to {LAYERS - 1}")


def test_a_dictionary_that_is_not_whole(tmp_path, anatomy):
    folder = at(tmp_path / "saes" / "half", 1)
    (folder / "sae_weights.safetensors").unlink()
    # A folder of folders does not pass over one that lacks a file.
    refused([str(tmp_path / "saes")], anatomy, "lacks sae_weights.safetensors")
