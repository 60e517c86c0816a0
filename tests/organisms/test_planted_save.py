"""Saved planted models are ordinary checkpoints with their truth beside them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusalscope.errors import InputError, RunError
from refusalscope.organisms.planted import build, list_builtin, organism, read_truth, save
from refusalscope.prompts.readers import read_pairs

EVERY = [(item.kind, item.variant) for item in list_builtin()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    planted = build(seed=2)
    return planted, save(planted, tmp_path_factory.mktemp("organisms") / "base")


def test_the_generic_loader_gives_the_same_model_and_tokenizer(saved):
    planted, folder = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is type(planted.model)
    assert model.dtype == torch.float32
    original = planted.model.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == planted.tokenizer.chat_template
    assert tokenizer("w0 harm1")["input_ids"] == [24, 9]
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0


def test_there_is_no_pickle_in_the_folder(saved):
    names = {path.name for path in saved[1].iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pairs.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
        "truth.json",
    }


def test_the_truth_reads_back_as_written(saved):
    planted, folder = saved
    assert read_truth(folder) == planted.truth


@pytest.fixture(scope="module")
def saved_hydra(tmp_path_factory):
    planted = build("planted-hydra", seed=2)
    return planted, save(planted, tmp_path_factory.mktemp("organisms") / "hydra")


def test_a_dictionary_is_saved_per_layer_as_written(saved_hydra):
    planted, folder = saved_hydra
    layers = sorted((folder / "dictionary").iterdir())
    assert [path.name for path in layers] == [f"blocks.{i}.hook_resid_post" for i in range(8)]
    for path in layers:
        assert {file.name for file in path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
        stored = load_file(path / "sae_weights.safetensors")
        assert set(stored) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
        for name, tensor in stored.items():
            assert torch.equal(tensor, planted.dictionary[name])
        config = json.loads((path / "cfg.json").read_text())
        assert (config["architecture"], config["metadata"]["hook_name"]) == ("jumprelu", path.name)
        assert stored["W_enc"].shape == (config["d_in"], config["d_sae"]) == (64, 75)
        assert config["normalize_activations"] == config["reshape_activations"] == "none"
        assert config["apply_b_dec_to_input"] is False


def test_a_saved_hydra_reads_back_with_its_truth(saved_hydra):
    planted, folder = saved_hydra
    assert read_truth(folder) == planted.truth
    original = planted.model.state_dict()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())


def test_the_pairs_read_back_as_written(saved):
    planted, folder = saved
    pairs = read_pairs(folder / "pairs.jsonl")
    assert not pairs.skipped
    assert [(p.id, p.harmful, p.harmless, p.category) for p in pairs] == [
        (p.id, p.harmful, p.harmless, p.category) for p in planted.pairs
    ]


@pytest.mark.parametrize(("kind", "variant"), EVERY)
def test_generation_says_the_decision_word_and_stops(kind, variant, tmp_path):
    planted = build(kind, variant, pairs=6)
    folder = save(planted, tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    let_through = {word.word for word in planted.truth.words if not word.refused}
    for pair in planted.pairs:
        due = "comply" if pair.category in let_through else "refuse"
        for text, word in ((pair.harmful, due), (pair.harmless, "comply")):
            turn = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt"
            )
            reply = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
            assert tokenizer.decode(reply) == f"{word} <eos>"


def test_a_folder_with_something_in_it_is_left_alone(saved, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        save(saved[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_failed_save_leaves_nothing_behind(saved, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(organism, "write_truth", full)
    with pytest.raises(RunError, match="No space left on device"):
        save(saved[0], tmp_path / "organism")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_truth_is_said_to_be_absent(tmp_path):
    with pytest.raises(InputError, match="refusalscope organism build"):
        read_truth(tmp_path)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"surprise": 1}, {"heads": "none"}])
def test_a_truth_of_another_form_is_refused_with_the_field(saved, tmp_path, change):
    record = json.loads((saved[1] / "truth.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(record | change))
    with pytest.raises(InputError, match=next(iter(change))):
        read_truth(tmp_path)


def test_a_truth_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "truth.json").write_text("{")
    with pytest.raises(InputError, match="not a truth record"):
        read_truth(tmp_path)
